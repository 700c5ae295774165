"""Neighbouring rasters as one large raster: which of many fit together, and reading across their edges.

Rasters fit together if their pixels lie on one grid: the same CRS, the same size and rotation of the pixels, and a whole
number of pixels from one raster to the next. Whether that number is whole is asked of neighbours only, so small errors of
the georeferences do not add up across a large mosaic.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import DamagedRasterError
from autoreg.raster.reader import Pixels, RasterReader, Valid
from autoreg.raster.window import Window

ReadMember = Callable[[int, Window], tuple[Pixels, Valid]]
"""From the number of a raster and a window inside it to its pixels (bands, h, w) and which of them are data (h, w)."""

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

_PIXEL_TOLERANCE = 1e-9
"""How much the sizes and directions of pixels may differ, as a share of the pixel: a hundredth of a pixel in 10 million."""
_OFFSET_TOLERANCE_PX = 1e-2

_log = logging.getLogger("autoreg")


@dataclass(frozen=True)
class Grid:
    """The pixels of a raster and where they lie on Earth.

    Attributes:
        crs: coordinate reference system, as rasterio gives it.
        transform: affine, from (col, row) to coordinates in ``crs``; as rasterio gives it, and invertible.
        height, width: in pixels.
        bands: how many.
        dtype: of the pixels.
    """

    crs: Any
    transform: Any
    height: int
    width: int
    bands: int
    dtype: str


@dataclass(frozen=True)
class Placed:
    """A raster in a mosaic.

    Attributes:
        index: its number among the rasters that were looked at.
        window: its place, from the upper left corner of the mosaic.
    """

    index: int
    window: Window


def grid_of(raster: RasterReader) -> Grid | None:
    """The grid of an open raster; None, so no neighbours, if it has no CRS or transform, as with ground control points."""
    place = raster.georeference
    crs, transform = place.get("crs"), place.get("transform")
    if crs is None or transform is None or not 0 < abs(transform.determinant) < math.inf:
        return None
    return Grid(crs, transform, raster.height, raster.width, len(raster.bands), raster.dtype)


def find_mosaics(grids: Sequence[Grid | None]) -> list[list[Placed]]:
    """Find which rasters make one larger raster.

    Two rasters are neighbours if they have as many bands, one dtype and one CRS, if their pixels lie on one grid, and if
    they overlap or touch, be it at a corner. A mosaic is a raster, its neighbours, their neighbours and so on.

    Args:
        grids: of the rasters, from ``grid_of``; None is left out.

    Returns:
        The mosaics, in the order of their first rasters; a raster without neighbours is a mosaic of one. The rasters of each
        are in the order of ``grids``. The rectangle around them begins at (0, 0).
    """
    known = {index: grid for index, grid in enumerate(grids) if grid is not None}
    found = [mosaic for alike in _alike(known) for mosaic in _connected(alike)]
    return sorted(found, key=lambda mosaic: mosaic[0].index)


def bounding_grid(members: Sequence[Placed], grids: Sequence[Grid | None]) -> Grid:
    """The grid of a whole mosaic: the rectangle around its members.

    Args:
        members: a mosaic that ``find_mosaics`` found.
        grids: what it was found in.
    """
    height, width = max(member.window.bottom for member in members), max(member.window.right for member in members)
    # The member nearest to the corner: most often it lies at it, and gives its own transform, free of rounding.
    nearest = min(members, key=lambda member: member.window.row + member.window.col)
    grid, (row, col, _, _) = grids[nearest.index], nearest.window
    if grid is None:
        raise ValueError(
            f"raster {nearest.index} has no grid, so it is no member of a mosaic; give the grids that it was found in"
        )
    a, b, c, d, e, f = grid.transform[:6]
    transform = type(grid.transform)(a, b, c - a * col - b * row, d, e, f - d * col - e * row)
    return replace(grid, transform=transform, height=height, width=width)


class Mosaic:
    """Placed rasters as one raster, to read by windows as a ``RasterReader``.

    A pixel comes from the first member, in the order in which they are given, that has data there. What no member has is not
    data, and 0. Each read looks at the rectangles of all members, some 30 us for 5000 of them, and reads from few.
    Threads may share a mosaic if they may share ``read_member``.

    Attributes:
        height, width: in pixels, of the rectangle around the members.
        bands: name of each band.
        dtype: of the files; ``read`` gives what ``read_member`` gives, and this only where there is no member.
        block_shape: height and width in pixels of the blocks of the files.
    """

    def __init__(
        self,
        members: Sequence[Placed],
        grid: Grid,
        read_member: ReadMember,
        *,
        bands: tuple[str, ...],
        block_shape: tuple[int, int],
        primary: int | None = None,
        member_is_empty: Callable[[int, Window], bool] | None = None,
    ) -> None:
        """Make one raster of ``members``.

        Args:
            members: in the order of their priority.
            grid: of all of them together, from ``bounding_grid``.
            read_member: reads from the raster of an index a window that lies inside it, in its own pixels.
            bands: name of each band.
            block_shape: height and width in pixels of the blocks that the files store.
            primary: index of the one member whose damage is an error; the others are its neighbours, and what is damaged of
                them counts as missing. If None, all damage is an error.
            member_is_empty: says of a window, as ``read_member`` gets it, whether the file has certainly no data there.
        """
        self.height, self.width = grid.height, grid.width
        self.bands, self.dtype, self.block_shape = bands, grid.dtype, block_shape
        self._grid = grid
        self._members = tuple(members)
        self._read_member = read_member
        self._member_is_empty = member_is_empty
        self._primary = primary
        self._tops, self._lefts, heights, widths = np.array([member.window for member in members], np.int64).T
        self._bottoms, self._rights = self._tops + heights, self._lefts + widths
        self._damaged: set[int] = set()
        self._lock = threading.Lock()

    @property
    def georeference(self) -> dict[str, Any]:
        """Where the mosaic lies, as the keywords that ``rasterio.open`` takes to write a raster at the same place."""
        return {"crs": self._grid.crs, "transform": self._grid.transform}

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Read the pixels of ``window`` (bands, height, width), and which of them are data (height, width).

        A window may reach past the right and bottom edges: there the last column and row are repeated.

        Raises:
            DamagedRasterError: the primary member, or any if there is none, cannot be read there.
        """
        inside = window.clipped(self.height, self.width)
        valid = np.zeros((inside.height, inside.width), np.bool_)
        pixels: Pixels | None = None
        for member, shared in self._members_in(inside):
            part = shared.within(inside).slices
            if valid[part].all():
                continue  # members before this one have it all
            with self._damage_of(member.index):
                found, data = self._read_member(member.index, shared.within(member.window))
                if pixels is None:
                    pixels = np.zeros((len(self.bands), *valid.shape), found.dtype)
                new = data & ~valid[part]
                np.copyto(pixels[:, *part], found, where=new)
                valid[part] |= new
        if pixels is None:
            pixels = np.zeros((len(self.bands), *valid.shape), self.dtype)
        return window.extend(pixels), window.extend(valid)

    def is_empty(self, window: Window) -> bool:
        """Whether there is certainly no data in ``window``: no member reaches into it, or those that do have none there.

        Raises:
            DamagedRasterError: the primary member, or any if there is none, cannot be opened.
        """
        return not any(
            self._may_have_data(member.index, shared.within(member.window))
            for member, shared in self._members_in(window.clipped(self.height, self.width))
        )

    def _may_have_data(self, index: int, window: Window) -> bool:
        if self._member_is_empty is None:
            return True
        with self._damage_of(index):
            return not self._member_is_empty(index, window)
        return False

    def _members_in(self, window: Window) -> Iterator[tuple[Placed, Window]]:
        """The members that reach into ``window``, and the part of it that each covers."""
        across = (self._tops < window.bottom) & (self._bottoms > window.row)
        across &= (self._lefts < window.right) & (self._rights > window.col)
        for position in np.flatnonzero(across).tolist():
            member = self._members[position]
            yield member, member.window.intersection(window)

    @contextmanager
    def _damage_of(self, index: int) -> Iterator[None]:
        """End the block, with one warning per member, where a neighbour of the primary member is damaged."""
        try:
            yield
        except DamagedRasterError as error:
            if self._primary is None or index == self._primary:
                raise
            with self._lock:
                known = index in self._damaged
                self._damaged.add(index)
            if not known:
                _log.warning("%s; where it cannot be read, the rasters beside it are labelled as if it were missing", error)


def _alike(grids: Mapping[int, Grid]) -> Iterator[dict[int, Grid]]:
    """Yield the grids, by their numbers, that have the same bands, dtype, CRS, and size and direction of the pixels."""
    number_crs = _CrsNumbers()
    kinds: dict[tuple[int, int, str], list[int]] = {}
    for index, grid in grids.items():
        kinds.setdefault((number_crs(grid.crs), grid.bands, grid.dtype), []).append(index)
    for kind in kinds.values():
        for group in _same_shape(np.array([_pixel_shape(grids[index].transform) for index in kind])):
            yield {kind[position]: grids[kind[position]] for position in group}


class _CrsNumbers:
    """Gives equal numbers to equal CRS, though one may be written down in several ways."""

    def __init__(self) -> None:
        self._different: list[Any] = []
        self._numbers: dict[str, int] = {}

    def __call__(self, crs: Any) -> int:
        text = crs.wkt
        if text not in self._numbers:  # to compare two CRS takes long, and most rasters write theirs as the ones before
            equal = (number for number, other in enumerate(self._different) if other == crs)
            self._numbers[text] = next(equal, len(self._different))
            self._different.append(crs)
        return self._numbers[text]


def _pixel_shape(transform: Any) -> tuple[float, ...]:
    """Size of a pixel, as a logarithm, and its sides in units of that size: so all differences are shares of a pixel."""
    size = math.sqrt(abs(transform.determinant))
    return (math.log(size), *(value / size for value in (transform.a, transform.b, transform.d, transform.e)))


def _same_shape(shapes: Float64s) -> list[list[int]]:
    """Positions of equal rows of ``shapes`` (n, 5): sorted by one column after the other, and cut at the gaps."""
    groups = [np.arange(len(shapes))]
    for column in shapes.T:
        groups = [part for group in groups for part in _cut_at_gaps(group, column[group])]
    return [np.sort(group).tolist() for group in groups]


def _cut_at_gaps(group: Int64s, values: Float64s) -> list[Int64s]:
    order = np.argsort(values)
    gaps = np.flatnonzero(np.diff(values[order]) > _PIXEL_TOLERANCE) + 1
    return np.split(group[order], gaps)


def _connected(grids: Mapping[int, Grid]) -> Iterator[list[Placed]]:
    """Yield the mosaics among rasters with the same bands, dtype, CRS, and size and direction of the pixels."""
    rectangles = _Rectangles(grids)
    free = np.ones(len(grids), np.bool_)
    rows, cols = np.zeros(len(grids), np.int64), np.zeros(len(grids), np.int64)
    for first in range(len(grids)):
        if not free[first]:
            continue
        free[first] = False
        members, waiting = [first], [first]
        while waiting:
            one = waiting.pop()
            near, down, right = rectangles.neighbours(one, free)
            rows[near], cols[near] = rows[one] + down, cols[one] + right
            free[near] = False
            waiting += near.tolist()
            members += near.tolist()
        top, left = rows[members].min(), cols[members].min()
        mosaic = [
            Placed(
                rectangles.indexes[member],
                Window(
                    int(rows[member] - top),
                    int(cols[member] - left),
                    int(rectangles.heights[member]),
                    int(rectangles.widths[member]),
                ),
            )
            for member in members
        ]
        yield sorted(mosaic, key=lambda member: member.index)


class _Rectangles:
    """Rasters in the pixels of one of them, sorted from top to bottom.

    Attributes:
        indexes: their numbers among all rasters.
        heights, widths: int64, in pixels.
    """

    def __init__(self, grids: Mapping[int, Grid]) -> None:
        """Measure ``grids``, whose pixels have the same size and direction."""
        any_transform = next(iter(grids.values())).transform
        a, b, _, d, e, _ = any_transform[:6]
        corners = np.array(
            [(grid.transform.c - any_transform.c, grid.transform.f - any_transform.f) for grid in grids.values()]
        )
        cols, rows = np.linalg.solve([[a, b], [d, e]], corners.T)
        order = np.argsort(rows, kind="stable")
        indexes, shapes = list(grids), np.array([(grid.height, grid.width) for grid in grids.values()], np.int64)
        self.indexes = [indexes[position] for position in order]
        self.heights, self.widths = shapes[order].T
        self._rows, self._cols = rows[order], cols[order]
        self._tallest = int(self.heights.max())

    def neighbours(self, one: int, free: NDArray[np.bool_]) -> tuple[Int64s, Int64s, Int64s]:
        """Which of the rectangles that are still ``free`` (n,) overlap or touch ``one`` and are off by whole pixels.

        Returns:
            Positions (m,), and how many pixels each lies further down and further right (m,).
        """
        row, col, height, width = self._rows[one], self._cols[one], self.heights[one], self.widths[one]
        start, end = np.searchsorted(self._rows, (row - self._tallest - 1, row + height + 1))
        down, right = self._rows[start:end] - row, self._cols[start:end] - col
        whole_down, whole_right = np.rint(down), np.rint(right)
        near = free[start:end] & (whole_down <= height) & (whole_down >= -self.heights[start:end])
        near &= (whole_right <= width) & (whole_right >= -self.widths[start:end])
        near &= np.maximum(np.abs(down - whole_down), np.abs(right - whole_right)) <= _OFFSET_TOLERANCE_PX
        chosen = np.flatnonzero(near)
        return start + chosen, whole_down[chosen].astype(np.int64), whole_right[chosen].astype(np.int64)
