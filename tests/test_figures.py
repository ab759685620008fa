import json
import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from wsjax.errors import RunError
from wsjax.results import names, plots
from wsjax.storage.records import read_run

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "figures"
PUBLISHED = FIGURES / "published"
CONFIG = {
    "dataset": "cifar10",
    "model": "resnet18",
    "width": 8,
    "stem_pool": True,
    "optimizer": "sgd",
    "learning_rate": 0.001,
    "weight_decay": 0.0,
    "batch_size": 128,
    "epochs": 4,
    "stop": ["epochs"],
    "methods": ["RI", "WS", "SP"],
    "shrink": [0.1, 0.3],
    "perturb": [0.01],
    "seeds": [0, 1],
    "batch_stats": "keep",
    "opt_state": "rebuild",
    "evaluation": "running",
    "fraction": 0.5,
    "num_train": 5000,
    "num_test": 10000,
}
METHODS = names.from_settings(CONFIG["methods"], [0.1, 0.6], [0.01])
FINAL = {"first": 0.5, "RI": 0.6, "WS": 0.575, "SP 0.1": 0.8, "SP 0.3": 0.65}


def write_folder(folder, experiment, config, rows, finished, methods=None):
    about = {} if methods is None else {"methods": methods}
    about |= {
        "experiment": experiment,
        "versions": {"jax": "0.10.1"},
        "devices": ["cpu"],
        "git_commit": "abcdef0123456",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(about | {"config": config}))
    rest = dict.fromkeys(("steps", "samples_seen", "train_loss", "test_loss", "train_seconds", "eval_seconds"), 0)
    (folder / "records.jsonl").write_text("".join(json.dumps(rest | row) + "\n" for row in rows))
    if finished:
        (folder / "summary.json").write_text("{}")
    return folder


def write_run(folder, methods=tuple(FINAL), finished=True, **settings):
    """A run of straight curves that end at FINAL, a point higher for every further seed."""
    config = CONFIG | settings
    rows = [
        {
            "method": method,
            "seed": seed,
            "round": 1 if method == "first" else 2,
            "epoch": epoch,
            "samples": config["num_train"] // (2 if method == "first" else 1),
            "train_accuracy": epoch / config["epochs"],
            "test_accuracy": (FINAL[method] + seed / 100) * epoch / config["epochs"],
            "stop": "epochs" if epoch == config["epochs"] else None,
        }
        for seed in config["seeds"]
        for method in methods
        for epoch in range(1, config["epochs"] + 1)
    ]
    return write_folder(folder, "offline", config, rows, finished)


ONLINE = {name: value for name, value in CONFIG.items() if name != "fraction"} | {
    "optimizer": "adam",
    "opt_state": "rebuild",
    "stop": ["accuracy"],
    "threshold": 0.99,
    "shrink": [0.0, 0.4],
    "num_train": 50000,
    "increment": 1000,
    "pool": 2 / 3,
}
PER_ROUND = {"first": 0.01, "RI": 0.02, "WS": 0.01, "RI x 0.01": 0.02, "SP 0.4": 0.02}  # points of accuracy


def write_online_run(folder, sizes=(1000, 2000, 3000), finished=True, **settings):
    """A run of one epoch a round whose accuracies rise by PER_ROUND, a point higher for every further seed."""
    config = ONLINE | settings
    rows = [
        {
            "method": method,
            "seed": seed,
            "round": number,
            "epoch": 1,
            "samples": size,
            "steps": 10 * number if method == "RI" else 2 * number,
            "samples_seen": size,
            "train_accuracy": 0.99,
            "test_accuracy": 0.3 + PER_ROUND[method] * number + seed / 100,
            "stop": "epochs" if (method, number) == ("RI", 3) else "accuracy",
            "train_seconds": float(number),
            "eval_seconds": 0.1,
        }
        for seed in config["seeds"]
        for method in PER_ROUND
        for number, size in enumerate(sizes, 1)
        if (method == "first") == (number == 1)
    ]
    return write_folder(folder, "online", config, rows, finished)


def draw(number, *runs, **options):
    """The figure's caption; the picture is made, and nothing is written."""
    figure, caption = runpy.run_path(str(FIGURES / f"figure{number}.py"))["draw"](list(map(read_run, runs)), **options)
    plots.add_caption(figure, caption)
    figure.draw_without_rendering()
    return caption.text


def command(number, *arguments, **options):
    """Runs the script as a user does, with jax out of reach and warnings as errors."""
    script = str(FIGURES / f"figure{number}.py")
    code = f"import runpy, sys; sys.modules['jax'] = None; runpy.run_path({script!r}, run_name='__main__')"
    line = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_script_writes_picture_and_caption(tmp_path, number):
    out = tmp_path / "new" / "figure"
    write = write_run if number in (1, 5) else write_online_run
    result = command(number, write(tmp_path / "run"), "--out", out)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "new" / "figure.txt").read_text() == result.stdout
    assert result.stdout.startswith(f"Figure {number}: ")


@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_script_refuses_in_one_line(tmp_path, number):
    result = command(number, tmp_path / "none", "--out", tmp_path / "figure")
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'none'} is not a run's folder: it has no config.json\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_script_without_a_folder_says_so(number):
    result = command(number)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: nothing to draw: give the folder of one run or of several\n"


@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_what_is_no_run_of_the_figure_is_refused(tmp_path, number):
    own, other = (write_run, write_online_run) if number in (1, 5) else (write_online_run, write_run)
    with pytest.raises(RunError, match=r"^not a run of the (offline|online) experiment but of '(offline|online)'$"):
        draw(number, other(tmp_path / "other"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty is not a run's folder: it has no config\.json$"):
        draw(number, tmp_path / "empty")
    begun = own(tmp_path / "begun")
    (begun / "records.jsonl").write_text('{"method": "first", "se')
    with pytest.raises(RunError, match=r"^there are no epochs to draw yet: wait for the first one"):
        draw(number, begun)


def test_paths_from_home_are_found(tmp_path):
    write_run(tmp_path / "run")
    result = command(1, "~/run", "--out=~/figure", env={**os.environ, "HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "figure.txt").read_text() == result.stdout


def test_drawing_loads_no_jax():
    code = "import runpy, sys\n"
    code += "for number in (1, 2, 5, 6): runpy.run_path(f'figures/figure{number}.py')\n"
    code += "sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_caption_compares_with_the_published_run(tmp_path):
    text = draw(1, write_run(tmp_path / "run"))
    assert (
        "Not as published: width 8 instead of 64; 5,000 training images instead of 50,000; "
        "4 epochs a round instead of 200." in text
    )
    assert "RI 60.5" in text
    assert "(60.3)" in text
    assert "(58.7)" in text
    assert "Ran on cpu, jax 0.10.1, commit abcdef012." in text
    assert "SP" not in text  # Figure 1 has none


@pytest.mark.parametrize(("number", "write"), [(1, "offline"), (5, "offline"), (2, "online"), (6, "online")])
def test_published_curves_stand_behind_those_of_the_same_network_only(tmp_path, number, write):
    make = {"offline": partial(write_run, num_train=50000), "online": write_online_run}[write]

    def dashed(width):
        run = read_run(make(tmp_path / str(width), width=width, batch_stats="keep", evaluation="running"))
        figure, caption = runpy.run_path(str(FIGURES / f"figure{number}.py"))["draw"]([run])
        assert ("No published curve is drawn" in caption.notes) == (width != 64)
        return sum(line.get_linewidth() == 0.9 for axis in figure.axes for line in axis.get_lines())  # the others 1.2

    assert dashed(64) >= 2
    assert dashed(8) == 0


def test_figure5_has_controls_in_a_panel_of_their_own(tmp_path):
    methods = names.from_settings(["RI", "WS", "SP"], [0.1, 0.3], [0.01]) | {
        "RI x 0.1": {"reinit": "shrink_perturb", "shrink": 0.0, "perturb": 0.1},
        "SPN 0.3": {"reinit": "size_of_shrink_perturb", "shrink": 0.3, "perturb": 0.01},
    }
    script = runpy.run_path(str(FIGURES / "figure5.py"))
    report, controls = names.with_controls(methods).values()
    assert report == ["RI", "WS", "SP 0.1", "SP 0.3"]
    assert set(controls) == {"RI", "SP 0.1", "SP 0.3", "RI x 0.1", "SPN 0.3"}
    assert names.with_controls({name: methods[name] for name in report}) == {}
    rows = [{"method": name, "seed": 0, "round": 2, "epoch": 1, "samples": 100, "train_accuracy": 1.0,
             "test_accuracy": 0.5, "stop": "epochs"} for name in methods]  # fmt: skip
    figure = script["draw"]([read_run(write_folder(tmp_path / "run", "offline", CONFIG, rows, True, methods))])[0]
    assert [axis.get_title() for axis in figure.axes] == ["as in the report", "controls"]


def test_figure6_has_controls_in_a_row_of_their_own(tmp_path):
    """Other learning rates are controls too, of shrink-perturb of any shrink."""
    methods = names.from_settings(["RI", "SP", "RI@0.003"], [0.2, 0.4], [0.01])
    rows = [{"method": name, "seed": 0, "round": number, "epoch": 1, "samples": 1000 * number, "train_accuracy": 1.0,
             "test_accuracy": 0.5, "stop": "accuracy"} for name in methods for number in (2, 3)]  # fmt: skip
    run = write_folder(tmp_path / "more", "online", ONLINE | {"shrink": [0.2, 0.4], "seeds": [0]}, rows, True, methods)
    figure = runpy.run_path(str(FIGURES / "figure6.py"))["draw"]([read_run(run)])[0]
    above, _, below, _ = figure.axes
    assert [axis.get_title() for axis in (above, below)] == ["as in the report", "controls"]
    labels = [{line.get_label() for line in axis.lines if line.get_label()[0] != "_"} for axis in (above, below)]
    assert labels == [{"RI", "SP 0.2", "SP 0.4"}, {"RI", "RI@0.003"}]


def test_figure5_compares_every_shrink(tmp_path):
    text = draw(5, write_run(tmp_path / "run", seeds=[0]))
    assert "SP 0.1 80.0 (80.9); SP 0.3 65.0 (64.7); RI - WS 2.5 (1.6)." in text


def test_figure2_compares_at_the_images_that_the_run_reached(tmp_path):
    text = draw(2, write_online_run(tmp_path / "run"))
    assert (
        "Not as published: width 8 instead of 64; 4 epochs a round instead of no cap; train accuracy running instead "
        "of after; evaluation with running statistics instead of batch." in text
    )
    # the report's third round: RI 48.92, WS 48.78
    assert "at 3,000 images in percent (published): RI 36.5 ± 6.4 (48.9); WS 33.5 ± 6.4 (48.8)" in text
    assert "RI - WS 3.0 ± 0.0 (0.1)" in text
    assert "RI - WS changes by +1.00 points [+1.00, +1.00] a round." in text
    # RI takes 2 + 20 + 30 steps (the first round is common), WS 2 + 4 + 6
    assert "Steps over all rounds, in percent of RI's: WS 23.1 ± 0.0." in text
    assert "2 of 10 rounds ended at the cap of 4 epochs." in text
    assert "SP" not in text


def test_figure2_has_a_curve_for_each_panel_and_none_for_other_runs(tmp_path):
    svhn = {"dataset": "svhn", "num_train": 73257, "threshold": 0.999}
    text = draw(2, write_online_run(tmp_path / "c", **svhn))
    assert "(78.6)" in text  # panel c, RI at 3,000
    assert "(published" not in draw(2, write_online_run(tmp_path / "a", threshold=0.9))
    assert "(published" not in draw(2, write_online_run(tmp_path / "b", model="mlp"))


def test_figure6_compares_with_the_paper_at_the_pools_end(tmp_path):
    sizes = (1000, 2000, 33334)
    text = draw(6, write_online_run(tmp_path / "run", sizes=sizes, seeds=[0]))
    assert "RI 36.0 (78.3); WS 33.0 (73.2); RI x 0.01 36.0 (76.5); SP 0.4 36.0 (78.0)" in text
    assert "1,000 images more a round instead of 2,500" in text


def test_an_online_run_under_way_is_drawn_as_far_as_all_ways_are(tmp_path):
    folder = write_online_run(tmp_path / "run", finished=False, seeds=[0])
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:4]))  # first, RI 2, RI 3, WS 2
    text = draw(2, folder)
    assert "UNFINISHED RUN" in text
    assert "at 2,000 images in percent (published): RI 34.0 (43.5); WS 32.0 (45.6)" in text
    assert "Steps over all rounds" not in text


def test_settings_as_published_are_said_to_be(tmp_path):
    own = {"width": 64, "epochs": 200, "num_train": 50000}
    assert "Settings as published." in draw(1, write_run(tmp_path / "run", **own))
    assert "Not as published: batch statistics: reset instead of keep." in draw(
        1, write_run(tmp_path / "other", batch_stats="reset", **own)
    )


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize("other", [{"dataset": "svhn"}, {"model": "mlp"}])
def test_another_data_set_or_model_gets_no_published_curve(tmp_path, number, other):
    text = draw(number, write_run(tmp_path / "run", **other))
    assert f"No published curve is drawn: the report's Figure {number} is ResNet-18 of width 64" in text
    assert "(published" not in text


def test_an_unfinished_run_is_drawn_and_called_so(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:10]) + lines[10][:20])  # half a line at the end
    assert "UNFINISHED RUN, so far at seed 0, WS, round 2, epoch 2." in draw(1, folder)


METHODS_OF_A_USER = {
    "scratch": {"reinit": "random_init"},
    "$x_1$ <b>": {"reinit": "warm_start"},
    "_": {"reinit": "shrink_perturb", "shrink": 0.3, "perturb": 0.01},
    "SP": {"reinit": "mine"},
}


@pytest.mark.parametrize("number", [1, 5])
def test_methods_of_any_name_are_drawn_by_what_they_are(tmp_path, number):
    shown = write_run(tmp_path / "run", seeds=[0])
    folder = tmp_path / "own"
    folder.mkdir()
    config = json.loads((shown / "config.json").read_text()) | {"methods": METHODS_OF_A_USER}
    rows = (shown / "records.jsonl").read_text().replace('"SP 0.1"', '"SP"').replace('"SP 0.3"', '"_"')
    rows = rows.replace('"RI"', '"scratch"').replace('"WS"', '"$x_1$ <b>"')
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "records.jsonl").write_text(rows)
    text = draw(number, folder)
    assert "scratch 60.0 (60.3); $x_1$ <b> 57.5 (58.7); " in text
    assert "scratch - $x_1$ <b> 2.5 (1.6)." in text
    assert ("_ 65.0 (64.7); SP 80.0; scratch" in text) == (number == 5)


@pytest.mark.parametrize("number", [2, 6])
@pytest.mark.parametrize("cost", ["seconds", "steps"])
def test_one_round_is_drawn(tmp_path, number, cost):
    text = draw(number, write_online_run(tmp_path / "run", sizes=(1000,), seeds=[0], max_rounds=1), cost=cost)
    assert "at most 1 rounds" in text
    assert "Test accuracy at 1,000 images in percent: first round 31.0." in text


@pytest.mark.parametrize("number", [2, 6])
def test_an_unfinished_first_round_has_nothing_to_draw_yet(tmp_path, number):
    folder = write_online_run(tmp_path / "run", finished=False)
    row = json.loads((folder / "records.jsonl").read_text().splitlines()[0]) | {"stop": None}
    (folder / "records.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RunError, match=r"^no round has ended yet: wait for the first one$"):
        draw(number, folder)


def test_runs_of_other_seeds_are_merged_and_of_other_settings_refused(tmp_path):
    runs = [write_run(tmp_path / name, seeds=[seed]) for seed, name in enumerate("abc")]
    assert "seeds 0 to 2" in draw(5, *runs)
    with pytest.raises(RunError, match=r"width 8 and 16; learning_rate 0\.001 and 0\.1"):
        draw(5, runs[0], write_run(tmp_path / "d", width=16, learning_rate=0.1))


def test_published_curves_count_epochs_from_one_within_each_round():
    report = json.loads((PUBLISHED / "report.json").read_text())["figure1_and_5_curves_epoch_accuracy"]
    curves = runpy.run_path(str(FIGURES / "figure1.py"))["published_curves"](report, METHODS)
    assert curves["test_accuracy", "first"][0].tolist() == [1, 20.29]
    assert curves["test_accuracy", "first"][-1].tolist() == [200, 54.09]
    assert curves["test_accuracy", "WS"][0].tolist() == [1, 54.91]
    assert curves["test_accuracy", "WS"][-1].tolist() == [200, 58.7]
    assert curves["test_accuracy", "RI"][0].tolist() == [1, 25.94]
    assert curves["train_accuracy", "RI"][-1].tolist() == [200, 99.97]
    curves = runpy.run_path(str(FIGURES / "figure5.py"))["published_curves"](report, METHODS)
    assert curves["test_accuracy", "SP 0.1"][-1].tolist() == [200, 80.9]
    assert curves["test_accuracy", "SP 0.6"][0].tolist() == [1, 57.67]


def test_published_numbers():
    names = ("report", "paper", "board")
    report, paper, board = (json.loads((PUBLISHED / f"{name}.json").read_text()) for name in names)
    assert report["figure5_final"] == {
        "random": 60.3, "warm": 58.7, "shrink_0_1": 80.9, "shrink_0_3": 64.7, "shrink_0_6": 59.7,
    }  # fmt: skip
    assert len(report["table1"]) == 54
    assert report["table1"][3] == {
        "model": "resnet18", "dataset": "cifar10", "optimizer": "sgd", "init": "warm", "accuracy": 57.8, "spread": 0.4,
    }  # fmt: skip
    assert report["table2"][0] == {"weight_decay": 0.1, "random": 81.44, "warm": 81.16}
    assert report["figure7_shrink_lambda_index_accuracy"]["mlp_tanh_bias"][3] == 0.1644
    assert len(paper["table1"]) == 36
    assert paper["figure7_at_34k"]["lambda_0.6"] == {"accuracy": 76.5, "seconds_per_round": 150}
    last = {"round": 50, "method": {"reinit": "dash", "shrink": 0.3}, "accuracy": 84.08}
    assert last in board["protocols"][0]["numbers"]


def test_an_empty_path_is_not_the_present_folder(tmp_path):
    done = command(1, tmp_path, "--out=")
    assert (done.returncode, done.stderr) == (2, "error: --out is empty: give a path, or leave it out\n")
