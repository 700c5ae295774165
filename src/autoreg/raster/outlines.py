"""The outlines of regions as polygons, in whole pixels.

A polygon is made of its corners: the points of the pixel grid where the border of a region turns, or where it goes straight
on but what lies beyond it changes. So neighbouring polygons share their borders point by point, and no later transform can
open a gap between them. Four kinds of border are told apart by the side of the region on which they lie; a corner is reached
along one kind and left along another. Along a line of the grid, borders of one kind and region do not overlap: sorted by
place, the first that starts is the first that ends, and this joins the corners to rings. All is integer arithmetic, on
labels alone, so it does not matter where a raster is cut to strips.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from autoreg.optional import require
from autoreg.raster.regions import Ids, Labels, connect, find_regions
from autoreg.spec import NODATA_LABEL

Polygons = NDArray[np.object_]
"""Polygons of shapely (n,), with points (col, row) counted from the upper left corner of a raster, or (x, y)."""

_TOP, _LEFT, _BOTTOM, _RIGHT = range(4)
"""Side of the region on which a border lies. The region is to the left of who walks along it: a top is walked westwards."""

_CORNER = np.dtype([("region", "i8"), ("row", "i4"), ("col", "i4"), ("label", "u1"), ("reached", "u1"), ("left", "u1")])
_COLLECT_CORNERS = 2**21

Corners = NDArray[np.void]
"""Of type ``_CORNER`` (n,): a point of a ring, its region, and the kinds of border along which it is reached and left."""


def trace_polygons(strips: Iterable[Labels], width: int) -> Iterator[tuple[Labels, Polygons]]:
    """Yield the regions of a raster as polygons, batch by batch; pixels of nodata belong to none.

    A region is held until the strip below it ends, and then for a while: memory is that of a strip, and of the corners of
    about twice the regions that are open at once.

    Args:
        strips: labels (height, width) that lie below each other, from the top of the raster.
        width: of the raster, in pixels.

    Yields:
        The label (n,) and the polygon of each region. The polygons are valid, and each of two that are neighbours has all
        corners of their common border.
    """
    outside = np.full((1, width), NODATA_LABEL, np.uint8)
    last_labels, last_regions = outside[0], np.zeros(width, np.int64)
    known, top, limit = 1, 0, _COLLECT_CORNERS
    pending: list[Corners] = []
    links: list[tuple[Ids, Ids]] = []
    for labels in chain(strips, [outside]):
        regions, count = find_regions(labels)
        regions += known
        known += count
        same = last_labels == labels[0]
        links.append((last_regions[same], regions[0][same]))
        pending.append(_find_corners(np.vstack([last_labels, labels]), np.vstack([last_regions, regions]), top))
        last_labels, last_regions, top = labels[-1], regions[-1], top + len(labels)
        if sum(map(len, pending)) < limit and labels is not outside:
            continue
        numbers, count = connect(known, *map(np.concatenate, zip(*links, strict=True)))
        corners = np.concatenate(pending)
        corners["region"] = numbers[corners["region"]]
        is_open = np.zeros(count, np.bool_)
        is_open[numbers[last_regions]] = True
        still = is_open[corners["region"]]
        if not still.all():
            yield _join(corners[~still])
        # The open regions get the first numbers, so that these do not grow with the raster.
        renumbered = np.cumsum(is_open) - 1
        corners = corners[still]
        corners["region"] = renumbered[corners["region"]]
        last_regions, known = renumbered[numbers[last_regions]], int(is_open.sum())
        pending, links = [corners], []
        limit = max(_COLLECT_CORNERS, 2 * len(corners))  # so that a corner is looked at a few times, however long it is held


def _find_corners(labels: Labels, regions: Ids, top: int) -> Corners:
    """The corners on the upper borders of the pixels of a strip.

    Args:
        labels: of the strip and the row above it (1 + height, width).
        regions: number of each pixel's region, likewise.
        top: first row of the strip in the raster.
    """
    labels = np.pad(labels, ((0, 0), (1, 1)), constant_values=NODATA_LABEL)
    regions = np.pad(regions, ((0, 0), (1, 1)))
    parts = [(slice(None, -1), slice(None, -1)), (slice(None, -1), slice(1, None))]
    parts += [(slice(1, None), slice(None, -1)), (slice(1, None), slice(1, None))]
    a, b, c, d = (labels[part] for part in parts)  # upper left, upper right, lower left, lower right of the point
    rows, cols = np.nonzero(~(((a == b) & (c == d)) | ((a == c) & (b == d))))
    around = [labels[part][rows, cols] for part in parts]
    beside = [regions[part][rows, cols] for part in parts]
    # Of each pixel: those across the vertical and the horizontal line, the opposite one, and how its own corner is walked.
    turns = [
        (0, 1, 2, 3, _BOTTOM, _RIGHT),
        (1, 0, 3, 2, _LEFT, _BOTTOM),
        (2, 3, 0, 1, _RIGHT, _TOP),
        (3, 2, 1, 0, _TOP, _LEFT),
    ]
    # Two pixels of the region, and the two beyond the border.
    straights = [(2, 3, 0, 1, _TOP), (1, 3, 0, 2, _LEFT), (0, 1, 2, 3, _BOTTOM), (0, 2, 1, 3, _RIGHT)]
    found = []

    def add(pixel: int, where: NDArray[np.bool_], reached: int, left: int) -> None:
        chosen = np.flatnonzero(where & (around[pixel] != NODATA_LABEL))
        corners = np.empty(len(chosen), _CORNER)
        corners["region"], corners["label"] = beside[pixel][chosen], around[pixel][chosen]
        corners["row"], corners["col"] = rows[chosen] + top, cols[chosen]
        corners["reached"], corners["left"] = reached, left
        found.append(corners)

    for pixel, across, over, opposite, reached, left in turns:
        own = around[pixel]
        first, second = own == around[across], own == around[over]
        add(pixel, ~first & ~second, reached, left)
        add(pixel, first & second & (own != around[opposite]), left, reached)
    for pixel, partner, one, other, kind in straights:
        own = around[pixel]
        beyond = (own != around[one]) & (own != around[other]) & (around[one] != around[other])
        add(pixel, (own == around[partner]) & beyond, kind, kind)
    return np.concatenate(found)


def _join(corners: Corners) -> tuple[Labels, Polygons]:
    """The label and the polygon of each region, from all its corners."""
    corners = corners[np.lexsort((corners["col"], corners["row"], corners["region"]))]
    region, row, col = corners["region"], corners["row"], corners["col"]
    # Where a region meets itself at a point, the pixels to the two sides of it are of different rings: going on to the
    # other corner of that point, each ring passes it once, as a valid polygon has to.
    twice = np.flatnonzero((region[1:] == region[:-1]) & (row[1:] == row[:-1]) & (col[1:] == col[:-1]))
    left = corners["left"].copy()
    left[twice], left[twice + 1] = corners["left"][twice + 1], corners["left"][twice]
    following = np.empty(len(corners), np.int64)
    by_col = np.lexsort((row, col, region))
    for kind in (_TOP, _LEFT, _BOTTOM, _RIGHT):
        order = np.arange(len(corners)) if kind in (_TOP, _BOTTOM) else by_col
        following[order[left[order] == kind]] = order[corners["reached"][order] == kind]
    order, starts = _walk(following)
    return _build(corners, order, starts)


def _walk(following: Ids) -> tuple[Ids, Ids]:
    """The cycles of a permutation, one after the other, and where in that order each starts."""
    steps, seen = following.tolist(), bytearray(len(following))
    order: list[int] = []
    starts = []
    for first in range(len(steps)):
        if seen[first]:
            continue
        starts.append(len(order))
        place = first
        while not seen[place]:
            seen[place] = 1
            order.append(place)
            place = steps[place]
    return np.array(order, np.int64), np.array(starts, np.int64)


def _build(corners: Corners, order: Ids, starts: Ids) -> tuple[Labels, Polygons]:
    """Polygons from rings: those that begin at ``starts`` in the ``order`` of the corners."""
    shapely = require("shapely")
    lengths = np.diff(np.append(starts, len(order)))
    x, y = corners["col"][order].astype(np.int64), corners["row"][order].astype(np.int64)
    nexts = np.arange(1, len(order) + 1)
    nexts[starts + lengths - 1] = starts
    is_hole = np.add.reduceat(x * y[nexts] - x[nexts] * y, starts) > 0
    region = corners["region"][order[starts]]
    # The rings of a region follow each other, its outer ring first; each ends with the point that it starts with.
    rings = np.lexsort((is_hole, region))
    ends = np.cumsum(lengths[rings] + 1)
    step = np.arange(ends[-1]) - np.repeat(ends - lengths[rings] - 1, lengths[rings] + 1)
    step[ends - 1] = 0
    points = np.repeat(starts[rings], lengths[rings] + 1) + step
    outer = np.flatnonzero(~is_hole[rings])
    polygons = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON,
        np.column_stack([x[points], y[points]]).astype(np.float64),
        (np.append(0, ends), np.append(outer, len(rings))),
    )
    labels: Labels = corners["label"][order[starts[rings[outer]]]]
    return labels, polygons
