import pytest
from test_plots import curve

from wsjax.errors import RunError
from wsjax.results import captions
from wsjax.storage.records import RunRecords

SETTINGS = {
    "dataset": "cifar10",
    "model": "resnet18",
    "width": 64,
    "optimizer": "sgd",
    "epochs": 3,
    "stop": ["epochs"],
    "methods": ["RI", "WS"],
    "shrink": [0.3],
    "perturb": [0.01],
    "seeds": [0],
    "num_train": 50000,
}


def run(rows, finished=True, experiment="offline", **settings):
    config = {
        "experiment": experiment,
        "config": SETTINGS | settings,
        "devices": ["cpu"],
        "versions": {"jax": "0.10.1"},
    }
    return RunRecords(config, rows, {} if finished else None)


def test_merging_joins_seeds_and_shrinks():
    one = run(curve("first", [0.1]) + curve("SP", [0.3]))
    two = run(curve("first", [0.1, 0.2]) + curve("SP", [0.5], seed=1), seeds=[1], shrink=[0.6])
    merged = captions.merge_runs([one, two], "offline")
    assert [(row["method"], row["seed"], row["epoch"]) for row in merged.rows] == [
        ("first", 0, 1),
        ("first", 0, 2),
        ("SP 0.3", 0, 1),
        ("SP 0.6", 1, 1),
    ]
    assert (merged.settings["seeds"], merged.settings["shrink"]) == ([0, 1], [0.3, 0.6])
    assert merged.finished
    assert not captions.merge_runs([one, run(curve("WS", [0.1]), finished=False)], "offline").finished


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "nothing to draw: give the folder"),
        ([run([])], "no epochs to draw yet"),
        ([run(curve("RI", [0.1]), experiment="online")], "not a run of the offline experiment but of 'online'"),
        ([run(curve("RI", [0.1])), run(curve("RI", [0.1]), width=8)], "cannot share a figure: width 64 and 8$"),
    ],
)
def test_what_cannot_be_drawn_is_named(runs, message):
    with pytest.raises(RunError, match=message):
        captions.merge_runs(runs, "offline")


def test_caption_gives_paired_interval_and_published_numbers():
    rows = [row for seed, (a, b) in enumerate([(0.60, 0.58), (0.62, 0.59), (0.64, 0.60)])
            for row in curve("RI", [0.1, 0.2, a], seed) + curve("WS", [0.1, 0.2, b], seed)]  # fmt: skip
    merged = captions.merge_runs([run(rows)], "offline")
    text = captions.offline_caption(merged, SETTINGS | {"epochs": 200}, {"RI": 60.3, "WS": 58.7})
    assert "Not as published: 3 epochs a round instead of 200." in text
    assert "RI 62.0 [57.0, 67.0] (published 60.3); WS 59.0 [56.5, 61.5] (published 58.7)" in text
    assert "gap RI - WS 3.0 [0.5, 5.5] (published 1.6)" in text
    assert "seeds 0 to 2; cpu, jax 0.10.1." in text
    assert "perturb" not in text  # nothing was shrunk and perturbed


def test_caption_says_when_a_run_is_unfinished():
    rows = curve("RI", [0.1, 0.2, 0.3]) + curve("WS", [0.5, 0.5], stop=None)
    text = captions.offline_caption(captions.merge_runs([run(rows, finished=False)], "offline"))
    assert "UNFINISHED RUN, so far at seed 0, WS, round 2, epoch 2." in text
    assert "Final test accuracy in percent: RI 30.0." in text


def test_caption_names_what_the_run_used():
    other = {"model": "mlp", "hidden": [100, 50], "activation": "relu", "dataset": "data/mine.npz", "optimizer": "adam"}
    stop = {"stop": ["accuracy", "plateau"], "threshold": 0.99, "opt_state": "keep"}
    text = captions.offline_caption(captions.merge_runs([run(curve("SP", [0.1]), **other, **stop)], "offline"))
    assert text.startswith("MLP, hidden layers 100/50, relu, mine, 50,000 training images, Adam, ")
    assert "stop by accuracy/plateau, train accuracy 0.99, perturb 0.01; seed 0" in text
    assert "A seed that stopped earlier holds its last value." in text
    assert "width" not in text
