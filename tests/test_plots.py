import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from wsjax.results import plots


def curve(method, accuracies, seed=0, stop="epochs"):
    """A row an epoch; the last one tells why the round ended, or None while it is under way."""
    last = len(accuracies)
    return [
        {
            "method": method,
            "seed": seed,
            "round": 1 if method == "first" else 2,
            "epoch": epoch,
            "samples": 25000 if method == "first" else 50000,
            "test_accuracy": accuracy,
            "train_accuracy": accuracy,
            "stop": stop if epoch == last else None,
        }
        for epoch, accuracy in enumerate(accuracies, 1)
    ]


def lines(figure, axis=0):
    return {line.get_label(): line for line in figure.axes[axis].get_lines()}


def band(axis):
    """Lower and upper edge of the one band, by x."""
    (collection,) = axis.collections
    vertices = collection.get_paths()[0].vertices
    return {x: (vertices[vertices[:, 0] == x, 1].min(), vertices[vertices[:, 0] == x, 1].max()) for x in vertices[:, 0]}


def test_mean_band_is_a_t_interval_from_three_seeds_on():
    axis = Figure().subplots()
    plots.mean_band(axis, [1], [[1.0], [2.0], [3.0]], label="a", color="k")
    assert axis.get_lines()[0].get_ydata() == pytest.approx([2.0])
    half = 4.3027 / np.sqrt(3)  # the 97.5 % quantile of t with two degrees of freedom; a standard deviation of 1
    assert band(axis)[1] == pytest.approx((2 - half, 2 + half), abs=1e-3)


def test_mean_band_is_the_range_of_two_seeds_and_skips_nan():
    axis = Figure().subplots()
    plots.mean_band(axis, [1, 2, 3, 4], [[1, 3, np.nan, 5], [2, np.nan, np.nan, np.nan]], label="a", color="k")
    (line,) = axis.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4])
    np.testing.assert_array_equal(line.get_ydata(), [1.5, 3, 5])
    assert band(axis) == {1: (1, 2), 2: (3, 3), 4: (5, 5)}


def test_mean_band_without_a_value_draws_nothing():
    axis = Figure().subplots()
    plots.mean_band(axis, [1, 2], np.full((2, 2), np.nan), label="a", color="k")
    assert len(np.asarray(axis.get_lines()[0].get_xdata())) == 0


def test_second_round_starts_where_the_first_ends():
    rows = curve("first", [0.1, 0.2]) + curve("WS", [0.3, 0.4, 0.5]) + curve("RI", [0.2, 0.4])
    drawn = lines(plots.offline_curves(rows))
    np.testing.assert_array_equal(drawn["first round"].get_xdata(), [1, 2])
    np.testing.assert_array_equal(drawn["WS"].get_xdata(), [3, 4, 5])
    np.testing.assert_array_equal(drawn["RI"].get_xdata(), [3, 4, 5][:2])
    np.testing.assert_allclose(drawn["WS"].get_ydata(), [30, 40, 50])


def test_without_a_first_round_epochs_count_from_one():
    figure = plots.offline_curves(curve("RI", [0.2, 0.4]), ["test_accuracy"])
    assert len(figure.axes) == 1
    np.testing.assert_array_equal(lines(figure)["RI"].get_xdata(), [1, 2])


def test_an_ended_seed_holds_its_last_value_and_one_under_way_does_not():
    ended = curve("WS", [0.2]) + curve("WS", [0.4, 0.6], seed=1)
    np.testing.assert_allclose(lines(plots.offline_curves(ended))["WS"].get_ydata(), [30, 40])
    under_way = curve("WS", [0.2], stop=None) + curve("WS", [0.4, 0.6], seed=1)
    np.testing.assert_allclose(lines(plots.offline_curves(under_way))["WS"].get_ydata(), [30, 60])


def test_published_curves_follow_their_round_and_end_with_it():
    rows = curve("first", [0.1, 0.2]) + curve("WS", [0.3, 0.4])
    points = np.array([[1, 11.0], [2, 12.0], [3, 13.0]])
    published = {("test_accuracy", "first"): points, ("test_accuracy", "WS"): points, ("test_accuracy", "RI"): points}
    figure = plots.offline_curves(rows, published=published)
    dashed = [line.get_xdata().tolist() for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert dashed == [[1, 2], [3, 4]]  # none for RI, which was not measured
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first round", "WS", "published"]


def test_an_unfinished_run_is_drawn_in_its_final_frame():
    figure = plots.offline_curves(curve("first", [0.1], stop=None), epochs=10)
    assert figure.axes[0].get_xlim()[1] == pytest.approx(20, rel=0.02)


def test_the_rounds_name_their_samples():
    texts = [text.get_text() for text in plots.offline_curves(curve("first", [0.1]) + curve("WS", [0.3])).axes[0].texts]
    assert texts == ["25,000 samples", "50,000 samples"]


def test_colors_are_the_same_in_every_figure_and_tell_every_method_apart():
    few, more = plots.method_colors(["RI", "SP 0.3"]), plots.method_colors(["first", "WS", "SP 0.1", "SP 0.3"])
    assert few["SP 0.3"] == more["SP 0.3"]
    assert few["RI"] == more["RI"]
    varied = plots.method_colors(["SP 0.3/0.01", "SP 0.3/0.1", "SP"])
    assert len({to_rgb(color) for color in varied.values()}) == len(varied) == 6


def test_save_is_deterministic_and_leaves_no_parts(tmp_path):
    rows = curve("first", [0.1, 0.2]) + curve("SP 0.3", [0.3])
    for name in ("a.b", "c"):
        plots.save(plots.offline_curves(rows), tmp_path / "new" / name)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.b.pdf", "a.b.png", "c.pdf", "c.png"]
    for kind in ("png", "pdf"):
        assert (tmp_path / "new" / f"a.b.{kind}").read_bytes() == (tmp_path / "new" / f"c.{kind}").read_bytes()


def test_save_keeps_what_was_there_when_it_fails(tmp_path, monkeypatch):
    figure = plots.offline_curves(curve("RI", [0.1]))
    png, pdf = plots.save(figure, tmp_path / "a")
    before = png.read_bytes(), pdf.read_bytes()
    draw = Figure.savefig

    def fail_on_pdf(self, path, *, format, **more):
        if format == "pdf":
            raise OSError("disk full")
        draw(self, path, format=format, **more)

    monkeypatch.setattr(Figure, "savefig", fail_on_pdf)
    with pytest.raises(OSError, match="disk full"):
        plots.save(plots.offline_curves(curve("WS", [0.9])), tmp_path / "a")
    assert (png.read_bytes(), pdf.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png"]


def test_a_caption_is_wrapped_into_the_picture():
    figure = plots.offline_curves(curve("RI", [0.1, 0.2]))
    plots.add_caption(figure, "Wide Words: 50,000 WMWM images. " * 30)
    figure.savefig("/dev/null", format="png")
    (caption,) = [
        text for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")) if "Wide" in text.get_text()
    ]
    box, page = caption.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 < figure.axes[0].get_window_extent().y0


def test_online_curves_by_hand():
    rounds = [
        {
            "method": way,
            "seed": seed,
            "samples": 10 * n,
            "test_accuracy": 0.1 * n + seed / 10,
            "train_seconds": float(n),
        }
        for way in ("RI", "WS")
        for seed in (0, 1)
        for n in (1, 2, 3)
    ]
    published = {("test_accuracy", "RI"): [[10, 11.0], [20, 22.0], [50, 99.0]]}
    figure = plots.online_curves(rounds, published=published)
    accuracy, seconds = figure.axes
    lines = {line.get_label(): line for line in accuracy.lines}
    np.testing.assert_allclose(lines["RI"].get_xydata(), [[10, 15], [20, 25], [30, 35]])
    np.testing.assert_allclose(seconds.lines[0].get_ydata(), [1, 2, 3])
    dashed = [line for line in accuracy.lines if line.get_label() not in ("RI", "WS")]
    np.testing.assert_allclose(dashed[0].get_xydata(), [[10, 11], [20, 22]])  # cut where the measured rounds end


def test_online_curves_draw_steps_where_asked():
    rounds = [{"method": "RI", "seed": 0, "samples": 10 * n, "test_accuracy": 0.1, "steps": 7 * n} for n in (1, 2)]
    cost = plots.online_curves(rounds, cost="steps").axes[1]
    np.testing.assert_allclose(cost.lines[0].get_xydata(), [[10, 7], [20, 14]])
    assert cost.get_ylabel() == "Steps a round"


def test_accuracies_at_a_number_of_samples_that_a_curve_has():
    published = {("test_accuracy", "RI"): [[10, 11.0], [20, 22.0]], ("train_seconds", "RI"): [[10, 5.0]]}
    assert plots.accuracies_at(published, 20) == {"RI": 22.0}
    assert plots.accuracies_at(published, 15) == {}
