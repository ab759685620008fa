"""The hyperparameters script end to end, tiny; which cells follow which; what its rows come to; and Figure 4."""

import dataclasses
import json
import runpy
from functools import partial

import pytest
from test_figures import CONFIG, FIGURES, command, draw, write_folder, write_online_run

from wsjax.errors import RunError
from wsjax.results import hyperparameters, words
from wsjax.scripts import grid
from wsjax.storage.records import read_run

TINY = (
    *("--hidden", 8, "--num_train", 40, "--num_test", 30, "--seeds", 0, 1, "--epochs", 3, "--threshold", 0.3),
    *("--learning_rates", 0.03, 0.01, "--batch_sizes", 16),
)
WIDER = (*TINY, "--learning_rates", 0.03, "--batch_sizes", 16, 8, 20)
SECONDS = ("train_seconds", "eval_seconds")


@pytest.fixture
def search(script):
    """Runs the script in this process: (exit code, stdout, stderr)."""
    return partial(script, "hyperparameters")


def timeless(rows, *but):
    return [{name: value for name, value in row.items() if name not in (*SECONDS, *but)} for row in rows]


def found(folder, name="digits-mlp-adam"):
    return read_run(folder / "runs" / "hyperparameters" / name)


def test_every_warm_start_has_its_own_half_and_a_chain_goes_on(search, tmp_path):
    code, out, error = search(*WIDER, "--run", "own")
    assert code == 0, error
    assert "With the same settings on all of the data RI - WS" in " ".join(out.split())
    config, rows, summary, _ = found(tmp_path, "own")
    grid = [(0.03, 16), (0.03, 8), (0.03, 20)]
    drawn = {}
    for end in summary["rows"]:
        first, *_ = cells_of(config["methods"][end["method"]])
        place = (end["start"], *first, end["seed"])
        assert place not in drawn  # one each
        drawn[place] = tuple(end["cell"])
        assert end["samples"] == 40
        assert end["steps"] == end["epochs"] * -(-40 // end["cell"][1])
    assert set(drawn) == {(start, *cell, seed) for start in ("RI", "WS") for cell in grid for seed in (0, 1)}
    for (start, *cell, _), own in drawn.items():
        assert (own == tuple(cell)) == (start == "RI")
    assert {end["samples"] for end in summary["first_rounds"]} == {20}
    assert len(summary["cells"]) == 3 + len({own for (start, *_), own in drawn.items() if start == "WS"})
    json.dumps(summary, allow_nan=False)
    records = tmp_path / "runs" / "hyperparameters" / "own" / "records.jsonl"
    before = records.read_bytes()
    assert search(*WIDER, "--run", "own")[0] == 0
    assert records.read_bytes() == before  # a finished run trains nothing

    assert search(*WIDER, "--run", "chain", "--chained", "--methods", "WS")[0] == 0
    chain = found(tmp_path, "chain")
    for cell in grid:
        name = f"WS {cell[0]}/{cell[1]}, chained"
        assert chain.config["methods"][name]["cells"] == [list(cell), *(list(drawn["WS", *cell, s]) for s in (0, 1))]
        # Of the first seed the chain's first two rounds are its own warm start; what follows goes on from there.
        other = next(own for own, spec in config["methods"].items() if cells_of(spec) == [cell, drawn["WS", *cell, 0]])
        one, two = (
            [row for row in run if (row["method"], row["seed"]) == (method, 0) and row["round"] < 3]
            for run, method in ((chain.rows, name), (rows, other))
        )
        assert timeless(one, "method") == timeless(two, "method")
    third = [end["test_accuracy"] for end in chain.summary["rows"] if (end["seed"], end["round"]) == (1, 3)]
    own = [end["test_accuracy"] for end in summary["rows"] if (end["seed"], end["start"]) == (1, "WS")]
    assert third != own


def cells_of(spec):
    return [tuple(cell) for cell in spec["cells"]]


def test_a_run_that_was_interrupted_ends_in_the_same_rows(search, tmp_path, monkeypatch):
    assert search(*TINY, "--run", "whole")[0] == 0
    for method, number in (("RI 0.01/16", 1), ("WS 0.03/16, 0.01/16", 2)):

        def observe(advance, caps, watch, rows, here=(method, number)):
            if (rows[-1]["method"], rows[-1]["round"]) == here:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("wsjax.scripts.run._observe", observe)
            assert search(*TINY, "--run", "cut")[0] == 130
    assert len(found(tmp_path, "cut").rows) < len(found(tmp_path, "whole").rows)
    assert search(*TINY, "--run", "cut")[0] == 0
    assert timeless(found(tmp_path, "cut").rows) == timeless(found(tmp_path, "whole").rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "SP"), "--methods: this experiment compares RI and WS, not SP"),
        (("--learning_rates", 0.1, 0), "--learning_rates must be positive, not 0.0"),
        (("--batch_sizes", 16, 16), "--batch_sizes must not repeat a value: 16 16"),
        (("--learning_rate", 0.5), "--learning_rate has no use here: give the cells' own with --learning_rates"),
        (("--batch_size", 8), "--batch_size has no use here: give the cells' own with --batch_sizes"),
        (("--stop", "epochs"), "--stop=epochs: cells are compared where they converge; give accuracy"),
        (("--fraction", 0), "--fraction must lie in (0, 1], not 0.0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(search, arguments, message):
    code, _, error = search(*TINY, *arguments)
    assert (code, error) == (2, f"error: {message}\n")


def test_a_cell_whose_loss_is_not_finite_ends_and_the_others_go_on(search, tmp_path):
    code, text, _ = search(*TINY, "--optimizer", "sgd", "--learning_rates", 1e30, 0.1, "--methods", "RI")
    assert code == 0
    (folder,) = (tmp_path / "runs" / "hyperparameters").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    counts = {tuple(cell["cell"]): (cell["rounds"], cell["diverged"]) for cell in summary["cells"]}
    assert all(diverged == (rounds if rate == 1e30 else 0) for (rate, _), (rounds, diverged) in counts.items())
    assert "diverged: their loss was not finite." in text


GRID = [(0.1, 8), (0.1, 16), (0.01, 8), (0.01, 16)]


def test_another_cell_is_drawn_each_about_as_often():
    counts = dict.fromkeys(GRID, 0)
    for seed in range(60):
        counts[grid.draw(seed, GRID, 1)] += 1
    assert counts[GRID[1]] == 0
    assert all(count > 8 for cell, count in counts.items() if cell != GRID[1])  # 20 expected
    assert grid.draw(7, GRID, 1) == grid.draw(7, GRID, 1)
    assert grid.draw(3, GRID[:1], 0) == GRID[0]
    assert len({tuple(grid.draw(seed, GRID, n) for seed in range(9)) for n in range(4)}) == 4


def test_the_plan_names_the_seeds_of_each_warm_start():
    seeds = (4, 5, 6)
    plain, chained = (grid.plan(GRID, seeds, chained) for chained in (False, True))
    assert plain[:4] == chained[:4] == [("RI", [cell], None) for cell in GRID]
    for number, cell in enumerate(GRID):
        own = [(second, given) for _, (first, second), given in plain[4:] if first == cell]
        assert sorted(seed for _, given in own for seed in given) == [4, 5, 6]
        assert all(grid.draw(seed, GRID, number) == second for second, given in own for seed in given)
        assert chained[4 + number] == ("WS", [cell, *(grid.draw(seed, GRID, number) for seed in seeds)], None)


A, B = (0.1, 8), (0.01, 16)
OWN = [("RI", [A]), ("RI", [B]), ("WS", [A, B]), ("WS", [B, A])]
CHAIN = [("RI", [A]), ("RI", [B]), ("WS", [A, B, B]), ("WS", [B, A, A])]


def table_of(starts):
    return {hyperparameters.name_of(*own): hyperparameters.spec_of(*own) for own in starts}


ENDS = {  # accuracy of seeds 0 and 1, samples seen
    "RI 0.1/8": ((0.60, 0.62), 800),
    "RI 0.01/16": ((0.50, 0.54), 1600),
    "WS 0.1/8, 0.01/16": ((0.58, 0.64), 400),
    "WS 0.01/16, 0.1/8": ((0.56, 0.58), 200),
}


def end(method, seed, number, accuracy, seen, stop="accuracy", samples=80):
    rest = dict.fromkeys(("train_loss", "test_loss", "eval_seconds", "train_accuracy"), 0)
    numbers = {"epoch": 1, "samples": samples, "samples_seen": seen, "steps": seen // 8, "train_seconds": seen / 100}
    own = {"method": method, "seed": seed, "round": number, "test_accuracy": accuracy, "stop": stop}
    return rest | numbers | own


def made_up(seeds=(0, 1), capped=(), diverged=(), methods=tuple(ENDS)):
    rows = []
    for method in methods:
        accuracies, seen = ENDS[method]
        for seed in seeds:
            stop = "epochs" if method in capped else "diverged" if method in diverged else "accuracy"
            if method.startswith("WS"):
                rows.append(end(method, seed, 1, 0.4, 100, samples=40))
            rows.append(end(method, seed, 1 + method.startswith("WS"), accuracies[seed], seen, stop))
    return rows


def test_the_best_cells_are_compared_by_seed():
    summary = hyperparameters.summarize(made_up(), table_of(OWN))
    assert len(summary["rows"]) == 8
    assert {row["test_accuracy"] for row in summary["first_rounds"]} == {0.4}
    best = summary["best"]
    assert (best["RI"], best["WS"]) == ([0.1, 8], [0.01, 16])  # a warm start's cell is that of its round on all
    assert best["gap"]["mean"] == pytest.approx(((0.60 - 0.58) + (0.62 - 0.64)) / 2)
    assert {name: share["mean"] for name, share in best["of_RI"].items()} == {
        "samples_seen": 0.5, "steps": 0.5, "train_seconds": 0.5,
    }  # fmt: skip
    # the same settings on all data: WS ..., 0.01/16 beside RI 0.01/16 and WS ..., 0.1/8 beside RI 0.1/8
    gaps = [((0.50 - 0.58) + (0.60 - 0.56)) / 2, ((0.54 - 0.64) + (0.62 - 0.58)) / 2]
    assert summary["same"]["gap"]["mean"] == pytest.approx(sum(gaps) / 2)
    assert summary["same"]["of_RI"]["samples_seen"]["mean"] == pytest.approx((400 + 200) / (1600 + 800))
    means = {(cell["start"], *cell["cell"]): cell["test_accuracy"]["mean"] for cell in summary["cells"]}
    assert means["WS", 0.01, 16] == pytest.approx(0.61)
    columns, lines = hyperparameters.table(summary)
    assert [line[:3] for line in lines] == [
        ["RI", "0.1", "8"], ["RI", "0.01", "16"], ["WS", "0.1", "8"], ["WS", "0.01", "16"],
    ]  # fmt: skip
    assert lines[1][columns.index("samples seen")] == "1,600"
    assert lines[3][columns.index("capped") :] == ["0 of 2", "0 of 2"]


def test_a_cell_that_hit_the_cap_is_not_the_best():
    summary = hyperparameters.summarize(made_up(capped=["RI 0.1/8"]), table_of(OWN))
    assert summary["best"]["RI"] == [0.01, 16]
    assert summary["same"]["gap"]["mean"] == pytest.approx((-0.08 - 0.10) / 2)  # without the pairs of RI 0.1/8
    assert "2 of 8 rounds on all of the data ended at the cap on epochs." in hyperparameters.verdict(summary)
    summary = hyperparameters.summarize(made_up(capped=[name for name in ENDS if name[:2] == "WS"]), table_of(OWN))
    assert (summary["best"], summary["same"]) == (None, None)
    assert hyperparameters.verdict(summary)[0].startswith(
        "RI and WS have no cells to compare: such whose rounds all converged"
    )
    alone = hyperparameters.summarize(made_up(methods=["RI 0.1/8"]), table_of(OWN))
    assert hyperparameters.verdict(alone) == []


def test_a_cell_that_few_seeds_have_is_not_the_best():
    table = table_of([*OWN, ("WS", [A, A])])
    rows = [end("RI 0.1/8", seed, 1, 0.6, 800) for seed in range(4)]
    rows += [end("WS 0.1/8, 0.1/8", seed, 2, 0.5 + seed / 100, 400) for seed in range(2)]
    rows += [end("WS 0.01/16, 0.1/8", 1, 2, 0.55, 200), end("WS 0.1/8, 0.01/16", 3, 2, 0.9, 400)]
    best = hyperparameters.summarize(rows, table)["best"]
    assert best["WS"] == [0.1, 8]
    # two seeds have it, the second by two warm starts, of which the mean counts
    assert best["gap"]["mean"] == pytest.approx((0.10 + (0.6 - (0.51 + 0.55) / 2)) / 2)
    assert best["gap"]["seeds"] == 2
    assert best["of_RI"]["samples_seen"]["mean"] == pytest.approx((400 / 800 + 300 / 800) / 2)


def test_a_cell_that_diverged_is_not_the_best_and_is_told():
    summary = hyperparameters.summarize(made_up(diverged=["RI 0.1/8"]), table_of(OWN))
    assert summary["best"]["RI"] == [0.01, 16]
    told = "2 of 8 rounds on all of the data diverged: their loss was not finite."
    assert [text for text in hyperparameters.verdict(summary) if text[0].isdigit()] == [told]
    columns, lines = hyperparameters.table(summary)
    assert lines[0][columns.index("capped") :] == ["0 of 2", "2 of 2"]


def test_a_chains_rounds_are_one_value_a_seed():
    rows = [row for row in made_up() if row["method"].startswith("RI")]
    for seed in (0, 1):
        rows += [
            end("WS 0.1/8, chained", seed, n, a, seen) for n, a, seen in ((1, 0.4, 9), (2, 0.6, 400), (3, 0.5, 80))
        ]
    summary = hyperparameters.summarize(rows, table_of(CHAIN))
    (chain,) = [cell for cell in summary["cells"] if cell["start"] == "WS"]
    assert (chain["rounds"], chain["test_accuracy"]["seeds"]) == (4, 2)
    assert (chain["test_accuracy"]["mean"], chain["samples_seen"]["mean"]) == pytest.approx((0.55, 240))


@pytest.mark.parametrize(
    ("gap", "begin"),
    [
        ((0.01, 0.001, 0.02), "No warm start is as accurate as the best RI: "),
        ((-0.01, -0.02, -0.001), "The best warm start is more accurate than the best RI: "),
        ((0.01, -0.01, 0.03), "The best warm start cannot be told from the best RI: "),
    ],
)
def test_the_sentences_follow_the_numbers(gap, begin):
    gap = dict(zip(("mean", "low", "high"), gap, strict=True)) | {"seeds": 3}
    best = {"RI": [0.1, 8], "WS": [0.01, 16], "gap": gap, "of_RI": {"steps": {"mean": 0.5, "low": 0.4, "high": 0.6}}}
    sentences = hyperparameters.verdict({"best": best, "same": None, "rows": []})
    assert sentences[0].startswith(f"{begin}best RI (0.1/8) - best WS (0.01/16) = ")
    assert sentences[1] == "The best WS took 50% (95 % interval 40% to 60%) of the steps of the best RI's."


def write(folder, rows=None, starts=OWN, finished=True, **settings):
    config = CONFIG | {"methods": ["RI", "WS"], "stop": ["accuracy"], "epochs": 5, "threshold": 0.99}
    config |= {"learning_rates": [0.1, 0.01], "batch_sizes": [8, 16], "chained": False, **settings}
    rows = made_up() if rows is None else rows
    return write_folder(folder, "hyperparameters", config, rows, finished, table_of(starts))


def chain():
    name, other = (hyperparameters.name_of(*own) for own in CHAIN[2:])
    ends = [(name, 2, 0.6, 400), (name, 3, 0.61, 80), (other, 2, 0.5, 300), (other, 3, 0.51, 80)]
    return [end(method, seed, number, a, seen) for method, number, a, seen in ends for seed in (0, 1)]


def test_figure4_tells_the_best_cells(tmp_path):
    result = command(4, write(tmp_path / "run"), "--cost", "steps", "--out", tmp_path / "new" / "figure")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    what, ran, differs, came, notes = result.stdout.splitlines()
    assert what.startswith("Figure 4: ")
    assert "learning rates 0.1/0.01, batches 8/16" in ran
    assert "learning rate 0.001" not in ran
    assert "learning rates 0.1/0.01 instead of 0.1/0.01/0.001" in differs
    assert "warm starts chained: off instead of on" in differs
    # t of one degree of freedom on two values: 12.706 times half of what lies between them
    assert came == (
        "Unchained, seeds 0, 1: best RI 0.1/8: 61.0 ± 12.7, best WS 0.01/16: 61.0 ± 38.1; "
        "RI - WS 0.0 ± 25.4, for 50.0 ± 0.0 % of RI's steps; with the same settings on all -2.5 ± 6.4."
    )
    assert "rounds on all of the data" not in notes  # all converged


def test_the_published_settings_are_complete():
    published = json.loads((FIGURES / "published" / "settings.json").read_text())
    config = runpy.run_path(str(FIGURES.parent / "experiments" / "hyperparameters.py"))["Config"]
    assert {*published["offline"], *published["figure4"]} - {"first_epochs", "label_noise"} == {
        field.name for field in dataclasses.fields(config)
    } - words.NEUTRAL  # fmt: skip


def figure_of(*folders):
    return runpy.run_path(str(FIGURES / "figure4.py"))["draw"](list(map(read_run, folders)))


def points(axis):
    return sorted(line.get_xdata()[0] for line in axis.get_lines() if line.get_marker() != "*")


def test_figure4_has_a_panel_for_chained_runs_which_get_the_others_ri(tmp_path):
    figure, caption = figure_of(write(tmp_path / "a", chain(), CHAIN, chained=True), write(tmp_path / "b"))
    assert [axis.get_title()[:7] for axis in figure.axes] == ["a half-", "chained"]
    own = [200, 200, 400, 400, 800, 800, 1600, 1600]
    assert points(figure.axes[0]) == own
    assert points(figure.axes[1]) == [80, 80, 80, 80, 300, 300, 400, 400, *own[4:]]
    assert caption.came.startswith("Unchained, seeds 0, 1: best RI")
    assert "Chained, seeds 0, 1: best RI 0.1/8" in caption.came
    assert "chained: " not in caption.differs
    figure, _ = figure_of(write(tmp_path / "c", chain(), CHAIN, chained=True))
    assert len(figure.axes) == 1


def test_figure4_draws_what_hit_the_cap_hollow(tmp_path):
    figure, caption = figure_of(write(tmp_path / "a", made_up(capped=["RI 0.1/8"])))
    faces = {line.get_xdata()[0]: line.get_markerfacecolor() for line in figure.axes[0].get_lines()}
    assert [x for x, face in faces.items() if face == "none"] == [800]
    assert "2 of 8 rounds on all of the data ended at the cap on epochs (a half" in caption.notes
    assert any(text.get_text() == "not converged" for text in figure.legends[0].get_texts())


def test_figure4_draws_what_there_is_and_refuses_the_rest(tmp_path):
    folder = write(tmp_path / "a", made_up(seeds=(0,), methods=["RI 0.1/8"]), finished=False)
    with (folder / "records.jsonl").open("a") as records:
        records.write('{"method": "RI')
    text = draw(4, folder)
    assert "UNFINISHED RUN" in text
    assert ": RI and WS have no cells to compare: such whose rounds all converged, of one seed at least." in text
    half = [row for row in made_up() if row["samples"] == 40]
    with pytest.raises(RunError, match=r"^no round on all of the data has ended yet: wait for the first one$"):
        draw(4, write(tmp_path / "b", half, finished=False))
    with pytest.raises(RunError, match=r"^not a run of the hyperparameters experiment but of 'online'$"):
        draw(4, write_online_run(tmp_path / "c"))
    with pytest.raises(RunError, match=r"cannot share a figure: batch_sizes \[8, 16\] and \[8\]$"):
        draw(4, write(tmp_path / "d"), write(tmp_path / "e", batch_sizes=[8]))
    with pytest.raises(RunError, match=r"cannot share a figure: threshold 0\.99 and 0\.9$"):
        draw(4, write(tmp_path / "f"), write(tmp_path / "g", chain(), CHAIN, chained=True, threshold=0.9))
    with pytest.raises(RunError, match=r"^nothing to draw: "):
        draw(4)
