"""What the command line shows while it works, and how Ctrl-C ends it: bars on a terminal, plain lines elsewhere."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from autoreg.train import Status


@contextmanager
def stop_on_interrupt(*, launched: bool = False, quiet: bool = False) -> Iterator[threading.Event]:
    """Turn Ctrl-C, or a scheduler's SIGTERM, into an event, so that the work can end in order.

    Args:
        launched: by torchrun, which passes signals on more than once, and kills after 30 seconds. Else the second signal
            interrupts at once.
        quiet: say nothing.
    """
    stopped = threading.Event()

    def stop(_number: int, _frame: Any) -> None:
        again = "" if launched else "; press Ctrl-C again to stop at once and lose it"
        if not (quiet or stopped.is_set()):
            click.echo(f"\nstopping after this step{again}", err=True)
        stopped.set()
        if not launched:
            restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        restore()


class _Bar:
    """A progress bar on stderr that appears with the first piece of news; its length is known only then."""

    def __init__(self, label: str, *, show_pos: bool) -> None:
        self._label, self._show_pos = label, show_pos
        self._bar: Any = None

    def show(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            self._bar = click.progressbar(
                length=total,
                label=self._label,
                file=sys.stderr,
                item_show_func=lambda shown: shown,
                show_pos=self._show_pos,
            ).__enter__()
        self._bar.update(done - self._bar.pos, text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


@contextmanager
def training_bar(quiet: bool) -> Iterator[Callable[["Status"], None]]:
    """Report a training on stderr: a bar on a terminal, else a line now and then."""
    bar = _Bar("training", show_pos=True)

    def describe(status: "Status") -> str:
        used = f", {status.clusters_used}/{len(status.usage)} clusters" if status.usage else ""
        # At the very start one cluster may well hold everything: that is no collapse yet.
        collapsed = status.collapsed and status.step > status.steps // 10
        return f"{status.mutual_information:.3f} nats{used}{' COLLAPSED' if collapsed else ''}"

    def report(status: "Status") -> None:
        if quiet:
            return
        if sys.stderr.isatty():
            bar.show(status.step, status.steps, describe(status))
        elif status.step == 1 or status.step % max(1, status.steps // 10) == 0:
            click.echo(f"step {status.step} of {status.steps}: {describe(status)}", err=True)

    with closing(bar):
        yield report


@contextmanager
def counting_bar(name: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Count what is done on stderr: a bar on a terminal, else nothing."""
    bar = _Bar(name, show_pos=True)

    def report(done: int, total: int) -> None:
        if not quiet and sys.stderr.isatty():
            bar.show(done, total, "")

    with closing(bar):
        yield report


@contextmanager
def pixel_bar(name: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Report the segmentation of one raster on stderr, with its speed: a bar on a terminal, else one line at the end."""
    bar = _Bar(Path(name).name, show_pos=False)
    start = time.perf_counter()

    def report(done: int, total: int) -> None:
        if quiet:
            return
        speed = f"{done / 1e6 / max(time.perf_counter() - start, 1e-9):.2f} MPx/s"
        if sys.stderr.isatty():
            bar.show(done, total, speed)
        elif done == total:
            click.echo(f"{name}: {total / 1e6:.2f} MPx at {speed}", err=True)

    with closing(bar):
        yield report
