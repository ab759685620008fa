"""The early-stopping script end to end, tiny; what its rows come to; and Figure 3."""

import dataclasses
import json
import runpy
from functools import partial

import numpy as np
import pytest
from test_figures import CONFIG, FIGURES, command, draw, write_folder, write_online_run

from wsjax.errors import RunError
from wsjax.results import early_stopping, words
from wsjax.storage.records import read_run

TINY = ("--hidden", 8, "--num_train", 60, "--num_test", 50, "--seeds", 0, 1)
ONE = (*TINY, "--seeds", 0)
CUT = (*TINY, "--first_epochs", 5, "--every", 2, "--epochs", 2)
SECONDS = ("train_seconds", "eval_seconds")


@pytest.fixture
def stop_early(script):
    """Runs the script in this process: (exit code, stdout, stderr)."""
    return partial(script, "early_stopping")


def timeless(rows):
    return [{name: value for name, value in row.items() if name not in SECONDS} for row in rows]


def found(folder, experiment="early_stopping", name="digits-mlp-adam"):
    return read_run(folder / "runs" / experiment / name)


def test_warm_starts_branch_off_the_half_after_every_round(stop_early, tmp_path):
    code, out, error = stop_early(*CUT)
    assert code == 0, error
    for text in ("RI - WS", "% of RI", "with every 2 epochs before", "Picture:"):
        assert text in " ".join(out.split())
    config, rows, summary, _ = found(tmp_path)
    assert config["methods"] == {
        "RI": {"reinit": "random_init"},
        **{f"WS {after}": {"reinit": "warm_start", "after": after} for after in (2, 4, 5)},
    }
    lengths = {}
    for row in rows:
        if row["seed"] == 0:
            lengths.setdefault((row["method"], row["round"], row["samples"]), []).append(row["epoch"])
    assert {key: len(epochs) for key, epochs in lengths.items()} == {
        ("first", 1, 30): 2, ("first", 2, 30): 2, ("first", 3, 30): 1,
        ("RI", 2, 60): 2, ("WS 2", 2, 60): 2, ("WS 4", 3, 60): 2, ("WS 5", 4, 60): 2,
    }  # fmt: skip
    assert [own["after"] for own in summary["damage"]] == [2, 4, 5]
    last = {(row["method"], row["seed"]): row["test_accuracy"] for row in rows}
    lost = [last["RI", seed] - last["WS 4", seed] for seed in (0, 1)]
    assert summary["damage"][1]["points"]["mean"] == pytest.approx(np.mean(lost))
    json.dumps(summary, allow_nan=False)

    records = tmp_path / "runs" / "early_stopping" / "digits-mlp-adam" / "records.jsonl"
    before = records.read_bytes()
    assert stop_early(*CUT)[0] == 0
    assert records.read_bytes() == before  # a finished run trains nothing


def test_an_uncut_half_is_the_offline_experiment(script, tmp_path):
    assert script("early_stopping", *ONE, "--first_epochs", 2, "--every", 2, "--epochs", 3)[0] == 0
    assert (
        script("offline", "--dataset=digits", *ONE, "--first_epochs=2", "--epochs=3", "--methods", "RI", "WS")[0] == 0
    )
    own = [row | {"method": row["method"].split()[0]} for row in timeless(found(tmp_path).rows)]
    assert own == timeless(found(tmp_path, "offline").rows)


def test_a_run_that_was_interrupted_ends_in_the_same_rows(stop_early, tmp_path, monkeypatch):
    cut = partial(stop_early, *CUT, "--seeds", 0, "--run")
    assert cut("whole")[0] == 0
    for at in ("first", "WS 4"):  # within the half's second round, and within a branch
        with monkeypatch.context() as patched:
            patched.setattr("wsjax.scripts.run._observe", interrupt_at(at))
            assert cut("cut")[0] == 130
    assert len(found(tmp_path, name="cut").rows) < len(found(tmp_path, name="whole").rows)
    assert cut("cut")[0] == 0
    assert timeless(found(tmp_path, name="cut").rows) == timeless(found(tmp_path, name="whole").rows)


def interrupt_at(method):
    def observe(advance, caps, watch, rows):
        if (rows[-1]["method"], rows[-1]["epoch"]) == (method, 1) and rows[-1]["round"] > 1:
            raise KeyboardInterrupt

    return observe


def test_random_initialisation_alone_trains_the_first_round_only(stop_early, tmp_path):
    assert stop_early(*CUT, "--seeds", 0, "--methods", "RI")[0] == 0
    config, rows, summary, _ = found(tmp_path)
    assert list(config["methods"]) == ["RI"]
    assert {(row["method"], row["round"]) for row in rows} == {("first", 1), ("RI", 2)}
    assert (summary["damage"], summary["slope"]) == ([], None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "RI", "SP"), "--methods: early stopping compares RI and WS, not SP"),
        (("--methods", "WS@0.1"), "--methods: early stopping compares RI and WS, not WS@0.1"),
        (("--every", 0), "--every must be positive, not 0"),
        (("--every", 6), "--every=6: there are 5 epochs before the last warm start"),
        (("--first_epochs", -1), "--first_epochs must be positive, not -1"),
        (("--fraction", 1.5), "--fraction must lie in (0, 1], not 1.5"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(stop_early, arguments, message):
    code, _, error = stop_early(*CUT, *arguments)
    assert (code, error) == (2, f"error: {message}\n")


METHODS = {
    "RI": {"reinit": "random_init"},
    "WS 2": {"reinit": "warm_start", "after": 2},
    "WS 4": {"reinit": "warm_start", "after": 4},
}
END = {"RI": (0.50, 0.60), "WS 2": (0.49, 0.57), "WS 4": (0.45, 0.54)}  # seeds 0 and 1


def made_up(methods=tuple(METHODS), seeds=(0, 1)):
    """A half in two rounds of two epochs, and branches of one epoch that end at END."""
    half = [
        ("first", seed, number, epoch, 10, 0.1 * number + 0.01 * epoch) for number in (1, 2) for epoch in (1, 2)
        for seed in seeds
    ]  # fmt: skip
    number = {"RI": 2, "WS 2": 2, "WS 4": 3}
    ends = [(method, seed, number[method], 1, 20, END[method][seed]) for seed in seeds for method in methods]
    fields = ("method", "seed", "round", "epoch", "samples", "test_accuracy")
    rest = dict.fromkeys(("steps", "samples_seen", "train_loss", "test_loss", *SECONDS, "train_accuracy"), 0)
    return [
        rest | dict(zip(fields, row, strict=True)) | {"stop": None if row[4] == 10 and row[3] == 1 else "epochs"}
        for row in half + ends
    ]


def test_damage_is_paired_by_seed_and_positive_where_a_warm_start_loses():
    summary = early_stopping.summarize(made_up(), METHODS)
    short, long = summary["damage"]
    assert (short["after"], long["after"]) == (2, 4)
    assert short["points"]["mean"] == pytest.approx((0.01 + 0.03) / 2)
    assert long["points"]["mean"] == pytest.approx((0.05 + 0.06) / 2)
    assert long["percent"]["mean"] == pytest.approx((100 * 0.05 / 0.5 + 100 * 0.06 / 0.6) / 2)
    # t of one degree of freedom, the standard error of two values is half of what lies between them
    assert long["points"]["high"] == pytest.approx(0.055 + 12.7062 * 0.005, rel=1e-4)
    # from 2 to 4 epochs: 4 points at one seed, 3 at the other
    assert summary["slope"]["points"]["mean"] == pytest.approx(0.035 / 2)
    assert summary["slope"]["points"]["seeds"] == 2
    assert [(end["seed"], end["after"]) for end in summary["first_rounds"]] == [(0, 2), (1, 2), (0, 4), (1, 4)]
    assert {(end["method"], end["after"]) for end in summary["rows"]} == {("RI", None), ("WS 2", 2), ("WS 4", 4)}
    columns, lines = early_stopping.table(summary)
    assert [line[:2] for line in lines] == [["RI", ""], ["WS", "2"], ["WS", "4"]]
    assert lines[2][columns.index("test %")].startswith("49.50 ±")
    assert lines[2][columns.index("RI - WS")].startswith("+5.50 ±")


def test_the_sentences_follow_the_numbers():
    first, last, slope = early_stopping.verdict(early_stopping.summarize(made_up(), METHODS))
    assert first.startswith("No warm-starting gap can be told after 2 epochs on the first part: RI - WS = +2.00 points")
    assert last.startswith("No warm-starting gap can be told after 4 epochs")
    assert "cannot be told to grow or to shrink" in slope
    assert "changes by +3.50 points" in slope  # from a warm start to the next, 2 epochs
    damage = {"after": 20, "percent": {"mean": 3.0}}
    sure = {"mean": 0.02, "low": 0.01, "high": 0.03, "seeds": 3}
    told = {"damage": [damage | {"points": sure}], "slope": {"points": sure}}
    (sentence,) = early_stopping.verdict(told | {"slope": None})
    assert sentence.startswith("Warm starting costs accuracy already after 20 epochs on the first part: ")
    assert early_stopping.verdict({"damage": [], "slope": None}) == []
    less = {name: -value for name, value in sure.items()} | {"low": -0.03, "high": -0.01}
    told = {"damage": [damage | {"points": own} for own in (less, sure)], "slope": {"points": less}}
    told["damage"][1] |= {"after": 40}
    first, last, slope = early_stopping.verdict(told)
    assert first.startswith("Warm starting gains accuracy already after 20")
    assert last.startswith("Warm starting costs accuracy after 40")
    assert slope.startswith("The gap shrinks with the epochs before the warm start: RI - WS changes by -40.00 points")


def test_one_seed_says_nothing_sure():
    sentences = early_stopping.verdict(early_stopping.summarize(made_up(seeds=(0,)), METHODS))
    assert "one seed gives no interval" in sentences[0]
    assert sentences[2] == "RI - WS changes by +4.00 points (1 seed) with every 2 epochs before."


def write(folder, rows=None, finished=True, **settings):
    config = CONFIG | {"methods": ["RI", "WS"], "epochs": 1, "first_epochs": 4, "every": 2, **settings}
    return write_folder(folder, "early_stopping", config, made_up() if rows is None else rows, finished, METHODS)


def test_figure3_tells_damage_and_slope(tmp_path):
    result = command(3, write(tmp_path / "run"), "--out", tmp_path / "new" / "figure")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    what, _, differs, came, notes = result.stdout.splitlines()
    assert what.startswith("Figure 3: ")
    assert "warm starts 2 epochs of it apart instead of 20" in differs
    # 2 % and 5 % lost after 2 epochs, 10 % both after 4: 8 and 5 % more in 2 epochs
    assert came == (
        "Damage in percent of RI: +3.5 ± 19.1 after 2 epochs; +10.0 ± 0.0 after 4 epochs; +3.250 ± 9.530 an epoch."
    )
    assert "the opposite sign" in notes


def test_the_published_settings_are_complete():
    published = json.loads((FIGURES / "published" / "settings.json").read_text())
    config = runpy.run_path(str(FIGURES.parent / "experiments" / "early_stopping.py"))["Config"]
    fields = {field.name for field in dataclasses.fields(config)}
    of_offline = {"label_noise"}  # which this experiment has not
    assert {*published["offline"], *published["figure3"]} - of_offline == fields - words.NEUTRAL


def test_figure3_draws_what_there_is(tmp_path):
    no_pair = draw(3, write(tmp_path / "a", made_up(["WS 2", "WS 4"])))
    assert "No seed has both RI and WS yet after 2, 4 epochs." in no_pair
    partly = draw(3, write(tmp_path / "b", made_up(["RI", "WS 2"], seeds=(0,)), finished=False))
    assert "UNFINISHED RUN" in partly
    assert "Damage in percent of RI: +2.0 after 2 epochs. No seed has both RI and WS yet after 4 epochs." in partly
    rows = made_up()
    folder = write(tmp_path / "c", rows[:3], finished=False)  # within the half's first round
    with (folder / "records.jsonl").open("a") as records:
        records.write('{"method": "fi')
    assert "No seed has both" in draw(3, folder)


def test_figure3_refuses_what_it_cannot_draw(tmp_path):
    with pytest.raises(RunError, match=r"^not a run of the early_stopping experiment but of 'online'$"):
        draw(3, write_online_run(tmp_path / "online"))
    with pytest.raises(RunError, match=r"cannot share a figure: every 2 and 4$"):
        draw(3, write(tmp_path / "a"), write(tmp_path / "b", every=4))
    with pytest.raises(RunError, match=r"^there are no epochs to draw yet"):
        draw(3, write(tmp_path / "c", []))
    assert "seeds 0, 1" in draw(3, write(tmp_path / "d", made_up(seeds=(0,))), write(tmp_path / "e", made_up()))


def test_a_schedule_runs_over_the_halfs_training_and_no_warm_start_begins_it_again(stop_early, script, tmp_path):
    """The half's own epochs are those of an offline run whose first round is as long."""
    falling = ("--dataset=digits", "--schedule=cosine", "--first_epochs", 4, "--epochs", 2, "--methods", "WS")
    falling += ("--run", "falling")
    code, _, error = stop_early(*ONE, *falling, "--every", 2)
    assert code == 0, error
    code, _, error = script("offline", *ONE, *falling)
    assert code == 0, error
    here, there = (
        [row["train_loss"] for row in found(tmp_path, name, "falling").rows if row["method"] == "first"]
        for name in ("early_stopping", "offline")
    )
    assert here == pytest.approx(there, rel=1e-5)
