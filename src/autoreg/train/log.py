"""The log of a training: a JSON object a line, for programs to read while it runs and for the report afterwards.

Each line has an ``event``: ``start`` holds the settings, ``resume`` tells where and on what a training went on, ``step`` has
the fields of a ``Measurement``, ``end`` those of the last step and how it ended. A line is flushed as soon as it is written:
a training that is killed loses one line at most.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import torch

from autoreg import __version__
from autoreg.errors import OutputError
from autoreg.network.network import Network
from autoreg.output import atomic_output
from autoreg.train.status import Status

LOG_EVERY = 10
"""Steps between two lines."""

_LONGEST_LINE = 2**20
_log = logging.getLogger("autoreg")


def log_path(checkpoint: Path) -> Path:
    """Where the log of the training that writes ``checkpoint`` goes: ``checkpoint.log.jsonl`` for ``checkpoint.pt``."""
    return checkpoint.with_name(checkpoint.name.removesuffix(".pt") + ".log.jsonl")


@dataclass(frozen=True)
class Measurement:
    """What a training says of itself now and then. What is not known, or not a finite number, is None.

    Attributes:
        step: updates done.
        seconds: spent in all, those before a ``--resume`` included.
        mutual_information: in nats; see ``Status``.
        objective: what was maximised.
        entropy_y: H(y) in nats, how evenly the first view uses the clusters.
        entropy_z: H(z), likewise for the second view.
        usage: share of the pixels that the unmasked network gives to each cluster; empty while there are none.
        clusters_used: those with at least a tenth of an equal share.
        learning_rate: of the step.
        images_per_second: crops trained on since the measurement before, waiting for data included.
        peak_memory_mib: most that PyTorch has held of a GPU so far.
    """

    step: int
    seconds: float
    mutual_information: float | None = None
    objective: float | None = None
    entropy_y: float | None = None
    entropy_z: float | None = None
    usage: tuple[float, ...] = ()
    clusters_used: int = 0
    learning_rate: float | None = None
    images_per_second: float | None = None
    peak_memory_mib: float | None = None


class Meter:
    """Measures a training from what it tells its observers."""

    def __init__(self, every: int = LOG_EVERY) -> None:
        """Measure the first step, each ``every``-th and the last."""
        self._every = every
        self._start = time.perf_counter()
        self._seconds_before = 0.0
        self._since: float | None = None
        self._images = 0

    def go_on_from(self, seconds: float) -> None:
        """Count what an earlier part of the training took."""
        self._seconds_before = seconds

    def observe(self, network: Network, status: Status) -> Measurement | None:
        """Called after each step: a measurement where one is due."""
        if self._since is None:
            self._since = time.perf_counter()  # how long the first step took is not known
        else:
            self._images += status.images
        if status.step > 1 and status.step % self._every and status.step < status.steps:
            return None
        return self.measure(network.mean.device, status)

    def measure(self, device: torch.device, status: Status) -> Measurement:
        """How it stands now."""
        now = time.perf_counter()
        speed = self._images / (now - self._since) if self._images and self._since else None
        self._since, self._images = now, 0
        entropy_y, entropy_z = status.entropies or (None, None)
        return Measurement(
            step=status.step,
            seconds=round(self._seconds_before + now - self._start, 3),
            mutual_information=_finite(status.mutual_information),
            objective=_finite(status.objective),
            entropy_y=_finite(entropy_y),
            entropy_z=_finite(entropy_z),
            usage=status.usage if all(map(math.isfinite, status.usage)) else (),
            clusters_used=status.clusters_used,
            learning_rate=_finite(status.learning_rate),
            images_per_second=None if speed is None else round(speed, 3),
            peak_memory_mib=round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None,
        )


class TrainingLog:
    """Writes the log of one training; a context manager, so that its last line says how it ended.

    The file is made with the first step, because a training that never starts should leave what is there. If it cannot be
    written any more, a warning says so, and the training goes on.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, resume: bool = False) -> None:
        """A log at ``path``.

        Args:
            path: of the file.
            about: what the first line tells of the training, such as its ``settings``; plain values.
            resume: keep the lines of the steps that were done, and go on after them. A log that goes on is that of one
                uninterrupted training, but for the lines that say where it was resumed.
        """
        self._path, self._about, self._resume = path, about, resume
        self._meter = Meter()
        self._file: TextIO | None = None
        self._device = torch.device("cpu")
        self._last: Status | None = None

    def observe(self, network: Network, status: Status) -> None:
        """Called after each step of the training."""
        if self._last is None:
            self._device = network.mean.device
            self._begin(status)
        self._last = status
        measurement = self._meter.observe(network, status)
        if measurement:
            self._write("step", dataclasses.asdict(measurement))

    def finish(self, status: Status) -> None:
        """Say how the training stood in the end."""
        self._end(status, {"outcome": "finished" if status.step >= status.steps else "stopped"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error and self._last:
            self._end(self._last, {"outcome": "failed", "error": str(error) or type(error).__name__})
        self._close()

    def _begin(self, status: Status) -> None:
        """Replace what is there by its lines up to this step, and say what follows."""
        done = max(status.step - 1, 0)
        kept = [record for record in _records(self._path) if _precedes(record, done)] if self._resume else []
        last = max((record["seconds"] for record in kept if record["event"] == "step"), default=0.0)
        self._meter.go_on_from(last)
        versions = {"autoreg": __version__, "torch": torch.__version__}
        about = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "device": _describe(self._device), **versions}
        try:
            with atomic_output(self._path, overwrite=True) as temporary:
                temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8")
        except (OSError, OutputError) as error:
            self._give_up(error)
        self._write("resume" if self._resume else "start", {"step": done, "steps": status.steps, **about, **self._about})

    def _end(self, status: Status, outcome: Mapping[str, Any]) -> None:
        figures = dataclasses.asdict(self._meter.measure(self._device, status))
        self._write("end", {**outcome, "steps": status.steps, "collapsed": status.collapsed, **figures})
        self._close()

    def _write(self, event: str, record: Mapping[str, Any]) -> None:
        if self._file:
            try:
                self._file.write(_line({"event": event, **record}))
                self._file.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        _log.warning("%s cannot be written (%s): the training goes on without its log", self._path, reason)
        self._close()

    def _close(self) -> None:
        if self._file:
            file, self._file = self._file, None
            with suppress(OSError):  # each line was flushed when it was written, or could not be
                file.close()


@dataclass(frozen=True)
class LogContent:
    """What a log says.

    Attributes:
        about: the ``start`` line, or if there is none the first ``resume`` line; may lack anything.
        measurements: in the order of the steps.
        end: the ``end`` line; None if the training still runs or was killed.
    """

    about: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    end: Mapping[str, Any] | None

    @property
    def last(self) -> Measurement | None:
        """How it stood in the end, or when it was last heard of."""
        return _measurement(self.end) if self.end else (self.measurements or (None,))[-1]


def read_log(path: Path) -> LogContent:
    """Read a log; lines that a crash has torn are left out. A file that is missing is an empty log."""
    about: Mapping[str, Any] = {}
    measurements, end = [], None
    for record in _records(path):
        if record["event"] == "step":
            measurements.append(_measurement(record))
        elif record["event"] == "end":
            end = record
        else:
            about = about or record
            end = None
    return LogContent(about, tuple(measurements), end)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that are whole, and of the kind that is written here."""
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError:
        return
    with file:
        while line := file.readline(_LONGEST_LINE):
            try:
                record = json.loads(line)
                if record["event"] in ("step", "end"):
                    _measurement(record)
                if record["event"] in ("start", "resume", "step", "end"):
                    yield record
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                continue


def _precedes(record: Mapping[str, Any], done: int) -> bool:
    """Whether a line is part of the first ``done`` steps of a training."""
    if record["event"] == "resume":
        return isinstance(record.get("step"), int) and record["step"] < done
    return record["event"] == "start" or (record["event"] == "step" and bool(record["step"] <= done))


def _measurement(record: Mapping[str, Any]) -> Measurement:
    """The fields of a line.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is not a line of a log.
    """
    known = {field.name: record[field.name] for field in dataclasses.fields(Measurement)}
    for name in ("step", "clusters_used"):
        if type(known[name]) is not int or not 0 <= known[name] < 2**31:
            raise TypeError(f"{name} is {known[name]!r}, expected a number of things")
    for name in known.keys() - {"step", "clusters_used", "usage"}:
        known[name] = None if known[name] is None and name != "seconds" else _number(known[name])
    return Measurement(**known | {"usage": tuple(map(_number, known["usage"]))})


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)
