"""What a row is, and which rows are a run's."""

import numpy as np
import pytest

from wsjax.errors import RunError
from wsjax.storage.rows import CRC, FIELDS, check_row, check_rows, round_ends

ROW = {
    "method": "RI",
    "seed": 0,
    "round": 2,
    "epoch": 3,
    "samples": 600,
    "steps": 30,
    "samples_seen": 1800,
    "train_accuracy": 0.5,
    "train_loss": 0.25,
    "test_accuracy": 0.5,
    "test_loss": 0.25,
    "stop": None,
    "train_seconds": 0.5,
    "eval_seconds": 0.5,
}
METHODS = {"first": range(1, 2), "RI": range(2, 4), "WS": range(2, 4)}
NUMBERS = [name for name, field in FIELDS.items() if field.kind is not str]
COUNTS = [name for name, field in FIELDS.items() if field.kind is int]


def run(*places):
    """Rows of (method, round, epoch, stop), of seed 0."""
    return [ROW | {"method": method, "round": at, "epoch": epoch, "stop": stop} for method, at, epoch, stop in places]


WHOLE = run(
    ("first", 1, 1, None),
    ("first", 1, 2, "epochs"),
    ("WS", 2, 1, "epochs"),
    ("RI", 2, 1, None),
    ("WS", 3, 1, None),
    ("RI", 2, 2, "accuracy"),
    ("RI", 3, 1, "epochs"),
)


def test_the_fields_are_those_of_a_row():
    assert list(FIELDS) == list(ROW)
    check_row(ROW)


@pytest.mark.parametrize(
    "values",
    [
        {"test_accuracy": None, "test_loss": None, "stop": "epochs"},
        {"train_accuracy": -19.7, "test_accuracy": 1e300, "train_loss": -1.0},  # a user's own score and loss
        {"train_accuracy": 1, "train_seconds": 0},
        {"seed": 2**40, "steps": 0},
        {"seed": -1},
        {"gradient_norm": 0.5, "dead_units": 3, "cosine": None},
        {"train_loss": np.float64(0.5)},
        {"train_loss": None, "test_loss": None, "stop": "diverged"},
    ],
)
def test_what_a_row_may_hold(values):
    check_row(ROW | values)


def refused(values):
    with pytest.raises(ValueError, match=r"^[a-z]") as refusal:
        check_row(ROW | values)
    return str(refusal.value)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_needed(name):
    with pytest.raises(ValueError, match=f"^it has no field '{name}', an? "):
        check_row({other: value for other, value in ROW.items() if other != name})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [True, "3", [3], {}, float("nan"), float("inf"), -float("inf"), 10**400, np.float32(3)]
)
def test_a_number_is_a_finite_number(name, value):
    assert refused({name: value}).startswith(f"{name} is {value!r:.40}; it must be a")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [3.0, None, 2**63])
def test_a_count_is_an_integer(name, value):
    assert refused({name: value}).startswith(f"{name} is {value!r}; it must be an integer")


@pytest.mark.parametrize("name", ["method", "seed", "train_accuracy", "train_loss", "train_seconds", "eval_seconds"])
def test_what_every_epoch_has_is_not_none(name):
    assert refused({name: None}).startswith(f"{name} is None; it must be a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": ""}, "method is ''; it must be a text"),
        ({"method": 3}, "method is 3; it must be a text"),
        ({"stop": ""}, "stop is ''; it must be a text or null"),
        ({"stop": True}, "stop is True; it must be a text or null"),
        ({"round": 0}, "round is 0; it must be an integer of 1 or more"),
        ({"epoch": 0}, "epoch is 0; it must be an integer of 1 or more (epochs of the round)"),
        ({"samples": 0}, "samples is 0; it must be an integer of 1 or more (samples that the round trains on)"),
        ({"steps": -1}, "steps is -1; it must be an integer of 0 or more (steps since the round began)"),
        ({"train_seconds": -0.1}, "train_seconds is -0.1; it must be a finite number of 0 or more (seconds)"),
        ({"norm": "big"}, "norm is 'big'; a further field must be a finite number or null"),
        ({"norm": False}, "norm is False; a further field must be a finite number or null"),
        ({CRC: 1.5}, "crc is 1.5; a further field must be a finite number or null"),
    ],
)
def test_what_a_row_may_not_hold(values, message):
    assert refused(values) == message


def test_a_runs_rows_and_every_beginning_of_them_belong_to_it():
    for count in range(len(WHOLE) + 1):
        check_rows(WHOLE[:count], METHODS, (0,))


@pytest.mark.parametrize(("lost", "line"), [(0, 1), (1, None), (2, 4), (3, 5), (4, None), (5, 6), (6, None)])
def test_a_hole_is_named(lost, line):
    rest = WHOLE[:lost] + WHOLE[lost + 1 :]
    found = None
    try:
        check_rows(rest, METHODS, (0,), "r.jsonl")
    except RunError as error:
        found = str(error)
    if line is None:  # the last of its method: what is left is a beginning
        assert found is None
    else:
        assert found.startswith(f"r.jsonl, line {line}, does not belong to this run (")
        wanted = "round 2 should have ended first; " if lost in (2, 5) else " should come here; "
        assert wanted in found


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("RI", 4, 1, None), "(RI, seed 0, round 4, epoch 1): RI has rounds 2 to 3;"),
        (("first", 2, 1, None), "(first, seed 0, round 2, epoch 1): first has round 1 only;"),
        (("SP", 2, 1, None), "(SP, seed 0, round 2, epoch 1): its methods are first, RI, WS;"),
        (("RI", 3, 2, None), "(RI, seed 0, round 3, epoch 2): round 3 ended with epoch 1;"),
        (("WS", 3, 3, None), "(WS, seed 0, round 3, epoch 3): round 3, epoch 2 should come here;"),
        (("WS", 3, 1, None), "(WS, seed 0, round 3, epoch 1): round 3, epoch 2 should come here;"),
    ],
)
def test_a_row_of_another_run_is_named(row, reason):
    with pytest.raises(RunError) as refusal:
        check_rows([*WHOLE, *run(row)], METHODS, (0,), "r.jsonl")
    text = str(refusal.value)
    assert text.startswith(f"r.jsonl, line 8, does not belong to this run {reason}")
    assert "\n" not in text


def test_a_seed_of_another_run_is_named():
    with pytest.raises(
        RunError,
        match=r"line 1, does not belong to this run .*seed 0.*: its seeds are 1, 2; give another file for another run;",
    ):
        check_rows(WHOLE, METHODS, (1, 2))


def test_a_rounds_end_has_the_seconds_of_all_its_epochs():
    ends = round_ends(WHOLE)
    assert [(end["method"], end["round"], end["epochs"], end["train_seconds"]) for end in ends] == [
        ("first", 1, 2, 1.0),
        ("WS", 2, 1, 0.5),
        ("RI", 2, 2, 1.0),
        ("RI", 3, 1, 0.5),
    ]
