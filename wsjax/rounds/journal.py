"""What a run writes down as it goes, and what a resume takes from it: rows, and a leg's folder of checkpoints."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from wsjax import parallel
from wsjax.errors import RunError
from wsjax.rounds.legs import Leg
from wsjax.storage import checkpoint
from wsjax.storage.files import check_writable, user_path
from wsjax.storage.lock import hold_outputs
from wsjax.storage.records import Records
from wsjax.storage.rows import Row, grouped
from wsjax.training.train import TrainState

_EPOCHS_A_ROUND = 1_000_000  # a checkpoint's number is round * this + epoch

Observer = Callable[[list[Row]], None]


class Reached(NamedTuple):
    """How far a leg has come: so many epochs of a round, 0 at its start, and the state there (None: not known)."""

    number: int
    epoch: int
    state: TrainState | None


class Journal:
    """One leg's rows and checkpoints."""

    def __init__(self, leg: Leg, records: Records, folder: Any, checkpoint_every: int, observe: Observer | None):
        self.leg = leg
        self._records = records
        self._folder = folder
        self._checkpoint_every = checkpoint_every
        self._observe = observe

    def resume(self, template: Callable[[int], Any], need_state: bool) -> Reached:
        """How far the leg has come, by the newest checkpoint whose way there the rows tell.

        Rows beyond it are set aside, to be trained again; where that is more than a kill leaves, it is told. Where the
        rows say that the leg is done and no state is needed, they suffice, and no checkpoint is read; if one is, and
        other legs have rows, they stay, and the way to it is trained again with a copy of them.

        Args:
          template: gives the stacked state of a round, as arrays or their shapes.
          need_state: whether rows do not suffice.

        Raises:
          RunError: there are checkpoints, none of them can be read, and the leg is not done; no row tells of them; or
            they are there for other seeds.
        """
        done, reached = self._is_done(), None
        if done and not need_state:
            return Reached(self.leg.end, 0, None)
        if not done:
            self._check_writable()
        if self._folder is not None and not self._own() and self._folder.steps():  # rows are written first
            raise RunError(
                f"{self._folder.path} holds checkpoints, and {self._records.path or 'the records'} no row of theirs: "
                "they are another run's; restore its rows, or give a new folder"
            )
        try:
            reached = self._restored(template)
        except checkpoint.UnreadableError:
            if not done:
                raise
        if reached is None:
            self._check_seeds()
            reached = Reached(self.leg.begin, 0, None)
        stay = done and len(self._own()) < len(self._records.rows)
        if stay:  # a kill meanwhile must not leave other legs' rows without these
            self._records = Records(rows=self._own())
        lost = self._epochs_after(reached)
        here = reached.number, reached.epoch
        unusual = False
        if lost:  # most of a run's legs have none
            # A kill leaves less than that; and a round's end, that of its last replica, has a checkpoint.
            unusual = lost > self._checkpoint_every or any(end > here for end in self._ends())
            self._records.keep(lambda row: not self.leg.has(row) or (row["round"], row["epoch"]) <= here)
        if self._folder is not None and unusual:
            again = "trained again for its last state" if stay else "set aside and trained again"
            warnings.warn(
                f"{self.leg.name}: no checkpoint reaches as far as its rows do; {lost} epochs are {again}", stacklevel=2
            )
        return reached

    def _check_writable(self) -> None:
        """Raises RunError where rows or checkpoints could not be written, before an epoch is trained for them."""
        for path in (self._records.path, self._folder and self._folder.path):
            if path is not None:
                check_writable(path)

    def _check_seeds(self) -> None:
        """Raises RunError where rows have checkpoints, but of other seeds that trained together, or in another order.

        Without this, all of them would be trained again.
        """
        first = (self.leg.begin, 1)
        rows = [row for row in self._records.rows if self.leg.has(row) and (row["round"], row["epoch"]) == first]
        there = self.leg._replace(replicas=tuple((row["method"], row["seed"]) for row in rows))
        if not rows or self._folder is None or there.replicas == self.leg.replicas:
            return
        if self._folder.path.with_name(there.name).is_dir():
            known, given = (", ".join(map(str, leg.seeds)) for leg in (there, self.leg))
            raise RunError(
                f"{self._records.path or 'the records'}: seeds {known} were trained together, and those given are "
                f"{given}: give the same in the same order, or new records and checkpoints"
            )

    def _own(self) -> list[Row]:
        """The leg's rows, replica by replica."""
        rows = (row for replica in self.leg.replicas for row in self._records.of(*replica))
        return [row for row in rows if self.leg.begin <= row["round"] < self.leg.end]

    def _epochs_after(self, reached: Reached) -> int:
        """How many epochs the rows tell of beyond a place."""
        here = reached.number, reached.epoch
        return sum(place > here for place in {(row["round"], row["epoch"]) for row in self._own()})

    def _ends(self) -> list[tuple[int, int]]:
        """The last epochs of the rounds that have ended: no row of such an epoch goes on."""
        ended = grouped(self._own(), lambda row: (row["round"], row["epoch"]))
        last = {number: (number, epoch) for number, epoch in sorted(ended)}
        return [place for place in last.values() if all(row["stop"] for row in ended[place])]

    def rows(self, number: int) -> list[list[Row]]:
        """Each replica's rows of a round so far."""
        return [[row for row in self._records.of(*replica) if row["round"] == number] for replica in self.leg.replicas]

    def write(self, rows: list[Row], state: TrainState, last: bool) -> None:
        """Writes an epoch's rows and, where it is due, a checkpoint: always of a round's last epoch.

        Where the observer raises, to end the run, the epoch's checkpoint is written first.
        """
        number, epoch = rows[0]["round"], rows[0]["epoch"]
        due = last or epoch % self._checkpoint_every == 0
        self._records.append(rows)
        if due:
            self._save(number, epoch, state)
        try:
            if self._observe is not None:
                self._observe(rows)
        except BaseException:
            if not due:
                self._save(number, epoch, state)
            raise

    def _save(self, number: int, epoch: int, state: TrainState) -> None:
        if self._folder is not None:
            checkpoint.save(self._folder, number * _EPOCHS_A_ROUND + epoch, state)

    def _restored(self, template: Callable[[int], Any]) -> Reached | None:
        if self._folder is None:
            return None

        def wanted(step: int) -> bool:
            number, epoch = divmod(step, _EPOCHS_A_ROUND)
            return self.leg.begin <= number < self.leg.end and self._covers(number, epoch)

        found = checkpoint.restore(self._folder, lambda step: template(step // _EPOCHS_A_ROUND), wanted)
        return None if found is None else Reached(*divmod(found[0], _EPOCHS_A_ROUND), found[1])

    def _is_done(self) -> bool:
        """Whether the rows tell every replica's whole way to the leg's end."""
        last = self.rows(self.leg.end - 1)
        if not all(rows and rows[-1]["stop"] for rows in last):
            return False
        return self._covers(self.leg.end - 1, max(len(rows) for rows in last))

    def _covers(self, number: int, epoch: int) -> bool:
        """Whether the rows tell, without a hole, how every replica came as far as an epoch of a round."""
        near = [row for row in self._own() if (row["round"], row["epoch"]) <= (number, epoch)]
        curves = grouped(near, itemgetter("method", "seed", "round"))
        for *replica, at in ((*own, at) for own in self.leg.replicas for at in range(self.leg.begin, number + 1)):
            found = curves.get((*replica, at), [])
            if not found or [row["epoch"] for row in found] != list(range(1, len(found) + 1)):
                return False
            if not found[-1]["stop"] and (at, len(found)) != (number, epoch):
                return False
        return True


@contextlib.contextmanager
def open_journal(
    leg: Leg, records: Records, checkpoints: Path | None, checkpoint_every: int, observe: Observer | None
) -> Iterator[Journal]:
    """Opens a leg's journal; without `checkpoints` it keeps rows only."""
    if checkpoints is None:
        yield Journal(leg, records, None, checkpoint_every, observe)
        return
    with checkpoint.Folder(checkpoints / leg.name) as folder:
        yield Journal(leg, records, folder, checkpoint_every, observe)


@contextlib.contextmanager
def hold_run(records: Records, checkpoints: Path | None) -> Iterator[None]:
    """Holds a run's rows and checkpoints against other runs; of the processes of one run, the first does.

    Raises RunError where another process holds them, or had its hand in the rows since they were read.
    """
    if not parallel.is_main():
        yield
        return
    with hold_outputs(records.path, checkpoints and user_path(checkpoints)):
        records.check_same()
        yield
