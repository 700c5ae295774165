"""Batches of random crops of the scenes."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.raster.background import in_background
from autoreg.raster.handles import Handles
from autoreg.raster.reader import Pixels, Valid
from autoreg.raster.statistics import Rescaling, match_scene
from autoreg.raster.window import Window
from autoreg.train.scenes import THREADS, Scenes

CROPS_PER_TURN = 24
"""Crops that a position of the batch takes from one super-block, before it turns to another."""

TURNS_AHEAD = 2 * THREADS
BATCHES_AHEAD = 2

_TRIES = 1000
_LEAST_VALID = 0.5
_ROUNDS, _LEAST_TAKEN = 16, CROPS_PER_TURN // 4
"""Where little is data, more places are tried, so that the super-block was not decoded for a crop or two."""
_MOST_EMPTY = 100_000
_STREAM = 5
"""Tells the random numbers of the crops from those that others draw from the same seed."""


class Batch(NamedTuple):
    """Crops for one step.

    Attributes:
        images: float32 (N, bands, crop_px, crop_px), raw pixels, rescaled if the scenes are normalised one by one; pixels
            without data hold the mean.
        valid: bool (N, crop_px, crop_px), True where a pixel is data.
    """

    images: NDArray[np.float32]
    valid: NDArray[np.bool_]


def read_batches(
    scenes: Scenes,
    *,
    crop_px: int,
    batch_size: int,
    fill: NDArray[Any],
    seed: int,
    start: int = 0,
    scene_std: NDArray[Any] | None = None,
    part: Sequence[int] | None = None,
) -> Generator[Batch]:
    """Yield random batches for ever, from batch number ``start`` on; the next ones are read in background threads.

    Each position of the batch has a super-block of its own, drawn by area, and takes a crop from it for each of 24 batches;
    then it turns to another. The positions turn one after the other. So the crops of a batch come from as many
    places as there are crops, and as much is read for one batch as for the next.

    The crop at position p of batch n is a function of ``scenes``, ``crop_px``, ``seed``, n and p alone: an interrupted
    training goes on with the batches that it would have seen, and several processes can each read their part of a common
    batch. Where a super-block is damaged or has too little data, another is drawn in its place, by the same rule.

    Memory: 24 crops for each position and for each of 8 turns ahead, in the type of the rasters; 3 batches; for each of 4
    threads, a super-block and 64 open rasters; and GDAL's cache of blocks (its own setting, ``GDAL_CACHEMAX``).

    Args:
        scenes: the rasters.
        crop_px: side of a crop.
        batch_size: crops per batch.
        fill: value per band for pixels without data: the mean.
        seed: of the random choices.
        start: number of the first batch.
        scene_std: if given, the bands of each scene are rescaled so that their mean is ``fill`` and their deviation this.
        part: positions, 0 to ``batch_size`` - 1, that the batches consist of, in their order; all of them if None. Nothing
            is read for the others.

    Raises:
        RasterError: no crop with data was found.
    """
    positions = range(batch_size) if part is None else part
    with Handles(scenes.open) as handles:
        cutter = _Cutter(scenes, handles, crop_px, seed, fill, scene_std)
        turns = in_background(cutter.cut, _turns(positions, start), depth=TURNS_AHEAD, threads=THREADS)
        held: dict[int, _Turn] = {}

        def assemble(number: int) -> Batch:
            images = np.empty((len(positions), len(scenes.bands), crop_px, crop_px), np.float32)
            valid = np.empty((len(positions), crop_px, crop_px), np.bool_)
            for slot, position in enumerate(positions):
                crop = (number + position) % CROPS_PER_TURN
                if crop == 0 or slot not in held:
                    _, held[slot] = next(turns)
                held[slot].copy(crop, images[slot], valid[slot])
                if not valid[slot].all():
                    images[slot][:, ~valid[slot]] = np.asarray(fill, np.float32)[:, None]
            return Batch(images, valid)

        batches = in_background(assemble, count(start), depth=BATCHES_AHEAD)
        with closing(turns), closing(batches):
            for _, batch in batches:
                yield batch


def _turns(positions: Sequence[int], start: int) -> Iterator[tuple[int, int]]:
    """Position and number of each turn, in the order in which the batches from ``start`` on begin to use them."""
    for position in positions:
        yield position, (start + position) // CROPS_PER_TURN
    for number in count(start + 1):
        for position in positions:
            turn, crop = divmod(number + position, CROPS_PER_TURN)
            if crop == 0:
                yield position, turn


class _Turn(NamedTuple):
    """The crops that one position takes from one place.

    Attributes:
        pixels: (24, bands, crop_px, crop_px), in the type of the rasters.
        valid: bool (24, crop_px, crop_px), True where a pixel is data.
        rescalings: of each crop's scene; empty if they are not rescaled.
    """

    pixels: NDArray[Any]
    valid: NDArray[np.bool_]
    rescalings: list[Rescaling]

    def copy(self, crop: int, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Copy one crop into a batch."""
        image[:] = self.pixels[crop]
        if self.rescalings:
            self.rescalings[crop].apply(image)
        valid[:] = self.valid[crop]


class _Cutter:
    """Cuts the crops of a turn. What it remembers follows from the rasters alone, whichever thread found it out and when."""

    def __init__(
        self,
        scenes: Scenes,
        handles: Handles,
        crop_px: int,
        seed: int,
        mean: NDArray[Any],
        scene_std: NDArray[Any] | None,
    ) -> None:
        self._scenes, self._handles, self._crop_px, self._seed = scenes, handles, crop_px, seed
        self._mean, self._scene_std = mean, scene_std
        self._ends = np.cumsum([height * width for height, width in scenes.shapes])
        self._least_valid = int(_LEAST_VALID * crop_px**2)
        self._rescalings: dict[int, Rescaling] = {}
        self._data_cells: dict[int, Valid | None] = {}
        self._empty: set[tuple[int, Window]] = set()

    def cut(self, place: tuple[int, int]) -> _Turn:
        """The crops of one turn: position and number of the turn."""
        rng = np.random.default_rng((self._seed, *place, _STREAM))
        shape = (CROPS_PER_TURN, len(self._scenes.bands), self._crop_px, self._crop_px)
        turn = _Turn(np.empty(shape, self._scenes.dtype), np.empty((shape[0], *shape[2:]), np.bool_), [])
        filled, tries = 0, 0
        while filled < CROPS_PER_TURN:
            index, window = self._draw(rng)
            part = self._read(index, window)
            taken = self._take(rng, index, *part, turn, filled) if part else 0
            filled += taken
            tries = 0 if taken else tries + 1
            if tries == _TRIES:
                raise RasterError(
                    f"no crop of {self._crop_px} px with {100 * _LEAST_VALID:.0f} % data was found in {tries} places of "
                    f"{len(self._scenes.paths)} rasters; use a smaller crop_px or rasters with less nodata"
                )
        return turn

    def _take(self, rng: np.random.Generator, index: int, pixels: Pixels, valid: Valid, turn: _Turn, filled: int) -> int:
        """Cut random crops with enough data from a super-block into a turn that has ``filled`` already; returns how many."""
        places: list[tuple[slice, slice]] = []
        for _ in range(_ROUNDS):
            rows, cols = (rng.integers(size - self._crop_px + 1, size=CROPS_PER_TURN).tolist() for size in valid.shape)
            drawn = [Window(*corner, self._crop_px, self._crop_px).slices for corner in zip(rows, cols, strict=True)]
            places += [place for place in drawn if np.count_nonzero(valid[place]) >= self._least_valid]
            if len(places) >= _LEAST_TAKEN:
                break
        places = places[: CROPS_PER_TURN - filled]
        for crop, place in enumerate(places, start=filled):
            turn.pixels[crop], turn.valid[crop] = pixels[:, *place], valid[place]
        if self._scene_std is not None and places:
            turn.rescalings.extend([self._rescaling(index, self._scene_std)] * len(places))
        return len(places)

    def _read(self, index: int, window: Window) -> tuple[Pixels, Valid] | None:
        """A super-block; None if too little of it is data, which is remembered, so that it is not decoded again."""
        if (index, window) in self._empty:
            return None
        pixels, valid = self._scenes.read(self._handles, index, window)
        if np.count_nonzero(valid) >= self._least_valid:
            return pixels, valid
        if len(self._empty) < _MOST_EMPTY:
            self._empty.add((index, window))
        return None

    def _draw(self, rng: np.random.Generator) -> tuple[int, Window]:
        """A random super-block, as far as one knows with data; each part of all rasters is equally likely."""
        while True:
            index = int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))
            shape, blocks = self._scenes.shapes[index], self._scenes.block_shapes[index]
            lengths = self._scenes.superblock_shape(index, self._crop_px)
            row, col = (_random_start(rng, *axis) for axis in zip(shape, lengths, blocks, strict=True))
            window = Window(row, col, *lengths)
            if self._may_have_data(index, window):
                return index, window

    def _may_have_data(self, index: int, window: Window) -> bool:
        """Whether an overview of the raster shows data in ``window``, or cannot tell."""
        if index not in self._data_cells:
            try:
                self._data_cells[index] = self._handles[index].find_data()
            except RasterError as error:
                self._scenes.skip(self._scenes.paths[index], str(error))
                self._data_cells[index] = None
        cells = self._data_cells[index]
        if cells is None or not cells.any():
            return True
        (top, bottom), (left, right) = (
            (start * number // size, -(-(start + length) * number // size))
            for start, length, number, size in zip(
                window[:2], window[2:], cells.shape, self._scenes.shapes[index], strict=True
            )
        )
        return bool(cells[top:bottom, left:right].any())

    def _rescaling(self, index: int, std: NDArray[Any]) -> Rescaling:
        if index not in self._rescalings:
            read = partial(self._scenes.read, self._handles, index)
            self._rescalings[index] = match_scene(read, *self._scenes.shapes[index], mean=self._mean, std=std)
        return self._rescalings[index]


def _random_start(rng: np.random.Generator, size: int, length: int, block: int) -> int:
    """Start of a span of ``length`` px on the blocks of a file, or at its end, each part of ``size`` equally likely."""
    # Drawing from a range that overshoots both ends, and clipping, reaches the corners as often as the middle.
    start = int(rng.integers(-length // 2, size - length // 2))
    block = block if block <= length else 1
    return min(max(round(start / block) * block, 0), size - length)
