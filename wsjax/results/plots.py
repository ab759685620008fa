"""The plot shapes that experiments and figures share.

A figure is a plain `matplotlib.figure.Figure`: pyplot and its global state are never used, so a figure can be drawn in
any process, with or without a display. Records hold accuracies as fractions; figures and captions show percent.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from wsjax.errors import printable
from wsjax.results import names
from wsjax.results.captions import Caption
from wsjax.results.names import Methods, Style
from wsjax.results.published import Curves
from wsjax.results.stats import Interval, Unit, mean_interval, unit_of
from wsjax.storage.files import replacing, write_whole
from wsjax.storage.rows import FIRST, Row, grouped

Groups = Mapping[str, Collection[str]]
"""Methods that share a panel, by its title."""
COSTS = {"seconds": ("train_seconds", "Seconds a round"), "steps": ("steps", "Steps a round")}
"""What a round's cost can be drawn as: field and label."""

WIDTH, HEIGHT = 6.5, 2.6  # inches: a paper's text width, so that the font sizes below are those on the page
FONT, SMALL = 8, 7  # points
LINES = 12  # of a caption in the picture
MANY = 7  # curves, beyond which their bands are faint
DASHES = (0, (3, 1.5))

_FIELDS = {"test_accuracy": "Test", "train_accuracy": "Train"}


def mean_band(axis: Axes, x: ArrayLike, curves: ArrayLike, *, label: str, style: Style, faint: bool = False) -> None:
    """Draws the mean of the seeds' curves in a band: its 95 % t-interval, or the range where only two seeds are.

    Args:
        axis: the axes to draw on.
        x: [E] positions.
        curves: [S, E], one curve a seed; NaN where a seed has no value. Positions where no seed has one are skipped.
        label: the line's.
        style: the line's; the band has its colour.
        faint: whether the band is, as where many lie upon each other.
    """
    columns = [column[~np.isnan(column)] for column in np.asarray(curves, float).T]
    x = np.asarray(x)[[len(column) > 0 for column in columns]]
    mean, low, high = np.array([bounds(column) for column in columns if len(column)]).reshape(-1, 3).T
    marker = "o" if len(x) == 1 else None  # a line of one point cannot be seen
    axis.plot(x, mean, label=label, color=style.color, linestyle=style.line, linewidth=1.2, marker=marker, markersize=3)
    axis.fill_between(x, low, high, color=style.color, alpha=0.08 if faint else 0.22, linewidth=0)


def offline_curves(
    rows: Sequence[Row],
    methods: Methods,
    fields: Sequence[str] = ("test_accuracy", "train_accuracy"),
    *,
    epochs: int | None = None,
    published: Curves | None = None,
) -> Figure:
    """Draws scores by epoch in two rounds, a panel a field: first on a part of the data, then every method on all.

    Random initialisation has no first round: its curve starts where the others' second round starts. Rows without a
    first round (method "first") give the second round alone. A seed that a stop rule ended early holds its last value,
    so that the mean ends at the mean of the final accuracies; a seed under way counts as far as it has come.

    Args:
        rows: a run's rows, of any methods and seeds; those of further rounds are left out.
        methods: what each method is, by name; see `names`.
        fields: the scores to draw.
        epochs: a round's length where it is fixed, so that an unfinished run is drawn in its final frame.
        published: drawn dashed behind the measured curves of the same method, cut where the measured round ends.
    """
    styles = names.styles(dict.fromkeys(row["method"] for row in rows), methods)
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    drawn = draw_offline(axes, rows, methods, fields, styles, epochs=epochs, published=published)
    legend(figure, {method: styles[method] for method in drawn}, published=published or {})
    return figure


def grouped_curves(
    rows: Sequence[Row],
    methods: Methods,
    groups: Groups | None,
    *,
    epochs: int | None = None,
    published: Curves | None = None,
) -> Figure:
    """Draws test scores by epoch, like `offline_curves`, a panel for each group of methods, by its title; one of all
    without groups."""
    styles = names.styles(dict.fromkeys(row["method"] for row in rows), methods)
    groups = groups or {"": list(styles)}
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    drawn: dict[str, None] = {}
    for axis, (title, group) in zip(axes, groups.items(), strict=True):
        own = [row for row in rows if row["method"] in group]
        drawn |= dict.fromkeys(
            draw_offline([axis], own, methods, ["test_accuracy"], styles, epochs=epochs, published=published)
        )
        axis.set_title(title, fontsize=FONT)
    for axis in axes[1:]:
        axis.set_ylabel("")
    legend(figure, {name: styles[name] for name in names.ordered(drawn, methods)}, published=published or {})
    return figure


def draw_offline(
    axes: Sequence[Axes],
    rows: Sequence[Row],
    methods: Methods,
    fields: Sequence[str],
    styles: Mapping[str, Style],
    *,
    epochs: int | None = None,
    published: Curves | None = None,
) -> list[str]:
    """Draws the panels of `offline_curves`, on given axes; returns the methods drawn, in the legend's order."""
    published, unit = published or {}, unit_of(rows)
    first, second = ([row for row in rows if row["round"] == number] for number in (1, 2))
    if not any(row["method"] == FIRST for row in first):
        first = []
    start = (epochs or max(row["epoch"] for row in first)) if first else 0
    end = start + (epochs or max((row["epoch"] for row in second), default=0))
    curves = _by_method([*first, *second], methods)
    for axis, field in zip(axes, fields, strict=True):
        for method, both in curves.items():
            for number, own in grouped(both, itemgetter("round")).items():  # some have a first round of their own
                offset, stop = (0, start) if number == 1 else (start, end)
                values = unit.scale * by_epoch(own, lambda row, field=field: row[field])
                x = offset + 1 + np.arange(values.shape[1])
                faint = len(curves) > MANY
                mean_band(axis, x, values, label=names.label(method), style=styles[method], faint=faint)
                if unit.percent and (field, method) in published and (number == 2 or method == FIRST):
                    x, y = np.asarray(published[field, method]).T
                    dashed(axis, offset + x, y, stop, styles[method])
        dress(axis, score_label(field, unit), end)
        if start:
            _mark_round(axis, 0, start, first)
            _mark_round(axis, start, end, second)
    return list(curves)


def online_curves(
    rounds: Sequence[Row],
    methods: Methods,
    *,
    published: Curves | None = None,
    cost: str = "steps",
    groups: Groups | None = None,
) -> Figure:
    """Draws test scores, and what a round costs, by the number of samples.

    Args:
        rounds: a row a round, of any methods and seeds; each method is averaged over the seeds that reached a round.
        methods: what each method is, by name; see `names`.
        published: drawn dashed behind the measured curves: (field, method) to points (samples, percent or seconds).
        cost: one of `COSTS`: steps, or training seconds, which depend on the machine and on what else ran there.
        groups: which methods have a row of panels of their own, by its title; None for one row of all.
    """
    published, unit = published or {}, unit_of(rounds)
    curves = _by_method(rounds, methods)
    styles = names.styles(curves, methods)
    groups = groups or {"": list(curves)}
    figure = Figure(figsize=(WIDTH, HEIGHT * (0.2 + 0.8 * len(groups))), layout="constrained")
    panels = (("test_accuracy", score_label("test_accuracy", unit), unit.scale), (*COSTS[cost], 1))
    grid = figure.subplots(len(groups), 2, squeeze=False, sharex=True, sharey="col")
    for line, (title, group) in zip(grid, groups.items(), strict=True):
        for axis, (field, label, scale) in zip(line, panels, strict=True):
            for method, own in curves.items():
                if method not in group:
                    continue
                samples, values = by_seed(own, "samples", field)
                mean_band(axis, samples, scale * values, label=names.label(method), style=styles[method])
                if unit.percent and (field, method) in published:
                    x, y = np.asarray(published[field, method]).T
                    dashed(axis, x, y, max(samples), styles[method])
            dress(axis, label, max((row["samples"] for row in rounds), default=0), x_label="")
            axis.set_title(title, fontsize=FONT)
    for axis in grid[-1]:
        axis.set_xlabel("Train images", fontsize=FONT)
    grid[0, 1].set_ylim(bottom=0)  # an interval may reach below, a cost does not
    legend(figure, {method: styles[method] for method in curves}, published=published)
    return figure


def add_caption(figure: Figure, caption: Caption) -> None:
    """Writes a caption under the picture, in room added to the figure's height: `LINES`, or what came out if longer.

    What does not fit is cut with an ellipsis, the settings first, for the text beside the picture has all.
    """
    width, height = figure.get_size_inches()
    parts = [_wrap(drawable(part), 0.98 * width) for part in caption[:4]]
    for part in (1, 2, 0):  # never what came out
        if sum(map(len, parts)) > LINES and len(parts[part]) > 1:
            parts[part] = [_cut(parts[part][0], 0.98 * width)]
    lines = [line for part in parts for line in part]
    figure.set_size_inches(width, height + len(lines) * 1.25 * SMALL / 72 + 0.1)
    # A label of the whole figure is the one text at its foot that the layout makes room for.
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=SMALL, linespacing=1.25, parse_math=False)


def save(figure: Figure, stem: Path | str, kinds: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Writes a file of each kind, all of them whole or none; the same figure gives the same bytes.

    Args:
        figure: what is drawn.
        stem: their path, but for the ending.
        kinds: of png and pdf, which are wanted.

    Raises:
        OSError: a file cannot be written; what was there before is kept.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in kinds]
    # Fonts as fonts, which journals ask for.
    with replacing(*paths) as parts, matplotlib.rc_context({"pdf.fonttype": 42}):
        for part, kind in zip(parts, kinds, strict=True):
            if kind == "png":
                part.write_bytes(png(figure, 200))
            else:
                figure.savefig(part, format=kind, metadata={"CreationDate": None}, dpi=200)
    return paths


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as PNG of 256 colours, by median cut: a third of the bytes remain, and hardly a difference is seen."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None}, dpi=dpi)
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(packed, format="PNG", optimize=True, dpi=image.info.get("dpi"))
    return packed.getvalue()


def save_captioned(figure: Figure, caption: Caption, stem: Path) -> None:
    """Writes stem.png and stem.pdf with the caption under the picture, and all of the caption as stem.txt."""
    add_caption(figure, caption)
    save(figure, stem)
    write_whole(stem.with_name(f"{stem.name}.txt"), caption.text + "\n")


def bounds(values: NDArray[np.float64]) -> Interval:
    """A mean over seeds and its band: the 95 % t-interval, or the range of fewer than three."""
    if len(values) > 2:
        return mean_interval(values.tolist())
    return Interval(float(values.mean()), float(values.min()), float(values.max()))  # two values' t is 13 times as wide


def _by_method(rows: Sequence[Row], methods: Methods) -> dict[str, list[Row]]:
    """The rows of each method, in the legend's order."""
    groups = grouped(rows, itemgetter("method"))
    return {name: groups[name] for name in names.ordered(groups, methods)}


def by_seed(rows: Sequence[Row], x: str, field: str) -> tuple[list[Any], NDArray[np.float64]]:
    """The values of x that one method's rows have, in order, and those of a field at them, [S, X], or NaN."""
    places, seeds = ({value: i for i, value in enumerate(sorted({row[key] for row in rows}))} for key in (x, "seed"))
    values = np.full((len(seeds), len(places)), np.nan)
    for row in rows:
        if row[field] is not None:
            values[seeds[row["seed"]], places[row[x]]] = row[field]
    return list(places), values


def by_epoch(rows: Sequence[Row], value: Callable[[Row], float | None]) -> NDArray[np.float64]:
    """What one method's rows of a round give, [S, E], NaN where nothing; a seed that has ended holds its last value."""
    seeds = {seed: number for number, seed in enumerate(sorted({row["seed"] for row in rows}))}
    values = np.full((len(seeds), max(row["epoch"] for row in rows)), np.nan)
    for row in rows:
        if (found := value(row)) is not None:  # not measured in that epoch
            values[seeds[row["seed"]], row["epoch"] - 1 : None if row["stop"] else row["epoch"]] = found
    return values


def score_label(field: str, unit: Unit) -> str:
    """The label of an axis of scores."""
    return f"{_FIELDS[field]} {unit.word}" + " (%)" * unit.percent


def _wrap(text: str, width: float) -> list[str]:
    """Lines of the small font that fit into a width in inches; a word that is longer is broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if _width(longer) <= width:
            lines[-1] = longer
            continue
        lines.append(word)
        while _width(lines[-1]) > width:
            head = max(int(len(lines[-1]) * width / _width(lines[-1])) - 1, 1)
            lines[-1:] = [lines[-1][:head], lines[-1][head:]]
    return [line for line in lines if line]


def _cut(line: str, width: float) -> str:
    """A line that says that it goes on, cut between words."""
    while " " in line and _width(line + " …") > width:
        line = line.rpartition(" ")[0]
    return line + " …"


def _width(text: str) -> float:
    """Inches of a text in the small font."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=SMALL), ismath=False)[0] / 72


def drawable(text: str) -> str:
    """A text on one line with the font's own characters; others become their escapes, as Python writes them."""
    glyphs = _glyphs()
    return "".join(c if ord(c) in glyphs else c.encode("unicode_escape").decode() for c in printable(text))


@cache
def _glyphs() -> frozenset[int]:
    """The characters that the font has."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def dashed(axis: Axes, x: NDArray[Any], y: NDArray[Any], stop: float, style: Style) -> None:
    """A published curve behind the measured one of that colour, cut where the measured one ends."""
    there = x <= stop
    light = names.mix(style.color, "#FFFFFF", 0.45)
    marker = "D" if len(x) == 1 else None  # a line of one point cannot be seen
    axis.plot(x[there], y[there], color=light, linewidth=0.9, linestyle=DASHES, marker=marker, markersize=3, zorder=1.5)


def dress(axis: Axes, label: str, end: float, x_label: str = "Epoch") -> None:
    """The look of most panels: labels, x from 0 to a little beyond `end`, a grid behind."""
    axis.set_xlabel(x_label, fontsize=FONT)
    axis.set_ylabel(label, fontsize=FONT)
    axis.set_xlim(0, max(end, 1) * 1.01)
    if x_label.startswith("Epoch"):
        axis.locator_params(axis="x", integer=True)
    plain(axis)


def plain(axis: Axes, grid: Literal["both", "x"] = "both") -> None:
    """The look of every panel: small numbers, a grid behind, and no frame above and on the right."""
    axis.tick_params(labelsize=SMALL, length=2.5)
    axis.grid(axis=grid, color="#E6E6E6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _mark_round(axis: Axes, start: int, end: int, rows: Sequence[Row]) -> None:
    """A line where a round starts and, above the panel, how much data it trains on."""
    if start:
        axis.axvline(start, color="#999999", linewidth=0.8, zorder=1)
    if rows:
        text, place = f"{rows[0]['samples']:,} samples", ((start + end) / 2, 1.01)
        at = axis.get_xaxis_transform()
        axis.annotate(text, place, xycoords=at, ha="center", va="bottom", fontsize=SMALL, color="#666666")


def legend(
    figure: Figure,
    styles: Mapping[str, Style],
    more: Mapping[str, Style] | None = None,
    *,
    published: Iterable[tuple[str, str]] = (),
) -> None:
    """One legend above the panels: a line a method, the dashes, and lines by their labels; the figure grows with it."""
    entries = [(names.label(name), style, 1.2) for name, style in styles.items()]
    if any(method in styles for _, method in published):
        entries.append(("published", Style("#888888", DASHES), 0.9))
    entries += [(label, style, 1.2) for label, style in (more or {}).items()]
    labels = [drawable(label) for label, _, _ in entries]
    handles = [Line2D([], [], color=own.color, linestyle=own.line, linewidth=width) for _, own, width in entries]
    if not handles:
        return
    entry = max(map(_width, labels)) + 4.8 * SMALL / 72  # a line of two font sizes and the gaps beside it
    columns = min(max(int(WIDTH / entry), 1), 6)
    rows = -(-len(handles) // columns)
    figure.set_size_inches(WIDTH, figure.get_figheight() + (rows - 1) * 1.5 * SMALL / 72)
    where = {"loc": "outside upper center", "ncols": columns}
    drawn = figure.legend(handles, [" "] * len(handles), **where, fontsize=SMALL, frameon=False)
    for text, label in zip(drawn.get_texts(), labels, strict=True):  # as they are: no name hidden, none a formula
        text.set_text(label)
        text.set_parse_math(False)
