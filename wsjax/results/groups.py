"""Runs of one experiment that differ in some of their settings, merged group by group for one figure or table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from wsjax.errors import RunError
from wsjax.results import words
from wsjax.results.merge import DrawnRun, merge_runs
from wsjax.storage.records import DATA, RunRecords, differing, setting
from wsjax.storage.rows import grouped

UNITED = ("seeds", "methods", "shrink", "perturb")
"""Settings that a figure has of all its runs."""

Key = tuple[Any, ...]
"""The values of the settings that groups differ in."""


class Groups(NamedTuple):
    """Merged runs, group by group.

    Attributes:
        runs: each group that has rows, by its values of those settings, in the order in which runs were given.
        whole: all of them, for a caption: a setting in which groups differ holds its values as a list, and each row's
            method tells its group. Its methods are those of the first group.
    """

    runs: dict[Key, DrawnRun]
    whole: DrawnRun


def merge_groups(
    runs: Sequence[RunRecords],
    experiment: str,
    by: Sequence[str],
    free: Collection[str] | None = (),
    **options: Any,
) -> Groups:
    """Merges runs in groups: those of one group differ in seeds and methods only.

    Args:
        runs: as `read_run` gives them.
        experiment: the one that they must be of.
        by: the settings that groups differ in.
        free: further settings that may differ between groups, None for all; the whole has them where they do not.
        options: those of `merge_runs`.

    Raises:
        RunError: as `merge_runs`; or two groups differ in another setting.
    """
    groups = grouped(runs, lambda run: tuple(_value(run.config["config"], name) for name in by))
    begun = [key for key, own in groups.items() if any(run.rows for run in own)]
    merged = {key: merge_runs(groups[key], experiment, **options) for key in begun}
    if not merged:
        merge_runs(runs, experiment, **options)  # which says why
    one, *others = (run.settings for run in merged.values())
    free = {name for run in merged.values() for name in run.settings} if free is None else free
    varied = {*by, *free, *UNITED, DATA}
    for other in others:
        pairs = differing(one, other).items()
        fixed = [f"{name} {a} and {b}" for name, (a, b) in pairs if name not in varied | words.NEUTRAL]
        if fixed:
            raise RunError(f"runs of different settings cannot share a figure: {'; '.join(fixed)}")
    finished = begun == list(groups) and all(run.finished for run in merged.values())
    return Groups(merged, _whole(merged, by, free, finished))


def _whole(merged: Mapping[Key, DrawnRun], by: Sequence[str], free: Collection[str], finished: bool) -> DrawnRun:
    first = next(iter(merged.values()))
    settings = dict(first.settings)
    for name in by:
        settings[name] = _one_or_all([_value(run.settings, name) for run in merged.values()])
    for name in set(free) - {*by, *UNITED}:
        if len({_value(run.settings, name) for run in merged.values()}) > 1:
            settings.pop(name, None)
    for name in UNITED:
        settings[name] = sorted({value for run in merged.values() for value in run.settings.get(name) or ()})
    vary = [name for name in by if isinstance(settings[name], list)]
    rows = []
    for run in merged.values():
        own = "".join(f", {words.phrase(name, _value(run.settings, name))}" for name in vary)
        rows += [row | {"method": row["method"] + own} for row in run.rows]
    about = dict.fromkeys(place for run in merged.values() for place in run.about)
    return DrawnRun(settings, first.methods, rows, finished, tuple(about))


def _one_or_all(values: Sequence[Any]) -> Any:
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else found


def _value(settings: Mapping[str, Any], name: str) -> Any:
    """A setting's value, as one that can be compared: a list as a tuple."""
    value = setting(settings, name)
    return tuple(value) if isinstance(value, list) else value
