"""A grid of learning rates and batch sizes: what trains with which cell's settings. Imports jax where it is used."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from wsjax.results.hyperparameters import Cell
from wsjax.scripts import optimisers
from wsjax.scripts.config import Training

if TYPE_CHECKING:
    from wsjax.training.train import Setup

_SECOND = 4  # what a seed's key is folded with to draw second settings; the loop of rounds folds it with 0 to 3

Planned = tuple[str, Sequence[Cell], Collection[int] | None]
"""A start, "RI" or "WS", the cell of each of its rounds, and the seeds that it is for, None for all."""


def plan(cells: Sequence[Cell], seeds: Sequence[int], chained: bool) -> list[Planned]:
    """What trains: every cell from scratch and, from a first round with its settings, with those of another cell.

    Args:
      cells: the grid's.
      seeds: the run's; for each of them and each cell the other cell is drawn.
      chained: one warm start a cell for all seeds, which goes through all that were drawn for it, in the seeds' order,
        as the report's code does; else one for each that was drawn, for those seeds for which it was.
    """
    planned: list[Planned] = [("RI", [cell], None) for cell in cells]
    for number, cell in enumerate(cells):
        drawn = {seed: draw(seed, cells, number) for seed in seeds}
        if chained:
            planned.append(("WS", [cell, *drawn.values()], None))
        else:
            for other in dict.fromkeys(drawn.values()):
                planned.append(("WS", [cell, other], [seed for seed, own in drawn.items() if own == other]))
    return planned


def draw(seed: int, cells: Sequence[Cell], number: int) -> Cell:
    """The settings with which the warm start of a cell, by its number, goes on: another's, where there is another."""
    import jax

    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _SECOND), number)
    further = int(jax.random.randint(key, (), 1, max(len(cells), 2)))
    return cells[(number + further) % len(cells)]


def build_setup(config: Training, setup: Setup, cell: Cell) -> Setup:
    """A setup with a cell's learning rate and batch size."""
    rate, size = cell
    return optimisers.optimised(config, setup, config.epochs, {"learning_rate": rate})._replace(batch_size=size)
