"""What a training leaves on the disk while it runs: the network as it stands, and the best one so far beside it."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import NamedTuple

from autoreg.errors import OutputError
from autoreg.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from autoreg.output import check_output, remove_leftovers

_log = logging.getLogger("autoreg")


def best_path(path: Path) -> Path:
    """Where the best network of the training that writes ``path`` lies: ``checkpoint.best.pt`` for ``checkpoint.pt``."""
    return path.with_name(f"{path.stem}.best{path.suffix}")


class _Score(NamedTuple):
    """The best mean of the objective so far, and its sum and the steps since the last comparison."""

    best: float = -math.inf
    total: float = 0.0
    steps: int = 0


class Saver:
    """Writes the checkpoints of one training.

    The best network is the one whose last steps had the highest mean of the objective: that asks for no label, and a single
    step says little. Networks are compared after every so many steps, not whenever something is saved, so a training that
    was stopped and resumed finds the same best one as a training that was not.
    """

    def __init__(self, path: Path, every: int, *, overwrite: bool) -> None:
        """Make sure that the checkpoint can be written, and clear away what a killed training left.

        Args:
            path: of the checkpoint.
            every: steps between two saves; 0 for none before the end.
            overwrite: replace these files if they exist.

        Raises:
            OutputError: one exists, or the folder is missing or not writable.
        """
        self._path, self._every = path, every
        for target in (path, best_path(path)):
            check_output(target, overwrite=overwrite)
            remove_leftovers(target)
        self._score = _Score()
        self._saved: int | None = None
        self._started = False

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from what the file holds.

        Raises:
            KeyError, TypeError, ValueError: it does not hold what it should.
        """
        best, total, steps = checkpoint.loop.get("score", _Score())
        self._score = _Score(float(best), float(total), int(steps))
        self._saved = int(checkpoint.loop["step"])
        self._started = True

    def note(self, objective: float) -> None:
        """Count in what a step gained; a training without comparable objective notes nothing, and has no best network."""
        best, total, steps = self._score
        self._score = _Score(best, total + objective, steps + 1)

    def is_due(self, step: int) -> bool:
        """Whether to save after ``step`` updates."""
        return step > 0 and self._every > 0 and step % self._every == 0

    def save(self, checkpoint: Checkpoint, *, final: bool) -> None:
        """Write ``checkpoint``, as the best one first: then what the file says of the best one is true, whatever happens.

        A disk that is full is only a warning in the midst of the training: it goes on, and the next save tries again.

        Args:
            checkpoint: of now; the score is added to it.
            final: nothing comes after it.

        Raises:
            OutputError: it is final and was not written; what the file held it still holds.
        """
        step = int(checkpoint.loop["step"])
        if not self._started:
            best_path(self._path).unlink(missing_ok=True)  # of the training that this one overwrites
            self._started = True
        if self.is_due(step) and self._score.steps:
            self._compare(checkpoint)
        try:
            save_checkpoint(_with_score(checkpoint, self._score), self._path, overwrite=True)
        except OutputError as error:
            kept = f"there is no {self._path} yet" if self._saved is None else f"{self._path} still holds step {self._saved}"
            if final:
                raise OutputError(f"{error}; {kept}") from error
            _log.warning("%s; %s; the training goes on and tries again after %d steps", error, kept, self._every)
        else:
            self._saved = step

    def load_best(self) -> Checkpoint | None:
        """The best one, if there is one."""
        path = best_path(self._path)
        return load_checkpoint(path) if self._score.best > -math.inf and path.is_file() else None

    def replace_best(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` over the best one; if that fails, a warning says so."""
        try:
            save_checkpoint(checkpoint, best_path(self._path), overwrite=True)
        except OutputError as error:
            _log.warning("%s; it has no clusters yet", error)

    def _compare(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` as the best one, if it is that."""
        best, total, steps = self._score
        self._score = _Score(best)
        if total / steps <= best:
            return
        score = _Score(total / steps)
        try:
            save_checkpoint(_with_score(checkpoint, score), best_path(self._path), overwrite=True)
        except OutputError as error:
            _log.warning("%s; the best network so far stays the one before", error)
        else:
            self._score = score


def _with_score(checkpoint: Checkpoint, score: _Score) -> Checkpoint:
    return dataclasses.replace(checkpoint, loop=checkpoint.loop | {"score": tuple(score)})
