"""The whole study by one command: runs what is missing of its jobs, most valuable first, and draws the page.

    python experiments/reproduce.py --scale=digits         the newcomer's tour: embedded data, every figure, minutes
    python experiments/reproduce.py --scale=cpu            real data, narrow networks and fewer images, hours
    python experiments/reproduce.py --scale=long           of these Figures 1, 5, 9 and 11, trained to the end
    python experiments/reproduce.py --scale=full           the report's own settings; a GPU, or many
    python experiments/reproduce.py --scale=full --dry_run what would run, with estimates, and the commands

It may be killed at any moment and given again: what is complete is skipped, what was under way continues. A job that
fails leaves the others alone. With --launcher=slurm the jobs are one array of Slurm's.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

import dataclasses
import runpy
import shlex
from collections.abc import Sequence
from pathlib import Path

import tyro

from wsjax.scripts import cli, config, console, study
from wsjax.scripts.launch import Job
from wsjax.storage.files import user_path
from wsjax.storage.lock import hold

HERE = Path(__file__).resolve().parent


# Figure to jobs, each a script and its flags; the name of a job is the figure's, and a number from the second on. The
# figures of a scale stand in the order of their value for the time they take.
def grid(more: str, rates: Sequence[float]) -> dict[str, list[str]]:
    """The figures that every scale has, with flags for all of their jobs, and raised rates."""
    offline, online, gradients = f"offline {more} --shrink 0.1 0.3 0.6", f"online {more}", f"gradients {more}"
    raised = " ".join(f"RI@{rate:g} WS@{rate:g}" for rate in rates)
    return {
        "figure5": [offline],
        "figure1": [offline],
        "controls": [f"offline {more} --methods RI WS SP {raised}"],
        "figure8": [gradients],
        "table2": [f"offline {more} --methods RI WS --weight_decay={decay}" for decay in (0.1, 0.01, 0.001)],
        "figure3": [f"early_stopping {more}"],
        "figure2": [f"{online} --methods RI WS"],
        "figure7": [f"shrink_only {more}"],
        "figure4": [f"hyperparameters {more}", f"hyperparameters {more} --chained"],
    }


# The newcomer's tour. Figures 9 and 10 are missing: a crop by four pixels leaves nothing of a digit of eight.
DIGITS = grid("--dataset=digits", (0.003, 0.01)) | {
    "board": ["offline --dataset=digits --methods RI WS SP DASH FIRE L2 HT SWR RI@0.003"],
    "figure6": ["online --shrink 0.2 0.4 0.6 0.9"],
    "figure11": ["transfer"],
    "table1": [
        f"offline --dataset=digits --methods RI WS --model={model} --optimizer={optimizer} --stop accuracy plateau"
        for model in ("mlp", "logistic")
        for optimizer in ("adam", "sgd")
    ],
}

# Methods that live in the optimiser cannot go on with another's, which DASH's protocol keeps: each has a first round of
# its own.
DASH = "online --protocol=dash --evaluate=epoch"
BOARD = f"{DASH} --methods RI WS SP DASH FIRE L2 HT SWR RI@0.01 --own_first"

# How every cell of Table 1 ran.
TABLE_1 = (
    "--stop accuracy plateau --epochs=2000 --train_accuracy=after --fresh=first --opt_state=keep --methods RI WS "
    "--seeds 42 43 44 45 46 --evaluate=round"
)

# What two cores can do of the report's network: a quarter of its width, a fifth of the images or less, and larger steps
# that come to about the report's sum of learning rates. Networks that still move so fast are tested with the batch's
# statistics, as in half of the report: running ones lag behind, and scores jump by ten points from epoch to epoch.
NARROW = "--num_test=5000 --width=16 --evaluation=batch --replicas=devices"
STEPS = "--learning_rate=0.05 --batch_size=64"
FOUR, THREE, SIX = "--seeds 0 1 2 3", "--seeds 0 1 2", "--seeds 0 1 2 3 4 5"
EIGHT = (FOUR, "--seeds 4 5 6 7")  # the second half by a run of its own
TWELVE = f"--seeds {' '.join(map(str, range(7, 19)))}"
NEXT = "--seeds 8 9 10 11 12 13 14 15"  # for what eight seeds left undecided
CIFAR = f"--dataset=cifar10 --num_train=10000 {NARROW} {STEPS}"
ON_CIFAR = f"{CIFAR} {FOUR}"
LESS = f"--num_train=5000 {NARROW}"
# At STEPS scores jump by up to ten points from epoch to epoch; at these, which take longer, by one. For what asks for
# small differences, and for the ends of training.
SLOW = "--learning_rate=0.01 --batch_size=16"
QUIET = f"--dataset=cifar10 {LESS} {SLOW} --epochs=20"
DASH_SMALL = "--width=16 --max_rounds=4 --seeds 2021 2022 2023 --epochs=300 --num_test=5000 --replicas=devices"
ONLINE = f"online --dataset=cifar10 {LESS} --batch_size=64 --pool=1"
CPU = grid(f"{ON_CIFAR} --epochs=12", ()) | {
    "controls": [
        f"offline {CIFAR} {seeds} --epochs=12 --methods RI@0.15 WS@0.15 RI@0.5" for seeds in (FOUR, "--seeds 4 5")
    ],
    "figure8": [
        f"gradients --dataset=cifar10 {LESS} {seeds} {STEPS} --first_epochs=12 --epochs=6"
        for seeds in (*EIGHT, f"{NEXT} --methods WS")
    ],
    "table2": [
        f"offline {QUIET} {seeds} --methods RI WS --weight_decay={decay}"
        for seeds in EIGHT
        for decay in (0.1, 0.001, 0.01)
    ],
    "figure3": [f"early_stopping {QUIET} {seeds} --every=5" for seeds in (SIX, "--seeds 6 7 8 9 10 11 12 13 14 15")],
    "figure2": [
        *(f"{ONLINE} {seeds} --methods RI WS" for seeds in (*EIGHT, NEXT)),
        f"{ONLINE} {FOUR} --methods SP",  # as Figure 6, but for how its rounds end
    ],
    "figure6": [
        f"{ONLINE} {seeds} --train_accuracy=running --shrink {shrinks}"
        for seeds, shrinks in (
            (THREE, "0.2 0.4 0.6"),
            ("--seeds 3 4 5 6", "0.2 0.4 0.6"),
            (TWELVE, "0.4 --methods RI SP"),
            (TWELVE, "0.2 --methods SP"),
            ("--seeds 19 20 21 22", "0.2 --methods RI SP"),
        )
    ],
    "figure7": [
        "shrink_only --dataset=cifar10 --networks tanh tanh_no_bias relu relu_no_bias --seeds 0 1 2 3 4",
        f"shrink_only {ON_CIFAR} --networks resnet18 --epochs=12",
        "shrink_only --dataset=cifar10 --networks tanh relu --seeds 5 6 7 8 9",
    ],
    "figure4": [
        f"hyperparameters --dataset=cifar10 {LESS} {own} --learning_rates 0.01 0.02 --batch_sizes 16 32 --epochs=60"
        for own in (
            THREE,
            f"{THREE} --chained",
            "--seeds 3 4 5",
            "--seeds 3 4 5 --chained",  # a chain has as many warm starts as the run has seeds
            "--seeds 6 7 8",
            "--seeds 9 10 11",
            "--seeds 12 13 14 15 16 17 18 19 20 21 22 23",
            "--seeds 6 7 8 --chained",
        )
    ],
    "figure9": [f"offline {CIFAR} {seeds} --augment --methods RI WS --epochs=24" for seeds in (FOUR, "--seeds 4 5")],
    "figure10": [
        f"gradients --dataset=cifar10 {LESS} {seeds} {STEPS} --augment --first_epochs=24 --epochs=6 --methods {methods}"
        for seeds, methods in (*((seeds, "RI WS") for seeds in EIGHT), (NEXT, "WS"))
    ],
    "figure11": [
        f"transfer --datasets cifar10 cifar100 {LESS} {seeds} {STEPS} --epochs=12 --fractions 0.3 1"
        for seeds in (THREE, "--seeds 3 4")
    ],
    "board": [f"{BOARD} {DASH_SMALL}"],
    # Seed by seed: one that has stopped costs as much in a stack as one that trains, and these stop far apart.
    "table1": [
        f"offline --dataset={dataset} --model={model} --optimizer={optimizer} {TABLE_1} --stack False"
        for model in ("logistic", "mlp")
        for optimizer in ("adam", "msgd", "sgd")
        for dataset in ("cifar10", "cifar100")
    ]
    + [
        f"offline --dataset={dataset} --model=resnet18 {LESS} --optimizer={optimizer} {rate} {TABLE_1} --stack False"
        for optimizer, rate in (
            ("adam", "--batch_size=64"),
            ("sgd", SLOW),
            ("msgd", "--learning_rate=0.001 --batch_size=16"),
        )
        for dataset in ("cifar10", "cifar100")
    ],
}

# As the report ran; five seeds where it had one.
SEEDS = "--seeds 0 1 2 3 4"
FULL = grid(f"--dataset=cifar10 {SEEDS}", (0.011, 0.1)) | {
    "figure2": [
        f"online --dataset={dataset} --threshold={threshold} --methods RI WS {SEEDS}"
        for dataset, threshold in (("cifar10", 0.99), ("svhn", 0.99), ("svhn", 0.999))
    ],
    "figure6": [
        f"online --dataset=cifar10 --increment=2500 --train_accuracy=running --shrink 0 0.2 0.4 0.6 0.8 1 {SEEDS}"
    ],
    "figure4": [f"hyperparameters --dataset=cifar10 {chained}" for chained in ("", "--chained")],
    "figure9": [f"offline --dataset=cifar10 --augment --methods RI WS --epochs=350 {SEEDS}"],
    "figure10": [f"gradients --dataset=cifar10 --augment {SEEDS}"],
    "figure11": [f"transfer --datasets cifar10 cifar100 svhn {SEEDS}"],
    "board": [BOARD],
    "table1": [
        f"offline --dataset={dataset} --model={model} --optimizer={optimizer} {TABLE_1}"
        + " --learning_rate=0.005" * ((model, optimizer, dataset) == ("mlp", "sgd", "svhn"))
        for model in ("resnet18", "mlp", "logistic")
        for optimizer in ("sgd", "adam", "msgd")
        for dataset in ("cifar10", "svhn", "cifar100")
    ],
}
# The gap is small, and stands on twelve seeds; Figure 5 on six.
MORE = f"offline {CIFAR} --epochs=12"
CPU["figure5"] += [f"{MORE} --shrink 0.1 0.3 0.6 --seeds 4 5"]
CPU["figure1"] = [*CPU["figure5"], f"{MORE} --methods RI WS --seeds 6 7 8 9 10 11"]
# Figures that show runs of others beside their own.
CPU["controls"] = [*CPU["figure5"], *CPU["controls"]]
for scale in (CPU, FULL):
    scale["figure9"] = [*scale["figure5"], *scale["figure9"]]
    scale["figure10"] = [*scale["figure8"], *scale["figure10"]]
# The controls of shrink-perturb are new networks as small as it makes the old one: times the shrink, or by leaf (SPN).
# They differ where a shrink is repeated, as on the board, and where training has made weights larger.
SCALED = "--methods SP --shrink 0 --perturb"
CPU["figure5"] = [
    *CPU["figure5"],
    *(f"{MORE} {seeds} {SCALED} 0.1 0.3" for seeds in EIGHT),
    f"{MORE} {FOUR} --methods SPN --shrink 0.1 0.3",
]
CPU["figure6"] += [f"{ONLINE} {FOUR} --train_accuracy=running {own} 0.4" for own in (SCALED, "--methods SPN --shrink")]
# Nor did the report try another learning rate: a new network may need a larger one than what was shrunk.
RATES = ("RI@0.003 RI@0.01", "SP@0.003 --shrink 0.2 0.4")
CPU["figure6"] += [f"{ONLINE} {FOUR} --train_accuracy=running --methods {own}" for own in RATES]
CPU["board"] += [f"{DASH} {DASH_SMALL} --methods SPN"]
FULL["figure5"] = [
    *FULL["figure5"],
    *(f"offline --dataset=cifar10 {SEEDS} {own} 0.1 0.3" for own in (SCALED, "--methods SPN --shrink")),
]
FULL["figure6"] += [
    f"online --dataset=cifar10 --increment=2500 --train_accuracy=running {SEEDS} {own} 0.4"
    for own in (SCALED, "--methods SPN --shrink")
]
FULL["board"] += [f"{DASH} --methods SPN"]
# To the end of training, and at the small steps: at STEPS what networks score still jumps when they fit everything.
TO_THE_END = f"offline --dataset=cifar10 --num_train=10000 {NARROW} {SLOW}"
LONG = {"figure1": [f"{TO_THE_END} {seeds} --methods RI WS --epochs=30" for seeds in EIGHT]}
LONG["figure5"] = [
    *LONG["figure1"],
    *(
        f"{TO_THE_END} {FOUR} --methods {own} --epochs=30"
        for own in ("SP --shrink 0.1 0.3", "SPN --shrink 0.1", "SPN --shrink 0.3")
    ),
]
LONG["figure9"] = [*LONG["figure1"], f"{TO_THE_END} {FOUR} --methods RI WS --augment --epochs=90"]
LONG["figure11"] = [f"transfer --datasets cifar10 cifar100 {LESS} {SLOW} {THREE} --epochs=30 --fractions 1"]
GRIDS = {"digits": DIGITS, "cpu": CPU, "long": LONG, "full": FULL}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which part of the study to run, and where."""

    scale: str = "digits"
    """digits (embedded data), cpu (CIFAR, as far as 2 cores go), long (of these Figures 1, 5, 9 and 11 to the end
    of training) or full (as the report ran)."""
    only: tuple[str, ...] = ()
    """Run only the jobs of these figures and tables, such as figure5 table2."""
    seeds: int | None = None
    """How many seeds, 0, 1, ..., every run has. Default: those of the scale."""
    budget: str | None = None
    """Run what fits into this much time, judged by past jobs: 90s, 30m, 8h or 2d."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only print what would run: the commands, one per line, with an estimate of their steps and time."""
    status: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only print how far every job is, and where its log is."""
    jobs: int = 1
    """Local: how many jobs run side by side."""
    launcher: str = "local"
    """local (processes of this machine) or slurm (one array of jobs)."""
    partition: str | None = None
    """Slurm: the partition."""
    account: str | None = None
    """Slurm: the account."""
    gpus_per_job: int | None = None
    """Slurm: GPUs of each job."""
    time: str = "24h"
    """Slurm: how long a job may take before it is queued again."""
    parallel: int = 16
    """Slurm: the most jobs that run at a time."""
    workdir: Path | None = None
    """Folder for runs, logs and the page. Default: runs/study-SCALE."""


def main(settings: Config) -> None:
    """Runs what is missing, and draws the page."""
    check(settings)
    workdir = user_path(settings.workdir or Path("runs") / f"study-{settings.scale}")
    more = "" if settings.seeds is None else f"--seeds {' '.join(map(str, range(settings.seeds)))}"
    figures = study.select(study.make_jobs(GRIDS[settings.scale], HERE, workdir, more), settings.only)
    jobs = list({job.name: job for own in figures.values() for job in own}.values())
    study.check_runs(jobs)
    if settings.status:
        return console.print_table(str(workdir), ["job", "state", "rows", "took", "log"], study.states(jobs, workdir))
    waiting, factor = [job for job in jobs if not job.done], study.speed(jobs, workdir)
    budget = None if settings.budget is None else cli.seconds_of(settings.budget)
    parallel = settings.jobs if settings.launcher == "local" else settings.parallel
    chosen, left_out, seconds = study.within(waiting, budget, factor, parallel)
    about = f"{len(chosen)} to run, about {console.duration(seconds)}"
    console.say(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are complete; {about}")
    if left_out:
        console.say(f"left out, for they do not fit into {settings.budget}: {', '.join(job.name for job in left_out)}")
    if settings.dry_run:
        for job in chosen:
            time = console.duration(job.seconds * factor)
            console.say(f"{shlex.join(['python', *job.command])}  # about {job.steps:,.0f} steps, {time}")
        return None
    with hold(workdir):
        study.write_study(figures, workdir)
        if settings.launcher == "slurm" and chosen:
            return submit(chosen, workdir, settings)
        failed = study.run(chosen, workdir, factor, settings.jobs)
        try:
            draw(workdir)
        finally:  # where every job failed there is nothing to draw
            study.explain(failed, workdir)
        return None


SLURM_ONLY = ("partition", "account", "gpus_per_job", "time", "parallel")


def check(settings: Config) -> None:
    """Checks every field; raises UsageError."""
    cli.choose("scale", settings.scale, list(GRIDS))
    cli.choose("launcher", settings.launcher, ("local", "slurm"))
    for name in ("seeds", "jobs", "parallel", "gpus_per_job"):
        config.check_positive(name, getattr(settings, name))
    cli.seconds_of(settings.time)
    names, other = (SLURM_ONLY, "slurm") if settings.launcher == "local" else (("jobs",), "local")
    for name in names:
        config.check_unused(settings, Config, name, f"without --launcher={other}; leave it out, or add that")


def submit(jobs: Sequence[Job], workdir: Path, settings: Config) -> None:
    """Hands the jobs to Slurm as one array, but for those that wait there or run already."""
    running = study.under_way(jobs, workdir)
    jobs = [job for job in jobs if job.name not in running]
    if running:
        console.say(
            f"{len(running)} jobs wait or run already, and are not submitted again: {', '.join(sorted(running))}"
        )
    if not jobs:
        return
    numbers = study.submit(
        jobs, workdir, settings.parallel, partition=settings.partition, account=settings.account,
        gpus_per_node=settings.gpus_per_job, time=max(int(cli.seconds_of(settings.time) / 60), 1),
    )  # fmt: skip
    for name, number in numbers.items():
        console.say(f"{name}: job {number}")
    console.say(
        "the same command with --status shows how far they are; given again when all are complete it draws the page"
    )


def draw(workdir: Path) -> None:
    """Draws the page from what there is."""
    page = runpy.run_path(str(HERE.parent / "figures" / "report.py"))
    console.say(f"Page: {page['write']([workdir], workdir / 'index.html')}")


if __name__ == "__main__":
    cli.run_script(main, lambda dataset: Config(), __doc__)
