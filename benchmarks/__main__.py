"""Times wsjax and PyTorch in turn, in one run: the ratio is wsjax's time over PyTorch's.

    python -m benchmarks [--only resnet_step mlp_epoch] [--out benchmarks.json]

Every case warms up once, then both sides run in turn (A B A B); ratios are taken pair by pair and their median counts.
The floor is the least time that the case's operations and memory traffic, counted by hand, can take on this machine,
by a large matrix product and a large copy measured in the same run; the peak is that product alone. Needs torch. On 2
CPU cores all subjects take about 10 minutes; the machine must be otherwise idle. Where PyTorch and JAX see a GPU, both
multiply float32 in TF32, and resnet_gpu joins in: against torch.compile too, and in bfloat16.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from pathlib import Path
from typing import Any

import tyro

from wsjax.scripts import cli, console, process
from wsjax.storage.about import about_run
from wsjax.storage.files import write_json

NAMES = (
    "resnet_step", "augmentation", "resnet_epoch", "mlp_epoch", "evaluation", "online", "checkpoints", "startup",
    "reinitialise", "measures",
)  # fmt: skip
GPU_NAMES = ("resnet_gpu",)


def names(has_cuda: bool) -> tuple[str, ...]:
    """The subjects that are for such a machine."""
    return NAMES + GPU_NAMES * has_cuda


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed."""

    only: tuple[str, ...] = ()
    """Subjects. Default: all that are for this machine."""
    out: Path | None = None
    """Write all rows to this JSON file, and a picture beside it."""
    repeats: int = 5
    """Pairs a case."""
    tiny: tyro.conf.FlagCreatePairsOff[bool] = False
    """Tiny sizes, to see that everything runs: the numbers say nothing."""


def main(config: Config, scale: Any = None) -> dict[str, Any]:
    """Times the subjects, prints a row a case, and returns what the JSON file holds."""
    for name in config.only:
        cli.choose("subject", name, names(has_cuda=True))
    cli.check(config.repeats > 0, f"--repeats must be positive, not {config.repeats}")
    process.keep_memory()
    try:
        import torch
    except ImportError as error:
        raise cli.UsageError(f"the benchmarks need PyTorch ({error}); python -m pip install torch") from error
    has_cuda = set_up()
    import jax

    from benchmarks import beside, gpu_subjects, roofline, subjects
    from wsjax import parallel

    devices = parallel.device_names()
    about = about_run("benchmarks", devices)
    about["versions"]["torch"] = torch.__version__
    chosen = config.only or names(has_cuda)
    precisions = ("float32", "bfloat16") if set(chosen) & set(GPU_NAMES) else ("float32",)
    sizes = roofline.FILLS_A_GPU if has_cuda else {}
    ceilings = {precision: roofline.ceilings(precision, **sizes) for precision in precisions}
    at_most = ", ".join(f"{found['flops'] / 1e9:,.0f} GFLOP/s in {name}" for name, found in ceilings.items())
    where = f"{parallel.processor()}, {os.cpu_count()} cores, {', '.join(dict.fromkeys(devices))}"
    machine = f"{where}; jax {jax.__version__}, torch {torch.__version__}"
    console.say(f"{machine}; at most {at_most} and {ceilings['float32']['bytes'] / 1e9:,.1f} GB/s")
    rows: list[dict[str, Any]] = []
    result = {**about, "processor": parallel.processor(), "cores": os.cpu_count(), "tf32": has_cuda}
    result |= {"xla_flags": os.environ.get("XLA_FLAGS", ""), "ceilings": ceilings, "rows": rows}
    scale = scale or (subjects.TINY if config.tiny else subjects.Scale())
    for name in chosen:
        for case in (subjects.SUBJECTS | beside.SUBJECTS | gpu_subjects.SUBJECTS)[name](scale):
            rows.append({"group": name, **measure(case, config.repeats, ceilings[case.precision])})
            console.say(sentence(rows[-1]))
            if config.out is not None:  # after every row: what was measured is kept if the next one fails
                write_json(config.out, result)
    if config.out is not None:
        draw(rows, config.out.with_suffix(".png"), machine)
        console.say(f"Rows: {config.out}")
        console.say(f"Picture: {config.out.with_suffix('.png')}")
    return result


def set_up() -> bool:
    """Sets up the devices for both sides alike, and says whether they are GPUs."""
    import jax
    import torch

    process.use_devices(os.cpu_count() or 1)  # several seeds train on a core each
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs a GPU's memory too
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    has_cuda = torch.cuda.is_available()
    seen = f"PyTorch {'sees' if has_cuda else 'does not see'} a GPU, and JAX works on {jax.default_backend()}"
    cli.check(has_cuda == (jax.default_backend() == "gpu"), f"{seen}: install both for one kind of device")
    if has_cuda:
        from benchmarks import jax_side, torch_side

        torch_side.use_tensor_cores()
        jax_side.use_tensor_cores()
    return has_cuda


def measure(case: Any, repeats: int, ceilings: dict[str, float]) -> dict[str, Any]:
    """Times a case: medians, and the ratio's median, lowest and highest over the pairs."""
    from benchmarks import roofline
    from benchmarks.timing import in_turn

    runs = {"ours": case.ours} | ({} if case.theirs is None else {"theirs": case.theirs})
    seconds = in_turn(runs, repeats)
    ours = statistics.median(seconds["ours"])
    row = {"subject": case.subject, "against": case.against, "precision": case.precision, "seconds": ours}
    row |= {"compile_seconds": case.compile_seconds, "other_compile_seconds": case.other_compile_seconds}
    if "theirs" in seconds:
        ratios = [a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
        row |= {"other_seconds": statistics.median(seconds["theirs"]), "ratio": statistics.median(ratios)}
        row |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
    if case.flops or case.bytes:
        floor = roofline.floor_seconds(case.flops, case.bytes, ceilings)
        row |= {"flops": case.flops, "bytes": case.bytes, "floor_seconds": floor, "over_floor": ours / floor}
        row |= {"of_peak": case.flops / ceilings["flops"] / ours}
    return row | {"notes": dict(case.notes or {})}


def sentence(row: dict[str, Any]) -> str:
    """A row as a line."""
    text = f"{row['subject']}: {pretty(row['seconds'])}"
    if "ratio" in row:
        text += f", {row['against']} {pretty(row['other_seconds'])}: ratio {row['ratio']:.2f}"
        text += f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
    if "over_floor" in row:
        text += f"; {row['over_floor']:.1f} times the floor"
    if row.get("of_peak"):
        text += f", {row['of_peak']:.0%} of the peak"
    if row["compile_seconds"]:
        text += f"; compiled in {row['compile_seconds']:.1f} s"
    if row["other_compile_seconds"]:
        text += f", the other in {row['other_compile_seconds']:.1f} s"
    return text + "".join(f"; {name}: {value:.3g}" for name, value in row["notes"].items())


def pretty(seconds: float) -> str:
    """Seconds with a fitting unit."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def draw(rows: list[dict[str, Any]], path: Path, machine: str) -> None:
    """A bar a case, by its ratio, on a scale where twice as fast and twice as slow are as far from 1."""
    from matplotlib.figure import Figure

    from wsjax.results.plots import png

    rows = [row for row in rows if "ratio" in row][::-1]
    figure = Figure(figsize=(8, 0.8 + 0.24 * len(rows)), layout="constrained")
    axis = figure.subplots()
    names = [f"{row['subject']} / {row['against']}" for row in rows]
    ratios = [row["ratio"] for row in rows]
    axis.barh(
        names, [ratio - 1 for ratio in ratios], left=1, color=["#0072B2" if r <= 1 else "#D55E00" for r in ratios]
    )
    spread = [[row["ratio"] - row["ratio_low"] for row in rows], [row["ratio_high"] - row["ratio"] for row in rows]]
    axis.errorbar(ratios, names, xerr=spread, fmt="none", ecolor="#444444", elinewidth=0.8)
    axis.axvline(1, color="#444444", linewidth=0.8)
    axis.set_xscale("log")
    least, most = axis.get_xlim()
    named = (1, 1.5, 2, 3, 4, 5, 7) if most < 12 * least else (1, 2, 5)
    axis.set_xticks([x for e in range(-3, 3) for n in named if least <= (x := n * 10.0**e) <= most])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.margins(y=0.01)
    axis.set_title(machine, loc="right", fontsize=7)
    axis.set_xlabel("wsjax's time / the other's (below 1: wsjax is faster)", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    path.write_bytes(png(figure, 150))


if __name__ == "__main__":
    cli.run_program(main, Config, __doc__)
