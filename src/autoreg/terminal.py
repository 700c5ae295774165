"""What the command line shows while it works, and how Ctrl-C ends it: bars on a terminal, plain lines elsewhere."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from autoreg.train import Status


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that the work can end in order; the second one interrupts at once."""
    stopped = threading.Event()

    def stop(_number: int, _frame: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, previous)
        click.echo("\nstopping after this step; press Ctrl-C again to stop at once and lose it", err=True)

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def training_bar(quiet: bool) -> Iterator[Callable[["Status"], None]]:
    """Report a training on stderr: a bar on a terminal, else a line now and then."""
    started: list[Any] = []

    def describe(status: "Status") -> str:
        used = f"{status.clusters_used}/{len(status.usage)} clusters"
        # At the very start one cluster may well hold everything: that is no collapse yet.
        collapsed = status.collapsed and status.step > status.steps // 10
        return f"{status.mutual_information:.3f} nats, {used}{' COLLAPSED' if collapsed else ''}"

    def on_terminal(status: "Status") -> None:
        if not started:
            bar = click.progressbar(
                length=status.steps, label="training", file=sys.stderr, item_show_func=lambda text: text, show_pos=True
            )
            started.append(bar.__enter__())
            started[0].update(status.step - 1)
        started[0].update(1, describe(status))

    def elsewhere(status: "Status") -> None:
        if status.step == 1 or status.step % max(1, status.steps // 10) == 0:
            click.echo(f"step {status.step} of {status.steps}: {describe(status)}", err=True)

    try:
        yield (lambda _status: None) if quiet else on_terminal if sys.stderr.isatty() else elsewhere
    finally:
        if started:
            started[0].__exit__(None, None, None)


@contextmanager
def pixel_bar(name: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Report the segmentation of one raster on stderr, with its speed: a bar on a terminal, else one line at the end."""
    if quiet:
        yield None
        return
    start = time.perf_counter()
    state = {"done": 0}
    bars: list[Any] = []

    def speed(done: int) -> str:
        return f"{done / 1e6 / max(time.perf_counter() - start, 1e-9):.2f} MPx/s"

    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            if not bars:
                bar = click.progressbar(
                    length=total, label=Path(name).name, file=sys.stderr, item_show_func=lambda text: text
                )
                bars.append(bar.__enter__())
            bars[0].update(done - state["done"], speed(done))
        elif done == total:
            click.echo(f"{name}: {total / 1e6:.2f} MPx at {speed(done)}", err=True)
        state["done"] = done

    try:
        yield report
    finally:
        if bars:
            bars[0].__exit__(None, None, None)
