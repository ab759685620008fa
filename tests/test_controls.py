"""The controls of the learning rate, and Figure 9."""

import runpy
from pathlib import Path

import pytest
from test_figures import CONFIG, command, write_folder

from wsjax.errors import RunError
from wsjax.results import augmentation, controls, names, plots
from wsjax.results.stats import ACCURACY
from wsjax.storage.records import read_run

ROOT = Path(__file__).parents[1]
SCORES = {"RI": 0.6, "RI@0.01": 0.66, "WS": 0.58, "WS@0.01": 0.57, "SP": 0.65}
SEEDED = (0.0, 0.01, 0.03)  # what each seed is above the first


def write_offline(folder, scores, finished=True, **settings):
    """A run of one epoch a round that ends at those scores, each seed some more, and RI's last seed 0.01 less."""
    config = CONFIG | {"epochs": 1, "seeds": [0, 1, 2], "methods": list(scores), "shrink": [0.3]} | settings
    rows = [
        {
            "method": name, "seed": seed, "round": 1 if name == "first" else 2, "epoch": 1, "samples": 100,
            "train_accuracy": 1.0, "test_accuracy": score + SEEDED[seed] - 0.01 * (seed == 2 and name == "RI"),
            "stop": "epochs",
        }
        for seed in config["seeds"]
        for name, score in scores.items()
    ]  # fmt: skip
    methods = names.from_settings([name for name in scores if name != "first"], config["shrink"], config["perturb"])
    return write_folder(folder, "offline", config, rows, finished, methods)


def merged(*folders):
    return controls.merge_rates(list(map(read_run, folders)))


def draw(script, *folders):
    figure, caption = runpy.run_path(str(ROOT / "figures" / f"{script}.py"))["draw"](list(map(read_run, folders)))
    plots.add_caption(figure, caption)
    figure.draw_without_rendering()
    return figure, caption


def test_what_is_left_by_hand(tmp_path):
    run, ends = merged(write_offline(tmp_path / "a", SCORES))
    assert list(run.methods) == ["RI", "WS", "SP 0.3"]
    assert {(end["method"], end["learning_rate"]) for end in ends} == {
        ("RI", 0.001), ("RI", 0.01), ("WS", 0.001), ("WS", 0.01), ("SP 0.3", 0.001),
    }  # fmt: skip
    (own,) = controls.compare(ends, run.methods)
    assert (own["curve"], own["learning_rate"]) == ("SP 0.3", 0.001)
    assert own["win"]["mean"] == pytest.approx(0.05 + 0.01 / 3)  # RI's last seed is 0.01 lower
    assert own["win"]["high"] - own["win"]["mean"] == pytest.approx(4.302653 * 0.01 / 3, rel=1e-5)  # s of 0, 0, 0.01
    assert own["left"]["RI"]["subtrahend"] == "RI at 0.01"
    assert own["left"]["RI"]["mean"] == pytest.approx(-0.01)
    assert own["left"]["WS"]["subtrahend"] == "WS at 0.001"
    assert own["left"]["WS"]["mean"] == pytest.approx(0.07)
    assert controls.told([own], ACCURACY).endswith(
        "SP 0.3 at 0.001 - RI at 0.001 +5.33 ± 1.43; SP 0.3 at 0.001 - RI at 0.01 -1.00 ± 0.00; "
        "SP 0.3 at 0.001 - WS at 0.001 +7.00 ± 0.00."
    )
    assert controls.raised(run.methods, ends) == {"SP 0.3": pytest.approx(0.001 / 0.09)}


def test_runs_of_several_rates_and_warmups_merge(tmp_path):
    runs = [
        write_offline(tmp_path / "a", {"RI": 0.6, "WS": 0.58, "SP": 0.65}),
        write_offline(tmp_path / "b", {"RI": 0.64, "WS": 0.63}, learning_rate=0.01),
    ]
    run, ends = merged(*runs)
    assert set(run.methods) == {"RI", "WS after 0.001", "WS after 0.01", "SP 0.3 after 0.001"}
    assert run.settings["learning_rate"] == [0.001, 0.01]
    assert sorted(end["learning_rate"] for end in ends if end["method"] == "RI") == [0.001] * 3 + [0.01] * 3
    # RI at 0.01 of a run at 0.001 is the same as that of a run at 0.01: it counts once.
    run, ends = merged(*runs, write_offline(tmp_path / "c", {"RI@0.01": 0.64}, methods=["RI@0.01"]))
    assert len([end for end in ends if end["method"] == "RI"]) == 6
    run, _ = merged(runs[0], write_offline(tmp_path / "d", {"RI": 0.7}, warmup=100))
    assert {"RI, warm-up 0", "RI, warm-up 100"} <= set(run.methods)
    with pytest.raises(RunError, match=r"^runs of different settings cannot share a figure: width 8 and 16$"):
        merged(runs[0], write_offline(tmp_path / "e", {"RI": 0.7}, width=16, learning_rate=0.1))


def test_the_controls_are_drawn_on_a_log_axis(tmp_path):
    figure, caption = draw("controls", write_offline(tmp_path / "a", SCORES))
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    low, high = axis.get_xlim()
    assert low < 0.001 < 0.001 / 0.09 < high
    assert "SP 0.3 at 0.001 - RI at 0.01 -1.00" in caption.came
    assert "in favour of RI and WS" in caption.notes
    assert caption.notes.startswith("Points are means over seeds, bars and what follows ± 95 % t-intervals of the mean")
    _, caption = draw("controls", write_offline(tmp_path / "two", SCORES, seeds=[0, 1]))
    assert caption.notes.startswith("Points are means over seeds, bars ranges, what follows ± 95 % t-intervals of the ")
    _, caption = draw("controls", write_offline(tmp_path / "b", SCORES, finished=False, seeds=[0]))
    assert "UNFINISHED RUN" in caption.differs
    assert "SP 0.3 at 0.001 - RI at 0.01 -1.00;" in caption.came  # one seed gives no interval
    assert "bars" not in caption.notes


def test_controls_without_shrink_perturb_have_nothing_to_compare(tmp_path):
    _, caption = draw("controls", write_offline(tmp_path / "a", {"RI": 0.6, "RI@0.01": 0.66}))
    assert caption.came == ""
    assert "Vertical lines" not in caption.notes


@pytest.mark.parametrize("name", ["controls", "9"])
def test_scripts_refuse_in_one_line(tmp_path, name):
    script = "controls" if name == "controls" else "figure9"
    with pytest.raises(RunError, match=r"^nothing to draw: give the folder"):
        draw(script)
    with pytest.raises(RunError, match=r"^not a run of the offline experiment but of 'online'$"):
        draw(script, write_folder(tmp_path / "a", "online", CONFIG, [{"method": "RI", "seed": 0, "round": 2, "epoch": 1,
            "samples": 9, "train_accuracy": 1.0, "test_accuracy": 0.5, "stop": "epochs"}], True))  # fmt: skip
    begun = write_offline(tmp_path / "b", {"first": 0.5})
    if name == "controls":
        with pytest.raises(RunError, match=r"^no second round has ended yet"):
            draw(script, begun)


def both(tmp_path):
    plain = write_offline(tmp_path / "plain", {"first": 0.5, "RI": 0.6, "WS": 0.57}, num_train=50000)
    more = {"first": 0.7, "RI": 0.8, "WS": 0.79}
    return plain, write_offline(tmp_path / "more", more, num_train=50000, augment=True, epochs=2)


def test_the_gaps_change_by_hand(tmp_path):
    whole, runs = augmentation.merge_augmented(list(map(read_run, both(tmp_path))))
    assert augmentation.gap_of(runs[False])["mean"] == pytest.approx(0.03 - 0.01 / 3)
    change = augmentation.change_of_gap(runs)
    assert change["mean"] == pytest.approx(-0.02)
    assert (change["seeds"], change["high"]) == (3, pytest.approx(-0.02))
    assert (whole.settings["augment"], whole.settings["epochs"]) == ([False, True], [1, 2])


def test_figure9_has_a_row_without_and_one_with_augmentation(tmp_path):
    figure, caption = draw("figure9", *both(tmp_path))
    assert [axis.get_ylabel() for axis in figure.axes] == [
        f"{part} accuracy (%)\n{title}" for title in augmentation.TITLES.values() for part in ("Test", "Train")
    ]
    assert caption.came == (
        "RI - WS in points: without augmentation +2.7 ± 1.4; with augmentation +0.7 ± 1.4; "
        "the second less the first -2.0 ± 0.0."
    )
    assert "1/2 epochs a round instead of 200/350" in caption.differs
    assert "augmentation off/on" in caption.ran
    _, caption = draw("figure9", tmp_path / "plain")
    assert "There is no run with augmentation." in caption.differs
    assert "the second less" not in caption.came


def test_figure9_is_written_without_jax(tmp_path):
    done = command(9, *both(tmp_path), "--out", tmp_path / "f")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.txt").read_text() == done.stdout
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_a_rate_is_chosen_by_the_seeds_that_are_compared(tmp_path):
    """RI at 0.01 is the best of three seeds; of the two that RI has at 0.1 too, that is."""
    three = write_offline(tmp_path / "a", {"RI@0.01": 0.66, "SP": 0.65})
    two = write_offline(tmp_path / "b", {"RI@0.1": 0.665}, seeds=[0, 1])
    run, ends = merged(three, two)
    (own,) = controls.compare(ends, run.methods)
    left = own["left"]["RI"]
    assert (left["subtrahend"], left["seeds"]) == ("RI at 0.1", 2)
    assert left["mean"] == pytest.approx(-0.015)
    assert own["left"]["WS"] is None


def test_a_rate_of_another_seed_silences_no_comparison(tmp_path):
    three = write_offline(tmp_path / "a", SCORES)
    one = write_offline(tmp_path / "b", {"SP@0.1": 0.9, "RI@0.1": 0.9}, seeds=[0])
    run, ends = merged(three, one)
    (own,) = controls.compare(ends, run.methods)
    assert (own["learning_rate"], own["win"]["seeds"]) == (0.001, 3)
    assert (own["left"]["RI"]["subtrahend"], own["left"]["RI"]["seeds"]) == ("RI at 0.01", 3)


def test_seeds_that_diverged_are_left_out(tmp_path):
    run, ends = merged(write_offline(tmp_path / "a", SCORES))
    diverged = {("RI", 0, 0.001), *(("WS", seed, rate) for seed in range(3) for rate in (0.001, 0.01))}
    ends = [
        end | {"test_accuracy": None} if (end["method"], end["seed"], end["learning_rate"]) in diverged else end
        for end in ends
    ]
    (own,) = controls.compare(ends, run.methods)
    assert own["win"]["seeds"] == own["left"]["RI"]["seeds"] == 2
    assert own["left"]["WS"] is None
    gone = [end | {"test_accuracy": None} for end in ends]
    assert controls.compare(gone, run.methods) == []
