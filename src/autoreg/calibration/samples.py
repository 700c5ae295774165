"""Which tiles of some rasters to calibrate on, and which to check with."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.raster.reader import RasterReader
from autoreg.raster.statistics import Rescaling, match_scene
from autoreg.raster.window import Window
from autoreg.runtime.segment import check_fit
from autoreg.spec import ModelSpec

DEFAULT_TILE_PX = 256
HELD_OUT_EVERY = 5
"""One tile of five is held out: agreement is measured on tiles that no range has seen."""

_CANDIDATES_PER_TILE = 4
_LEAST_DATA = 0.75


@dataclass(frozen=True)
class _Source:
    """A raster, and how its pixels are rescaled before the model sees them; None where they are not."""

    path: Path
    rescaling: Rescaling | None


@dataclass(frozen=True)
class Samples:
    """Tiles of rasters, read anew each time that they are asked for.

    Attributes:
        spec: of the model that is to see them.
        tiles: the place of each in ``sources``, and its window; by source.
        sources: the rasters.
    """

    spec: ModelSpec
    tiles: tuple[tuple[int, Window], ...]
    sources: tuple[_Source, ...]

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Each tile as the model sees it, (1, bands, height, width), and which pixels are data, (height, width).

        Raises:
            RasterError: a raster cannot be read.
        """
        opened: RasterReader | None = None
        current = -1
        try:
            for source, window in self.tiles:
                if source != current:
                    if opened is not None:
                        opened.close()
                    opened = RasterReader(self.sources[source].path, bands=len(self.spec.bands))
                    current = source
                assert opened is not None
                yield _read_tile(opened, window, self.sources[source].rescaling, self.spec)
        finally:
            if opened is not None:
                opened.close()

    def some(self, count: int) -> "Samples":
        """At most ``count`` of the tiles, evenly chosen."""
        chosen = min(count, len(self.tiles))
        tiles = tuple(self.tiles[len(self.tiles) * place // chosen] for place in range(chosen))
        return Samples(self.spec, tiles, self.sources)

    def digest(self) -> str:
        """SHA-256 of all that the model sees of the tiles, hexadecimal."""
        found = hashlib.sha256()
        for image, _ in self:
            found.update(repr(image.shape).encode())
            found.update(image.tobytes())
        return found.hexdigest()


def choose_samples(paths: Sequence[Path], spec: ModelSpec, *, tiles: int, tile_px: int) -> tuple[Samples, Samples]:
    """Choose tiles that stand for some rasters: spread evenly over them, over their area, and over their content.

    Each raster gives the same number of tiles, as far as it has so many. Four times as many are looked at, a random one of
    each part of the raster (seeded); ordered by brightness and, within equal brightness, by contrast, the chosen ones are
    evenly spaced. Tiles of which less than three quarters are data are taken where there are no others. No two tiles
    overlap.

    Args:
        paths: rasters that the model can see.
        spec: of the model.
        tiles: how many to calibrate on, at most.
        tile_px: side of a tile, a multiple of the stride; where a raster is smaller, so is the tile.

    Returns:
        The tiles to calibrate on, and those to check with, a quarter as many.

    Raises:
        RasterError: a raster cannot be read or does not fit the model, or there are fewer than two tiles with data.
    """
    total = max(tiles * HELD_OUT_EVERY // (HELD_OUT_EVERY - 1), 2)
    count = min(len(paths), total)
    chosen = [paths[len(paths) * place // count] for place in range(count)]
    sources: list[_Source] = []
    grids: list[list[Window]] = []
    for path in chosen:
        with RasterReader(path, bands=len(spec.bands)) as raster:
            check_fit(str(path), raster, spec)
            sources.append(_Source(path, _rescaling(raster, spec)))
            grids.append(_grid(raster.height, raster.width, tile_px, spec.stride))
    quotas = _share([len(grid) for grid in grids], total)
    found: list[tuple[int, Window]] = []
    for place, (source, grid, quota) in enumerate(zip(sources, grids, quotas, strict=True)):
        found += [(place, window) for window in _choose(source, _spread(grid, quota * _CANDIDATES_PER_TILE), quota, spec)]
    if len(found) < 2:
        raise RasterError(
            f"the rasters have {len(found)} tiles of {tile_px} px with data, expected at least 2, one to calibrate on and "
            f"one to check with; give more rasters, or smaller tiles with --tile-px"
        )
    held_out = set(range(min(HELD_OUT_EVERY // 2, len(found) - 1), len(found), HELD_OUT_EVERY))
    parts = ([item for place, item in enumerate(found) if (place in held_out) is held] for held in (False, True))
    calibration, check = (Samples(spec, tuple(part), tuple(sources)) for part in parts)
    return calibration, check


def _rescaling(raster: RasterReader, spec: ModelSpec) -> Rescaling | None:
    if spec.normalisation == "global":
        return None
    return match_scene(raster.read, raster.height, raster.width, mean=spec.mean, std=spec.std)


def _read_tile(
    raster: RasterReader, window: Window, rescaling: Rescaling | None, spec: ModelSpec
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A tile as the runtime would show it to an engine: what is no data holds its fill."""
    pixels, valid = raster.read(window)
    image = pixels.astype(np.float32)
    if rescaling is not None:
        rescaling.apply(image)
    np.copyto(image, np.asarray(spec.fill, np.float32)[:, None, None], where=~valid)
    return image[None], valid


def _grid(height: int, width: int, tile_px: int, stride: int) -> list[Window]:
    """As many windows as fit side by side, spread from edge to edge, row by row; they begin on the stride grid."""
    axes = []
    for size in (height, width):
        side = min(tile_px, -(-size // stride) * stride)
        cells = max(size // side, 1)
        axes.append([((size - side) * cell // max(cells - 1, 1) // stride * stride, side) for cell in range(cells)])
    return [Window(max(row, 0), max(col, 0), rows, cols) for row, rows in axes[0] for col, cols in axes[1]]


def _spread(grid: Sequence[Window], count: int) -> list[Window]:
    """At most ``count`` of the windows, a random one of each of as many equal parts."""
    if count >= len(grid):
        return list(grid)
    places = (np.arange(count) + np.random.default_rng(0).random(count)) * len(grid) / count
    return [grid[int(place)] for place in places]


def _share(capacities: Sequence[int], total: int) -> list[int]:
    """How much each gives so that they give ``total``, equal amounts as far as their capacities allow."""
    shares = [0] * len(capacities)
    left = total
    order = sorted(range(len(capacities)), key=lambda place: capacities[place])
    for done, place in enumerate(order):
        shares[place] = min(capacities[place], left // (len(order) - done))
        left -= shares[place]
    return shares


def _choose(source: _Source, candidates: Sequence[Window], quota: int, spec: ModelSpec) -> list[Window]:
    """At most ``quota`` of the windows, evenly spaced in the order of their content."""
    looks: list[tuple[Window, float, float, float]] = []
    mean, std = (np.asarray(values, np.float32)[:, None] for values in (spec.mean, spec.std))
    with RasterReader(source.path, bands=len(spec.bands)) as raster:
        for window in candidates:
            if raster.is_empty(window):
                continue
            image, valid = _read_tile(raster, window, source.rescaling, spec)
            if valid.any():
                values = (image[0][:, valid] - mean) / std
                looks.append((window, float(valid.mean()), float(values.mean()), float(values.std(axis=1).mean())))
    full = [look for look in looks if look[1] >= _LEAST_DATA]
    if len(full) < quota:
        full = sorted(looks, key=lambda look: -look[1])[:quota]
    ordered = _by_content([(window, brightness, contrast) for window, _, brightness, contrast in full])
    count = min(quota, len(ordered))
    return [ordered[len(ordered) * (2 * place + 1) // (2 * count)] for place in range(count)]


def _by_content(looks: Sequence[tuple[Window, float, float]]) -> list[Window]:
    """The windows by brightness, and in groups of about equal brightness by contrast, up and down in turns."""
    bright = sorted(looks, key=lambda look: look[1])
    groups = max(int(len(bright) ** 0.5), 1)
    ordered: list[Window] = []
    for group in range(groups):
        members = bright[len(bright) * group // groups : len(bright) * (group + 1) // groups]
        ordered += [look[0] for look in sorted(members, key=lambda look: look[2], reverse=group % 2 == 1)]
    return ordered
