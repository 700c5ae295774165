"""A few tiles to show to an engine: of rasters, spread evenly over where they have data, or of noise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from autoreg.runtime.engine import Images
from autoreg.runtime.images import to_image
from autoreg.runtime.segment import check_fit, scene_reader
from autoreg.spec import ModelSpec

Item = TypeVar("Item")

_NOISE_PX = 64, 16
"""Sides of the squares that noise is made of, and not single pixels: nearly all of these get one label, and prove little."""

_TRIED = 3
"""Windows that are read for each tile that is wanted, at most: some have no data."""
_LEAST_DATA = 0.5


@dataclass(frozen=True)
class Tiles:
    """Tiles of one shape.

    Attributes:
        images: what goes into a model; pixels without data hold its fill.
        valid: (N, H, W), True where a pixel is data.
    """

    images: Images
    valid: NDArray[np.bool_]


def read_tiles(paths: Sequence[str], spec: ModelSpec, *, tile_px: int, count: int) -> Tiles:
    """Read tiles of rasters for a model; which ones they are does not depend on it.

    Args:
        paths: of the rasters; of more than ``count``, some are read, evenly spread.
        spec: of the model.
        tile_px: side of the tiles, a multiple of the stride.
        count: how many tiles to read, fewer if the rasters are small or lack data.

    Raises:
        RasterError: a raster cannot be read, does not have the model's bands or type, or there is no data.
    """
    chosen = _spread(list(paths), count)
    images, valid = [], []
    for index, path in enumerate(chosen):
        wanted = count * (index + 1) // len(chosen) - count * index // len(chosen)
        with RasterReader(path, bands=len(spec.bands)) as raster:
            check_fit(path, raster, spec)
            for image, data in _spread(list(_read_windows(raster, spec, tile_px, _TRIED * wanted)), wanted):
                images.append(image)
                valid.append(data)
    if not images:
        least = f"{100 * _LEAST_DATA:.0f} %"
        raise RasterError(
            f"no tile of {tile_px} px in {', '.join(chosen)} has data in {least} of it; give other rasters or smaller tiles"
        )
    return Tiles(np.stack(images), np.stack(valid))


def make_noise(spec: ModelSpec, *, tile_px: int, count: int) -> Tiles:
    """Tiles of noise with the mean and the standard deviation of the model's bands; the same for the same model.

    It is made of squares, and the bands have half of it in common, as those of imagery do: so it has most of the labels.
    """
    rng, bands = np.random.default_rng(0), len(spec.bands)
    noise = np.zeros((count, bands, tile_px, tile_px), np.float32)
    for side in _NOISE_PX:
        squares = -(-tile_px // side)
        common, own = (rng.standard_normal((count, depth, squares, squares), np.float32) for depth in (1, bands))
        noise += (common + own).repeat(side, axis=2).repeat(side, axis=3)[..., :tile_px, :tile_px]
    noise /= math.sqrt(2 * len(_NOISE_PX))
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    images: Images = noise * std + mean
    if spec.takes_uint8:
        images = np.rint(images).clip(0, 255).astype(np.uint8)
    return Tiles(images, np.ones((count, tile_px, tile_px), np.bool_))


def _read_windows(
    raster: RasterReader, spec: ModelSpec, tile_px: int, tried: int
) -> Iterator[tuple[Images, NDArray[np.bool_]]]:
    """Those of about ``tried`` windows, on a grid from corner to corner, that have data in half of their pixels."""
    read = scene_reader(spec, raster.read, raster.height, raster.width)
    side = max(math.isqrt(tried), 2)
    for row in _starts(raster.height, tile_px, side):
        for col in _starts(raster.width, tile_px, side):
            window = Window(row, col, tile_px, tile_px)
            if raster.is_empty(window):
                continue
            pixels, valid = read(window)
            inside, data = window.clipped(raster.height, raster.width), valid.copy()
            data[inside.height :] = data[:, inside.width :] = False  # what was repeated beyond the edges
            if data[: inside.height, : inside.width].mean() >= _LEAST_DATA:
                yield to_image(pixels, valid, spec), data


def _starts(size: int, tile_px: int, count: int) -> list[int]:
    """Where tiles start along one axis of ``size`` pixels: at most ``count`` places, none twice."""
    last = max(size - tile_px, 0)
    return sorted({index * last // max(count - 1, 1) for index in range(count)})


def _spread(items: list[Item], count: int) -> list[Item]:
    """At most ``count`` of ``items``, evenly spread."""
    kept = min(count, len(items))
    return [items[index * len(items) // kept] for index in range(kept)]
