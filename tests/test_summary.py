"""Intervals, the offline summary and its sentences, worked out by hand."""

import json
import math
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from wsjax.results.captions import common_samples
from wsjax.results.stats import Interval, mean_interval
from wsjax.results.summary import paired, summarize_offline, summarize_online, verdict
from wsjax.results.tables import offline_table, online_table

T_1, T_2 = 12.706204736, 4.302652730  # Student's t for 95 %, two-sided, with 1 and 2 degrees of freedom

METHODS = {
    "RI": {"reinit": "random_init"},
    "WS": {"reinit": "warm_start"},
    "SP": {"reinit": "shrink_perturb", "shrink": 0.4, "perturb": 0.1},
    "mine": {"reinit": "mine"},
}


def row(method, seed, epoch=1, stop="epochs", test=0.5, train=0.9, **more):
    known = {"method": method, "seed": seed, "round": 1 if method == "first" else 2, "epoch": epoch, "samples": 10}
    numbers = {"steps": 4 * epoch, "train_accuracy": train, "test_accuracy": test, "stop": stop}
    return {**known, **numbers, "samples_seen": 10 * epoch, "train_seconds": 0.25, "eval_seconds": 0.125, **more}


def ends(**accuracies):
    """One end a method and seed, from the test accuracies by seed."""
    return [row(method, seed, test=value) for method, values in accuracies.items() for seed, value in values.items()]


def summary(**accuracies):
    return summarize_offline(ends(**accuracies), METHODS)


def test_interval_by_hand():
    # 1, 2, 6: mean 3, deviation sqrt((4 + 1 + 9) / 2) = sqrt(7), half of the interval t_2 sqrt(7 / 3).
    mean, low, high = mean_interval([1.0, 2.0, 6.0])
    half = T_2 * math.sqrt(7 / 3)
    assert (mean, low, high) == (3.0, pytest.approx(3 - half, rel=1e-9), pytest.approx(3 + half, rel=1e-9))
    assert mean_interval([2.0, 4.0]).high == pytest.approx(3 + T_1 * math.sqrt(2) / math.sqrt(2), rel=1e-9)
    assert mean_interval([0.5] * 4) == Interval(0.5, 0.5, 0.5)


def test_interval_of_one_value():
    mean, low, high = mean_interval([0.25])
    assert mean == 0.25
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_first_round_of_a_methods_own_is_no_end():
    """As with --own_first: a method's first round is on a part of the data, and counts for no mean."""
    rows = [
        *ends(RI={0: 0.5, 1: 0.6}, mine={0: 0.7, 1: 0.8}),
        *(row("mine", seed, round=1, test=0.1) for seed in (0, 1)),
    ]
    found = summarize_offline(rows, METHODS)
    assert found["rows"] == summarize_offline(rows[:4], METHODS)["rows"]
    assert [cells[:3] for cells in offline_table(found)[1]][1] == ["mine", "2", "75.00 ± 63.53"]


def test_intervals_cover_the_mean_as_often_as_they_say():
    random = np.random.default_rng(0)
    covered = [(got := mean_interval(random.normal(size=3))).low <= 0 <= got.high for _ in range(2000)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_paired_gap_by_hand():
    # The gaps are 0.02 and 0.04: mean 0.03, deviation sqrt(2) 0.01, half of the interval t_1 0.01.
    gap = paired(ends(RI={0: 0.52, 1: 0.94}, WS={1: 0.90, 0: 0.50}), "RI", "WS")
    assert gap == {
        "minuend": "RI",
        "subtrahend": "WS",
        "mean": pytest.approx(0.03),
        "low": pytest.approx(0.03 - T_1 * 0.01),
        "high": pytest.approx(0.03 + T_1 * 0.01),
        "confidence": 0.95,
        "seeds": 2,
    }


def test_seeds_that_one_method_misses_are_left_out():
    own = ends(RI={0: 0.9, 1: 0.52, 2: 0.94}, WS={1: 0.50, 2: 0.90, 7: 0.1})
    gap = paired(own, "RI", "WS")
    assert gap["seeds"] == 2
    assert gap["mean"] == pytest.approx(0.03)
    assert paired(ends(RI={0: 0.9}, WS={1: 0.8}), "RI", "WS") is None
    assert paired(ends(RI={0: 0.9}), "RI", "WS") is None
    assert paired([], "RI", "WS") is None


def test_another_field():
    own = [row("SP", 0, epoch=3), row("WS", 0, epoch=8)]
    assert paired(own, "SP", "WS", "steps")["mean"] == -20.0


def test_one_seed_has_no_bounds_and_is_json():
    result = summary(RI={3: 0.9}, WS={3: 0.8}, SP={3: 0.85})
    gap = result["gap"]
    assert (gap["low"], gap["high"], gap["seeds"]) == (None, None, 1)
    assert gap["mean"] == pytest.approx(0.1)
    assert result["gain"]["SP"]["low"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_summary_of_rows():
    rows = [
        row("first", 0, 1, None, test=0.1),
        row("first", 0, 2, test=0.4, train=0.7),
        row("RI", 0, 1, None, train_seconds=1.0, eval_seconds=0.5),
        row("RI", 1, 1, "accuracy", test=0.7),
        row("RI", 0, 2, None, train_seconds=2.0004, eval_seconds=0.5),
        row("RI", 0, 3, "plateau", test=0.6, train=0.8, train_seconds=4.0, eval_seconds=0.5),
        row("WS", 1, 1, None, test=0.99),  # cut off before its end
        row("WS", 0, 1, test=0.5),
        row("SP", 0, 1, test=0.55, weight_norm=2.5),
        row("mine", 0, 1, test=0.45),
    ]
    result = summarize_offline(rows, METHODS)
    assert [(end["method"], end["seed"]) for end in result["rows"]] == [
        ("RI", 1), ("RI", 0), ("WS", 0), ("SP", 0), ("mine", 0),
    ]  # fmt: skip
    assert result["rows"][1] == {
        "method": "RI",
        "seed": 0,
        "round": 2,
        "samples": 10,
        "test_accuracy": 0.6,
        "train_accuracy": 0.8,
        "epochs": 3,
        "steps": 12,
        "samples_seen": 30,
        "train_seconds": 7.0,  # 1 + 2.0004 + 4, to a thousandth
        "eval_seconds": 1.5,
        "stop": "plateau",
        "shrink": 0.0,
        "perturb": 1.0,
    }
    factors = {end["method"]: (end["shrink"], end["perturb"]) for end in result["rows"]}
    assert factors == {"RI": (0.0, 1.0), "WS": (1.0, 0.0), "SP": (0.4, 0.1), "mine": (None, None)}
    assert result["rows"][3]["weight_norm"] == 2.5  # a probe's numbers stay
    (first,) = result["first_round"]
    assert (first["epochs"], first["test_accuracy"], first["train_seconds"]) == (2, 0.4, 0.5)
    assert result["gap"]["mean"] == pytest.approx(0.1)
    assert result["gap"]["seeds"] == 1
    assert {name: gain["mean"] for name, gain in result["gain"].items()} == {
        "SP": pytest.approx(0.05),
        "mine": pytest.approx(-0.05),
    }


def test_a_run_without_ends_has_no_gap():
    result = summarize_offline([row("RI", 0, 1, None)], METHODS)
    assert result == {"rows": [], "first_round": [], "gap": None, "gain": {}, "from_scratch": {}}
    assert verdict(result) == []
    assert offline_table(result)[1] == []


def test_a_gap_above_zero_and_what_shrink_perturb_takes_back():
    # Gaps 0.09, 0.10, 0.11: half of the interval is t_2 0.01 / sqrt(3) = 0.0248. SP gains 0.05 each.
    ws = {0: 0.5, 1: 0.5, 2: 0.5}
    sentences = verdict(summary(RI={0: 0.59, 1: 0.60, 2: 0.61}, WS=ws, SP={0: 0.55, 1: 0.55, 2: 0.55}))
    assert sentences == [
        "Warm starting costs accuracy: RI - WS = +10.00 points (95 % interval +7.52 to +12.48, 3 seeds).",
        "SP - WS = +5.00 points (95 % interval +5.00 to +5.00, 3 seeds): SP takes back 50% of the gap.",
    ]


def test_shrink_perturb_that_takes_nothing_back_or_more_than_the_gap():
    ri, ws = {0: 0.59, 1: 0.60, 2: 0.61}, {0: 0.5, 1: 0.5, 2: 0.5}
    worse = verdict(summary(RI=ri, WS=ws, SP={0: 0.45, 1: 0.45, 2: 0.45}))[1]
    assert worse == "SP - WS = -5.00 points (95 % interval -5.00 to -5.00, 3 seeds): SP takes nothing of the gap back."
    assert verdict(summary(RI=ri, WS=ws, SP={0: 0.65, 1: 0.65, 2: 0.65}))[1].endswith("SP takes back 150% of the gap.")


def test_a_gain_that_is_not_told_from_zero_takes_nothing_back_for_sure():
    # Gains 0.02, 0 and 0.04: half of the interval is t_2 0.02 / sqrt(3) = 0.0497.
    ri, ws = {0: 0.59, 1: 0.60, 2: 0.61}, {0: 0.5, 1: 0.5, 2: 0.5}
    assert verdict(summary(RI=ri, WS=ws, SP={0: 0.52, 1: 0.5, 2: 0.54}))[1] == (
        "SP - WS = +2.00 points (95 % interval -2.97 to +6.97, 3 seeds), which includes 0: "
        "that SP takes any of the gap back cannot be told."
    )
    assert verdict(summary(RI=ri, WS=ws, SP={0: 0.55}))[1] == "SP - WS = +5.00 points (1 seed)."


def test_an_interval_that_includes_zero():
    # Gaps 0.03 and -0.01: half of the interval is t_1 0.02 = 0.2541.
    sentences = verdict(summary(RI={0: 0.53, 1: 0.49}, WS={0: 0.5, 1: 0.5}, SP={0: 0.6, 1: 0.6}))
    assert sentences == [
        "No warm-starting gap can be told here: RI - WS = +1.00 points (95 % interval -24.41 to +26.41, 2 seeds), "
        "which includes 0.",
        "SP - WS = +10.00 points (95 % interval +10.00 to +10.00, 2 seeds).",
    ]


def test_a_bound_at_zero_is_no_gap():
    sentences = verdict(summary(RI={0: 0.5, 1: 0.5}, WS={0: 0.5, 1: 0.5}))
    assert sentences == [
        "No warm-starting gap can be told here: RI - WS = +0.00 points (95 % interval +0.00 to +0.00, 2 seeds), "
        "which includes 0."
    ]


def test_a_gap_below_zero():
    sentences = verdict(summary(RI={0: 0.5, 1: 0.5}, WS={0: 0.6, 1: 0.6}, SP={0: 0.7, 1: 0.7}))
    assert sentences == [
        "Warm starting gains accuracy here: RI - WS = -10.00 points (95 % interval -10.00 to -10.00, 2 seeds).",
        "SP - WS = +10.00 points (95 % interval +10.00 to +10.00, 2 seeds).",
    ]


def test_one_seed_says_nothing_sure():
    assert verdict(summary(RI={0: 0.6}, WS={0: 0.5}, SP={0: 0.55})) == [
        "RI - WS = +10.00 points (1 seed); one seed gives no interval, so this says nothing sure about a gap.",
        "SP - WS = +5.00 points (1 seed).",
    ]


def test_methods_that_did_not_run():
    assert verdict(summary(WS={0: 0.5, 1: 0.5}, SP={0: 0.6, 1: 0.6})) == [
        "SP - WS = +10.00 points (95 % interval +10.00 to +10.00, 2 seeds)."
    ]
    result = summary(RI={0: 0.5, 1: 0.5}, SP={0: 0.6, 1: 0.6})  # without warm starts against training from scratch
    assert result["gap"] is None
    assert verdict(result) == ["SP - RI = +10.00 points (95 % interval +10.00 to +10.00, 2 seeds)."]
    alone = summary(SP={0: 0.6})
    assert (alone["gap"], alone["gain"], verdict(alone)) == (None, {"SP": None}, [])


def test_table_by_hand():
    rows = [
        row("first", 0, 2, test=0.4, train=0.75),
        row("RI", 0, 3, test=0.5, train=0.8, train_seconds=3.0),
        row("RI", 1, 4, test=0.6, train=0.8, train_seconds=3.5),
    ]
    columns, lines = offline_table(summarize_offline(rows, METHODS))
    assert columns == ["method", "seeds", "test %", "train %", "epochs", "steps", "seconds"]
    assert lines == [
        ["first round", "1", "40.00", "75.00", "2", "8", "0.25"],
        # The half width is t_1 sqrt(2) 0.05 / sqrt(2) = 0.6353.
        ["RI", "2", "55.00 ± 63.53", "80.00 ± 0.00", "3.5", "14", "3.25"],
    ]


def test_online_summary_by_hand():
    first = [row("first", seed, 2, test=0.4) for seed in (0, 1)]
    accuracies = {"RI": [(0.5, 0.6, 0.8), (0.5, 0.7, 0.7)], "WS": [(0.5, 0.5, 0.6), (0.4, 0.5, 0.6)]}
    epochs = {"RI": 4, "WS": 1}
    later = [
        row(name, seed, epochs[name], test=test, round=number, stop="accuracy" if number < 4 else "epochs")
        for name in accuracies
        for seed in (0, 1)
        for number, test in zip((2, 3, 4), accuracies[name][seed], strict=True)
    ]
    result = summarize_online([*first, *later], METHODS)
    assert [(r["method"], r["seed"], r["round"]) for r in result["rounds"][:5]] == [
        ("RI", 0, 1), ("RI", 1, 1), ("RI", 0, 2), ("RI", 0, 3), ("RI", 0, 4),
    ]  # fmt: skip
    total = result["rows"][0]
    # The first round's 2 epochs of 4 steps are every method's, and 3 rounds of 4 epochs follow.
    assert (total["epochs"], total["steps"], total["test_accuracy"], total["capped_rounds"]) == (14, 56, 0.8, 2)
    assert total["mean_test_accuracy"] == pytest.approx(1.9 / 3)
    assert result["gap"]["mean"] == pytest.approx(0.15)
    assert result["mean_gap"]["mean"] == pytest.approx((0.3 / 3 + 0.4 / 3) / 2)
    # Gaps 0, 0.1, 0.2 rise by 0.1 a round; 0.1, 0.2, 0.1 by nothing.
    assert result["gap_slope"]["mean"] == pytest.approx(0.05)
    assert result["steps_of_RI"]["WS"]["mean"] == pytest.approx(20 / 56)
    sentences = " ".join(verdict(result))
    assert "The gap cannot be told to grow with the rounds" in sentences
    assert "WS took 36% (95 % interval 36% to 36%) of RI's steps." in sentences
    assert online_table(result)[1][1] == ["WS", "2", "60.00 ± 0.00", "51.67", "20", "36%", "1", "2"]
    json.dumps(result, allow_nan=False)


def test_a_round_that_diverged_leaves_the_others_in_their_places():
    gaps = {2: 0.1, 3: None, 4: 0.3}  # 0.1 a round
    rows = [row("RI", 0, test=None if gap is None else 0.5 + gap, round=number) for number, gap in gaps.items()]
    rows += [row("WS", 0, test=0.5, round=number) for number in gaps]
    assert summarize_online(rows, METHODS)["gap_slope"]["mean"] == pytest.approx(0.1)


def test_what_a_method_is_decides_not_its_name():
    methods = {"scratch": {"reinit": "random_init"}, "on": {"reinit": "warm_start"}, "RI": {"reinit": "mine"}}
    result = summarize_offline(ends(scratch={0: 0.6, 1: 0.6}, on={0: 0.5, 1: 0.5}, RI={0: 0.7, 1: 0.7}), methods)
    assert verdict(result) == [
        "Warm starting costs accuracy: scratch - on = +10.00 points (95 % interval +10.00 to +10.00, 2 seeds).",
        "RI - on = +20.00 points (95 % interval +20.00 to +20.00, 2 seeds): RI takes back 200% of the gap.",
    ]
    assert [(end["shrink"], end["perturb"]) for end in result["rows"][::2]] == [(0.0, 1.0), (1.0, 0.0), (None, None)]


def test_pairing_is_what_scipy_makes_of_it():
    random = np.random.default_rng(0)
    a, b = random.uniform(0.5, 0.9, (2, 7))
    gap = paired(ends(RI=dict(enumerate(a)), WS=dict(reversed(list(enumerate(b))))), "RI", "WS")
    assert gap is not None
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (gap["low"], gap["high"]) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert gap["mean"] == pytest.approx(np.mean(a - b))
    interval = scipy.stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert mean_interval(a.tolist())[1:] == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_only_ends_of_the_same_round_are_paired():
    first = [row("first", seed) for seed in (0, 1)]
    later = [row(name, 0, round=2, test=test) for name, test in (("RI", 0.6), ("WS", 0.5))]
    behind = [row("RI", 1, round=2, test=0.9)]  # seed 1's WS has not come as far
    result = summarize_online([*first, *later, *behind], METHODS)
    assert (result["gap"]["seeds"], result["gap"]["mean"]) == (1, pytest.approx(0.1))
    assert result["steps_of_RI"]["WS"]["seeds"] == 1


def test_a_method_has_the_first_round_of_its_own_seeds_only():
    first = [row("first", seed) for seed in (0, 1, 2)]  # seed 2 has just begun
    later = [row(name, seed, round=2, samples=20) for name, seed in (("RI", 0), ("RI", 1), ("WS", 0))]
    result = summarize_online([*first, *later], METHODS)
    assert [(end["method"], end["seed"], end["round"]) for end in result["rounds"]] == [
        ("RI", 0, 1), ("RI", 1, 1), ("RI", 0, 2), ("RI", 1, 2), ("WS", 0, 1), ("WS", 0, 2),
    ]  # fmt: skip
    assert common_samples(result["rounds"]) == 20
    assert [line[:2] for line in online_table(result)[1]] == [["RI", "2"], ["WS", "1"]]


def test_one_round_is_a_table_of_the_first_round():
    result = summarize_online([row("first", seed, 2, test=0.4 + seed / 10) for seed in (0, 1)], METHODS)
    assert online_table(result) == (
        ["method", "seeds", "last test %", "mean", "steps", "of RI", "seconds", "capped"],
        [["first round", "2", "45.00 ± 63.53", "45.00", "8", "", "0.25", "1"]],
    )
    assert (result["gap"], result["gain"], result["steps_of_RI"]) == (None, {}, {})
    assert verdict(result) == ["All methods share the first round: a second one would tell them apart."]


def test_a_score_that_is_no_share_is_told_as_it_is():
    result = summary(RI={0: 19.75, 1: 20.75}, WS={0: 10.0, 1: 10.0})
    columns, lines = offline_table(result)
    assert columns[2:4] == ["test score", "train score"]
    assert lines[0][2] == "20.25 ± 6.353"
    assert verdict(result) == [
        "Warm starting makes a difference: RI - WS = +10.25 (95 % interval +3.897 to +16.6, 2 seeds)."
    ]


@st.composite
def made_up_rows(draw):
    """Rows of any methods, seeds and rounds, in the order of a run, cut anywhere."""
    methods = draw(st.lists(st.sampled_from([*METHODS, "not in the table", "<b>$x_1$\n"]), unique=True))
    seeds = draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True))
    score = draw(st.sampled_from([st.floats(0, 1), st.floats(-1e9, 1e9), st.just(0.5)]))
    rounds = draw(st.integers(1, 4))
    stops = st.sampled_from(["epochs", "accuracy"])
    rows = []
    for seed in seeds:
        for method in ["first", *draw(st.permutations(methods))[: draw(st.integers(0, len(methods)))]]:
            for number in [1] if method == "first" else range(2, rounds + 1):
                last = draw(st.integers(1, 3))
                for epoch in range(1, last + 1):
                    stop = draw(stops) if epoch == last else None
                    numbers = {
                        "test": draw(score),
                        "train": draw(score),
                        "train_seconds": draw(st.sampled_from([0, 1.5])),
                    }
                    rows.append(row(method, seed, epoch, stop, round=number, **numbers) | {"samples": 10 * number})
    return rows[: draw(st.integers(0, len(rows)))]


def numbers_of(value):
    if isinstance(value, dict | list):
        return [
            number for part in (value.values() if isinstance(value, dict) else value) for number in numbers_of(part)
        ]
    return [value] if isinstance(value, float) else []


@given(made_up_rows())
def test_every_summary_has_finite_numbers_a_table_and_sentences(rows):
    for summarize, table in ((summarize_offline, offline_table), (summarize_online, online_table)):
        result = summarize(rows, METHODS)
        assert all(map(math.isfinite, numbers_of(result)))
        json.dumps(result, allow_nan=False)
        columns, lines = table(result)
        assert {len(line) for line in lines} <= {len(columns)}
        assert all(text.isprintable() and "nan" not in text for line in [*lines, verdict(result)] for text in line)
        reached = {end["method"] for end in result["rows"]}
        assert reached == ({row["method"] for row in rows if row["stop"]} - {"first"} or reached & {"first"})


def test_a_table_tells_of_how_many_seeds_there_is_a_number():
    rows = ends(RI={0: None, 1: 0.5, 2: 0.7}, WS={0: None}, SP={0: 0.4, 1: None})
    _, lines = offline_table(summarize_offline(rows, METHODS))
    assert [line[:3] for line in lines] == [
        ["RI", "3", "60.00 ± 127.06 (2 of 3)"], ["WS", "1", "-"], ["SP", "2", "40.00 (1 of 2)"],
    ]  # fmt: skip
    _, lines = online_table(summarize_online(rows, METHODS))
    assert [line[3] for line in lines] == ["60.00 (2 of 3)", "-", "40.00 (1 of 2)"]


def test_a_million_rows_take_seconds():
    epochs = [row(name, seed, epoch, "epochs" if epoch == 50 else None, round=number)
              for seed in range(1000) for name in ("RI", "WS", "SP", "mine") for number in range(2, 7)
              for epoch in range(1, 51)]  # fmt: skip
    begin = time.perf_counter()
    result = summarize_online(epochs, METHODS)
    online_table(result)
    assert time.perf_counter() - begin < 20  # about 2 alone on a machine
    assert result["gap"]["seeds"] == 1000
