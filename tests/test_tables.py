"""Tables 1 and 2: cells, marks, Markdown and LaTeX."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from test_figures import write_folder

from wsjax.errors import RunError
from wsjax.results import cells, sheets
from wsjax.storage.records import read_run

ROOT = Path(__file__).parents[1]
OWN = {
    "dataset": "cifar10", "num_train": 50000, "num_test": 10000, "model": "mlp", "width": 64, "stem_pool": True,
    "hidden": [100, 100, 100], "activation": "tanh", "optimizer": "adam", "learning_rate": 0.001, "weight_decay": 0.0,
    "batch_size": 128, "epochs": 400, "stop": ["accuracy", "plateau"], "threshold": 0.99, "plateau_tolerance": 0.002,
    "plateau_window": 3, "train_accuracy": "after", "methods": ["RI", "WS"], "shrink": [0.3], "perturb": [0.01],
    "seeds": [42, 43, 44], "batch_stats": "keep", "opt_state": "keep", "fresh": "first", "evaluation": "batch",
    "fraction": 0.5, "first_epochs": None,
}  # fmt: skip
SCORES = {"RI": (0.46, 0.47, 0.48), "WS": (0.459, 0.460, 0.461)}


def write_cell(folder, scores=SCORES, finished=True, **settings):
    """A cell whose methods end with those scores, a seed each from 42 on."""
    rows = [
        {"method": name, "seed": 42 + i, "round": 2, "epoch": 9, "samples": 50000, "train_accuracy": 0.5,
         "test_accuracy": score, "stop": "plateau"}
        for name, own in scores.items() for i, score in enumerate(own)
    ]  # fmt: skip
    return write_folder(folder, "offline", OWN | settings, rows, finished)


def draw(number, *folders):
    return runpy.run_path(str(ROOT / "figures" / f"table{number}.py"))["draw"](list(map(read_run, folders)))


def row(sheet, *names):
    return next(list(own) for own in sheet.rows if list(own[: len(names)]) == list(names))


def test_errors_by_hand():
    own = cells.score_of([0.46, 0.47, 0.48])
    assert (own.mean, own.seeds) == (pytest.approx(47.0), 3)
    assert own.error == pytest.approx(1 / math.sqrt(3))
    there = cells.published_score(46.5, 0.2)
    assert there.error == pytest.approx(0.2 * math.sqrt(5 / 4))
    limit = 2 * math.hypot(own.error, there.error)
    assert not cells.is_off(own, there._replace(mean=own.mean - limit + 1e-6))
    assert cells.is_off(own, there._replace(mean=own.mean - limit - 1e-6))
    one = cells.published_score(46.5, None)  # of one seed, which scatters by 1 as ours do
    assert not cells.is_off(own, one._replace(mean=own.mean - 2 * math.hypot(own.error, 1) + 1e-6))
    assert cells.is_off(own, one._replace(mean=own.mean - 2 * math.hypot(own.error, 1) - 1e-6))
    assert not cells.is_off(cells.score_of([0.9]), there)


def test_a_cell_stands_beside_the_published_one_and_missing_ones_are_empty(tmp_path):
    sheet, caption = draw(1, write_cell(tmp_path / "a"))
    assert len(sheet.rows) == 27
    assert row(sheet, "MLP", "CIFAR-10", "Adam")[3:] == [
        "47.0 ± 0.6", "46.5 ± 0.2", "46.0 ± 0.1", "46.0 ± 0.3", "+1.0 ± 2.2", "3",
    ]  # fmt: skip
    assert row(sheet, "ResNet-18", "SVHN", "SGD")[3:] == ["", "84.7 ± 0.1", "", "86.3 ± 0.4", "", ""]
    assert caption.ran == "1 of 27 published cells ran; seeds 42 to 44."
    assert caption.differs == "Settings as published."
    assert caption.came.startswith(
        "0 of 2 means with the published network, data, optimiser and stop rule are off (†)."
    )


def test_what_is_off_is_marked_but_only_where_settings_are_the_published_ones(tmp_path):
    high = {"RI": (0.496, 0.5, 0.504), "WS": (0.459, 0.460, 0.461)}
    sheet, caption = draw(1, write_cell(tmp_path / "a", high))
    assert row(sheet, "MLP", "CIFAR-10", "Adam")[3:6] == ["50.0 ± 0.2 †", "46.5 ± 0.2", "46.0 ± 0.1"]
    assert caption.came.startswith("1 of 2 means")
    assert "RI - WS is above 0 in 1 of 1 cells" in caption.came
    sheet, caption = draw(1, write_cell(tmp_path / "b", high, hidden=[50]))
    assert row(sheet, "MLP", "CIFAR-10", "Adam")[3] == "50.0 ± 0.2"
    assert "hidden layers 50 instead of 100/100/100" in caption.differs


def test_the_starred_cells_have_their_own_rate(tmp_path):
    svhn = {"dataset": "svhn", "optimizer": "sgd", "num_train": 73257, "num_test": 26032}
    _, caption = draw(1, write_cell(tmp_path / "a", learning_rate=0.005, **svhn))
    assert caption.differs == "Settings as published."
    _, caption = draw(1, write_cell(tmp_path / "b", **svhn), write_cell(tmp_path / "c"))
    assert caption.differs == "Not as published: learning rate 0.001 instead of 0.005 (MLP SVHN SGD)."


def test_batch_statistics_have_columns_of_their_own(tmp_path):
    low = {"RI": (0.7, 0.71), "WS": (0.6, 0.62)}
    runs = [write_cell(tmp_path / "a", model="resnet18", evaluation="batch"), write_cell(tmp_path / "mlp")]
    runs.append(write_cell(tmp_path / "b", low, model="resnet18", evaluation="running"))
    sheet, _ = draw(1, *runs)
    assert list(sheet.columns[9:]) == [
        "RI, batch statistics", "WS, batch statistics", "RI - WS, batch statistics", "seeds, batch statistics",
    ]  # fmt: skip
    own = row(sheet, "ResNet-18", "CIFAR-10", "Adam")
    assert own[3] == "70.5 ± 0.5 †"
    assert own[9:11] == ["47.0 ± 0.6 †", "46.0 ± 0.1 †"]
    assert row(sheet, "MLP", "CIFAR-10", "Adam")[3] == "47.0 ± 0.6"  # has no statistics


def test_table2_goes_by_weight_decay(tmp_path):
    offline = {"model": "resnet18", "optimizer": "sgd", "stop": ["epochs"], "epochs": 200, "evaluation": "running",
               "train_accuracy": "running", "fresh": "new", "opt_state": "rebuild"}  # fmt: skip
    scores = {"RI": (0.81, 0.82), "WS": (0.8,)}
    sheet, caption = draw(2, write_cell(tmp_path / "a", scores, weight_decay=0.1, **offline))
    assert [own[3] for own in sheet.rows] == ["0.1", "0.01", "0.001"]
    assert list(sheet.rows[0][4:]) == ["81.5 ± 0.5", "81.4", "80.0", "81.2", "+1.0", "2/1"]
    assert "1 of 3 published cells ran" in caption.ran
    assert caption.differs == "Settings as published."


def test_where_it_ran_is_told_once_each(tmp_path):
    folders = [write_cell(tmp_path / name, weight_decay=decay) for name, decay in (("a", 0.1), ("b", 0.01), ("c", 0.1))]
    records = folders[2] / "records.jsonl"
    records.write_text(records.read_text().replace('"seed": 4', '"seed": 5'))  # more seeds of the first cell
    for folder, device in zip(folders, ("cpu one", "cpu two", "cpu two"), strict=True):
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(about | {"devices": [device]}))
    places = "; ".join(f"cpu {own}, jax 0.10.1, commit abcdef012" for own in ("one", "two"))
    assert draw(2, *folders)[1].notes.endswith(f" Ran on {places}.")


def test_what_is_no_table_is_refused_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"^nothing to draw"):
        draw(1)
    with pytest.raises(RunError, match=r"^runs of different settings cannot share a figure: width 64 and 8$"):
        draw(1, write_cell(tmp_path / "a"), write_cell(tmp_path / "b", width=8))
    with pytest.raises(RunError, match=r"^two runs of one cell, MLP CIFAR-10 Adam, differ in evaluation"):
        draw(1, tmp_path / "a", write_cell(tmp_path / "c", evaluation="running"))
    with pytest.raises(RunError, match=r"^there are no epochs to draw yet"):
        draw(1, write_cell(tmp_path / "d", {}))
    begun = write_cell(tmp_path / "e")
    (begun / "records.jsonl").write_text((begun / "records.jsonl").read_text().replace('"plateau"', "null"))
    with pytest.raises(RunError, match=r"no second round has ended yet"):
        draw(1, begun)


def test_a_run_under_way_is_told(tmp_path):
    _, caption = draw(
        1, write_cell(tmp_path / "a", {"RI": (0.46,)}, finished=False), write_cell(tmp_path / "b", {}, model="logistic")
    )
    assert caption.differs.startswith("UNFINISHED RUN")


def test_files_are_written_without_jax_and_bad_folders_are_one_line(tmp_path):
    folder = write_cell(tmp_path / "a")
    script = str(ROOT / "figures" / "table1.py")
    code = f"import runpy, sys; sys.modules['jax'] = None; runpy.run_path({script!r}, run_name='__main__')"
    line = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run([*line, folder, "--out", tmp_path / "t"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.txt").read_text() == done.stdout
    assert "| MLP | CIFAR-10 | Adam | 47.0 ± 0.6 |" in (tmp_path / "t.md").read_text()
    assert r"MLP & CIFAR-10 & Adam & 47.0 $\pm$ 0.6 &" in (tmp_path / "t.tex").read_text()
    done = subprocess.run([*line, tmp_path / "none", "--out", tmp_path / "u"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2, f"error: {tmp_path / 'none'} is not a run's folder: it has no config.json\n",
    )  # fmt: skip
    assert not list(tmp_path.glob("u.*"))


def test_sheets_escape_what_would_be_markup():
    sheet = sheets.Sheet(["a|b", "n"], [["x_1 & 50 %", "-1.0 ± 2 †"]])
    assert sheet.markdown == "| a\\|b | n |\n| :-- | --: |\n| x\\_1 & 50 % | -1.0 ± 2 † |\n"
    assert r"x\_1 \& 50 \% & $-$1.0 $\pm$ 2 $^\dagger$ \\" in sheet.latex
    assert sheet.latex.startswith("\\begin{tabular}{lr}\n")
