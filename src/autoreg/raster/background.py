"""Do the next pieces of work in background threads while the caller uses the current one."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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
    pool = ThreadPoolExecutor(threads, thread_name_prefix="autoreg-background")
    pending: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(work, item)))
            if len(pending) > depth:
                ready, future = pending.popleft()
                yield ready, future.result()
        while pending:
            ready, future = pending.popleft()
            yield ready, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
