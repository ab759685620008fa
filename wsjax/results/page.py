"""The page of the study: one HTML file of verdicts, figures and how it was run; opens from disk, needs no network."""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import jinja2

from wsjax.errors import printable
from wsjax.results.claims import (
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    UNDECIDED,
    Estimate,
    Verdict,
)
from wsjax.results.merge import short_commit
from wsjax.results.sheets import Sheet
from wsjax.storage.records import RunRecords
from wsjax.storage.rows import grouped

VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_RUN)
BOARD = "board"
"""The figure that has a section of its own: it compares methods, and is of no claim."""


class Shown(NamedTuple):
    """A figure or table as the page shows it.

    Attributes:
      name: "figure5" or "table1".
      caption: its lines.
      image: the picture, as PNG; None where there is none.
      table: None where there is none.
      study: what tells it from those of the same name; empty where there is no other.
    """

    name: str
    caption: Sequence[str]
    image: bytes | None = None
    table: Sheet | None = None
    study: str = ""

    @property
    def title(self) -> str:
        """What stands above it."""
        return title(self.name) + f" ({self.study})" * bool(self.study)

    @property
    def anchor(self) -> str:
        """What links to it go by."""
        return "-".join(filter(None, (self.name, self.study)))


def render(verdicts: Sequence[Verdict], figures: Sequence[Shown], runs: Sequence[RunRecords]) -> str:
    """The page's HTML; all text from records is escaped. The same input gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wsjax.results"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    counts = Counter(verdict.verdict for verdict in verdicts)
    left = grouped(figures, attrgetter("name"))
    anchors, boards = {name: own[0].anchor for name, own in left.items()}, left.pop(BOARD, [])
    rows = [_row(verdict, left.pop(verdict.claim["figure"], []), anchors) for verdict in verdicts]
    return environment.get_template("page.html").render(
        sentences=sentences(verdicts),
        counts={name: counts[name] for name in VERDICTS if counts[name]},
        rows=rows,
        csv=numbers(verdicts),
        boards=[_shown(figure) for figure in boards],
        figures=[_shown(figure) for own in left.values() for figure in own],
        runs=[_ran(run) for run in runs],
    )


def sentences(verdicts: Sequence[Verdict]) -> list[str]:
    """What the study says, in a few sentences."""
    by_id = {verdict.claim["id"]: verdict for verdict in verdicts}
    own, published = ([v for v in verdicts if (v.claim["published"] == OWN) == is_own] for is_own in (True, False))
    said = [
        f"Of {len(published)} claims of the report: {_counted(published)}; of {len(own)} of our own: {_counted(own)}. "
        "Each verdict holds at the scale that its row in the table tells."
    ]
    for name, what in SAID.items():
        verdict = by_id.get(name)
        if verdict is not None and verdict.estimates:
            shown = "; ".join(_answered(verdict)) if len(verdict.estimates) <= _FEW else _told(verdict)
            said.append(f"{what} {_ANSWERS[verdict.verdict]}. {shown}.")
    return said


def _answered(verdict: Verdict) -> list[str]:
    """What was measured, and of parts that are not all told alike what each says."""
    alike = len({own.verdict for own in verdict.estimates}) == 1
    return [measured(own) + f", {_ANSWERS[own.verdict]}" * (not alike) for own in verdict.estimates]


THE_SAME = "The same"
"""How a claim is called in the row of another width, which says something else."""
OWN = "-"
"""What a claim that nobody has published has for that."""
SAID = {
    "gap": "A warm start ends below random initialisation, by SGD in rounds of a fixed length:",
    "gap-table": "It does where all train to 99 % or a plateau, by three optimisers on two data sets:",
    "shrink-perturb": "Shrink-perturb at 0.1 and 0.3 ends above random initialisation:",
    "size": "So does a new network, all of its parameters times the shrink:",
    "memory": "One with shrink-perturb's norms, leaf by leaf (SPN), ends where shrink-perturb does, within two points:",
    "matched-rate": "Shrink-perturb at 0.3 ends above random initialisation at the best of three learning rates:",
    "matched-rate-online": "Online, at 0.2 and 0.4, it ends above random initialisation at three times the rate:",
    "online-gap": "Online a warm start ends below random initialisation:",
    "online-cost": "Online only rounds from scratch get dearer:",
}
"""The claims that the page's head tells, in its order."""
_FEW = 4  # estimates of a claim that its row in the table shows one by one
_ANSWERS = {REPRODUCED: "yes", NOT_REPRODUCED: "no", UNDECIDED: "cannot be told", NOT_RUN: "not run"}


def measured(estimate: Estimate) -> str:
    """An estimate in words: its mean, and the interval by which it is judged."""
    mean = f"{estimate.what} = {_number(estimate, estimate.mean)}{_unit(estimate)}"
    if estimate.interval is None:
        return f"{mean} (1 seed)"
    if estimate.low != estimate.high:
        low, high = (_number(estimate, bound) for bound in estimate.interval)
        mean += f" ({low} to {high})"
    return mean + ("" if estimate.fitted is None else f", at {estimate.fitted:.0%} train accuracy")


def _number(estimate: Estimate, value: float) -> str:
    """A value as it is told: of points a tenth is noise, unless all of the estimate is smaller than half a point."""
    value *= _scale(estimate)
    if estimate.unit == "points":
        most = _scale(estimate) * max(map(abs, (estimate.mean, *(estimate.interval or ()))))
        return f"{value:+.{1 if most > 0.5 else 2}f}"
    return f"{value:.{2 if abs(value) < 100 else 0}f}"


def _unit(estimate: Estimate) -> str:
    return f" {estimate.unit}".rstrip()


def _scale(estimate: Estimate) -> int:
    """What an estimate is multiplied by to be in its unit: accuracies are fractions."""
    return 100 if estimate.unit == "points" else 1


def numbers(verdicts: Iterable[Verdict]) -> str:
    """All estimates as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["claim", "what", "mean", "low", "high", "seeds", "unit", "verdict", "scale"])
    for verdict in _with_others(verdicts):
        for own in verdict.estimates:
            told = [
                None if x is None else round(_scale(own) * x, 10) for x in (own.mean, *(own.interval or (None, None)))
            ]
            writer.writerow([verdict.claim["id"], own.what, *told, own.seeds, own.unit, own.verdict, verdict.scale])
    return file.getvalue()


def markdown(verdicts: Sequence[Verdict]) -> str:
    """What the study says, and the claims as a table."""
    return "\n".join(f"- {sentence}" for sentence in sentences(verdicts)) + f"\n\n{verdict_table(verdicts).markdown}"


def verdict_table(verdicts: Iterable[Verdict]) -> Sheet:
    """The claims as a table: what the report has, what was measured, at which scale, and the verdict."""
    rows = [
        [own.claim["short"], own.verdict, _told(own) if own.estimates else "", own.claim["published"], own.scale]
        for own in _with_others(verdicts)
    ]
    return Sheet(["claim", "verdict", "measured", "report", "scale"], rows, names=5)


def _with_others(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Verdicts, each followed by what other widths say, where that is something else."""
    told: list[Verdict] = []
    for own in verdicts:
        told.append(own)
        for width, other in own.others.items():
            named = {"short": f"{THE_SAME}, {width}", "id": f"{own.claim['id']}-{width}"}
            told.append(other._replace(claim={**own.claim, **named}))
    return told


def _told(verdict: Verdict) -> str:
    """What was measured of a claim: its estimates, of many their range, and how many parts are missing."""
    told = [measured(estimate) for estimate in verdict.estimates]
    if len(verdict.estimates) > _FEW:
        told = [_ranged(own, verdict) for own in grouped(verdict.estimates, attrgetter("unit")).values()]
    missing = f"{len(verdict.missing)} more not run"
    return "; ".join(told + [missing] * bool(verdict.missing))


def _ranged(estimates: Sequence[Estimate], of: Verdict) -> str:
    """The range of a claim's means in one unit, and what they are judged to be."""
    ranked = sorted(estimates, key=attrgetter("mean"))
    least, most = ranked[0], ranked[-1]
    means = f"{_number(least, least.mean)} to {_number(most, most.mean)}{_unit(most)}"
    mean = _number(least, sum(own.mean for own in estimates) / len(estimates))
    return f"{len(estimates)} parts, {means}, {mean} in the mean: {_judged(estimates, of)}"


def title(figure: str) -> str:
    """ "figure5" as "Figure 5"."""
    name, number = place(figure)
    return f"{name.capitalize()} {number or ''}".strip()


def place(figure: str) -> tuple[str, int]:
    """What a figure's order goes by: "figure5" as ("figure", 5), "controls" as ("controls", 0)."""
    name = figure.rstrip("0123456789")
    return name, int(figure.removeprefix(name) or 0)


def _row(verdict: Verdict, figures: Sequence[Shown], anchors: Mapping[str, str]) -> Mapping[str, Any]:
    """A claim's row; its figures stand under the first claim that they belong to, and are linked by others."""
    claim = verdict.claim
    return {
        **{name: claim[name] for name in ("id", "claim", "published", "command")},
        "paper": claim.get("paper"),
        "title": title(claim["figure"]),
        "shown": [_shown(figure) for figure in figures],
        "link": None if figures else anchors.get(claim["figure"]),
        "told": _parts(verdict),
        "measured": [measured(estimate) for estimate in verdict.estimates],
        "missing": verdict.missing,
        "others": [
            f"{other.claim['short']}: {_told(other)}; {other.scale}: {other.verdict}"
            for other in _with_others([verdict])[1:]
        ],
        "scale": verdict.scale,
        "verdict": verdict.verdict,
    }


def _parts(verdict: Verdict) -> str:
    return f"{len(verdict.estimates)} parts: {_judged(verdict.estimates, verdict)}"


def _judged(estimates: Sequence[Estimate], of: Verdict) -> str:
    """How many parts of a claim there are of each verdict; of parts that are judged together, how many lie outside."""
    if not of.claim.get("together"):
        return _counted(estimates)
    outside = sum(own.verdict != REPRODUCED for own in estimates)
    return f"{len(estimates) - outside} within the range, {outside} outside"


def _counted(judged: Iterable[Verdict | Estimate]) -> str:
    """How many there are of each verdict."""
    counts = Counter(own.verdict for own in judged)
    return ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])


def _shown(figure: Shown) -> Mapping[str, Any]:
    caption = [printable(line) for line in figure.caption]
    return {
        "name": printable(figure.anchor),
        "title": printable(figure.title),
        "caption": caption,
        "text": " ".join(caption),
        "image": None if figure.image is None else base64.b64encode(figure.image).decode(),
        "table": None if figure.table is None else _printable(figure.table),
    }


def _printable(table: Sheet) -> Sheet:
    rows = [[printable(cell) for cell in row] for row in table.rows]
    return table._replace(columns=[printable(cell) for cell in table.columns], rows=rows)


def _ran(run: RunRecords) -> list[str]:
    config, rows = run.config, run.rows
    seconds = sum(row["train_seconds"] + row["eval_seconds"] for row in rows)
    devices = dict.fromkeys(config.get("devices") or [])
    told = [
        run.folder.name, str(config.get("experiment")), ", ".join(devices),
        str((config.get("versions") or {}).get("jax") or ""), short_commit(config.get("git_commit") or ""),
        f"{len(rows):,}", f"{seconds / 3600:.2f}",
    ]  # fmt: skip
    return [printable(text) for text in told]
