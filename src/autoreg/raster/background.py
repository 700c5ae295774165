"""Do the next pieces of work in background threads while the caller uses the current one."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_background(
    work: Callable[[Item], Result], items: Iterable[Item], *, depth: int, threads: int = 1
) -> Generator[tuple[Item, Result]]:
    """Yield ``(item, work(item))`` in order, with up to ``depth`` of them done or under way ahead of the caller.

    With one thread, ``work`` may own a handle that is not safe to share; with more, each thread needs its own. Errors
    appear where the result would. When the caller stops early, what has not begun is dropped.
    """
    gate = _Gate()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="autoreg-background")
    pending: deque[tuple[Item, Future[Result]]] = deque()

    def pass_gate(item: Item) -> Result:
        with gate:
            return work(item)

    try:
        for item in items:
            pending.append((item, pool.submit(pass_gate, item)))
            if len(pending) > depth:
                ready, future = pending.popleft()
                yield ready, future.result()
        while pending:
            ready, future = pending.popleft()
            yield ready, future.result()
    finally:
        gate.close()
        pool.shutdown(cancel_futures=True)


class _Gate:
    """Lets work in until it is closed, which waits for the work that is inside.

    The pool alone does not wait for all of its threads: Ctrl-C may come between the start of a thread and the moment when
    the pool takes note of it, and then that thread would go on with handles that the caller has closed.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._changed:
            if self._closed:
                raise CancelledError
            self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside == 0)
