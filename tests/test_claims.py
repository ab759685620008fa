"""Verdicts on claims, from made-up runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import stdtrit
from test_captions import run
from test_plots import curve

from wsjax.results import claims
from wsjax.results.claims import NOT_REPRODUCED, NOT_RUN, REPRODUCED, UNDECIDED, Estimate, judge

CLAIMS = json.loads((Path(__file__).parents[1] / "figures" / "published" / "claims.json").read_text())["claims"]
RI, WS = {"reinit": "random_init"}, {"reinit": "warm_start"}
PART = {
    "what": "RI - WS", "runs": [{"experiment": "offline", "dataset": "cifar10"}], "measure": "difference",
    "of": [RI, WS], "lies_in": [0, None],
}  # fmt: skip


def timed(rows):
    return [{"steps": 4, "samples_seen": 10, "train_seconds": 1800.0, "eval_seconds": 0.0} | row for row in rows]


def offline(random, warm, **settings):
    """A run of these final accuracies, a seed each."""
    rows = [row for seed, (a, b) in enumerate(zip(random, warm, strict=True))
            for row in curve("RI", [a, a], seed) + curve("WS", [b, b], seed)]  # fmt: skip
    rows = [row | {"samples": settings.get("num_train", 50_000)} for row in rows]
    return run(timed(rows), seeds=list(range(len(random))), **settings)


def verdict(*runs, **changes):
    return judge({"parts": [PART | changes]}, list(runs))


@pytest.mark.parametrize(
    ("warm", "expected"),
    [
        ((0.50, 0.51, 0.49), REPRODUCED),
        ((0.70, 0.71, 0.69), NOT_REPRODUCED),
        ((0.50, 0.71, 0.59), UNDECIDED),
    ],
)
def test_the_interval_decides(warm, expected):
    found = verdict(offline((0.60, 0.61, 0.59), warm))
    assert found.verdict == expected
    (estimate,) = found.estimates
    assert (estimate.what, estimate.seeds) == ("RI - WS", 3)
    assert estimate.mean == pytest.approx(0.6 - sum(warm) / 3)
    assert found.scale == "CIFAR-10, width 64, 50,000 images, 3 epochs, 3 seeds"


def test_rounds_of_a_fixed_length_are_judged_by_their_last_epochs():
    def ending(method, seed, *accuracies):
        return [row | {"samples": 50_000} for row in curve(method, accuracies, seed)]

    rows = []
    for seed, luck in enumerate((0.0, 0.01, 0.02)):
        rows += ending("RI", seed, 0.0, 0.6, 0.6 + luck, 0.6) + ending("WS", seed, 0.0, 0.6, 0.6, 0.5)
    (estimate,) = verdict(run(timed(rows), seeds=[0, 1, 2])).estimates
    assert estimate.mean == pytest.approx((0.01 + 0.1) / 3)
    (estimate,) = verdict(run(timed(rows), seeds=[0, 1, 2], stop=["accuracy"])).estimates
    assert estimate.mean == pytest.approx(0.1)


def test_what_is_not_fitted_decides_nothing():
    own = offline((0.60, 0.61, 0.59), (0.50, 0.51, 0.49))
    for row in own.rows:
        row["train_accuracy"] = 0.8 if row["method"] == "RI" else 0.95
    assert verdict(own, fitted=0.75).verdict == REPRODUCED
    found = verdict(own, fitted=0.9)
    assert found.verdict == UNDECIDED
    assert found.estimates[0].fitted == pytest.approx(0.8)


def test_a_narrower_network_decides_where_a_wider_one_does_not():
    wide, narrow = offline((0.6, 0.7), (0.5, 0.7)), offline((0.60, 0.61, 0.59), (0.50, 0.51, 0.49), width=16)
    found = verdict(wide, narrow)
    assert (found.verdict, found.scale) == (REPRODUCED, "CIFAR-10, width 16, 50,000 images, 3 epochs, 3 seeds")
    assert list(found.others) == ["wider"]
    other = found.others["wider"]
    assert (other.verdict, other.scale) == (UNDECIDED, "CIFAR-10, width 64, 50,000 images, 3 epochs, 2 seeds")
    assert verdict(wide, offline((0.6, 0.7), (0.5, 0.7), width=16)) == verdict(wide)
    assert not verdict(wide).others


def test_what_a_narrower_network_says_to_the_contrary_is_told():
    wide = offline((0.60, 0.61, 0.59), (0.50, 0.51, 0.49))
    found = verdict(wide, offline((0.50, 0.51, 0.49), (0.60, 0.61, 0.59), width=16))
    assert found.verdict == REPRODUCED
    assert {width: other.verdict for width, other in found.others.items()} == {"narrower": NOT_REPRODUCED}
    assert not verdict(wide, offline((0.60, 0.61, 0.59), (0.50, 0.51, 0.49), width=16)).others


def test_a_verdict_errs_in_fewer_than_five_of_a_hundred_cases_whatever_the_looks():
    draws, rng = 20_000, np.random.default_rng(0)
    for looks in ((12,), (4, 8), (4, 6, 12), (3, 6, 9, 12), (3, 7, 19, 23)):
        values, wrong = rng.normal(size=(draws, looks[-1])), np.zeros((2, draws), bool)
        going = np.ones(draws, bool)
        for number, seeds in enumerate(looks, 1):
            mean, error = values[:, :seeds].mean(1), values[:, :seeds].std(1, ddof=1) / seeds**0.5
            half = stdtrit(seeds - 1, 1 - claims.ERROR / number / 2) * error
            for side, out in enumerate((mean - half > 0, mean + half < 0)):
                wrong[side] |= going & out
            going &= ~(wrong[0] | wrong[1])
        assert wrong.mean(1).max() < 0.05


def test_one_seed_decides_nothing_and_no_run_is_not_run():
    assert verdict(offline((0.9,), (0.1,))).verdict == UNDECIDED
    assert verdict().verdict == NOT_RUN
    assert verdict(offline((0.9, 0.9), (0.1, 0.1), dataset="svhn")).verdict == NOT_RUN
    assert verdict(offline((0.9, 0.9), (0.1, 0.1)), of=[RI, {"reinit": "shrink_perturb"}]).missing == ["RI - WS"]


def test_ranges_are_open_or_closed_at_either_end():
    bounds = [
        ((0, None), REPRODUCED),
        ((None, 0), NOT_REPRODUCED),
        ((0.15, 0.25), UNDECIDED),
        ((0.3, 0.4), NOT_REPRODUCED),
    ]
    for lies_in, expected in bounds:
        assert Estimate("", 0.2, 0.1, 0.25, 3, "points", lies_in).verdict == expected


def test_a_claim_of_several_parts_needs_them_all():
    good, bad = offline((0.6, 0.61), (0.5, 0.51)), offline((0.5, 0.51), (0.6, 0.61), dataset="cifar100")
    parts = [PART, PART | {"what": "other", "runs": [{"experiment": "offline", "dataset": "cifar100"}]}]
    assert judge({"parts": parts}, [good]).verdict == UNDECIDED
    assert judge({"parts": parts}, [good]).missing == ["other"]
    assert judge({"parts": parts}, [good, bad]).verdict == NOT_REPRODUCED
    assert judge({"parts": parts}, [good, offline((0.7, 0.71), (0.6, 0.61), dataset="cifar100")]).verdict == REPRODUCED


def test_the_largest_run_decides_and_seeds_of_several_runs_are_one():
    small = offline((0.5, 0.51), (0.6, 0.61), width=8)
    assert verdict(small, offline((0.6, 0.61), (0.5, 0.51))).verdict == REPRODUCED
    alone = offline((0.6,), (0.5,))  # a larger run of one seed has no interval
    assert verdict(small, alone).verdict == NOT_REPRODUCED
    other = run(curve("RI", [0.62], 7) + curve("WS", [0.52], 7), seeds=[7])
    found = verdict(small, alone, other)
    assert (found.verdict, found.estimates[0].seeds) == (REPRODUCED, 2)


def test_the_change_of_a_gap_between_two_runs_is_paired():
    more, less = (
        offline((0.6, 0.7), (0.5, 0.6), weight_decay=0.001),
        offline((0.6, 0.7), (0.59, 0.68), weight_decay=0.1),
    )
    runs = [{"experiment": "offline", "weight_decay": 0.1}, {"experiment": "offline", "weight_decay": 0.001}]
    found = verdict(more, less, measure="change", runs=runs, lies_in=[None, 0])
    assert found.estimates[0].mean == pytest.approx(0.015 - 0.1)
    assert found.verdict == REPRODUCED


def test_what_one_summary_has_more_than_another_is_paired_by_seed():
    runs = [{"experiment": "offline", "weight_decay": 0.1}, {"experiment": "offline", "weight_decay": 0.001}]
    gaps = (0.0, 0.2), (0.1, 0.1)  # of two seeds: the second alone has no spread, its difference to the first has
    first, second = (
        offline((0.6, 0.6), tuple(0.6 - gap for gap in own), weight_decay=run["weight_decay"])
        for own, run in zip(gaps, runs, strict=True)
    )
    found = verdict(first, second, measure="less", runs=runs, at=["gap"], lies_in=[None, 0]).estimates[0]
    assert (found.mean, found.seeds) == (pytest.approx(0), 2)
    assert found.high == pytest.approx(12.706 * 0.1, rel=1e-3)  # Student's t of one degree times the standard error
    swapped = verdict(first, second, measure="less", runs=runs[::-1], at=["gap"], lies_in=[None, 0]).estimates[0]
    assert swapped.high == pytest.approx(found.high)  # either way: both runs' noise counts


def test_a_mean_is_compared_in_combined_standard_errors():
    """Mean 0.60, error 0.01 / sqrt(3); the published one 0.58, error 0.01 / sqrt(3) too."""
    found = verdict(offline((0.59, 0.60, 0.61), (0.5, 0.5, 0.5)), measure="mean", of=[RI], published=[57.0, 58, 59],
                    lies_in=[-2, 2])  # fmt: skip
    expected = 0.02 / (2 * 0.01**2 / 3) ** 0.5
    assert found.estimates[0].mean == pytest.approx(expected)
    assert found.verdict == NOT_REPRODUCED


def test_the_growth_of_steps_over_rounds():
    rows = []
    for seed in (0, 1):
        rows += curve("first", [0.5], seed)
        for number, (random, warm) in enumerate([(10, 5), (20, 5), (30, 6)], 2):
            for name, steps in (("RI", random + seed), ("WS", warm)):
                rows += [row | {"round": number, "steps": steps} for row in curve(name, [0.5], seed)]
    part = {"measure": "growth", "runs": [{"experiment": "online"}], "unit": ""}
    online = run(rows, experiment="online")
    assert verdict(online, of=[RI], **part).estimates[0].mean == pytest.approx(10)
    share = verdict(online, of=[WS, RI], **part | {"lies_in": [-0.25, 0.25]})
    assert share.estimates[0].mean == pytest.approx(0.05)
    assert share.verdict == REPRODUCED


def test_the_tour_tells_of_a_claim_where_nothing_larger_was_run():
    digits = offline((0.6, 0.61), (0.5, 0.51), dataset="digits", model="mlp", optimizer="adam", num_train=600)
    part = PART | {"runs": [{"experiment": "offline", "dataset": "cifar10", "model": "resnet18"}]}
    assert judge({"parts": [part]}, [digits]).verdict == NOT_RUN
    told = judge({"parts": [part], "tour": True}, [digits])
    assert (told.verdict, told.scale) == (REPRODUCED, "digits, 600 images, 3 epochs, 2 seeds")
    larger = judge({"parts": [part], "tour": True}, [digits, offline((0.5, 0.51), (0.6, 0.61))])
    assert (larger.verdict, larger.scale[:8]) == (NOT_REPRODUCED, "CIFAR-10")


def test_a_share_of_growth_is_one_of_means_over_the_rounds_that_both_have():
    """Slopes of 10 and 2 from scratch, 1 and 1 warm: 2 of 12, not the mean of a tenth and a half."""
    rows = []
    for seed, (random, warm) in enumerate([(10, 1), (2, 1)]):
        for number in range(2, 6):
            rows += [row | {"round": number, "steps": random * number} for row in curve("RI", [0.5], seed)]
            if number < 5:
                rows += [row | {"round": number, "steps": warm * number} for row in curve("WS", [0.5], seed)]
            if number == 5:  # which the warm start has not come to
                rows[-1]["steps"] = 1000
    part = {"measure": "growth", "runs": [{"experiment": "online"}], "unit": "", "of": [WS, RI]}
    found = verdict(run(rows, experiment="online"), **part).estimates[0]
    assert (found.mean, found.seeds) == (pytest.approx(2 / 12), 2)
    residual = (1 - 10 * 2 / 12) / 6  # of the first seed, in the mean slope; the second's is its opposite
    assert found.high - found.mean == pytest.approx(12.706 * abs(residual), rel=1e-3)


def test_an_online_run_is_as_large_as_what_it_trained_on():
    rows = [row | {"round": 2, "samples": 4000} for seed in (0, 1) for row in curve("RI", [0.6], seed)]
    rows += [row | {"round": 2, "samples": 4000} for seed in (0, 1) for row in curve("WS", [0.5], seed)]
    found = verdict(run(rows, experiment="online"), runs=[{"experiment": "online"}])
    assert found.scale == "CIFAR-10, width 64, 4,000 images, 3 epochs, 2 seeds"


def test_seeds_that_went_on_to_further_rounds_are_a_further_look():
    def of_rounds(number, seeds=(0, 1)):
        rows = [row | {"round": number, "samples": 1000 * number} for seed in seeds
                for row in curve("RI", [0.6], seed) + curve("WS", [0.5], seed)]  # fmt: skip
        return run(rows, experiment="online", max_rounds=number, seeds=list(seeds))

    online = {"runs": [{"experiment": "online"}]}
    looks = [
        verdict(*runs, **online).estimates[0].looks
        for runs in (
            [of_rounds(4)],
            [of_rounds(4), of_rounds(2)],
            [of_rounds(4), of_rounds(2), of_rounds(3)],
            [of_rounds(4), of_rounds(2, (8, 9))],
            [of_rounds(2), of_rounds(2, (8, 9))],
        )
    ]
    assert looks == [1, 2, 3, 1, 2]


def test_a_larger_run_of_which_one_seed_can_be_compared_does_not_decide():
    decided = offline((0.6, 0.61), (0.5, 0.51), width=16)
    begun = run(curve("RI", [0.6]) + curve("RI", [0.6], 1) + curve("WS", [0.5]), seeds=[0, 1])
    found = verdict(decided, begun)
    assert (found.verdict, found.scale.split(", ")[1]) == (REPRODUCED, "width 16")


def test_a_look_is_one_at_seeds_that_all_compared_methods_have():
    rows = {name: [curve(name, [score], seed) for seed in range(4)] for name, score in (("RI", 0.6), ("WS", 0.5))}

    def part_of(random, warm):
        own = [*(rows["RI"][seed] for seed in random), *(rows["WS"][seed] for seed in warm)]
        return run([row for curve_ in own for row in curve_], seeds=[0, 1, 2, 3])

    first, second = part_of((0, 1), (0, 1)), part_of((2, 3), (2, 3))
    assert verdict(first, second).estimates[0].looks == 2
    alone = part_of((0, 1, 2, 3), ())  # random initialisation's seeds alone are no look, nor do they hide one
    assert [verdict(*own).estimates[0].looks for own in ((alone, first, second), (first, alone, second))] == [2, 2]


def test_every_run_is_a_look_where_a_part_names_no_method():
    """Of more seeds than it tells of, for it may pick among them by what came out."""
    rows = [
        timed(curve("first", [0.5], seed) + curve("RI", [0.6], seed) + curve("WS", [0.5], seed)) for seed in range(4)
    ]
    more = timed(curve("RI", [0.6], 4))  # no pair
    runs = [run(rows[0] + rows[1], seeds=[0, 1]), run(rows[2] + rows[3], seeds=[2, 3]), run(more, seeds=[4])]
    part = {"runs": [{"experiment": "offline"}], "measure": "summary", "at": ["gap"], "of": None}
    (found,) = verdict(*runs, **part).estimates
    assert (found.seeds, found.looks) == (4, 3)


def test_runs_of_seeds_that_are_not_compared_are_no_look():
    """Where two kinds of runs are paired by seed, those count that both have, whichever came first."""

    def part_of(seeds, decay):
        rows = [row for seed in seeds for row in curve("RI", [0.6], seed) + curve("WS", [0.5 + seed / 100], seed)]
        return run(rows, seeds=list(seeds), weight_decay=decay)

    runs = [{"experiment": "offline", "weight_decay": 0.1}, {"experiment": "offline", "weight_decay": 0.001}]
    apart = [part_of(seeds, 0.001) for seeds in ((0, 1), (2, 3), (4, 5))]
    for seeds, looks in (((2, 3, 4, 5), 2), (range(6), 3), ((0, 1), 1)):
        assert verdict(part_of(seeds, 0.1), *apart, measure="change", runs=runs).estimates[0].looks == looks


def test_what_was_not_measured_is_missing():
    part = {"what": "x", "runs": [{"experiment": "online"}], "measure": "summary", "lies_in": [0, None]}
    online = run(timed(curve("first", [0.5]) + curve("WS", [0.5])), experiment="online")
    for at in (["gap"], ["gain", RI], ["rows", 9], ["nothing", 0]):
        assert judge({"parts": [part | {"at": at}]}, [online]).missing == ["x"]


def test_a_study_that_is_under_way_tells_of_what_has_ended():
    whole = claims.read_study(Path(__file__).parents[1] / "figures" / "results")
    for rows in (0, 1, 30):
        begun = [run._replace(rows=run.rows[:rows], summary=None) for run in whole]
        told = {own.claim["id"]: own.verdict for own in claims.verdicts(CLAIMS, begun)}
        assert told["matched-rate"] == NOT_RUN
        assert REPRODUCED not in told.values()


def test_every_claim_is_whole():
    assert len({claim["id"] for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.keys() >= {"id", "figure", "claim", "published", "command", "parts"}
        for part in claims.parts_of(claim):
            assert part["measure"] in claims.MEASURES
            assert len(part["lies_in"]) == 2
        assert judge(claim, []).verdict == NOT_RUN


def test_runs_of_another_scale_are_not_compared():
    runs = [{"experiment": "offline", "weight_decay": 0.1}, {"experiment": "offline", "weight_decay": 0.001}]
    part = {"measure": "change", "runs": runs, "lies_in": [None, 0]}
    more = offline((0.6, 0.7), (0.5, 0.6), weight_decay=0.001)
    less = offline((0.6, 0.7), (0.59, 0.68), weight_decay=0.1, num_train=5000, epochs=9)
    assert verdict(more, less, **part).verdict == NOT_RUN
    alike = offline((0.6, 0.7), (0.55, 0.68), weight_decay=0.001, num_train=5000)
    found = verdict(more, less, alike, **part)
    assert found.estimates[0].mean == pytest.approx(0.015 - 0.035)
    assert found.scale == (
        "CIFAR-10, width 64, 5,000 images, 9 epochs, 2 seeds; CIFAR-10, width 64, 5,000 images, 3 epochs, 2 seeds"
    )


def test_of_several_runs_the_most_alike_are_compared():
    """However large another is: here one of more epochs at another rate."""
    runs = [{"experiment": "offline", "weight_decay": 0.1}, {"experiment": "offline", "weight_decay": 0.001}]
    less = offline((0.6, 0.7), (0.55, 0.65), weight_decay=0.001)
    more = offline((0.6, 0.7), (0.59, 0.68), weight_decay=0.1)
    larger = offline((0.6, 0.7), (0.3, 0.4), weight_decay=0.1, epochs=60, learning_rate=0.1)
    found = verdict(less, larger, more, measure="change", runs=runs, lies_in=[None, 0])
    assert found.estimates[0].mean == pytest.approx(0.015 - 0.05)


def test_of_several_parts_one_lies_outside_by_an_interval_that_pays_for_all():
    """Five differences, mean -0.1, deviation 0.07: outside of 0 at 95 %, and not at 1 - 0.05 / 6 (t 4.9, not 2.8)."""
    random = (0.5,) * 5
    warm = tuple(0.6 + 0.07 * z / 0.7905694 for z in (-1, -0.5, 0, 0.5, 1))
    parts = [PART, *(PART | {"what": str(number), "of": [WS, RI], "lies_in": [-1, 1]} for number in range(5))]
    run_of = offline(random, warm)
    assert judge({"parts": parts[:1]}, [run_of]).verdict == NOT_REPRODUCED
    assert judge({"parts": parts}, [run_of]).verdict == UNDECIDED
    assert {own.verdict for own in judge({"parts": parts}, [run_of]).estimates} == {UNDECIDED, REPRODUCED}
    assert judge({"parts": parts}, [offline(random, tuple(0.4 + own for own in warm))]).verdict == NOT_REPRODUCED


def test_seeds_that_were_added_are_a_further_look():
    """Differences of 0.12 with a deviation of 0.06: of four seeds told from 0 at once, and not in two looks."""
    warm = (0.5, 0.45, 0.55, 0.6)

    def part_of(seeds):
        rows = [row for seed in seeds for row in curve("RI", [0.6], seed) + curve("WS", [warm[seed] - 0.045], seed)]
        return run(rows, seeds=list(seeds))

    found = verdict(part_of(range(4)))
    assert (found.verdict, found.scale[-9:]) == (REPRODUCED, ", 4 seeds")
    found = verdict(part_of(range(2)), part_of(range(2, 4)))
    assert (found.verdict, found.scale[-20:]) == (UNDECIDED, ", 4 seeds in 2 looks")
    again = verdict(part_of(range(4)), part_of(range(2)))  # the very same seeds tell nothing new
    assert (again.verdict, again.estimates[0].looks) == (REPRODUCED, 1)


def test_means_are_judged_together_by_what_chance_puts_outside():
    run_of = offline((0.59, 0.60, 0.61, 0.59, 0.61), (0.5,) * 5)
    parts = [
        PART
        | {"measure": "mean", "of": [RI], "lies_in": [-2, 2], "published": [60.0 + far, 59, 61, 60 + far, 60 + far]}
        for far in (*[6.0] * 4, *[0.0] * 20)
    ]
    assert [own.verdict for own in judge({"parts": parts}, [run_of]).estimates].count(NOT_REPRODUCED) == 4
    assert judge({"parts": parts}, [run_of]).verdict == NOT_REPRODUCED
    assert judge({"parts": parts, "together": True}, [run_of]).verdict == REPRODUCED  # 8 % each: 4 or more, 12 %
    assert judge({"parts": [parts[0], *parts], "together": True}, [run_of]).verdict == NOT_REPRODUCED  # 5 of 25, 5 %


def test_a_method_at_another_learning_rate_is_not_taken_for_it():
    rows = [row for seed in (0, 1) for row in curve("RI@0.1", [0.6 + seed / 99], seed) + curve("WS", [0.5], seed)]
    methods = {"RI@0.1": RI | {"learning_rate": 0.1}, "WS": WS}
    raised = run(rows, methods=methods, seeds=[0, 1])
    assert verdict(raised).verdict == NOT_RUN
    assert verdict(raised, of=[RI | {"learning_rate": 0.1}, WS]).verdict == REPRODUCED
