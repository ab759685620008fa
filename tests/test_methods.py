"""Methods that scripts know by name beside RI, WS and SP."""

import json
from pathlib import Path

import pytest
from test_captions import offline, run
from test_plots import curve

from wsjax.results import names
from wsjax.results.merge import merge_runs
from wsjax.scripts import methods, study
from wsjax.scripts.build import methods_table
from wsjax.scripts.config import ALL_METHODS, Common
from wsjax.storage.records import BEFORE

TINY = (
    "--dataset=digits", "--hidden=4", "--num_train=60", "--num_test=20", "--epochs=1", "--first_epochs=1", "--seeds",
    "0", "1",
)  # fmt: skip


def test_the_table_says_all_factors():
    config = Common(methods=("RI", "DASH", "FIRE", "DASH@0.01"), dash_shrink=0.1, fire_steps=None)
    dash = {"reinit": "dash", "shrink": 0.1, "decay": 0.3, "chunk": 1000}
    assert methods_table(config) == {
        "RI": {"reinit": "random_init"},
        "DASH": dash,
        "FIRE": {"reinit": "fire", "steps": None},
        "DASH@0.01": dash | {"learning_rate": 0.01},
    }
    assert names.ordered(["FIRE", "RI"], methods_table(config)) == ["RI", "FIRE"]
    assert set(ALL_METHODS) == {"RI", "WS", "SP", "SPN"} | methods.METHODS.keys()


def test_shrink_perturbs_control_starts_at_its_norms(script, tmp_path):
    code, _, err = script("offline", "--methods", "SP", "SPN", *TINY, "--probes", "weights")
    assert code == 0, err
    lines = (tmp_path / "runs" / "offline" / "digits-mlp-adam" / "records.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["round"] == 2]
    norms = {
        method: [value for row in rows if row["method"] == method for name, value in row.items() if "norm" in name]
        for method in ("SP", "SPN")
    }
    assert len(norms["SP"]) >= 2
    assert norms["SPN"] == pytest.approx(norms["SP"], rel=1e-5)
    losses = {method: [row["train_loss"] for row in rows if row["method"] == method] for method in norms}
    assert losses["SP"] != losses["SPN"]


def test_a_run_without_them_had_the_defaults_of_their_factors():
    for known in methods.METHODS.values():
        for setting in known.factors.values():
            assert BEFORE[setting] == getattr(Common(), setting)


def test_a_script_runs_and_continues_them(script, tmp_path):
    command = ("offline", "--methods", "WS", "DASH", "FIRE", "DASH@0.01", *TINY, "--batch_stats=reestimate")
    code, out, err = script(*command)
    assert code == 0, err
    assert all(name in out for name in ("WS", "DASH", "FIRE", "DASH@0.01"))
    folder = tmp_path / "runs" / "offline" / "digits-mlp-adam"
    table = json.loads((folder / "config.json").read_text())["methods"]
    assert table["DASH"] == {"reinit": "dash", "shrink": 0.3, "decay": 0.3, "chunk": 1000}
    rows = (folder / "records.jsonl").read_text()
    assert {row["method"] for row in map(json.loads, rows.splitlines())} == {"first", *table}
    code, out, err = script(*command)
    assert (code, (folder / "records.jsonl").read_text()) == (0, rows)
    code, out, err = script(*command, "--dash_shrink=0.2")
    assert code == 2
    assert "dash_shrink 0.3 there, 0.2 here" in err


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--methods=CASH", "DASH, FIRE"),
        ("--dash_shrink=1.5", "--dash_shrink must lie in [0, 1], not 1.5"),
        ("--dash_shrink=nan", "--dash_shrink must lie in [0, 1], not nan"),
        ("--dash_decay=0", "--dash_decay must lie in (0, 1], not 0"),
        ("--dash_chunk=0", "--dash_chunk must be positive, not 0"),
        ("--fire_steps=-1", "--fire_steps must lie in [0, 1000] or be None, not -1"),
        (
            "--methods RI WS --dash_shrink=0.9",
            "--dash_shrink has no use without DASH in --methods; leave it out",
        ),
        (
            "--methods RI WS --shrink 0.1 0.2",
            "--shrink has no use without SP or SPN in --methods; leave it out, or add that",
        ),
        ("--own_first", "--own_first has no use without L2 or HT or SWR in --methods; leave it out, or add that"),
        ("--model=mlp --width=8", "--width has no use for mlp; leave it out: it is for resnet18"),
        ("--model=logistic --hidden 8", "--hidden has no use for logistic; leave it out: it is for mlp"),
        ("--dataset=cifar10 --bias False", "--bias has no use for resnet18; leave it out: it is for mlp and logistic"),
        ("--batch_stats=lose", "keep, reset, reestimate"),
        (
            "--model=resnet18 --methods DASH --evaluation=batch",
            "--evaluation=batch: DASH's gradients are by running statistics; leave DASH or that out",
        ),
    ],
)
def test_bad_flags_get_one_line(script, flag, said):
    code, _, err = script("offline", *flag.split())
    assert code == 2
    assert said in err
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize(
    "flags",
    ["--methods RI WS", "--methods WS --protocol=hare-tortoise", "--methods RI WS --protocol=fire --model=mlp"],
)
def test_what_a_script_has_by_itself_is_no_flag_of_the_users(flags):
    study.parsed(Path(__file__).parents[1] / "experiments" / "offline.py", flags.split())


def test_a_caption_tells_their_factors():
    table = {
        "WS": {"reinit": "warm_start"},
        "DASH": {"reinit": "dash", "shrink": 0.3, "chunk": 1000},
        "mine": {"reinit": "m"},
    }
    drawn = merge_runs([run(curve("WS", [0.1]) + curve("DASH", [0.2]), methods=table)], "offline")
    assert "; DASH with shrink 0.3, chunk 1000; seed 0." in offline(drawn)
    assert "DASH with" not in offline(merge_runs([run(curve("WS", [0.1]), methods=table)], "offline"))
