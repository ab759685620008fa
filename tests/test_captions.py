"""What runs come to in one figure, and what its caption says of them."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_plots import curve
from test_summary import METHODS, made_up_rows

from wsjax.errors import RunError
from wsjax.results import captions, words
from wsjax.results.merge import merge_runs
from wsjax.results.summary import summarize_online
from wsjax.storage.records import RunRecords

ROOT = Path(__file__).resolve().parent.parent

SETTINGS = {
    "dataset": "cifar10",
    "model": "resnet18",
    "width": 64,
    "optimizer": "sgd",
    "epochs": 3,
    "stop": ["epochs"],
    "methods": ["RI", "WS", "SP"],
    "shrink": [0.3],
    "perturb": [0.01],
    "seeds": [0],
    "num_train": 50000,
}


RI_WS = {name: METHODS[name] for name in ("RI", "WS")}


def run(rows, finished=True, experiment="offline", methods=None, **settings):
    config = {} if methods is None else {"methods": methods}
    config |= {
        "experiment": experiment,
        "config": SETTINGS | settings,
        "devices": ["cpu"],
        "versions": {"jax": "0.10.1"},
    }
    return RunRecords(config, rows, {} if finished else None)


def offline(drawn, *published):
    return captions.offline_caption(drawn, "Figure 1.", *published).text


def online(drawn, *more):
    return captions.online_caption(drawn, "Figure 2.", *more).text


def test_merging_joins_seeds_and_shrinks():
    one = run(curve("first", [0.1], stop=None) + curve("SP", [0.3]))  # its first round goes on
    two = run(curve("first", [0.1, 0.2]) + curve("SP", [0.5], seed=1), seeds=[1], shrink=[0.6])
    merged = merge_runs([one, two], "offline")
    assert [(row["method"], row["seed"], row["epoch"]) for row in merged.rows] == [
        ("first", 0, 1),
        ("first", 0, 2),
        ("SP 0.3", 0, 1),
        ("SP 0.6", 1, 1),
    ]
    assert (merged.settings["seeds"], merged.settings["shrink"]) == ([0, 1], [0.3, 0.6])
    assert list(merged.methods) == ["RI", "WS", "SP 0.3", "SP 0.6"]
    assert merged.finished
    assert not merge_runs([one, run(curve("WS", [0.1]), finished=False)], "offline").finished


def test_of_rounds_that_ended_in_several_runs_the_first_is_drawn():
    """On another machine the same round may take an epoch more; drawn by length, luck would choose."""
    runs = [run(curve("first", tests) + curve("SP", [0.3])) for tests in ([0.1], [0.2, 0.3])]
    for pair in (runs, runs[::-1]):
        kept = [row["test_accuracy"] for row in merge_runs(pair, "offline").rows if row["method"] == "first"]
        assert kept == [row["test_accuracy"] for row in pair[0].rows if row["method"] == "first"]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "nothing to draw: give the folder"),
        ([run([])], "no epochs to draw yet"),
        ([run(curve("RI", [0.1]), experiment="online")], "not a run of the offline experiment but of 'online'"),
        ([run(curve("RI", [0.1])), run(curve("RI", [0.1]), width=8)], "cannot share a figure: width 64 and 8$"),
        (
            [run(curve("a", [0.1]), methods={"a": {"reinit": "a", "k": k}}) for k in (1, 2)],
            r"mean different things by 'a' cannot share a figure: \{'reinit': 'a', 'k': 1\} and .*'k': 2\}$",
        ),
    ],
)
def test_what_cannot_be_drawn_is_named(runs, message):
    with pytest.raises(RunError, match=message) as error:
        merge_runs(runs, "offline")
    assert "\n" not in str(error.value)


def test_caption_gives_paired_interval_and_published_numbers():
    rows = [row for seed, (a, b) in enumerate([(0.60, 0.58), (0.62, 0.59), (0.64, 0.60)])
            for row in curve("RI", [0.1, 0.2, a], seed) + curve("WS", [0.1, 0.2, b], seed)]  # fmt: skip
    merged = merge_runs([run(rows)], "offline")
    text = offline(merged, SETTINGS | {"epochs": 200}, {"RI": 60.3, "WS": 58.7})
    assert "Not as published: 3 epochs a round instead of 200." in text
    assert "RI 62.0 ± 5.0 (60.3); WS 59.0 ± 2.5 (58.7)" in text
    assert "RI - WS 3.0 ± 2.5 (1.6)" in text
    assert "seeds 0 to 2.\n" in text
    assert text.endswith("Ran on cpu, jax 0.10.1.")
    assert "perturb" not in text  # nothing was shrunk and perturbed


def test_caption_says_when_a_run_is_unfinished():
    rows = curve("RI", [0.1, 0.2, 0.3]) + curve("WS", [0.5, 0.5], stop=None)
    text = offline(merge_runs([run(rows, finished=False)], "offline"))
    assert "UNFINISHED RUN, so far at seed 0, WS, round 2, epoch 2." in text
    assert "Final test accuracy in percent: RI 30.0." in text


def test_caption_says_how_far_the_last_of_several_unfinished_curves_is():
    alike = curve("RI", [0.1, 0.2], stop=None) + curve("WS", [0.5, 0.5], stop=None)
    for rows, where in ((alike, "RI, round 2, epoch 2."), (alike[:-1], "WS, round 2, epoch 1, others further.")):
        assert f"so far at seed 0, {where}" in offline(merge_runs([run(rows, finished=False)], "offline"))


def test_caption_tells_what_a_record_notes():
    noted = run(curve("RI", [0.1]))
    noted.config["note"] = "cut after epoch 1"
    assert offline(merge_runs([noted], "offline")).endswith("Ran on cpu, jax 0.10.1, cut after epoch 1.")


def test_caption_names_what_the_run_used():
    other = {"model": "mlp", "hidden": [100, 50], "activation": "relu", "dataset": "data/mine.npz", "optimizer": "adam"}
    stop = {"stop": ["accuracy", "plateau"], "threshold": 0.99, "opt_state": "keep"}
    text = offline(merge_runs([run(curve("SP", [0.1]), **other, **stop)], "offline"))
    assert text.splitlines()[1].startswith("MLP, hidden layers 100/50, relu, mine, 50,000 training images, Adam, ")
    assert "stop by accuracy/plateau, train accuracy 0.99, perturb 0.01; seed 0" in text
    assert "A seed that stopped earlier holds its last value." in text
    assert "width" not in text


def test_runs_are_finished_where_one_has_what_another_lacks():
    rows = [*curve("RI", [0.1]), *curve("WS", [0.2]), *curve("RI", [0.3], 1), *curve("WS", [0.4], 1, stop=None)]
    broken, rest = run(rows, finished=False, methods=RI_WS, seeds=[0, 1]), curve("WS", [0.4, 0.5], 1)
    both = [broken, run(rest, methods={"WS": RI_WS["WS"]}, seeds=[1])]
    assert merge_runs(both, "offline").finished
    assert "UNFINISHED" not in offline(merge_runs(both, "offline"))
    assert not merge_runs([broken], "offline").finished
    assert not merge_runs([broken, run(rest, finished=False, seeds=[1])], "offline").finished  # no round is the last
    assert not merge_runs([broken._replace(rows=rows[1:]), both[1]], "offline").finished  # RI of seed 0 has not begun
    later = run([row | {"round": 3} for row in rest], methods=RI_WS, seeds=[1])
    assert not merge_runs([broken, later], "offline").finished


def test_merging_goes_by_what_a_method_is():
    own = {"gentle": {"reinit": "shrink_perturb", "shrink": 0.9, "perturb": 0.1}, "scratch": {"reinit": "random_init"}}
    one = run(curve("gentle", [0.1]) + curve("scratch", [0.2]), methods=own)
    two = run(curve("SP", [0.3], seed=1) + curve("RI", [0.4], seed=1), shrink=[0.9], perturb=[0.1], seeds=[1])
    merged = merge_runs([one, two], "offline")
    assert [(row["method"], row["seed"]) for row in merged.rows] == [
        ("gentle", 0), ("scratch", 0), ("gentle", 1), ("scratch", 1),
    ]  # fmt: skip
    assert {name: spec["reinit"] for name, spec in merged.methods.items()} == {
        "gentle": "shrink_perturb", "scratch": "random_init", "WS": "warm_start",
    }  # fmt: skip


def test_merging_tells_perturbs_apart():
    runs = [run(curve("SP", [0.1]), perturb=[perturb]) for perturb in (0.01, 0.1)]
    assert [row["method"] for row in merge_runs(runs, "offline").rows] == ["SP 0.3/0.01", "SP 0.3/0.1"]
    assert "perturb 0.01/0.1; seed 0" in offline(merge_runs(runs, "offline"))


def test_what_is_neutral_may_differ():
    neutral = {"stack": True, "devices": 2, "replicas": "devices", "checkpoint_every": 7, "evaluate": "round"}
    merged = merge_runs([run(curve("RI", [0.1])), run(curve("RI", [0.1], seed=1), seeds=[1], **neutral)], "offline")
    assert "Settings as published." in offline(merged, SETTINGS)


def test_when_methods_begin_to_act_is_neutral_to_those_that_do_not():
    def of(method, **settings):
        made = run(curve(method, [0.1]), methods={method: {"reinit": method}}, **settings)
        made.config["config"]["methods"] = [method]
        return made

    early, plain, late = of("L2", own_first=True), of("RI", own_first=False), of("L2", own_first=False)
    assert len(merge_runs([early, plain], "offline").rows) == 2
    with pytest.raises(RunError, match="own_first True and False"):
        merge_runs([early, late], "offline")


def test_only_wanted_methods_and_rounds_are_drawn():
    rows = [*curve("first", [0.1]), *curve("mine", [0.1]), *curve("WS", [0.2])]
    drawn = merge_runs([run(rows)], "offline", reinits=("warm_start",))
    assert [row["method"] for row in drawn.rows] == ["first", "WS"]
    assert [row["method"] for row in merge_runs([run(rows)], "offline", first_round=False).rows] == ["mine", "WS"]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"plateau_window": 5, "stop": ["accuracy", "plateau"]}, "stop by accuracy/plateau instead of epochs"),
        ({"batch_stats": "reset"}, "batch statistics: reset instead of keep"),
        ({"first_epochs": 40}, "40 in the first instead of as many as later"),
        ({"learning_rate": 0.0010000001}, "learning rate 0.0010000001 instead of 0.001"),
        ({"num_test": 5000}, "5,000 test images instead of all"),
        ({"newer_setting": 3}, "newer setting 3 instead of none"),
        ({"newer_setting": None}, None),
        ({"stem_pool": True}, None),
        ({"hidden": [7]}, None),  # a ResNet has none
        ({"opt_state": "keep"}, None),  # SGD has none
        ({"first_epochs": 3}, None),  # as many as later
    ],
)
def test_every_setting_that_the_run_uses_is_compared(own, said):
    published = SETTINGS | {"batch_stats": "keep", "stem_pool": True, "learning_rate": 0.001}
    text = offline(merge_runs([run(curve("RI", [0.1]), **own)], "offline"), published)
    assert ("Settings as published." in text) == (said is None)
    if said is not None:
        assert f"Not as published: {said}" in text


def test_another_cap_makes_a_difference_where_a_round_ended_at_it():
    own, published = {"stop": ["accuracy"], "epochs": 100}, SETTINGS | {"stop": ["accuracy"], "epochs": None}
    met = offline(merge_runs([run(curve("RI", [0.1], stop="accuracy"), **own)], "offline"), published)
    assert "Settings as published." in met
    capped = offline(merge_runs([run(curve("RI", [0.1]), **own)], "offline"), published)
    assert "Not as published: 100 epochs a round instead of no cap." in capped


def test_one_pool_is_said_in_two_ways():
    same = [words.told({"num_train": 50000, "pool": pool, "increment": 1000, "max_rounds": limit})
            for pool, limit in ((2 / 3, None), (33334.0, 34))]  # fmt: skip
    assert same[0] == same[1]
    assert (same[0]["pool"], same[0]["max_rounds"]) == (33334, None)
    assert words.not_as_published(same[0], {"num_train": 50000, "pool": 33334, "increment": 1000}, True) == []


def scripts():
    """Every experiment's Config."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        config = runpy.run_path(str(path)).get("Config")
        fields = {field.name for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
        if {"seeds", "dataset"} <= fields:  # the study's, which leave records
            yield path.stem, fields


def test_every_setting_of_every_experiment_has_a_word_or_is_neutral():
    found = dict(scripts())
    assert {"offline", "online"} <= found.keys()
    for fields in found.values():
        assert fields - words.WORDS.keys() - words.NEUTRAL == set()
    assert not words.WORDS.keys() & words.NEUTRAL


def test_published_settings_are_complete():
    published = json.loads((ROOT / "figures" / "published" / "settings.json").read_text())
    wholes = {"offline": [published["offline"]]}
    wholes["online"] = [published["online"] | panel for panel in (*published["figure2"].values(), published["figure6"])]
    wholes["gradients"] = [published["gradients"], published["gradients"] | published["figure10"]]
    wholes["shrink_only"] = [published["shrink_only"]]
    found = dict(scripts())
    for experiment, settings in wholes.items():
        assert [own.keys() ^ (found[experiment] - words.NEUTRAL) for own in settings] == [set()] * len(settings)


def test_text_from_records_stays_on_its_line():
    rows = curve("a\x1b[31m\nb", [0.1])
    text = offline(merge_runs([run(rows, dataset="x\x07.npz")], "offline"))
    assert text.replace("\n", "").isprintable()
    assert "a\\x1b[31m\\nb 10.0" in text


@given(made_up_rows(), st.booleans(), st.booleans())
def test_every_run_has_a_caption_or_one_line(rows, finished, first_round):
    for experiment in ("offline", "online"):
        records = run(rows, finished, experiment, METHODS, epochs=3, stop=["accuracy"])
        try:
            drawn = merge_runs([records, records], experiment, first_round=first_round)
        except RunError as error:
            assert "there are no epochs to draw yet" in str(error)  # noqa: PT017
            assert not rows or {row["method"] for row in rows} == {"first"}
            continue
        ends = summarize_online(drawn.rows, drawn.methods)
        texts = [offline(drawn, SETTINGS, {"RI": 60.0, "WS": 58.0})]
        texts.append(online(drawn, ends, SETTINGS, {"RI": 60.0}))
        assert all(text.replace("\n", "").isprintable() and "nan" not in text for text in texts)


@pytest.mark.parametrize(
    ("methods", "perturb", "is_told"), [(["SPG"], [], True), (["SP"], [0.1], True), (["WS"], [], False)]
)
def test_what_comes_before_the_first_round_is_told_where_a_method_does_so(methods, perturb, is_told):
    own = {"increment": 1000, "at_once": True, "methods": ["RI", *methods], "perturb": perturb}
    assert ("at_once" in words.told(own)) == is_told


def test_a_share_of_images_is_rounded_up():
    assert words.share(50_000, 0.5) == 25_000
    assert words.share(50_000, 2 / 3) == 33_334
    assert words.share(73_257, 0.5) == 36_629
    assert words.share(100, 0.07) == 7  # 7.000000000000001 as a product
    assert words.share(10, 1e-9) == 1
    assert words.share(7, 0.4) == 3
    assert words.share(3, 1) == 3
