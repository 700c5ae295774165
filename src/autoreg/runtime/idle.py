"""What one call at a time needs for itself, lent to calls from any thread."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import LifoQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Idle(Generic[Item]):
    """Things to lend, each to one caller at a time; who comes while all are lent waits."""

    def __init__(self, items: Iterable[Item]) -> None:
        # The last one that came back has its memory already, in the processor's cache, too.
        self._items: LifoQueue[Item] = LifoQueue()
        for item in items:
            self._items.put(item)

    @contextmanager
    def take(self) -> Iterator[Item]:
        """One of them, for as long as the block lasts."""
        item = self._items.get()
        try:
            yield item
        finally:
            self._items.put(item)
