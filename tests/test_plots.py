import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from test_summary import METHODS, made_up_rows

from wsjax.results import names, plots, published
from wsjax.results.captions import Caption
from wsjax.results.summary import summarize_online

BLACK = names.Style("#000000")


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
    plots.mean_band(axis, [1], [[1.0], [2.0], [3.0]], label="a", style=BLACK)
    assert axis.get_lines()[0].get_ydata() == pytest.approx([2.0])
    half = 4.3027 / np.sqrt(3)  # the 97.5 % quantile of t with two degrees of freedom; a standard deviation of 1
    assert band(axis)[1] == pytest.approx((2 - half, 2 + half), abs=1e-3)


def test_mean_band_is_the_range_of_two_seeds_and_skips_nan():
    axis = Figure().subplots()
    plots.mean_band(axis, [1, 2, 3, 4], [[1, 3, np.nan, 5], [2, np.nan, np.nan, np.nan]], label="a", style=BLACK)
    (line,) = axis.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4])
    np.testing.assert_array_equal(line.get_ydata(), [1.5, 3, 5])
    assert band(axis) == {1: (1, 2), 2: (3, 3), 4: (5, 5)}


def test_mean_band_without_a_value_draws_nothing():
    axis = Figure().subplots()
    plots.mean_band(axis, [1, 2], np.full((2, 2), np.nan), label="a", style=BLACK)
    assert len(np.asarray(axis.get_lines()[0].get_xdata())) == 0


def test_second_round_starts_where_the_first_ends():
    rows = curve("first", [0.1, 0.2]) + curve("WS", [0.3, 0.4, 0.5]) + curve("RI", [0.2, 0.4])
    drawn = lines(plots.offline_curves(rows, METHODS))
    np.testing.assert_array_equal(drawn["first round"].get_xdata(), [1, 2])
    np.testing.assert_array_equal(drawn["WS"].get_xdata(), [3, 4, 5])
    np.testing.assert_array_equal(drawn["RI"].get_xdata(), [3, 4, 5][:2])
    np.testing.assert_allclose(drawn["WS"].get_ydata(), [30, 40, 50])


def test_without_a_first_round_epochs_count_from_one():
    figure = plots.offline_curves(curve("RI", [0.2, 0.4]), METHODS, ["test_accuracy"])
    assert len(figure.axes) == 1
    np.testing.assert_array_equal(lines(figure)["RI"].get_xdata(), [1, 2])


def test_an_ended_seed_holds_its_last_value_and_one_under_way_does_not():
    ended = curve("WS", [0.2]) + curve("WS", [0.4, 0.6], seed=1)
    np.testing.assert_allclose(lines(plots.offline_curves(ended, METHODS))["WS"].get_ydata(), [30, 40])
    under_way = curve("WS", [0.2], stop=None) + curve("WS", [0.4, 0.6], seed=1)
    np.testing.assert_allclose(lines(plots.offline_curves(under_way, METHODS))["WS"].get_ydata(), [30, 60])


def test_published_curves_follow_their_round_and_end_with_it():
    rows = curve("first", [0.1, 0.2]) + curve("WS", [0.3, 0.4])
    points = np.array([[1, 11.0], [2, 12.0], [3, 13.0]])
    there = {("test_accuracy", "first"): points, ("test_accuracy", "WS"): points, ("test_accuracy", "RI"): points}
    figure = plots.offline_curves(rows, METHODS, published=there)
    dashed = [line.get_xdata().tolist() for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert dashed == [[1, 2], [3, 4]]  # none for RI, which was not measured
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first round", "WS", "published"]


def test_an_unfinished_run_is_drawn_in_its_final_frame():
    figure = plots.offline_curves(curve("first", [0.1], stop=None), METHODS, epochs=10)
    assert figure.axes[0].get_xlim()[1] == pytest.approx(20, rel=0.02)


def test_a_method_may_have_a_first_round_of_its_own():
    own = [row | {"round": 1} for row in curve("WS", [0.1, 0.2])] + curve("WS", [0.3])
    for others, places in (([], [[1]]), (curve("first", [0.1, 0.1, 0.1]), [[1, 2], [4]])):
        axis = plots.offline_curves([*others, *own], METHODS).axes[0]
        assert [list(line.get_xdata()) for line in axis.get_lines() if line.get_label() == "WS"] == places


def test_the_rounds_name_their_samples():
    figure = plots.offline_curves(curve("first", [0.1]) + curve("WS", [0.3]), METHODS)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["25,000 samples", "50,000 samples"]


def test_save_is_deterministic_and_leaves_no_parts(tmp_path):
    rows = curve("first", [0.1, 0.2]) + curve("SP 0.3", [0.3])
    for name in ("a.b", "c"):
        plots.save(plots.offline_curves(rows, METHODS), tmp_path / "new" / name)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.b.pdf", "a.b.png", "c.pdf", "c.png"]
    for kind in ("png", "pdf"):
        assert (tmp_path / "new" / f"a.b.{kind}").read_bytes() == (tmp_path / "new" / f"c.{kind}").read_bytes()


def test_save_keeps_what_was_there_when_it_fails(tmp_path, monkeypatch):
    figure = plots.offline_curves(curve("RI", [0.1]), METHODS)
    png, pdf = plots.save(figure, tmp_path / "a")
    before = png.read_bytes(), pdf.read_bytes()
    draw = Figure.savefig

    def fail_on_pdf(self, path, *, format, **more):
        if format == "pdf":
            raise OSError("disk full")
        draw(self, path, format=format, **more)

    monkeypatch.setattr(Figure, "savefig", fail_on_pdf)
    with pytest.raises(OSError, match="disk full"):
        plots.save(plots.offline_curves(curve("WS", [0.9]), METHODS), tmp_path / "a")
    assert (png.read_bytes(), pdf.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png"]


def test_a_caption_is_wrapped_into_the_picture():
    figure = plots.offline_curves(curve("RI", [0.1, 0.2]), METHODS)
    long = Caption(
        "What is drawn. " * 12, "Wide Words: 50,000 WMWM images. " * 30, "Other. " * 400, "RI 60.3; WS 58.7.", "No"
    )
    plots.add_caption(figure, long)
    figure.savefig("/dev/null", format="png")
    (caption,) = [
        text for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")) if "Wide" in text.get_text()
    ]
    box, page = caption.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 < figure.axes[0].get_window_extent().y0
    *what, ran, differs, came = caption.get_text().split("\n")  # the settings are cut, and between words
    assert len(what) <= 3
    assert (ran.rpartition(" ")[0].split()[-1], differs) in {(word, differs) for word in long.ran.split()}
    assert (ran[-2:], differs[-9:]) == (" …", " Other. …")
    assert (ran[:4], came) == ("Wide", "RI 60.3; WS 58.7.")
    short = plots.offline_curves(curve("RI", [0.1, 0.2]), METHODS)
    plots.add_caption(short, Caption("What is drawn.", came="RI 60.3. " * 30))  # there is room for three lines of it
    assert short._supxlabel.get_text().count("\n") == 2
    plots.add_caption(
        long := plots.offline_curves(curve("RI", [0.1]), METHODS), Caption("What.", came="RI 60.3. " * 99)
    )
    assert long._supxlabel.get_text().split().count("60.3.") == 99  # what came out is never cut


def test_online_curves_by_hand():
    rounds = [
        {
            "method": name,
            "seed": seed,
            "samples": 10 * n,
            "test_accuracy": 0.1 * n + seed / 10,
            "train_seconds": float(n),
        }
        for name in ("RI", "WS")
        for seed in (0, 1)
        for n in (1, 2, 3)
    ]
    there = {("test_accuracy", "RI"): [[10, 11.0], [20, 22.0], [50, 99.0]]}
    figure = plots.online_curves(rounds, METHODS, published=there, cost="seconds")
    accuracy, seconds = figure.axes
    lines = {line.get_label(): line for line in accuracy.lines}
    np.testing.assert_allclose(lines["RI"].get_xydata(), [[10, 15], [20, 25], [30, 35]])
    np.testing.assert_allclose(seconds.lines[0].get_ydata(), [1, 2, 3])
    dashed = [line for line in accuracy.lines if line.get_label() not in ("RI", "WS")]
    np.testing.assert_allclose(dashed[0].get_xydata(), [[10, 11], [20, 22]])  # cut where the measured rounds end


def test_online_curves_draw_steps_where_asked():
    rounds = [{"method": "RI", "seed": 0, "samples": 10 * n, "test_accuracy": 0.1, "steps": 7 * n} for n in (1, 2)]
    cost = plots.online_curves(rounds, METHODS, cost="steps").axes[1]
    np.testing.assert_allclose(cost.lines[0].get_xydata(), [[10, 7], [20, 14]])
    assert cost.get_ylabel() == "Steps a round"


def test_accuracies_at_a_number_of_samples_that_a_curve_has():
    there = {("test_accuracy", "RI"): [[10, 11.0], [20, 22.0]], ("train_seconds", "RI"): [[10, 5.0]]}
    assert published.accuracies_at(there, 20) == {"RI": 22.0}
    assert published.accuracies_at(there, 15) == {}
    assert published.accuracies_at(there, None) == {}


def test_what_was_published_of_a_method_goes_by_what_it_is():
    methods = {"a": METHODS["RI"], "SP": METHODS["SP"], "RI": {"reinit": "mine"}}
    values = {published.RI: 1, published.WS: 2, published.sp(0.4): 3, published.sp(0.3): 4}
    assert published.by_method(values, methods) == {"a": 1, "SP": 3}


NASTY = [
    "_hidden",
    "$x_1$ $",
    "a_b^c \\frac{",
    "<script>",
    "\u4e2d\u6587 \U0001f9e0",
    "SP 0.3/0.01",
    " ",
    "long " * 200,
]


def test_names_are_drawn_as_they_are(tmp_path):
    rows = [row for name in NASTY for row in curve(name, [0.1, 0.2])]
    figure = plots.offline_curves(rows, {})
    plots.save_captioned(figure, Caption("; ".join(NASTY) + "x" * 2000), tmp_path / "figure")
    texts = figure.legends[0].get_texts()
    shown = [text.get_text() for text in texts]
    assert shown[:4] == NASTY[:4]
    assert shown[4] == "\\u4e2d\\u6587 \\U0001f9e0"  # the font has no such characters
    assert len(shown) == len(NASTY)
    assert not any(text.get_parse_math() for text in texts)
    page = figure.bbox
    assert all(page.x0 <= text.get_window_extent().x0 < text.get_window_extent().x1 <= page.x1 for text in texts)


def test_many_methods_leave_room_for_the_panels():
    rows = [row for number in range(60) for row in curve(f"method {number}", [0.1, 0.2])]
    figure = plots.offline_curves(rows, {})
    figure.savefig("/dev/null", format="png")
    assert figure.axes[0].get_window_extent().height > 100  # pixels, of 100 an inch
    assert len({(line.get_color(), str(line.get_linestyle())) for line in figure.axes[0].get_lines()}) >= 15


def test_a_score_that_is_no_share_is_drawn_as_it_is():
    figure = plots.offline_curves(curve("RI", [19.7, -3.0]), METHODS, published={("test_accuracy", "RI"): [[1, 50.0]]})
    assert figure.axes[0].get_ylabel() == "Test score"
    np.testing.assert_allclose(lines(figure)["RI"].get_ydata(), [19.7, -3.0])
    assert len(figure.axes[0].get_lines()) == 1  # percentages have no place beside it


@settings(max_examples=20, deadline=None)
@given(made_up_rows(), st.sampled_from([None, 5]))
def test_every_run_can_be_drawn(rows, epochs):
    rounds = summarize_online(rows, METHODS)["rounds"]
    for figure in (plots.offline_curves(rows, METHODS, epochs=epochs), plots.online_curves(rounds, METHODS)):
        figure.draw_without_rendering()
        values = np.concatenate([line.get_ydata() for axis in figure.axes for line in axis.get_lines()] or [[]])
        assert np.isfinite(values.astype(float)).all()


def test_epochs_that_were_not_measured_leave_gaps():
    rows = curve("RI", [0.1, 0.2, 0.3])
    rows[1]["test_accuracy"] = None
    np.testing.assert_allclose(lines(plots.offline_curves(rows, METHODS))["RI"].get_xydata(), [[1, 10], [3, 30]])
