"""Stop rules, worked out by hand."""

import numpy as np
import pytest

from wsjax.errors import TaskError
from wsjax.storage.rows import CAP
from wsjax.training.stopping import after_epochs, any_of, at_accuracy, at_plateau


def first_stop(rule, accuracies):
    """The first epoch after which the rule stops, and its reason."""
    found = ((epoch, rule(accuracies[:epoch])) for epoch in range(len(accuracies) + 1))
    return next(((epoch, reason) for epoch, reason in found if reason), None)


@pytest.mark.parametrize(
    ("rule", "accuracies", "expected"),
    [
        (after_epochs(3), [0.1] * 5, (3, "epochs")),
        (after_epochs(1), [0.1] * 5, (1, "epochs")),
        (after_epochs(6), [0.1] * 5, None),
        (at_accuracy(0.5), [0.2, 0.49, 0.5, 0.9], (3, "accuracy")),
        (at_accuracy(1.0), [0.9, 1.0], (2, "accuracy")),
        (at_accuracy(0.5), [0.2, 0.3], None),
        (at_accuracy(0.5), [float("nan"), 0.4], None),
        # Three equal values have a deviation of 0; two are too few.
        (at_plateau(0.002, 3), [0.5, 0.5, 0.5, 0.5], (3, "plateau")),
        # 0.500, 0.503, 0.506 deviate by 0.003 * sqrt(2 / 3) = 0.00245 in the population, 0.003 in the sample.
        (at_plateau(0.0025, 3), [0.500, 0.503, 0.506], (3, "plateau")),
        (at_plateau(0.0024, 3), [0.500, 0.503, 0.506], None),
        # Only the last values count, and a fall is a change too.
        (at_plateau(0.01, 2), [0.1, 0.5, 0.3, 0.31], (4, "plateau")),
        (at_plateau(0.0, 3), [0.5] * 5, None),  # "below", not "at"
        (at_plateau(), [0.10, 0.20, 0.30, 0.301, 0.302, 0.9], (5, "plateau")),
        (at_plateau(), [float("nan")] * 5, None),
    ],
)
def test_when_a_rule_stops(rule, accuracies, expected):
    assert first_stop(rule, accuracies) == expected


def test_the_first_rule_that_holds_gives_the_reason():
    rule = any_of(at_accuracy(0.9), at_plateau(0.002, 3), after_epochs(3))
    assert first_stop(rule, [0.1, 0.95]) == (2, "accuracy")
    assert first_stop(rule, [0.1, 0.1, 0.1]) == (3, "plateau")  # both hold: the earlier rule is named
    assert first_stop(rule, [0.1, 0.4, 0.7]) == (3, CAP)
    assert first_stop(any_of(after_epochs(3), at_plateau(0.002, 3)), [0.1, 0.1, 0.1]) == (3, CAP)
    with pytest.raises(TaskError, match="no rule is given"):
        any_of()


def test_a_threshold_is_reached_by_the_accuracy_that_it_names():
    for threshold, right, samples in ((0.95, 19, 20), (0.9, 18, 20), (0.7, 14, 20), (0.99, 99, 100), (1.0, 3, 3)):
        counted = float(np.float32(right) / np.float32(samples))  # 0.95 is 0.949999988 then
        assert at_accuracy(threshold)([counted]) == "accuracy"
        assert at_accuracy(threshold)([counted - 1e-6]) is None


def test_a_rule_keeps_no_memory():
    rule, accuracies = any_of(at_plateau(0.002, 3), after_epochs(4)), [0.5, 0.5, 0.5]
    assert rule(accuracies) == rule(accuracies) == "plateau"
    assert accuracies == [0.5, 0.5, 0.5]
    assert rule(np.array([0.1, 0.3, 0.5])) is None


def test_the_reason_is_a_plain_word():
    assert [at_plateau(1.0, 1)([0.5]), at_accuracy(0.1)([np.float32(0.5)])] == ["plateau", "accuracy"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: at_accuracy(99), r"at_accuracy: threshold must lie in \(0, 1\], not 99: 99 % are 0\.99"),
        *((lambda bad=bad: at_accuracy(bad), "at_accuracy: threshold must lie in") for bad in (1.5, 0, -1, 1e-50)),
        (lambda: at_accuracy(np.nan), "at_accuracy: threshold must be finite, not nan"),
        (lambda: at_accuracy("1"), "at_accuracy: threshold must be a real number, not '1'"),
        (lambda: at_plateau(-0.1), "at_plateau: tolerance must be 0 or more, not -0.1"),
        (lambda: at_plateau(float("nan")), "at_plateau: tolerance must be finite, not nan"),
        (lambda: at_plateau(0.1, 0), "at_plateau: window must be a whole number, 1 or more, not 0"),
        (lambda: at_plateau(0.1, 2.5), "at_plateau: window must be a whole number, 1 or more, not 2.5"),
        (lambda: any_of(at_accuracy(0.5), 0.9), r"any_of: a rule is a function \(accuracies\) -> reason, not 0.9"),
        (lambda: after_epochs(0), "after_epochs: epochs must be a whole number, 1 or more, not 0"),
    ],
)
def test_rules_that_could_not_hold_are_refused(make, said):
    with pytest.raises(TaskError, match=f"^{said}"):
        make()


def test_numbers_of_numpy_are_numbers():
    assert at_accuracy(np.float32(0.5))([0.6]) == at_accuracy(np.array(0.5))([0.6]) == "accuracy"
    assert after_epochs(np.int64(1))([0.6]) == CAP
