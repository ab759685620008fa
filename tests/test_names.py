"""What methods are, and how they are ordered, labelled and drawn."""

import pytest

from wsjax.errors import RunError
from wsjax.results import names

RI, WS = {"reinit": "random_init"}, {"reinit": "warm_start"}


def sp(shrink, perturb=0.01):
    return {"reinit": "shrink_perturb", "shrink": shrink, "perturb": perturb}


def test_the_table_of_settings():
    assert names.from_settings(["RI", "WS", "SP"], [0.3], [0.01]) == {"RI": RI, "WS": WS, "SP": sp(0.3)}
    assert names.from_settings(["SP"], [0, 0.3], [0.01]) == {"RI x 0.01": sp(0), "SP 0.3": sp(0.3)}
    assert list(names.from_settings(["SP"], [0.3], [0.01, 0.1])) == ["SP 0.3/0.01", "SP 0.3/0.1"]
    assert names.from_settings(["RI", "RI@0.01", "SP@1e-4"], [0.3], [0.01]) == {
        "RI": RI, "RI@0.01": RI | {"learning_rate": 0.01}, "SP@0.0001": sp(0.3) | {"learning_rate": 1e-4},
    }  # fmt: skip
    close = [0.3, 0.30000001]  # one and the same to six digits
    assert [spec["shrink"] for spec in names.from_settings(["SP"], close, [0.01]).values()] == close


def test_a_run_without_a_table_had_its_settings_methods():
    settings = {"methods": ["RI", "SP"], "shrink": [0.3], "perturb": [0.01]}
    assert names.of_run({"config": settings}) == {"RI": RI, "SP": sp(0.3)}
    assert names.of_run({"config": settings, "methods": {"mine": WS}}) == {"mine": WS}
    assert names.of_run({"config": {}}) == {}


def test_of_several_the_plainest_is_found():
    methods = {"RI 0.1": RI | {"learning_rate": 0.1}, "scratch": RI, "RI": {"reinit": "mine"}}
    assert names.find(methods, names.RANDOM) == "scratch"
    assert names.find(methods, names.WARM) is None


def test_order_is_by_what_methods_are():
    methods = {"b": {"reinit": "b"}, "SP 0.6": sp(0.6), "a": WS, "zero": RI, "SP 0.3": sp(0.3), "c": {"reinit": "c"}}
    assert names.ordered([*methods, "first", "?"], methods) == [
        "first", "zero", "a", "SP 0.3", "SP 0.6", "b", "c", "?",
    ]  # fmt: skip


def test_a_method_at_another_learning_rate_stands_beside_its_like():
    methods = names.from_settings(["WS", "WS@0.1", "SP@0.1", "SP", "RI@0.1", "RI@0.01", "RI"], [0.3], [0.01])
    assert names.ordered(methods, methods) == ["RI", "RI@0.01", "RI@0.1", "WS", "WS@0.1", "SP", "SP@0.1"]
    styles = names.styles(methods, methods)
    assert styles["RI@0.1"].color == styles["RI"].color
    assert len(set(styles.values())) == len(styles)


def test_chains_of_other_cells_share_a_figure():
    one, other = ({"reinit": "warm_start", "cells": [[0.1, 16], [rate, 16]]} for rate in (0.2, 0.4))
    merged, renamed = names.merge([{"WS, chained": one}, {"WS, chained": other}, {"WS, chained": one}])
    assert merged == {"WS, chained": one, "WS, chained (2)": other}
    assert [own["WS, chained"] for own in renamed] == ["WS, chained", "WS, chained (2)", "WS, chained"]
    with pytest.raises(RunError, match="mean different things by 'mine'"):
        names.merge([{"mine": RI}, {"mine": WS}])


def test_a_shrink_perturb_that_keeps_nothing_is_a_scaled_random_initialisation():
    methods = names.from_settings(["RI", "SP"], [0, 0.3], [0.1])
    assert list(methods) == ["RI", "RI x 0.1", "SP 0.3"]
    assert names.told(methods, methods) == ["RI x 0.1: a new network's parameters, times that"]
    assert names.told({"RI": RI}, ["RI"]) == []
    styles = names.styles(methods, methods)
    assert styles["RI x 0.1"].color == styles["RI"].color != styles["SP 0.3"].color
    merged, (_, own) = names.merge([{"SP": sp(0.3)}, {"SP": sp(0, 0.4)}])  # of one perturb and a scale
    assert (list(merged), own) == (["SP 0.3", "RI x 0.4"], {"SP": "RI x 0.4"})


def test_a_gap_is_one_at_one_learning_rate():
    assert names.both(names.from_settings(["RI", "WS@0.1"], [], [])) == ("RI", None)
    assert names.both(names.from_settings(["RI@0.1", "WS", "WS@0.1"], [], [])) == ("RI@0.1", "WS@0.1")
    assert names.both(names.from_settings(["WS@0.1", "WS", "RI@0.1", "RI"], [], [])) == ("RI", "WS")


def test_the_control_of_a_shrink_perturb_stands_beside_it():
    methods = names.from_settings(["SPN", "FIRE", "SP"], [0.1, 0.3], [0.01], {"FIRE": {"reinit": "fire"}})
    assert names.ordered(methods, methods) == ["SP 0.1", "SP 0.3", "SPN 0.1", "SPN 0.3", "FIRE"]
    assert names.told(methods, ["SP 0.3", "SPN 0.3"]) == ["SPN 0.3: a new network, each leaf at the norm that SP gives"]
    styles = names.styles(methods, methods)
    assert styles["SPN 0.3"].color == styles["SP 0.3"].color != styles["SPN 0.1"].color
    one = names.from_settings(["SP", "SPN"], [0.3], [0.01])
    assert list(one) == ["SP", "SPN"]
    merged, renamed = names.merge([one, names.from_settings(["SPN"], [0.1], [0.01])])
    assert (list(merged), renamed[1]) == (["SP 0.3", "SPN 0.3", "SPN 0.1"], {"SPN": "SPN 0.1"})


def test_styles_are_the_same_in_every_figure_and_no_two_alike():
    few = names.styles(["RI"], {"RI": RI, "SP": sp(0.3)})
    methods = {"a": WS, "scratch": RI, "SP 0.1": sp(0.1), "SP 0.3": sp(0.3), "mine": {"reinit": "mine"}}
    more = names.styles(["first", *methods], methods)
    assert few["RI"] == more["scratch"]
    assert few["SP"] == more["SP 0.3"]
    assert few["first"] == more["first"]
    many = {f"{kind} {i}": {"reinit": kind, "i": i} for kind in ("random_init", "mine") for i in range(60)}
    many |= {f"SP {i}": sp(0.3, i) for i in range(60)}
    styles = names.styles(many, many)
    assert len(set(styles.values())) == len(styles) == 181


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("ph v1.5", "ph v1.5"),
        ("x/ph v1.6/", "ph v1.6"),
        ("x/a.b.npz", "a.b"),
        (".npz", ".npz"),
        ("tfds:a/b.c", "a-b.c"),
    ],
)
def test_what_data_are_called(data, name):
    assert names.of_data(data) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("first", "first round"),
        ("<script>", "<script>"),
        ("a\x1b[0m\n", "a\\x1b[0m\\n"),
        (" ", "' '"),
        ("a" * 50 + "b" * 50, "a" * 20 + "…" + "b" * 19),
    ],
)
def test_labels(name, shown):
    assert names.label(name) == shown
