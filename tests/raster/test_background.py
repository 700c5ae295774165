import threading
import time
from collections.abc import Iterator

import pytest

from autoreg.raster.background import in_background


def test_results_come_in_order_from_one_other_thread() -> None:
    threads = set()

    def read(item: int) -> int:
        threads.add(threading.get_ident())
        return item * item

    assert list(in_background(read, range(20), depth=3)) == [(item, item * item) for item in range(20)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_more_threads_give_the_same_order() -> None:
    threads = set()
    meet = threading.Barrier(3)  # so that three threads have to work at once

    def read(item: int) -> int:
        threads.add(threading.get_ident())
        meet.wait(timeout=30)
        return item * item

    assert list(in_background(read, range(21), depth=5, threads=3)) == [(item, item * item) for item in range(21)]
    assert len(threads) == 3


def test_it_runs_no_further_ahead_than_its_depth() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            asked.append(item)
            yield item

    results = in_background(lambda item: item, items(), depth=3)
    next(results)
    assert len(asked) == 4
    results.close()


def test_an_error_appears_where_its_result_would() -> None:
    results = in_background(lambda item: 1 // (2 - item), range(5), depth=4)
    assert next(results) == (0, 0)
    assert next(results) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_work_goes_on_after_an_interruption_even_in_a_thread_that_was_just_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        begun.wait(10)
        raise KeyboardInterrupt  # before the pool has taken note of its thread

    begun = threading.Event()
    inside = []

    def work(item: int) -> None:
        inside.append(item)
        begun.set()
        time.sleep(0.2)
        inside.remove(item)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(in_background(work, [1, 2], depth=1))
    assert begun.is_set()
    assert inside == []
