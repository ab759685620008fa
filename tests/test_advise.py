"""The study that says how to retrain: what it plans, what it runs, and the command line that it gives."""

import dataclasses
import json
import os
import re
import shlex

import numpy as np
import pytest
from sklearn.datasets import load_digits

from wsjax.commands import advise as advice
from wsjax.commands import retrain
from wsjax.errors import NonFiniteLoss, RunError, UsageError
from wsjax.results import names
from wsjax.rounds.legs import Method, Round
from wsjax.scripts import cli, race
from wsjax.scripts.config import Common
from wsjax.storage.files import read_json, write_json
from wsjax.storage.records import open_run, read_rows
from wsjax.storage.rows import FIRST

TINY = ("--model=logistic", "--batch_size=100", "--first_epochs=2", "--epochs=1", "--factors", "0.4/0.1")
SECONDS = {FIRST: 2.0, "scratch": 2.0, "a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
WAYS = ["scratch", "a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("left", "ways", "seeds"),
    [
        (100.0, WAYS, 8),  # 8 * (2 + 2 + 4) + 4, a seventh more: it fits
        (70.0, WAYS[:4], 8),
        (60.0, WAYS[:3], 8),
        (50.0, WAYS[:3], 6),  # never fewer than half of the ways: fewer seeds
        (15.0, WAYS[:3], 1),
        (10.0, WAYS[:3], 0),
    ],
)
def test_a_rung_fits_into_what_is_left_of_the_time(left, ways, seeds):
    assert race.next_rung(WAYS, 8, SECONDS, 4.0, left) == (ways, seeds)


def retrain_parsed(line):
    """The settings of a command line of the retraining job, as that reads them."""
    words = shlex.split(line)
    assert words[:2] == ["wsjax", "retrain"]
    config = cli.parse(retrain.DEFAULTS, words[2:])
    retrain.check(config, retrain.DEFAULTS)
    assert retrain.build_recipe(config).method == config.method
    with pytest.raises(UsageError, match=r"unknown method 'fir'; available: .* did you mean 'fire'"):
        retrain.check(dataclasses.replace(config, method="fir"), retrain.DEFAULTS)
    return config


def test_the_command_line_means_to_the_job_what_the_study_ran():
    settings = advice.Config(
        model="mlp", hidden=(30, 20), stem_pool=True, bias=False, optimizer="msgd", learning_rate=0.01, raised=7,
        stop=("accuracy", "plateau"), factors=("0.4/0.1", "-1/2.5e-05"), dash_shrink=0.05, fire_steps=None,
        holdout=0.2, data=("in coming/*.npz", "b.npz"),
    )  # fmt: skip
    table = advice.ways(settings, 100)
    assert len(table) == 9 - 1
    methods = {}
    for name, spec in json.loads(json.dumps(table)).items():  # as config.json has it
        config = retrain_parsed(advice.command(settings, spec))
        for field in (
            "model",
            "hidden",
            "optimizer",
            "learning_rate",
            "stop",
            "bias",
            "epochs",
            "holdout",
        ):
            assert getattr(config, field) == getattr(settings, field), (name, field)
        assert config.stem_pool == retrain.DEFAULTS.stem_pool  # of which an MLP has no use, and the job says so
        assert config.data == settings.data
        assert config.later_rate == spec.get("learning_rate")
        methods[name] = config
    assert {name: config.method for name, config in methods.items()} == {
        "scratch": "scratch", "continue": "continue", "SP 0.4/0.1": "shrink-perturb", "scratch@0.07": "scratch",
        "FIRE": "fire", "SP -1/2.5e-05": "shrink-perturb", "continue@0.07": "continue", "DASH": "dash",
    }  # fmt: skip
    assert (methods["SP -1/2.5e-05"].shrink, methods["SP -1/2.5e-05"].perturb) == (-1, 2.5e-5)
    assert methods["DASH"].dash_shrink == 0.05
    assert methods["FIRE"].fire_steps is None


class Runs:
    """Stands in for the runs of a race: rows of made-up accuracies and times, in place of training."""

    def __init__(self, folder, accuracies, seconds=10.0, diverging=(), stop_after=None):
        self.folder, self.accuracies, self.seconds = folder, accuracies, seconds
        self.diverging, self.stop_after, self.now, self.trained = set(diverging), stop_after, 0.0, []
        self.config = Common(workdir=folder.parent.parent, seeds=(), model="mlp")

    def race(self, budget=600.0, most=36):
        table = {name: {"reinit": "random_init" if name == "scratch" else name} for name in self.accuracies}
        methods = {name: Method(start=lambda boundary: boundary.fresh) for name in self.accuracies}
        own = race.Race(
            self.config, None, (), methods, table, self.folder, budget, most, 0.01, lambda: self.now
        )  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        return race.race(own)

    def run(self, name, config, setup, rounds, methods, summarize, table, watch, within):
        folder = config.workdir / name / config.run
        with open_run(folder, {"seeds": config.seeds}, {"experiment": name}) as records:
            known = {(row["method"], row["seed"]) for row in records.rows}
            for way in (FIRST, *methods):
                new = [seed for seed in config.seeds if (way, seed) not in known]
                if not new or (way != FIRST and not methods[way].runs(new[0])):
                    continue
                if way in self.diverging:
                    raise NonFiniteLoss(f"the loss is not finite: {way}", way)
                rows = [self.row(way, seed) for seed in new]
                self.now += self.seconds * len(new)
                records.append(rows)
                self.trained += [(way, seed) for seed in new]
                if len(self.trained) == self.stop_after:
                    raise KeyboardInterrupt
                watch(rows)

    def row(self, way, seed):
        accuracy = 1.0 if way == FIRST else self.accuracies[way] + 0.001 * (hash_of(way) * (seed + 1) % 7)
        row = {"method": way, "seed": seed, "round": 1 + (way != FIRST), "epoch": 1, "samples": 9, "steps": 9}
        row |= {"samples_seen": 9, "train_accuracy": 1.0, "train_loss": 0.0, "test_accuracy": accuracy}
        return row | {"test_loss": 0.0, "stop": "epochs", "train_seconds": self.seconds, "eval_seconds": 0.0}


def hash_of(way):
    return sum(map(ord, way))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    def made(accuracies, **options):
        own = Runs(tmp_path / "runs" / "advise" / "mine", accuracies, **options)
        monkeypatch.setattr(race.run, "run", own.run)
        return own

    return made


FOUR = {"scratch": 0.6, "a": 0.601, "b": 0.5, "c": 0.602}


def test_a_race_goes_on_with_more_seeds_for_the_ways_that_are_not_beaten(runs):
    own = runs(FOUR, seconds=1.0)
    ends, plan = own.race()
    assert [rung["seeds"][-1] for rung in plan["rungs"]] == [3, 11, 35]
    assert [rung["ways"] for rung in plan["rungs"]] == [list(FOUR), ["scratch", "a", "c"], ["scratch", "a", "c"]]
    assert (plan["unseen"], plan["aside"], plan["diverged"]) == ([], [], {})
    assert {name: sum(end["method"] == name for end in ends) for name in FOUR} == {
        "scratch": 36, "a": 36, "b": 4, "c": 36
    }  # fmt: skip
    trained = list(own.trained)
    again, _ = own.race()
    assert (again, own.trained) == (ends, trained)


def test_a_race_is_cut_by_its_time_and_says_what_it_did_not_reach(runs):
    own = runs(FOUR, seconds=10.0)
    _, plan = own.race(budget=240.0)  # 40 s for each way and for the first round; 60 % are 144 s
    assert plan["unseen"] == ["c"]
    assert plan["rungs"][0]["ways"] == ["scratch", "a", "b"]
    own = runs(FOUR | {"d": 0.603}, seconds=10.0)
    own.folder = own.folder.with_name("other")
    _, plan = own.race(budget=400.0, most=12)
    assert (plan["rungs"][0]["ended"], plan["unseen"]) == (True, [])
    assert len(plan["aside"]) == 1  # eight seeds of four ways take 400 s, and some 150 are left
    assert len(plan["rungs"][1]["seeds"]) == 3
    assert own.now < 400


def test_a_way_that_diverges_drops_out(runs):
    ends, plan = runs(FOUR, seconds=1.0, diverging=["a"]).race()
    assert plan["diverged"] == {"a": "the loss is not finite: a"}
    assert all("a" not in rung["ways"] for rung in plan["rungs"])
    assert {end["method"] for end in ends} == {"scratch", "b", "c"}
    assert "a diverged and dropped out: the loss is not finite: a." in advice.dropped(plan, [], "10min")


@pytest.mark.parametrize("way", ["scratch", FIRST])
def test_without_scratch_there_is_no_study(runs, way):
    with pytest.raises(NonFiniteLoss):
        runs(FOUR, diverging=[way]).race()


def test_a_race_that_was_stopped_goes_on(runs, tmp_path):
    own = runs(FOUR, seconds=1.0, stop_after=12)  # in the first rung, behind three ways that could be enough
    with pytest.raises(KeyboardInterrupt):
        own.race()
    assert read_json(own.folder / "plan.json")["seconds"] == 12.0
    own.stop_after, own.now = None, 0.0
    _, plan = own.race()
    assert plan["unseen"] == []
    assert len(set(own.trained)) == len(own.trained)
    assert plan["seconds"] == len(own.trained)


def test_a_killed_race_has_spent_what_its_rows_tell(runs):
    """A kill that cannot be caught leaves the plan as the rung began."""
    own = runs(FOUR, seconds=10.0, stop_after=12)
    with pytest.raises(KeyboardInterrupt):
        own.race(budget=200.0)
    plan = read_json(own.folder / "plan.json")
    plan["rungs"][0]["seconds"] = plan["seconds"] = 0.0
    write_json(own.folder / "plan.json", plan)
    own.stop_after, own.now = None, 0.0
    assert own.race(budget=200.0)[1]["seconds"] == 10.0 * len(own.trained) < 200


def test_more_time_takes_more_seeds(runs):
    own = runs(FOUR, seconds=1.0)
    _, plan = own.race(budget=30.0)
    before = len(own.trained)
    assert plan["rungs"][-1]["seeds"][-1] < 11
    own.now = 0.0
    _, plan = own.race(budget=300.0)
    assert len(own.trained) > before
    assert plan["rungs"][-1]["seeds"][-1] == 35


def test_a_study_of_ones_own_data(script, tmp_path):
    digits = load_digits()
    np.savez("own.npz", images=(digits.images[:200] * 15).astype(np.uint8)[..., None], labels=digits.target[:200])
    flags = ("--data", "own.npz", *TINY, "--stop", "epochs", "--seeds=1", "--learning_rate=0.01")
    code, _, errors = script("advise", *flags, "--budget=1s")
    assert (code, errors) == (2, "error: 1s did not suffice for two ways on one seed; the same command with a larger "
                                 "--budget goes on where this one ended\n")  # fmt: skip
    code, out, _ = script("advise", *flags, "--budget=10min")
    assert code == 0
    for part in (
        "new ones; tested on ", " others, 7 ways, within 10 min", "1 seed of 7 ways", "Recommended: ", "Runner-up: ",
        "One seed gives no interval: nothing is told",
        "wsjax retrain --model_dir=MODEL --data own.npz --method=",
    ):  # fmt: skip
        assert part in out
    folder = tmp_path / "runs" / "advise" / "own-logistic-adam"
    found = read_json(folder / "advice.json")
    assert found["command"] in out.splitlines()
    assert list(found["ways"]) == ["scratch", "continue", "SP 0.4/0.1", "scratch@0.03", "continue@0.03", "FIRE", "DASH"]
    (rows,) = folder.rglob("records.jsonl")
    assert list(dict.fromkeys(row["method"] for row in read_rows(rows))) == [FIRST, *found["ways"]]  # the control early
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, again, _ = script("advise", *flags, "--budget=10min")
    assert again.splitlines()[1:] == out.splitlines()[-len(again.splitlines()) + 1 :]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    code, _, errors = script("advise", *flags, "--new=0.3")
    assert (code, errors.count("\n")) == (2, 1)
    assert "new 0.2 there, 0.3 here" in errors
    code, _, errors = script("advise", *flags, "--holdout=0.2")
    assert (code, errors.count("\n")) == (2, 1)
    assert "holdout 0.1 there, 0.2 here" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget=soon",), "a time is written as 90s, 30m, 8h or 2d, not 'soon'"),
        (("--budget=0s",), "--budget must be more than 0, such as 10min, not 0s"),
        (("--budget=0.0min",), "--budget must be more than 0, such as 10min, not 0.0min"),
        (("--factors", "0.4"), "--factors are written as 0.4/0.1, SHRINK/PERTURB, not '0.4'"),
        (("--raised=1",), "--raised=1 raises nothing: give a factor above 1"),
        (("--raised=0.5",), "--raised=0.5 raises nothing: give a factor above 1"),
        (("--model=logistic", "--width=8"), "--width has no use for logistic; leave it out: it is for resnet18"),
        (("--new=1",), "--new must lie between 0 and 1, not 1.0"),
        (("--new=0.0001",), "--new=0.0001 of 600 train images leaves none on one side; give another"),
        (("--data", "none.npz"), "no such data file: none.npz"),
        (
            ("--data", "cifar10", "--holdout=0.3"),
            "--holdout has no use for cifar10, which has a test set; leave it out",
        ),
        (("--workdir=",), "--workdir is empty: give a path, or leave it out"),
        (("--run=a/b",), "--run must be a plain name, not 'a/b'"),
        (("--fire_steps=-1",), "--fire_steps must lie in [0, 1000] or be None, not -1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(script, tmp_path, arguments, message):
    code, _, errors = script("advise", *arguments)
    assert (code, errors) == (2, f"error: {message}\n")
    assert not (tmp_path / "runs").exists()


def test_a_file_with_a_test_set_of_its_own_keeps_it(script, tmp_path):
    images = np.zeros((6, 4, 4, 1), np.uint8)
    labels = np.array([0, 1] * 3)
    np.savez(tmp_path / "split.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    settings = advice.Config(data=(str(tmp_path / "split.npz"),))
    assert len(advice.load(settings).test_labels) == 6
    assert "--data FILES" in advice.command(settings, {"reinit": "warm_start"})


def test_a_study_of_an_older_version_goes_on_by_its_data(tmp_path):
    identity = {"new": 0.2, "image_size": 64, "holdout": 0.3}
    assert advice._as_begun(tmp_path, identity) == identity
    write_json(tmp_path / "config.json", {"config": {"new": 0.2, "image_size": None}})
    assert advice._as_begun(tmp_path, identity) == {"new": 0.2, "image_size": None}
    write_json(tmp_path / "config.json", {"config": {"new": 0.2, "image_size": None, "holdout": 0.1}})
    assert advice._as_begun(tmp_path, identity) == identity


def test_a_budget_that_did_not_suffice_is_told_what_would(monkeypatch):
    rows = [{"method": FIRST, "train_seconds": seconds} for seconds in (2.0, 4.0)]
    monkeypatch.setattr(race, "_rows", lambda own, rung: rows)
    rounds = [Round(100, None, 10), Round(200, None, 5)]
    own = race.Race(*[None] * 2, rounds, *[None] * 7)
    plan = {"rungs": [{"seeds": [0, 1], "ways": ["scratch", "FIRE"]}]}
    assert race.enough_for_two(own, plan) == pytest.approx(6 + 1.15 * 2 * (10 + 2 * 5 * 2) * 3)
    rows[:] = [row | {"method": "scratch"} for row in rows]
    assert race.enough_for_two(own, plan) is None
    with pytest.raises(RunError, match=r"^10min did not suffice for two ways on one seed \(20 min should\); the same"):
        advice.check_sufficed(advice.Config(), [{"method": "scratch"}], plan, 1200.0)
    with pytest.raises(RunError, match="on one seed; the same"):
        advice.check_sufficed(advice.Config(), [{"method": "scratch"}], plan, 500.0)
    advice.check_sufficed(advice.Config(), [{"method": "scratch"}, {"method": "FIRE"}], plan, None)
    plan = {"rungs": [{"ways": ["scratch"]}], "diverged": {"FIRE": "a loss of nan"}}
    with pytest.raises(RunError, match=r"^no way but scratch is left: FIRE diverged .*: a loss of nan; lower --learn"):
        advice.check_sufficed(advice.Config(), [{"method": "scratch"}], plan, None)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    assert not advice._has_test_set(str(tmp_path / "pipe.npz"))
    assert not advice._has_test_set("~nobody-of-this-name/a.npz")


def test_the_ways_are_those_of_the_settings():
    table = advice.ways(advice.Config(factors=("0.4/0.1", "0.4/0.2")), 100)
    assert table["SP 0.4/0.2"] == {"reinit": names.SHRINK, "shrink": 0.4, "perturb": 0.2}
    assert list(table)[:3] == ["scratch", "continue", "SP 0.4/0.1"]


def test_what_data_are_called():
    given = [("ph-v1.5/",), ("in/ph-v1.6",), ("x.npz",), ("in/*.npz",), ()]
    assert [advice._name(data) for data in given] == ["ph-v1.5", "ph-v1.6", "x", "data", "digits"]


def test_a_study_with_another_factor_is_another_study(script, tmp_path):
    own = ("advise", *TINY, "--budget=6s", "--seeds=1", "--workdir", tmp_path)
    assert "did not suffice" in script(*own)[2]
    for flag in ("--dash_shrink=0.1", "--fire_steps=3"):
        code, _, err = script(*own, flag)
        assert code != 0
        assert flag[2:].split("=")[0] in err


def test_settings_that_embedded_data_have_no_use_for(script, tmp_path):
    for flag in ("--image_size=16", "--max_gigabytes=1"):
        code, _, err = script("advise", *TINY, flag, "--workdir", tmp_path)
        assert code == 2
        assert re.match(f"error: {flag}?.*leave it out\n|error: {flag.split('=')[0]} .*leave it out\n", err)
