"""Steps until from-scratch accuracy, by hand."""

import math

import pytest
from test_summary import METHODS, row

from wsjax.results import speedup
from wsjax.results.summary import summarize_offline, summarize_online, verdict


def curve(method, seed, tests, number=2):
    """Epochs of 4 steps and a quarter of a second, tested at those accuracies."""
    last = len(tests)
    return [
        row(method, seed, epoch, "epochs" if epoch == last else None, test, round=number)
        for epoch, test in enumerate(tests, 1)
    ]


# RI has its final 0.6 at its fourth epoch, or third; SP at its second; WS once and once never.
ROWS = [
    *curve("first", 0, [0.1, 0.9], 1), *curve("first", 1, [0.1, 0.9], 1),
    *curve("RI", 0, [0.2, 0.4, 0.5, 0.6]), *curve("RI", 1, [0.3, 0.5, 0.7, 0.6]),
    *curve("SP", 0, [0.5, 0.65, 0.6, 0.6]), *curve("SP", 1, [0.5, 0.6, 0.6, 0.7]),
    *curve("WS", 0, [0.5, 0.6, 0.5, 0.5]), *curve("WS", 1, [0.5, 0.55, 0.5, 0.599]),
]  # fmt: skip


def test_passages_by_hand():
    found = speedup.passages(ROWS, METHODS)
    assert found["RI"] == {0: (16, 1.0, True, False), 1: (12, 0.75, True, False)}
    assert found["SP"] == {0: (8, 0.5, True, False), 1: (8, 0.5, True, False)}
    assert found["WS"] == {0: (8, 0.5, True, False), 1: (16, 1.0, False, False)}
    assert "first" not in found


def test_speedups_by_hand():
    found = speedup.speedups(ROWS, METHODS)
    assert list(found) == ["SP", "WS"]
    own = found["SP"]
    assert (own["of"], own["seeds"], own["reached"], own["at_most"], own["at_least"]) == ("RI", 2, 2, False, False)
    logs = [math.log(16 / 8), math.log(12 / 8)]
    mean, half = sum(logs) / 2, 12.706204736 * abs(logs[0] - logs[1]) / 2  # t_1 s / sqrt(2)
    for cost in ("steps", "seconds"):  # an epoch takes as long everywhere
        assert own[cost]["mean"] == pytest.approx(math.sqrt(3))
        bounds = own[cost]["low"], own[cost]["high"]
        assert bounds == pytest.approx((math.exp(mean - half), math.exp(mean + half)), rel=1e-6)
    # WS: 16 / 8, and at most 12 / 16.
    own = found["WS"]
    assert (own["reached"], own["at_most"], own["steps"]["low"]) == (1, True, None)
    assert own["steps"]["mean"] == pytest.approx(math.sqrt(2 * 0.75))


def test_the_summary_and_one_sentence_tell_of_it():
    summary = summarize_offline(ROWS, METHODS)
    assert summary["from_scratch"] == speedup.speedups(ROWS, METHODS)
    low, high = (f"{summary['from_scratch']['SP']['steps'][name]:.3g}" for name in ("low", "high"))
    assert verdict(summary)[-1] == (
        f"To RI's final test accuracy, in steps: SP 1.73 times as fast (95 % interval {low} to {high}, 2 seeds); "
        "WS at most 1.22 times as fast (1 of 2 seeds reached it)."
    )
    assert sum("final test accuracy" in sentence for sentence in verdict(summary)) == 1


def test_online_the_last_round_counts():
    earlier = [
        *curve("RI", 0, [0.1, 0.2, 0.3]), *curve("WS", 0, [0.9, 0.9]),
        *curve("RI", 0, [0.2, 0.4], 3), *curve("WS", 0, [0.1, 0.3, 0.4], 3),
    ]  # fmt: skip
    own = summarize_online(earlier, METHODS)["from_scratch"]["WS"]
    assert (own["steps"]["mean"], own["steps"]["low"]) == (pytest.approx(8 / 12), None)
    assert speedup.sentence({"WS": own}) == ("To RI's final test accuracy, in steps: WS 0.667 times as fast (1 seed).")


@pytest.mark.parametrize(
    ("second", "bound"), [([0.7, 0.1], "at least "), ([0.1, 0.7], "at least "), ([0.1, 0.1], "at most ")]
)
def test_the_first_test_gives_a_bound_where_half_of_the_seeds_reach_it_there(second, bound):
    """Who has it at the first test may have had it any time before; a seed that never has it bounds the other side."""
    rows = [*ROWS, *curve("DASH", 0, [0.6, 0.5]), *curve("DASH", 1, second)]
    own = speedup.speedups(rows, METHODS)["DASH"]
    assert (own["at_least"], own["at_most"]) == (bound == "at least ", bound == "at most ")
    assert own["steps"]["low"] is None
    assert f"DASH {bound}{own['steps']['mean']:.3g} times as fast (" in speedup.sentence({"DASH": own})


def test_one_of_three_at_the_first_test_leaves_the_interval():
    rows = [row | {"seed": seed} for seed, own in ((0, 0), (1, 1), (2, 1)) for row in ROWS if row["seed"] == own]
    rows += [*curve("DASH", 0, [0.6, 0.5]), *curve("DASH", 1, [0.1, 0.6]), *curve("DASH", 2, [0.1, 0.6])]
    own = speedup.speedups(rows, METHODS)["DASH"]
    assert (own["at_least"], own["steps"]["low"] is None) == (False, False)


def test_who_never_reaches_it_is_told_so():
    rows = [*curve("RI", 0, [0.1, 0.6]), *curve("WS", 0, [0.1, 0.2])]
    assert speedup.sentence(speedup.speedups(rows, METHODS)) == (
        "To RI's final test accuracy, in steps: few or no seeds reached it of WS (0 of 1)."
    )


@pytest.mark.parametrize(
    "rows",
    [
        [*curve("WS", 0, [0.1, 0.2])],  # no RI
        [*curve("RI", 0, [0.6]), *curve("WS", 0, [0.1, 0.2])],  # one test says nothing of when
        [*curve("RI", 0, [None, 0.6]), *curve("WS", 0, [None, 0.6])],
        [*curve("RI", 0, [0.1, 60.0]), *curve("WS", 0, [0.1, 70.0])],  # no accuracies
        [*curve("RI", 0, [0.1, 0.6])[:1], *curve("WS", 0, [0.1, 0.2])],  # RI is under way
        [],
    ],
)
def test_nothing_is_told_where_nothing_can_be(rows):
    assert speedup.speedups(rows, METHODS) == {}
    assert speedup.sentence({}) == ""


def test_without_seconds_there_is_no_ratio_of_them():
    timeless = [row | {"train_seconds": 0.0} for row in ROWS]
    found = speedup.speedups(timeless, METHODS)
    assert found["SP"]["seconds"] is None
    assert found["SP"]["steps"]["mean"] == pytest.approx(math.sqrt(3))


def test_who_was_tested_at_its_end_only_is_not_told_of():
    rows = [*curve("RI", 0, [0.1, 0.6]), *curve("WS", 0, [None, 0.7]), *curve("SP", 0, [0.7])]
    assert set(speedup.passages(rows, METHODS)) == {"RI", "SP"}
    assert speedup.passages([*curve("RI", 0, [None, 0.6]), *curve("WS", 0, [0.1, 0.7])], METHODS) == {}
