"""A rectangle of pixels in a raster."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Window(NamedTuple):
    """Rows ``row .. row + height`` and columns ``col .. col + width`` of a raster, all in pixels."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window in an array whose last two axes are (row, col)."""
        return slice(self.row, self.bottom), slice(self.col, self.right)

    @property
    def bottom(self) -> int:
        """The first row below the window."""
        return self.row + self.height

    @property
    def right(self) -> int:
        """The first column to the right of the window."""
        return self.col + self.width

    def within(self, outer: "Window") -> "Window":
        """The same rectangle, in the coordinates of ``outer``."""
        return Window(self.row - outer.row, self.col - outer.col, self.height, self.width)

    def intersection(self, other: "Window") -> "Window":
        """What both rectangles share, of no or negative height or width if that is nothing."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        return Window(row, col, min(self.bottom, other.bottom) - row, min(self.right, other.right) - col)

    def cut(self, height: int, width: int) -> Iterator["Window"]:
        """Cut the rectangle into pieces of ``height`` x ``width``, row by row; the last of each are smaller."""
        for row in range(self.row, self.bottom, height):
            for col in range(self.col, self.right, width):
                yield self.intersection(Window(row, col, height, width))

    def clipped(self, height: int, width: int) -> "Window":
        """The part of the window that lies inside a raster of ``height`` x ``width`` pixels."""
        return Window(self.row, self.col, min(self.height, height - self.row), min(self.width, width - self.col))

    def extend(self, part: NDArray[Any]) -> NDArray[Any]:
        """Grow ``part`` (..., rows, cols), read from the ``clipped`` window, to the window's size.

        The last row and column are repeated: so a raster goes on past its right and bottom edges.
        """
        missing = (self.height - part.shape[-2], self.width - part.shape[-1])
        return (
            np.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, size) for size in missing], mode="edge") if any(missing) else part
        )
