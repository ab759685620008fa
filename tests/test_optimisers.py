"""The optimiser-side methods in the scripts: their rounds, what they start from, their flags, a whole run."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from wsjax.data.datasets import load
from wsjax.methods.l2_init import L2InitState
from wsjax.rounds.legs import Round
from wsjax.rounds.loop import run_rounds
from wsjax.scripts import build
from wsjax.scripts.config import Common
from wsjax.storage.records import read_run
from wsjax.training.schedules import ScheduleState

TINY = Common(hidden=(4,), activation="relu", optimizer="adam", methods=("RI", "WS", "L2", "HT", "SWR"), epochs=2)
ROUNDS = [Round(20, max_epochs=2), Round(40, max_epochs=2)]


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def ended(config, digits, rounds=ROUNDS):
    setup = build.build_setup(config, digits)
    return run_rounds(setup, rounds, build.build_methods(config, setup, rounds), config.seeds)


def test_each_begins_as_the_warm_start_does_and_goes_its_own_way(digits):
    own = dataclasses.replace(TINY, l2_init=0.5, rescaling=0.5, tortoise=0.5, tortoise_every=1)
    states = ended(own, digits).states
    kernels = {name: np.asarray(states[name, 0].params["head"]["kernel"]) for name in own.methods}
    for name in ("L2", "HT", "SWR"):
        assert np.any(kernels[name] != kernels["WS"])
    nothing = dataclasses.replace(TINY, l2_init=0.0, rescaling=0.0, tortoise=0.0)
    states = ended(nothing, digits).states
    for name in ("L2", "HT", "SWR"):
        np.testing.assert_allclose(
            states[name, 0].params["head"]["kernel"], states["WS", 0].params["head"]["kernel"], rtol=1e-5, atol=1e-6
        )


def anchor_of(state):
    leaves = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, L2InitState))
    return next(leaf.anchor for leaf in leaves if isinstance(leaf, L2InitState))


@pytest.mark.parametrize("options", [{}, {"own_first": True}, {"own_first": True, "opt_state": "keep"}])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_anchor_is_the_seeds_first_network_however_the_rounds_go(digits, options, decoupled):
    config = dataclasses.replace(TINY, methods=("WS", "L2"), l2_decoupled=decoupled, **options)
    three = [*ROUNDS, Round(60, max_epochs=1)]
    result = ended(config, digits, three)
    frozen = dataclasses.replace(TINY, methods=(), learning_rate=1e-30)
    first = ended(frozen, digits, [Round(20, max_epochs=1)]).states["first", 0].params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), anchor_of(result.states["L2", 0]), first)
    firsts = {row["method"] for row in result.rows if row["round"] == 1}
    assert firsts == ({"first", "L2"} if options else {"first"})


def test_methods_of_one_optimiser_share_their_setups(digits):
    config = dataclasses.replace(TINY, methods=("RI@0.1", "WS@0.1", "L2", "L2@0.1"), schedule="cosine")
    setup = build.build_setup(config, digits)
    methods = build.build_methods(config, setup, [*ROUNDS, Round(60, max_epochs=2)])
    setups = {name: {id(here.setup) for here in method.rounds} for name, method in methods.items()}
    assert setups["RI@0.1"] == setups["WS@0.1"]
    assert all(len(own) == 1 for own in setups.values())
    assert len(set.union(*setups.values())) == 3


def test_rounds_of_another_cap_are_paced_by_it(digits):
    for config, own in ((TINY, 0), (dataclasses.replace(TINY, schedule="cosine"), 1)):
        setup = build.build_setup(config, digits)
        rounds = build.build_rounds(config, setup, [(20, 5), (40, 2)])
        assert [here.setup is not None for here in rounds] == [bool(own), False]


def test_a_schedule_begins_again_with_a_round_that_keeps_the_optimisers_state(digits):
    """A rate that falls to 0 trains a second round too, and its steps are counted from that round's start."""
    config = dataclasses.replace(TINY, schedule="cosine", opt_state="keep", methods=("WS",), epochs=2)
    result = ended(config, digits, [Round(20, max_epochs=2), Round(40, max_epochs=2)])
    first, second = (result.states[name, 0] for name in ("first", "WS"))
    counts = [node.count for node in jax.tree.leaves(second.opt_state, is_leaf=_is_schedule) if _is_schedule(node)]
    steps = 2 * -(-40 // config.batch_size)
    assert [int(count) for count in counts] == [steps]
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), first.params, second.params)
    assert min(jax.tree.leaves(moved)) > 1e-4


def _is_schedule(node):
    return isinstance(node, ScheduleState)


def run(script, workdir, *flags):
    tiny = ("--epochs=2", "--first_epochs=3", "--hidden=4", "--num_train=40", "--seeds", 0, 1, "--workdir", workdir)
    return script("offline", "--dataset=digits", *tiny, *flags)


def test_a_whole_run_with_everything_set(script, tmp_path):
    flags = (
        "--methods", "RI", "WS", "L2", "HT@0.01", "SWR", "--label_noise=0.5", "--schedule=steps", "--milestones", 1,
        "--warmup_share=0.1", "--clip_norm=0.5", "--optimizer=adamw", "--weight_decay=0.01", "--own_first",
    )  # fmt: skip
    code, out, err = run(script, tmp_path, *flags)
    assert code == 0, err
    assert "L2 - WS" in out
    found = read_run(tmp_path / "offline" / "digits-mlp-adamw")
    assert found.config["methods"]["HT@0.01"] == {
        "reinit": "hare_tortoise", "momentum": 0.999, "every": 10, "learning_rate": 0.01,
    }  # fmt: skip
    ends = {(row["method"], row["round"]): row["epoch"] for row in found.rows if row["stop"]}
    assert ends == {("first", 1): 3, ("RI", 2): 2, ("WS", 2): 2} | {
        (name, number): 4 - number for name in ("L2", "HT@0.01", "SWR") for number in (1, 2)
    }
    again, *_ = run(script, tmp_path, *flags)
    assert again == 0
    assert read_run(tmp_path / "offline" / "digits-mlp-adamw").rows == found.rows


def test_the_noise_is_in_the_first_round_only(script, tmp_path):
    """Without any training the first round's accuracy is that of the same network on other labels."""
    rows = {}
    for noise in (0, 1):
        flags = ("--methods", "RI", "--learning_rate=1e-30", f"--label_noise={noise}", "--run", f"n{noise}")
        code, _, err = run(script, tmp_path, *flags)
        assert code == 0, err
        rows[noise] = {
            (row["method"], row["seed"]): row["train_loss"] for row in read_run(tmp_path / "offline" / f"n{noise}").rows
        }
    assert rows[0]["first", 0] != rows[1]["first", 0]
    assert rows[0]["RI", 0] == rows[1]["RI", 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--schedule=linear",), "unknown schedule 'linear'; available: constant, cosine, steps.*"),
        (("--schedule=steps",), "--schedule=steps needs --milestones: .*"),
        (("--milestones", 3), "--milestones are for --schedule=steps; leave them out"),
        (("--schedule=steps", "--milestones", 3, 3), "--milestones must rise from above 0: 3 3"),
        (("--rate_decay=2",), "--rate_decay must be at most 1, not 2.*"),
        (("--warmup_share=1",), r"--warmup_share must lie in \[0, 1\), not 1.0"),
        (("--clip_norm=0",), "--clip_norm must be positive, not 0.0"),
        (("--label_noise=1.5",), r"--label_noise must lie in \[0, 1\], not 1.5"),
        (("--l2_init=-1",), "--l2_init must be 0 or more, not -1.0"),
        (("--tortoise=1.5",), r"--tortoise must lie in \[0, 1\], not 1.5"),
        (("--tortoise_every=0",), "--tortoise_every must be positive, not 0"),
        (("--rescaling=nan",), r"--rescaling must lie in \[0, 1\], not nan"),
        (("--head_rescaling=2",), r"--head_rescaling must lie in \[0, 1\], not 2.0"),
        (
            ("--opt_state=keep", "--methods", "WS", "L2@0.1"),
            "--opt_state=keep: L2@0.1 cannot go on .*; add --own_first",
        ),
        (("--protocol=dash",), "unknown protocol 'dash'; available here: fire, hare-tortoise, offline-50"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(script, tmp_path, flags, message):
    code, _, err = run(script, tmp_path, *flags)
    assert code == 2
    assert re.fullmatch(f"error: {message}\n", err)
