"""Merge the small regions of a class map into their neighbours."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoreg.raster.regions import Ids, Labels, connect, find_regions
from autoreg.spec import NODATA_LABEL

Strips = Callable[[], Iterable[Labels]]
"""Reads the labels of a raster from top to bottom, (height, width) each; the same ones each time."""


def sieve(strips: Strips, row_areas: NDArray[np.float64], sides: tuple[float, float], min_area: float) -> Iterator[Labels]:
    """Yield the strips of a raster without its regions that are smaller than ``min_area``.

    The smallest region goes first, to the neighbour with which it has the longest border (of several, to the largest), and
    the two are one from then on, with what else of their label touches it. Nodata is no neighbour: a small region that lies
    in nodata alone stays. The raster is read twice; a row of a table for each of its regions and for each pair of small
    neighbours is in memory, the pixels are not.

    Args:
        strips: of the raster.
        row_areas: of a pixel of each row (height,).
        sides: length of the upper border of a pixel, and of its left one.
        min_area: in the unit of ``row_areas``.
    """
    labels = _measure(strips(), row_areas, sides).merge(min_area)
    known = 0
    for strip in strips():
        regions, count = find_regions(strip)
        yield labels[known + regions]
        known += count


@dataclass
class _Regions:
    """The regions of a raster.

    Attributes:
        parts: the region (parts,) of each part of one, that is of what of it lies in one strip.
        labels: of each region (n,).
        areas: likewise.
        pairs: neighbours (borders, 2); a pair may stand there more than once.
        lengths: of their common borders (borders,).
    """

    parts: Ids
    labels: Labels
    areas: NDArray[np.float64]
    pairs: Ids
    lengths: NDArray[np.float64]

    def merge(self, min_area: float) -> Labels:
        """The label (parts,) that each part has in the end."""
        merging = _Merging(self.areas.tolist(), self.labels.tolist(), min_area)
        small = (self.areas < min_area) & (self.labels != NODATA_LABEL)
        for one, other in ((0, 1), (1, 0)):
            chosen = small[self.pairs[:, one]]
            ones, others, lengths = self.pairs[chosen, one], self.pairs[chosen, other], self.lengths[chosen]
            merging.add_borders(zip(ones.tolist(), others.tolist(), lengths.tolist(), strict=True))
        merging.run(np.flatnonzero(small).tolist())
        merged = np.array([merging.labels[merging.find(region)] for region in range(len(self.labels))], np.uint8)
        return merged[self.parts]


class _Merging:
    """Regions that become one another.

    Attributes:
        labels: of each region; that of one that was merged no longer counts.
    """

    def __init__(self, areas: list[float], labels: list[int], min_area: float) -> None:
        self.labels = labels
        self._areas = areas
        self._min_area = min_area
        self._parents = list(range(len(areas)))
        self._borders: dict[int, dict[int, float]] = {}
        self._waiting: list[tuple[float, int]] = []

    def add_borders(self, borders: Iterable[tuple[int, int, float]]) -> None:
        """Add to the borders of small regions: the region, its neighbour, and the length."""
        for region, neighbour, length in borders:
            own = self._borders.setdefault(region, {})
            own[neighbour] = own.get(neighbour, 0.0) + length

    def find(self, region: int) -> int:
        """The region that ``region`` is part of by now."""
        while self._parents[region] != region:
            self._parents[region] = region = self._parents[self._parents[region]]
        return region

    def run(self, small: list[int]) -> None:
        """Merge the regions ``small`` and what comes of them, until all are large enough or alone."""
        self._waiting = [(self._areas[region], region) for region in small]
        heapq.heapify(self._waiting)
        while self._waiting:
            area, region = heapq.heappop(self._waiting)
            if self._parents[region] != region or self._areas[region] != area:
                continue  # it has been merged, or has grown
            borders = self._current_borders(region)
            if not borders:
                continue
            target = max(borders, key=lambda other: (borders[other], self._areas[other], -other))
            # What lies beside the region and has the target's label is one with it from now on.
            label = self.labels[target]
            alike = [other for other in borders if other != target and self.labels[other] == label]
            self._join([region, *alike], target)

    def _current_borders(self, region: int) -> dict[int, float]:
        """The length of the border to each neighbour, as they have been merged."""
        borders: dict[int, float] = {}
        for neighbour, length in self._borders.get(region, {}).items():
            other = self.find(neighbour)
            if other != region:
                borders[other] = borders.get(other, 0.0) + length
        return borders

    def _join(self, regions: list[int], target: int) -> None:
        for region in regions:
            self._parents[region] = target
            self._areas[target] += self._areas[region]
        # Only a small region is ever asked for its borders, and only of small ones they are known.
        known = [self._borders.pop(region, {}) for region in regions]
        if self._areas[target] < self._min_area:
            self.add_borders((target, neighbour, length) for borders in known for neighbour, length in borders.items())
            heapq.heappush(self._waiting, (self._areas[target], target))


def _measure(strips: Iterable[Labels], row_areas: NDArray[np.float64], sides: tuple[float, float]) -> _Regions:
    """Look at each pixel once."""
    labels, areas, pairs, lengths, links = [], [], [], [], []
    above: tuple[Labels, Ids] | None = None
    known, top = 0, 0
    for strip in strips:
        regions, count = find_regions(strip)
        pixel_areas = np.broadcast_to(row_areas[top : top + len(strip), None], strip.shape)
        areas.append(np.bincount(regions.ravel(), pixel_areas.ravel()))
        labels.append(_label_regions(strip, regions, count))
        regions += known
        borders = [(strip[:, :-1], strip[:, 1:], regions[:, :-1], regions[:, 1:], sides[1])]
        borders += [(strip[:-1], strip[1:], regions[:-1], regions[1:], sides[0])]
        if above is not None:
            borders += [(above[0], strip[0], above[1], regions[0], sides[0])]
            same = above[0] == strip[0]
            links.append(np.column_stack([above[1][same], regions[0][same]]))
        for one, other, of_one, of_other, side in borders:
            apart = (one != other) & (one != NODATA_LABEL) & (other != NODATA_LABEL)
            found, times = _count_pairs(of_one[apart], of_other[apart])
            pairs.append(found)
            lengths.append(times * side)
        above = strip[-1], regions[-1]
        known, top = known + count, top + len(strip)
    linked = np.concatenate(links) if links else np.empty((0, 2), np.int64)
    parts, count = connect(known, linked[:, 0], linked[:, 1])
    return _Regions(
        parts,
        _label_regions(np.concatenate(labels), parts, count),
        np.bincount(parts, np.concatenate(areas)).astype(np.float64),
        parts[np.concatenate(pairs)],
        np.concatenate(lengths),
    )


def _label_regions(labels: Labels, regions: Ids, count: int) -> Labels:
    """The label (count,) of each region, from those of its pixels."""
    found = np.empty(count, np.uint8)
    found[regions] = labels
    return found


def _count_pairs(ones: Ids, others: Ids) -> tuple[Ids, NDArray[np.int64]]:
    """The different pairs (n, 2), whichever way round, and how often each occurs (n,)."""
    low, high = np.minimum(ones, others), np.maximum(ones, others)
    order = np.lexsort((high, low))
    pairs = np.column_stack([low, high])[order]
    starts = np.flatnonzero(np.append(True, (pairs[1:] != pairs[:-1]).any(axis=1))[: len(pairs)])
    return pairs[starts], np.diff(np.append(starts, len(pairs)))
