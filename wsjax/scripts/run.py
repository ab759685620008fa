"""Runs an experiment's rounds in its folder, and says what came of it. Imports jax where it is used."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from wsjax.errors import NonFiniteLoss, UsageError
from wsjax.results.names import Methods
from wsjax.results.words import WHERE
from wsjax.scripts import hosts, process
from wsjax.scripts.build import build_mesh, is_stacked, methods_table
from wsjax.scripts.cli import explain_abort
from wsjax.scripts.config import Common, run_name
from wsjax.scripts.console import duration, print_table, progress, say
from wsjax.storage.about import about_run, data_digest
from wsjax.storage.files import read_json, user_path, write_json
from wsjax.storage.records import DATA, SUMMARY, check_run, follow_run, open_run
from wsjax.storage.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsjax.data.datasets import Dataset
    from wsjax.results.tables import Table
    from wsjax.rounds.legs import Method, Round
    from wsjax.training.train import Setup


MEASURED = "measured"
"""What a summary holds of the states at a run's end."""


class Outcome(NamedTuple):
    """What a run came to: its folder, what its methods are, its rows (one an epoch), and their summary."""

    folder: Path
    methods: Methods
    rows: list[Row]
    summary: dict[str, Any]


def load_data(config: Common, models: Sequence[str] = ()) -> Dataset:
    """Loads the data set, or the subset of it that the settings ask for; see `load_several`."""
    return load_several(config, [config.dataset], models)[0]


def load_several(config: Common, names: Sequence[str], models: Sequence[str] = ()) -> list[Dataset]:
    """Loads data sets, or the subset of each that the settings ask for; before it, sets up the devices.

    Joins the processes of several hosts, or has a CPU pass for as many devices as are wanted. What else is compiled for
    the settings' model, or for one of `models`, is compiled while the data are read.
    """
    process.set_up()
    import jax

    from wsjax import parallel
    from wsjax.data import datasets
    from wsjax.networks import kernels

    if hosts.has_several_processes(config):
        explain_abort(hosts.explained(config))  # of what happens while they join
        try:
            parallel.initialize(config.coordinator, config.num_processes, config.process_id)
        except RuntimeError as error:
            raise UsageError(f"{hosts.explained(config)} ({str(error).splitlines()[0]:.200})") from error
        explain_abort()  # again, for JAX has taken a signal for itself
    else:
        process.use_devices(config.devices or (parallel.cores() if config.replicas else None))
    if "resnet18" in {config.model, *models}:
        kernels.prepare(config.precision)
    loaded = [datasets.load(name, config.data_dir, config.image_size) for name in names]
    return [datasets.take(jax.random.key(0), dataset, config.num_train, config.num_test) for dataset in loaded]


def run(
    name: str,
    config: Common,
    setup: Setup,
    rounds: Sequence[Round],
    methods: Mapping[str, Method],
    summarize: Callable[..., dict[str, Any]],
    table: Methods | None = None,
    measure: Callable[[Any], Any] | None = None,
    watch: Callable[[list[Row]], None] | None = None,
    within: float = math.inf,
    diverged: Literal["raise", "end"] = "raise",
) -> Outcome:
    """Runs an experiment's rounds, or what is left of them, in its folder.

    Args:
      name: the experiment's.
      config: its settings, checked.
      setup: what is trained, and on what; its data are the run's.
      rounds: those of all methods.
      methods: by the names that rows and tables give them.
      summarize: `(rows, what each method is) -> summary`, written as summary.json.
      table: what each of them is; None for those that the settings name.
      measure: `{(method, seed): state at its end} -> JSON values`, which `summarize` gets too and the summary holds as
        "measured". What summary.json holds already is kept: only without it are a finished run's states asked for.
      watch: called with every epoch's rows; where it raises, the run ends, to be continued by the same call.
      within: the seconds after which it raises, for the estimate of the time to go.
      diverged: whether a loss that is not finite ends the run with an error, or the round that it is in.
    """
    from wsjax import parallel
    from wsjax.rounds import loop
    from wsjax.rounds.legs import Settings

    folder, settings = _folder(name, config), _settings(config, setup, rounds, methods)
    caps, table = _caps(rounds, methods), table or methods_table(config)
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.together())
        own = None
        if parallel.is_main():
            own = stack.enter_context(open_run(folder, settings, _about(name, config, table)))
        parallel.wait_for_all("records")
        records = follow_run(folder) if own is None else own
        known = None if measure is None else _measured(folder)
        left = _most(config.seeds, methods, caps) - sum(_work(records.rows, caps))
        advance = stack.enter_context(progress(max(left, 1), ", if no round ends early", parallel.is_main(), within))
        try:
            result = loop.run_rounds(
                setup,
                rounds,
                methods,
                config.seeds,
                settings=Settings(config.evaluate, config.checkpoint_every, config.fresh, diverged),  # type: ignore[arg-type]
                stack=is_stacked(config),
                mesh=build_mesh(config),
                records=records,
                checkpoints=folder / "checkpoints",
                observe=partial(_observe, advance, caps, watch),
                states=measure is not None and known is None,
            )
        except NonFiniteLoss as error:
            rate = table.get(error.method or "", {}).get("learning_rate", config.learning_rate)
            raise NonFiniteLoss(f"{error}; lower the learning rate ({rate:g})", error.method) from error
        seconds = time.perf_counter() - begin
        say(f"Ran for {duration(seconds)}, of which compiling took {result.compile_seconds:.1f} s", parallel.is_main())
        if measure is None:
            summary = summarize(result.rows, table)
        else:
            measured = measure(result.states) if known is None else known
            summary = summarize(result.rows, table, measured) | {MEASURED: measured}
        if parallel.is_main():
            write_json(folder / SUMMARY, summary)
    return Outcome(folder, table, result.rows, summary)


def check_folder(
    name: str, config: Common, setup: Setup, rounds: Sequence[Round], methods: Mapping[str, Method]
) -> None:
    """Raises RunError where `run`, given the same, would find another run in its folder."""
    check_run(_folder(name, config), _settings(config, setup, rounds, methods))


def conclude(
    outcome: Outcome, title: str, table: Table, figure: Figure, sentences: Sequence[str] | None = None
) -> None:
    """Says what a run came to, draws its picture, and tells what its folder holds.

    Args:
      outcome: the run's.
      title: the table's.
      table: its columns and rows.
      figure: the picture.
      sentences: what the numbers say; None takes what `summary.verdict` says of them.
    """
    from wsjax import parallel
    from wsjax.results import plots, summary

    if not parallel.is_main():
        return
    print_table(title, *table)
    for sentence in summary.verdict(outcome.summary) if sentences is None else sentences:
        say(sentence)
    (picture,) = plots.save(figure, outcome.folder / "figure", ["png"])
    checkpoints = outcome.folder / "checkpoints"
    size = sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file())
    say(f"Picture: {picture}")
    say(f"Records: {outcome.folder} (its checkpoints take {size / 1e6:,.1f} MB, and may be deleted)")


def _measured(folder: Path) -> Any:
    """What an earlier call has measured of the states at the run's end; None where there is nothing yet."""
    return read_json(folder / SUMMARY, {}).get(MEASURED)


def _folder(name: str, config: Common) -> Path:
    return user_path(config.workdir) / name / run_name(config)


def _settings(config: Common, setup: Setup, rounds: Sequence[Round], methods: Mapping[str, Method]) -> dict[str, Any]:
    """All that decides a run's results, as its config.json has it."""
    settings = {field: value for field, value in dataclasses.asdict(config).items() if field not in WHERE}
    settings |= {"num_train": len(setup.train[1]), "num_test": len(setup.test[1])}
    settings |= {DATA: _digest(setup, rounds, methods)}
    return settings


def _digest(setup: Setup, rounds: Sequence[Round], methods: Mapping[str, Method]) -> str:
    """The digest of all data that a run looks at."""
    from wsjax.rounds.legs import planned

    every = [setup, *(here.setup for own in planned(rounds, methods).values() for here in own.values() if here.setup)]
    data = {id(part): part for own in every for part in (*own.train, *own.test)}
    return data_digest(tuple(data.values()))


def _about(name: str, config: Common, table: Methods) -> dict[str, Any]:
    """What config.json tells beside the settings."""
    import jax

    from wsjax import parallel
    from wsjax.networks import kernels

    about = about_run(name, parallel.device_names()) | {"methods": table}
    models = {config.model, *(spec.get("model") for spec in table.values())}
    if "resnet18" in models:  # the kernels give other bits than XLA's convolutions
        about["compiled_kernels"] = kernels.support(jax.ShapeDtypeStruct((), config.precision))
    return about


Caps = Mapping[tuple[str, int], tuple[int, int]]
"""By method and round: the number of samples and the most epochs."""


def _caps(rounds: Sequence[Round], methods: Mapping[str, Method]) -> Caps:
    """What a seed has to do, at most."""
    from wsjax.rounds.legs import planned

    return {
        (name, number): (here.num_samples, here.max_epochs or 0)
        for name, own in planned(rounds, methods).items()
        for number, here in own.items()
    }


def _most(seeds: Sequence[int], methods: Mapping[str, Method], caps: Caps) -> int:
    """The samples that all seeds' rounds see at most."""
    return sum(
        size * cap
        for (name, _), (size, cap) in caps.items()
        for seed in seeds
        if name not in methods or methods[name].runs(seed)
    )


def _observe(advance: Callable[..., None], caps: Caps, watch: Callable[..., None] | None, rows: list[Row]) -> None:
    """Shows an epoch's rows, and has them watched."""
    last = rows[-1]
    field = "train_accuracy" if last["test_accuracy"] is None else "test_accuracy"
    values = [row[field] for row in rows if row[field] is not None]
    what = f"{field.replace('_', ' ')} {sum(values) / len(values):.1%}"
    done, skipped = _work(rows, caps)
    advance(done, f"{last['method']}, round {last['round']}, epoch {last['epoch']}: {what}", skipped)
    if watch is not None:
        watch(rows)


def _work(rows: Sequence[Row], caps: Caps) -> tuple[int, int]:
    """The samples that epochs have seen, and those that stopped rounds did not need."""
    known = [row for row in rows if (row["method"], row["round"]) in caps]  # the loop refuses others
    done = sum(row["samples"] for row in known)
    over = [(row["samples"], caps[row["method"], row["round"]][1] - row["epoch"]) for row in known if row["stop"]]
    return done, sum(samples * epochs for samples, epochs in over)
