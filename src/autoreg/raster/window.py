"""A rectangle of pixels in a raster."""

from typing import NamedTuple


class Window(NamedTuple):
    """Rows ``row .. row + height`` and columns ``col .. col + width`` of a raster, all in pixels."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window in an array whose last two axes are (row, col)."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    def within(self, outer: "Window") -> "Window":
        """The same rectangle, in the coordinates of ``outer``."""
        return Window(self.row - outer.row, self.col - outer.col, self.height, self.width)

    def clipped(self, height: int, width: int) -> "Window":
        """The part of the window that lies inside a raster of ``height`` x ``width`` pixels."""
        return Window(self.row, self.col, min(self.height, height - self.row), min(self.width, width - self.col))
