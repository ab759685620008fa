"""The board of methods: its numbers by hand, what stands beside them, and how it is drawn, of made-up runs."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from test_figures import CONFIG, FIGURES, write_folder

from wsjax.errors import RunError
from wsjax.results import board, names, plots
from wsjax.storage.records import read_run

SCRIPT = runpy.run_path(str(FIGURES / "board.py"))
PROTOCOLS = json.loads((FIGURES / "published" / "board.json").read_text())["protocols"]
DASH = {"reinit": "dash", "shrink": 0.3, "decay": 0.3, "chunk": 1000}
SPG = {"reinit": "gaussian_perturb", "shrink": 0.3, "std": 0.01}
T_2 = 4.302652730  # Student's t for 95 %, two-sided, with 2 degrees of freedom

# Test accuracies of three seeds, each of three epochs of ten steps; the second is that of the first less 0.02.
OFFLINE = {
    "RI": [[0.40, 0.50, 0.60], [0.40, 0.50, 0.58], [0.40, 0.50, 0.59]],
    "WS": [[0.50, 0.55, 0.57], [0.50, 0.58, 0.55], [0.50, 0.55, 0.56]],
    "SP": [[0.60, 0.60, 0.65], [0.50, 0.60, 0.64], [0.50, 0.55, 0.66]],
}


def rows(curves, number=2, seeds=(0, 1, 2), stop="epochs"):
    return [
        {
            "method": name, "seed": seed, "round": number, "epoch": epoch, "samples": 1000 * number,
            "steps": 10 * epoch, "samples_seen": 1000 * epoch, "train_accuracy": 1.0, "test_accuracy": test,
            "stop": stop if epoch == len(own[seed]) else None, "train_seconds": 1.0,
        }
        for name, own in curves.items() for seed in seeds for epoch, test in enumerate(own[seed], 1)
    ]  # fmt: skip


def offline(folder, curves=OFFLINE, finished=True, methods=None, **settings):
    config = CONFIG | {"seeds": [0, 1, 2], "shrink": [0.3], "methods": list(curves)} | settings
    methods = methods or names.from_settings(curves, [0.3], [0.01], {"DASH": DASH})
    return write_folder(folder, "offline", config, rows({"first": [[0.3]] * 3}, 1) + rows(curves), finished, methods)


ONLINE = next(own for own in PROTOCOLS if own["experiment"] == "online")["settings"]


def online(folder, curves, rounds=10, finished=True, **settings):
    """A run of DASH's protocol whose rounds after the first are all alike."""
    config = {name: value for name, value in CONFIG.items() if name != "fraction"} | ONLINE
    config |= {"seeds": [0, 1, 2], "shrink": [0.3], "methods": list(curves), "pool": 1.0, "epochs": 10000} | settings
    found = rows({"first": [[0.3]] * 3}, 1, stop="accuracy")
    for number in range(2, rounds + 1):
        found += rows(curves, number, stop="accuracy")
    methods = names.from_settings(curves, [0.3], [0.01], {"DASH": DASH, "SPG": SPG})
    return write_folder(folder, "online", config, found, finished, methods)


def read(*folders):
    return [read_run(folder) for folder in folders]


def blocks(*folders):
    return board.blocks(read(*folders), PROTOCOLS)


def draw(*folders):
    figure, caption = SCRIPT["draw"](read(*folders))
    plots.add_caption(figure, caption)
    figure.draw_without_rendering()
    return figure, caption


def test_entries_by_hand(tmp_path):
    (block,) = blocks(offline(tmp_path / "a"))
    assert block.title == "Offline: CIFAR-10, ResNet-18 of width 8"
    assert (block.random, block.round, block.missing, block.source) == ("RI", 2, [], "")
    random, warm, shrunk = block.entries
    assert (random.name, warm.name, shrunk.name) == ("RI", "WS", "SP 0.3")
    assert random.score["mean"] == pytest.approx(0.59)
    assert (random.win, random.cost, random.until) == (None, None, None)
    assert warm.win["mean"] == pytest.approx(-0.03)  # three times the same
    assert warm.win["low"] == pytest.approx(-0.03)
    # SP less RI: 0.05, 0.06, 0.07.
    assert shrunk.win["mean"] == pytest.approx(0.06)
    assert shrunk.win["high"] - shrunk.win["mean"] == pytest.approx(T_2 * 0.01 / math.sqrt(3))
    assert shrunk.cost["mean"] == 1.0
    # RI has its end after 30 steps; SP after 10, 20 and 30; WS in the second seed alone, after 20.
    assert shrunk.until["steps"]["mean"] == pytest.approx((3 * 1.5 * 1) ** (1 / 3))
    assert (warm.until["reached"], warm.until["at_most"]) == (1, True)


def test_the_table_and_what_is_said(tmp_path):
    found = blocks(offline(tmp_path / "a"))
    sheet = board.table(found)
    cells = [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows]
    assert [row["Method"] for row in cells] == ["RI", "WS", "SP 0.3"]
    assert cells[0]["Test"] == "59.00 ± 2.48"
    assert [row["Method - RI"] for row in cells] == ["", "-3.00 ± 0.00", "+6.00 ± 2.48"]
    assert [row["Steps, % of RI's"] for row in cells] == ["", "100 ± 0", "100 ± 0"]
    assert cells[1]["To RI's accuracy, times as fast"] == "1 of 3 seeds (at most 1.14)"
    assert cells[2]["To RI's accuracy, times as fast"].startswith("1.65 (")
    assert not {"the same, published", "in the last round"} & set(sheet.columns)
    assert "SP 0.3" in sheet.markdown
    assert r"\begin{tabular}" in sheet.latex
    caption = board.caption(found)
    assert caption.came == "Above RI: SP 0.3 (+6.0 ± 2.5); below RI: WS (-3.0 ± 0.0)."
    assert "seeds 0 to 2" in caption.ran
    assert caption.differs == ""


def test_online_the_last_rounds_steps_stand_beside_those_of_all(tmp_path):
    """The second round costs both three epochs, the third and last RI two and SP one."""
    run = online(tmp_path / "a", {name: OFFLINE[name] for name in ("RI", "SP")}, rounds=2)
    last = rows({"RI": [[0.5, 0.6]] * 3, "SP": [[0.7]] * 3}, 3, stop="accuracy")
    with (run / "records.jsonl").open("a") as file:
        file.writelines(
            json.dumps(dict.fromkeys(("train_loss", "test_loss", "eval_seconds"), 0) | row) + "\n" for row in last
        )
    sheet = board.table(blocks(run))
    cells = [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows]
    assert [row["in the last round"] for row in cells] == ["", "50 ± 0"]
    assert [row["Steps, % of RI's"] for row in cells] != ["", "50 ± 0"]
    assert cells[1]["To RI's accuracy, times as fast"] == "at least 2.00"
    figure, caption = draw(run)
    assert "one to the left the most" in caption.notes
    (point,) = [line for line in figure.axes[2].lines if line.get_gid() == "most"]
    assert point.get_xdata()[0] == pytest.approx(50)
    assert figure.axes[2].get_xlim()[0] < 50


def test_published_numbers_stand_beside_the_very_settings_only(tmp_path):
    curves = {"RI": [[0.5, 0.52]] * 3, "WS": [[0.49]] * 3, "SP": [[0.6, 0.65]] * 3, "SPG": [[0.6, 0.65]] * 3}
    curves["DASH"] = [[0.6, 0.7]] * 3
    (block,) = blocks(online(tmp_path / "a", curves))
    assert block.title == "DASH's protocol: CIFAR-10, ResNet-18 of width 64"
    shown = {entry.name: entry.published for entry in block.entries}
    assert shown == {  # the authors' logs at round 10
        "RI": None, "WS": pytest.approx(49.0 - 52.1), "SP 0.3": None,  # which is another one
        "SPG": pytest.approx(65.1 - 52.1), "DASH": pytest.approx(69.5 - 52.1),
    }  # fmt: skip
    assert "training logs" in board.caption([block]).notes
    sheet = board.table([block])
    assert [row[sheet.columns.index("the same, published")] for row in sheet.rows] == ["", "-3.1", "", "+13.0", "+17.4"]
    # Steps of 9 rounds; the first, of one epoch, is everybody's.
    assert block.entries[1].cost["mean"] == pytest.approx((10 + 9 * 10) / (10 + 9 * 20))
    for other in ({"rounds": 9}, {"width": 16}, {"learning_rate": 0.01}):
        (block,) = blocks(online(tmp_path / str(other), curves, **other))
        assert {entry.published for entry in block.entries} == {None}
        assert block.source == ""
    assert block.title == "Online: CIFAR-10, ResNet-18 of width 64"  # at another rate it is not DASH's protocol
    (block,) = blocks(online(tmp_path / "all", curves, rounds=50))
    (own,) = (entry for entry in block.entries if entry.name == "WS")
    assert own.published_cost == pytest.approx(665 / 2916)


def test_published_numbers_are_whole():
    for protocol in PROTOCOLS:
        assert protocol["source"]
        by_round = {}
        for own in protocol["numbers"]:
            by_round.setdefault(own["round"], []).append(own["method"]["reinit"])
            assert 0 < own["accuracy"] < 100
        assert all("random_init" in kinds for kinds in by_round.values())


def test_protocols_side_by_side_are_told_apart(tmp_path):
    runs = (
        offline(tmp_path / "a"),
        offline(tmp_path / "more", {"RI": OFFLINE["RI"], "WS": OFFLINE["WS"]}, seeds=[0, 1, 2]),  # of the same
        offline(tmp_path / "b", optimizer="adam"),
        online(tmp_path / "c", {"RI": [[0.5, 0.52]] * 3, "WS": [[0.49]] * 3}),
    )
    found = blocks(*runs)
    assert [block.title for block in found] == [
        "DASH's protocol: CIFAR-10, ResNet-18 of width 64",
        "Offline: CIFAR-10, ResNet-18 of width 8, SGD",
        "Offline: CIFAR-10, ResNet-18 of width 8, Adam",
    ]
    figure, _ = draw(*runs)
    assert len(figure.axes) == 9
    assert [axis.texts[0].get_text() for axis in figure.axes[::3]] == [
        f"{block.title} (RI {100 * block.entries[0].score['mean']:.1f} %)" for block in found
    ]
    assert [text.get_text() for text in figure.axes[3].get_yticklabels()] == ["WS", "SP 0.3"]


def test_raised_rates_and_a_users_own_names(tmp_path):
    table = {
        "scratch": {"reinit": "random_init"}, "RI@0.01": {"reinit": "random_init", "learning_rate": 0.01},
        "$mine\x1b": {"reinit": "mine", "strength": 2},
    }  # fmt: skip
    curves = dict(zip(table, OFFLINE.values(), strict=True))
    (block,) = blocks(offline(tmp_path / "a", curves, methods=table))
    assert block.random == "scratch"
    assert {entry.name for entry in block.entries if entry.win is not None} == {"RI@0.01", "$mine\x1b"}
    figure, caption = draw(tmp_path / "a")
    assert r"$mine\x1b" in [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert r"$mine\x1b with strength 2" in caption.text


def test_what_is_not_there_is_said(tmp_path):
    # RI has three seeds, WS two, SP none; one seed of RI gives no intervals.
    begun = {"RI": OFFLINE["RI"], "WS": OFFLINE["WS"]}
    config = CONFIG | {"seeds": [0, 1, 2], "shrink": [0.3], "methods": ["RI", "WS", "SP"]}
    methods = names.from_settings(["RI", "WS", "SP"], [0.3], [0.01])
    own = [row for row in rows(begun) if (row["method"], row["seed"]) != ("WS", 2)]
    folder = write_folder(tmp_path / "a", "offline", config, own, False, methods)
    (block,) = blocks(folder)
    assert block.missing == ["WS has 2 of 3 seeds at round 2", "SP 0.3 has 0 of 3 seeds at round 2"]
    _, caption = draw(folder)
    assert "SP 0.3 has 0 of 3 seeds" in caption.differs
    (block,) = blocks(write_folder(tmp_path / "b", "offline", config, rows(begun, seeds=(1,)), False, methods))
    assert (block.entries[1].win["low"], block.entries[1].win["mean"]) == (None, pytest.approx(-0.03))
    draw(tmp_path / "b")
    # Online, DASH is at round 3 of RI's 5.
    late = online(tmp_path / "c", {"RI": [[0.5, 0.6]] * 3, "WS": [[0.5]] * 3, "DASH": [[0.7]] * 3}, 5, finished=False)
    records = [json.loads(line) for line in (late / "records.jsonl").read_text().splitlines()]
    kept = [row for row in records if row["method"] != "DASH" or row["round"] < 4]
    (late / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (block,) = blocks(late)
    assert (block.round, block.missing) == (5, ["DASH has 0 of 3 seeds at round 5"])
    # Without RI there is a table, and nothing to compare with.
    (block,) = blocks(offline(tmp_path / "d", {"WS": OFFLINE["WS"]}, methods={"WS": {"reinit": "warm_start"}}))
    assert block.missing == ["RI has not ended, so that there is nothing to compare with"]
    assert [entry.win for entry in block.entries] == [None]
    draw(tmp_path / "d")


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"^nothing to draw: give the folder"):
        draw()
    with pytest.raises(RunError, match=r"^not a run of the online or offline experiment but of 'transfer'$"):
        draw(write_folder(tmp_path / "a", "transfer", CONFIG, rows(OFFLINE), True))
    begun = write_folder(tmp_path / "b", "offline", CONFIG, rows({"first": [[0.3]] * 3}, 1), False)
    with pytest.raises(RunError, match=r"^no second round has ended yet: wait for the first one$"):
        draw(begun)


def test_scores_that_are_no_accuracies_are_told_as_they_are(tmp_path):
    curves = {name: [[100 * test for test in own] for own in seeds] for name, seeds in OFFLINE.items()}
    (block,) = blocks(offline(tmp_path / "a", curves))
    assert [entry.until for entry in block.entries] == [None] * 3
    figure, caption = draw(tmp_path / "a")
    assert figure.axes[0].get_xlabel() == "Test score less RI's"
    assert len(figure.axes) == 2
    assert "until RI's accuracy" not in caption.text  # of which no panel tells
    assert "until RI's accuracy" in draw(offline(tmp_path / "b"))[1].text
    assert board.table([block]).rows[2][3] == "+6 ± 2.484"


def test_the_script_writes_picture_caption_and_table_without_jax(tmp_path):
    code = "import sys, runpy; sys.modules['jax'] = None; sys.argv[0] = 'board.py';"
    code += f"runpy.run_path({str(FIGURES / 'board.py')!r}, run_name='__main__')"
    out = tmp_path / "f"
    done = subprocess.run(
        [sys.executable, "-c", code, str(offline(tmp_path / "a")), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(f"{out}.txt").read_text() == done.stdout
    assert Path(f"{out}.png").stat().st_size > 5000
    assert Path(f"{out}.pdf").exists()
    assert "SP 0.3" in Path(f"{out}.md").read_text()
    assert "SP 0.3" in Path(f"{out}.tex").read_text()


def test_the_boards_of_the_study_are_of_experiments_that_it_shows():
    grids = runpy.run_path(str(FIGURES.parent / "experiments" / "reproduce.py"))["GRIDS"]
    for grid in grids.values():
        assert all(job.split()[0] in board.EXPERIMENTS for job in grid.get("board", []))
