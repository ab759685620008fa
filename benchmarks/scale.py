"""How cost grows with what a run is given: time a sample, memory, files, and what a million rows take.

    python -m benchmarks.scale [--only memory folder records] [--out scale.json]

`pool` and `rounds` are timings, which need a machine that is otherwise idle; they take about a minute each on 2 CPU
cores. `memory` measures the most that a process of its own ever held, `folder` counts what a run leaves on the disk,
and `records` reads, resumes and draws a run of made-up rows: these are much the same on a busy machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from wsjax.scripts import cli, console
from wsjax.storage import files, records
from wsjax.storage.rows import FIRST, Row

Table = tuple[str, list[str], list[list[Any]]]
"""A title, the columns' names, and the rows."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    only: tuple[str, ...] = ()
    """Parts: pool, rounds, memory, folder, records. Default: all."""
    out: Path | None = None
    """Write all tables to this JSON file."""
    pools: tuple[int, ...] = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
    """pool: train images of a round."""
    rounds: tuple[int, ...] = (1, 10, 25, 50)
    """rounds, folder: the rounds of a run."""
    images: int = 1_000
    """rounds: those that come in with every round."""
    widths: tuple[int, ...] = (4, 16, 64)
    """memory: of ResNet-18."""
    seeds: tuple[int, ...] = (1, 5, 20)
    """memory: of the MLP, side by side in one program."""
    stored: tuple[int, ...] = (1_000, 10_000, 50_000)
    """memory: images of the data set, all on the device."""
    rows: int = 1_000_000
    """records: about so many."""
    repeats: int = 5
    """pool: epochs timed; the median counts."""


def main(config: Config) -> dict[str, Table]:
    """Prints a table a part, and returns them."""
    for name in config.only:
        cli.choose("part", name, tuple(PARTS))
    tables: dict[str, Table] = {}
    for name in config.only or PARTS:
        tables[name] = PARTS[name](config)
        console.print_table(*tables[name])
        if config.out is not None:
            files.write_json(config.out, tables)
    return tables


def pool(config: Config) -> Table:
    """An epoch of the MLP on the first n images of an order of all: what a round of a growing run does."""
    import jax
    import jax.numpy as jnp

    from benchmarks.jax_side import BATCH, random_images, start, task_of
    from wsjax.networks import models
    from wsjax.rounds.programs import Program
    from wsjax.training.train import Samples, Setup, train_epoch

    most = max(config.pools)
    data, task = jax.tree.map(jnp.asarray, random_images(most)), task_of(models.mlp(10))
    state, optimizer = start(task)

    def epoch(state: Any, data: Any, size: Any, key: Any) -> Any:
        samples = Samples(jnp.arange(most), size, jnp.zeros((), jnp.int32))
        return train_epoch(Setup(task, optimizer, data, data, BATCH), state, samples, key)

    program, key, rows = Program(epoch, donate_argnums=(0,)), jax.random.key(0), []
    for size in config.pools:
        arguments = data, jnp.asarray(size, jnp.int32), key
        run, seconds = program.prepare(state, *arguments), []
        for _ in range(config.repeats + 1):
            begin = time.perf_counter()
            state, _ = jax.block_until_ready(run(state, *arguments))
            seconds.append(time.perf_counter() - begin)
        middle = statistics.median(seconds[1:])
        rows.append([f"{size:,}", f"{1e3 * middle:.1f}", f"{1e6 * middle / size:.2f}"])
    return f"An epoch of the MLP, of an order of {most:,} images", ["images", "ms", "us an image"], rows


def rounds(config: Config) -> Table:
    """Rounds of one run, each an epoch on some more images, with its boundary, evaluation, row and checkpoint."""
    last = max(config.rounds)
    ends: list[float] = []
    with tempfile.TemporaryDirectory(prefix="wsjax-scale-") as place:
        _train(last, config.images, Path(place), lambda _: ends.append(time.perf_counter()))
    rows = []
    for number in (n for n in config.rounds if n > 1):
        until = ends[max(number - 6, 0) : number]
        took = statistics.median(b - a for a, b in itertools.pairwise(until))
        rows.append([number, f"{number * config.images:,}", f"{1e3 * took:.0f}"])
    return f"Rounds of +{config.images:,} images, an epoch each", ["round", "images", "ms, median of five"], rows


def memory(config: Config) -> Table:
    """The most that a new process ever holds in a round of one epoch, above what it holds before."""
    cases = [(f"ResNet-18, width {width}", "resnet18", width, 256, 1) for width in config.widths]
    cases += [(f"MLP, seeds side by side: {count}", "mlp", 0, 256, count) for count in config.seeds]
    cases += [(f"MLP, images in the data set: {count:,}", "mlp", 0, count, 1) for count in config.stored]
    rows = []
    for title, *case in cases:
        code = "import sys; from benchmarks.scale import peak; peak(sys.argv[1], *map(int, sys.argv[2:]))"
        command = [sys.executable, "-c", code, *map(str, case)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        before, most, state = json.loads(done.stdout.splitlines()[-1])
        rows.append([title, f"{state / 1e6:.1f}", f"{(most - before) / 1e6:.0f}"])
    return "Memory of a process, batch 128", ["", "its states, MB", "above its imports, MB"], rows


def peak(model: str, width: int, images: int, seeds: int) -> None:
    """Trains for an epoch; prints the bytes that this process held before, and at most, and those of its states."""
    import jax

    from benchmarks.jax_side import random_images, task_of
    from wsjax.networks import models
    from wsjax.rounds.legs import Round
    from wsjax.rounds.loop import run_rounds
    from wsjax.training.train import Setup, make_optimizer

    task = task_of(models.resnet18(10, width) if model == "resnet18" else models.mlp(10))
    jax.block_until_ready(jax.numpy.zeros(1))
    before = _most_bytes()
    train, test = random_images(images), random_images(256, seed=1)
    setup = Setup(task, make_optimizer("sgd", 0.001), train, test)
    states = run_rounds(setup, [Round(min(images, 256), max_epochs=1)], {}, range(seeds)).states
    print(json.dumps([before, _most_bytes(), sum(leaf.nbytes for leaf in jax.tree.leaves(states))]))


def folder(config: Config) -> Table:
    """What a run's folder holds at its end, by the number of its rounds; one method, and one seed."""
    rows = []
    for count in config.rounds:
        with tempfile.TemporaryDirectory(prefix="wsjax-scale-") as place:
            _train(count, 20, Path(place))
            files = [path for path in Path(place).rglob("*") if path.is_file()]
            log = Path(place) / records.RECORDS
            kept = sum(path.stat().st_size for path in files) - log.stat().st_size
            rows.append([count, len(files) - 1, f"{kept / 1e6:.2f}", f"{log.stat().st_size / 1e3:.1f}"])
    columns = ["rounds", "files of checkpoints", "MB", "rows, kB"]
    return "A run's folder, of the MLP, an epoch a round", columns, rows


def made_up(count: int, seeds: int = 20, last: int = 50) -> Iterator[Row]:
    """About so many rows of a finished online run of RI and WS, seed by seed."""
    epochs = max(count // (seeds * (2 * last - 1)), 1)
    curves = [(FIRST, seed, 1) for seed in range(seeds)]
    curves += [(name, seed, at) for name in ("RI", "WS") for seed in range(seeds) for at in range(2, last + 1)]
    for number, (name, seed, at) in enumerate(curves):
        for epoch in range(1, epochs + 1):
            score = 1 - 1 / (epoch + at + number % 7 / 7)
            yield {
                "method": name, "seed": seed, "round": at, "epoch": epoch, "samples": at, "steps": epoch,
                "samples_seen": at * epoch, "train_accuracy": score, "train_loss": 2 / 3 * (1 - score),
                "test_accuracy": 0.9 * score, "test_loss": 1 / 3 + (1 - score), "train_seconds": 0.012345,
                "stop": "epochs" if epoch == epochs else None, "eval_seconds": 0.001234,
            }  # fmt: skip


def million(config: Config) -> Table:
    """Writes made-up rows, and measures what a user waits for: reading, resuming, drawing."""
    from wsjax.results import merge, names, plots

    before, rows = _most_bytes(), []

    def timed(what: str, call: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = call()
        rows.append([what, f"{time.process_time() - begin:.1f}", f"{(_most_bytes() - before) / 1e9:.2f}"])
        return result

    with tempfile.TemporaryDirectory(prefix="wsjax-scale-") as place:
        path = Path(place) / records.RECORDS
        timed("making up and writing", partial(_write, path, made_up(config.rows)))
        kept = timed("reading", partial(records.Records, path))
        last, epochs = (max(row[name] for row in kept.rows) for name in ("round", "epoch"))
        seeds = sorted({row["seed"] for row in kept.rows})
        for stack in (True, False):
            together = "side by side" if stack else "one after the other"
            call = partial(_resume, kept, last, epochs, seeds, stack)
            timed(f"resuming a finished run, {len(seeds)} seeds {together}", call)
        table = names.from_settings(("RI", "WS"), (), ())
        about: dict[str, Any] = {"experiment": "online", "methods": table, "config": {"methods": ["RI", "WS"]}}
        run = merge.merge_runs([records.RunRecords(about, kept.rows, {})], "online")
        ends = timed("the summary of an online run", partial(merge.summarize_drawn, run))
        figure = timed("drawing accuracies by round", partial(plots.online_curves, ends["rounds"], run.methods))
        timed("saving it as PNG and PDF", partial(plots.save, figure, Path(place) / "online"))
        timed("drawing accuracies by epoch", partial(plots.offline_curves, run.rows, run.methods))
    columns = ["", "s of a processor", "most memory so far, GB"]
    return f"{len(kept.rows):,} rows", columns, rows


PARTS: dict[str, Callable[[Config], Table]] = {
    "pool": pool,
    "rounds": rounds,
    "memory": memory,
    "folder": folder,
    "records": million,
}


def _train(count: int, images: int, place: Path, observe: Callable[[list[Row]], None] | None = None) -> None:
    """A run of so many rounds of the MLP, each an epoch on some more images, with its records and checkpoints."""
    from benchmarks.jax_side import random_images, task_of
    from wsjax.methods.reinit import warm_start
    from wsjax.networks import models
    from wsjax.rounds.legs import Round
    from wsjax.rounds.loop import run_rounds
    from wsjax.training.train import Setup, make_optimizer

    train, test = random_images(count * images), random_images(256, seed=1)
    setup = Setup(task_of(models.mlp(10)), make_optimizer("sgd", 0.001), train, test)
    plan = [Round(number * images, max_epochs=1) for number in range(1, count + 1)]
    own = records.Records(place / records.RECORDS)
    run_rounds(setup, plan, {"WS": warm_start}, records=own, checkpoints=place / "checkpoints", observe=observe)


def _write(path: Path, rows: Iterator[Row]) -> None:
    """Writes rows as a run does, but many at a time."""
    own = records.Records(path)
    while some := list(itertools.islice(rows, 10_000)):
        own.append(some)


def _resume(kept: records.Records, last: int, epochs: int, seeds: list[int], stack: bool) -> None:
    """The call that continues the run of the made-up rows, of which nothing is left to be done."""
    from benchmarks.jax_side import random_images, task_of
    from wsjax.methods.reinit import random_init, warm_start
    from wsjax.networks import models
    from wsjax.rounds.legs import Round
    from wsjax.rounds.loop import run_rounds
    from wsjax.training.train import Setup, make_optimizer

    data = random_images(last)
    setup = Setup(task_of(models.mlp(10)), make_optimizer("sgd", 0.001), data, data)
    plan = [Round(number, max_epochs=epochs) for number in range(1, last + 1)]
    run_rounds(setup, plan, {"RI": random_init, "WS": warm_start}, seeds, stack=stack, records=kept, states=False)


def _most_bytes() -> int:
    """The most memory that this process ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cli.run_program(main, Config, __doc__)
