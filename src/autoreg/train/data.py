"""Rasters to batches of random crops, and the statistics that normalise them."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.raster.read_ahead import read_ahead
from autoreg.raster.reader import RasterReader
from autoreg.raster.tiling import round_up
from autoreg.raster.window import Window

SUPERBLOCK_PX = 1024
"""Side of what is read at once; several crops are cut from it, because decoding blocks costs more than cutting."""

_CROPS_PER_SUPERBLOCK = 8
_BATCHES_PER_CHUNK = 8
_STATISTICS_SUPERBLOCKS = 256
_TRIES = 20
_LEAST_VALID = 0.5


@dataclass(frozen=True)
class Scenes:
    """The rasters to train on; all have the same bands and type.

    Attributes:
        paths: of the rasters.
        shapes: height and width of each, in pixels.
        bands: names of the bands, from the first raster.
        dtype: of the pixels.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    bands: tuple[str, ...]
    dtype: str

    def open(self, index: int) -> RasterReader:
        """Open one of the rasters."""
        return RasterReader(self.paths[index], bands=len(self.bands))


class Batch(NamedTuple):
    """Crops for one step.

    Attributes:
        images: raw pixels, float32 (N, bands, crop_px, crop_px); pixels without data hold the mean.
        valid: bool (N, crop_px, crop_px), True where a pixel is data.
    """

    images: NDArray[np.float32]
    valid: NDArray[np.bool_]


def open_scenes(paths: Sequence[str | Path], *, crop_px: int) -> Scenes:
    """Look at every raster and make sure that they fit together.

    Raises:
        RasterError: one cannot be read, is smaller than a crop, or has other bands or another type than the first.
    """
    if not paths:
        raise RasterError("no rasters were given, expected at least one")
    shapes, first = [], None
    for path in paths:
        with RasterReader(path, bands=len(first.bands) if first else None) as raster:
            first = first or raster
            if len(raster.bands) != len(first.bands):
                raise RasterError(
                    f"{path} has {len(raster.bands)} bands, but {first.path} has {len(first.bands)}; "
                    f"train on rasters of one kind"
                )
            if raster.dtype != first.dtype:
                raise RasterError(
                    f"{path} has pixels of type {raster.dtype}, but {first.path} has {first.dtype}; "
                    f"train on rasters of one kind"
                )
            if min(raster.height, raster.width) < crop_px:
                raise RasterError(
                    f"{path} has {raster.height} x {raster.width} px, which is smaller than a crop of {crop_px} px; "
                    f"leave it out or use a smaller crop_px"
                )
            shapes.append((raster.height, raster.width))
    assert first is not None
    return Scenes(tuple(str(path) for path in paths), tuple(shapes), first.bands, first.dtype)


def estimate_normalisation(scenes: Scenes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each band over the pixels that are data; never zero, and no raster is held.

    Reads every super-block, or an even sample of 256 where there are more, and merges their moments (Chan et al., 1979).

    Raises:
        RasterError: a raster is damaged, or none has any data.
    """
    blocks = [(index, window) for index in range(len(scenes.paths)) for window in _superblocks(scenes, index)]
    step = max(1, len(blocks) / _STATISTICS_SUPERBLOCKS)
    chosen = [blocks[int(position)] for position in np.arange(0, len(blocks), step)]
    total, mean, squares = 0, np.zeros(len(scenes.bands)), np.zeros(len(scenes.bands))
    for index, window in chosen:
        with scenes.open(index) as raster:
            pixels, valid = raster.read(window)
        values = pixels[:, valid].astype(np.float64)
        size = values.shape[1]
        if size == 0:
            continue
        block_mean = values.mean(axis=1)
        shift = block_mean - mean
        squares += ((values - block_mean[:, None]) ** 2).sum(axis=1) + shift**2 * (total * size / (total + size))
        mean += shift * (size / (total + size))
        total += size
    if total == 0:
        raise RasterError(f"none of the {len(scenes.paths)} rasters has a pixel with data, expected imagery")
    std = np.sqrt(squares / total)
    return mean, np.where(std > 1e-6 * (1 + np.abs(mean)), std, 1.0)


def read_batches(
    scenes: Scenes, *, crop_px: int, batch_size: int, fill: NDArray[Any], seed: int, start: int = 0
) -> Generator[Batch]:
    """Yield random batches for ever, from batch number ``start`` on; the next ones are read in a background thread.

    Batch number n is a function of the arguments alone, so an interrupted training goes on with the batches that it would
    have seen. Crops are drawn in chunks of 8 batches: super-blocks are drawn by area, 8 crops are cut from each, and the
    chunk is shuffled before it is dealt out, so the crops of one batch come from many places.

    Args:
        scenes: the rasters.
        crop_px: side of a crop.
        batch_size: crops per batch.
        fill: value per band for pixels without data.
        seed: of the random choices.
        start: number of the first batch.

    Raises:
        RasterError: a raster is damaged, or no crop with data was found.
    """
    sampler = _Sampler(scenes, crop_px, batch_size, fill, seed)
    first, skip = divmod(start, _BATCHES_PER_CHUNK)
    chunks = read_ahead(sampler.chunk, count(first), depth=1)
    yield from islice((batch for _, chunk in chunks for batch in chunk), skip, None)


class _Sampler:
    def __init__(self, scenes: Scenes, crop_px: int, batch_size: int, fill: NDArray[Any], seed: int) -> None:
        self._scenes, self._crop_px, self._batch_size, self._seed = scenes, crop_px, batch_size, seed
        self._fill = np.asarray(fill, np.float32)
        areas = np.array([height * width for height, width in scenes.shapes], np.float64)
        self._share = areas / areas.sum()

    def chunk(self, number: int) -> list[Batch]:
        """The batches of chunk ``number``."""
        rng = np.random.default_rng((self._seed, number))
        wanted = self._batch_size * _BATCHES_PER_CHUNK
        images = np.empty((wanted, len(self._fill), self._crop_px, self._crop_px), np.float32)
        valid = np.empty((wanted, self._crop_px, self._crop_px), np.bool_)
        filled, empty = 0, 0
        while filled < wanted:
            pixels, data = self._read_superblock(rng)
            before = filled
            for _ in range(min(_CROPS_PER_SUPERBLOCK, wanted - filled)):
                row, col = (int(rng.integers(size - self._crop_px + 1)) for size in data.shape)
                place = Window(row, col, self._crop_px, self._crop_px).slices
                if data[place].mean() < _LEAST_VALID:
                    continue
                images[filled], valid[filled] = pixels[:, *place], data[place]
                images[filled][:, ~valid[filled]] = self._fill[:, None]
                filled += 1
            empty = empty + 1 if filled == before else 0
            if empty == _TRIES * len(self._scenes.paths):
                raise RasterError(
                    f"no crop of {self._crop_px} px with at least {100 * _LEAST_VALID:.0f} % data was found in "
                    f"{empty} places of {len(self._scenes.paths)} rasters; use a smaller crop_px or rasters with less nodata"
                )
        order = rng.permutation(wanted).reshape(_BATCHES_PER_CHUNK, self._batch_size)
        return [Batch(images[indices], valid[indices]) for indices in order]

    def _read_superblock(self, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """A random super-block of a random raster, whose sides start and end on the blocks of the file."""
        index = int(rng.choice(len(self._scenes.paths), p=self._share))
        with self._scenes.open(index) as raster:
            height, width = (
                _random_span(rng, size, block, self._crop_px)
                for size, block in zip(self._scenes.shapes[index], raster.block_shape, strict=True)
            )
            return raster.read(Window(height[0], width[0], height[1], width[1]))


def _random_span(rng: np.random.Generator, size: int, block: int, crop_px: int) -> tuple[int, int]:
    """Start and length of a span of at least ``crop_px`` px that lies on blocks, each part of the raster equally likely."""
    block = block if block <= SUPERBLOCK_PX else 1  # a strip as wide as the raster is not worth reading whole
    length = min(round_up(max(SUPERBLOCK_PX, crop_px), block), size)
    # Drawing from a range that overshoots both ends, and clipping, reaches the corners as often as the middle.
    start = int(rng.integers(-length // 2, size - length // 2))
    start = min(max(round(start / block) * block, 0), size - length)
    return start, length


def _superblocks(scenes: Scenes, index: int) -> Iterator[Window]:
    """The super-blocks that cover a raster."""
    height, width = scenes.shapes[index]
    for row in range(0, height, SUPERBLOCK_PX):
        for col in range(0, width, SUPERBLOCK_PX):
            yield Window(row, col, SUPERBLOCK_PX, SUPERBLOCK_PX).clipped(height, width)
