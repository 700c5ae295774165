"""Scenes: the rasters of a training, what of them can be used, and the statistics that normalise them."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import DamagedRasterError, RasterError
from autoreg.raster.background import in_background
from autoreg.raster.handles import Handles
from autoreg.raster.reader import Pixels, RasterReader, Valid
from autoreg.raster.statistics import Moments
from autoreg.raster.tiling import round_up
from autoreg.raster.window import Window

SUPERBLOCK_PX = 1024
"""Side of what is read at once; several crops are cut from it, because decoding blocks costs more than cutting."""

THREADS = 4
"""That read rasters; more than a small machine has cores, because some wait for a disk or a server."""

_OPENING_THREADS = 8
_STATISTICS_SUPERBLOCKS = 256
_log = logging.getLogger("autoreg")


@dataclass(frozen=True)
class Scenes:
    """The rasters to train on; all have the same bands and type.

    Attributes:
        paths: of the rasters.
        shapes: height and width of each, in pixels.
        block_shapes: height and width of the blocks in which each is stored.
        bands: names of the bands, from the first raster.
        dtype: of the pixels.
        skipped: rasters that were left out so far, or parts of which were: path and reason.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    block_shapes: tuple[tuple[int, int], ...]
    bands: tuple[str, ...]
    dtype: str
    skipped: dict[str, str] = field(default_factory=dict, compare=False)

    def open(self, index: int) -> RasterReader:
        """Open one of the rasters."""
        return RasterReader(self.paths[index], bands=len(self.bands))

    def read(self, handles: Handles, index: int, window: Window) -> tuple[Pixels, Valid]:
        """Read a window of one of the rasters. If that cannot be done, it counts as skipped, and there are no pixels."""
        try:
            return handles[index].read(window)
        except RasterError as error:
            self.skip(self.paths[index], str(error))
            return np.empty((len(self.bands), 0, 0), self.dtype), np.empty((0, 0), np.bool_)

    def skip(self, path: str, reason: str) -> None:
        """Count a raster as skipped, and warn of it the first time. Threads may do so at once."""
        if self.skipped.setdefault(path, reason) is reason:
            _log.warning("skipped: %s", reason)

    def report_skipped(self) -> None:
        """Warn of how many rasters were skipped, if any were."""
        if self.skipped:
            first, *others = self.skipped
            more = f" and {len(others)} more" if others else ""
            _log.warning("%d rasters were skipped, or damaged parts of them: %s%s", len(self.skipped), first, more)

    def superblock_shape(self, index: int, least_px: int = 1) -> tuple[int, int]:
        """Height and width of what is worth reading at once from a raster: whole blocks of it, about a megapixel.

        Where a raster is stored in strips as wide as itself, a flat piece, because whole strips are decoded for it.

        Args:
            index: of the raster.
            least_px: that each side must have.
        """
        block_height, block_width = self.block_shapes[index]
        height = width = SUPERBLOCK_PX
        if block_width > SUPERBLOCK_PX >= 2 * block_height:
            height, width = SUPERBLOCK_PX // 4, 4 * SUPERBLOCK_PX
        rows, cols = self.shapes[index]
        return _whole_blocks(max(height, least_px), block_height, rows), _whole_blocks(
            max(width, least_px), block_width, cols
        )


def _whole_blocks(length: int, block: int, size: int) -> int:
    """``length`` rounded up to whole blocks, unless one of them is longer, and at most ``size``."""
    return min(round_up(length, block) if block <= length else length, size)


def open_scenes(paths: Sequence[str | Path], *, crop_px: int) -> Scenes:
    """Look at every raster and make sure that they fit together.

    A raster that GDAL cannot open, or that is smaller than a crop, is skipped with a warning: of thousands some always are.
    Another type or number of bands is an error: it says that other files were meant.

    Args:
        paths: files, or whatever else GDAL opens.
        crop_px: side of a crop.

    Raises:
        RasterError: a file does not exist or has other bands or another type than the first, or no raster can be used.
    """
    if not paths:
        raise RasterError("no rasters were given, expected at least one")
    names = [str(path) for path in paths]
    looks: list[_Look] = []
    remaining = iter(names)
    with ThreadPoolExecutor(_OPENING_THREADS, thread_name_prefix="autoreg-open") as pool:
        for name in remaining:
            looks.append(_look(name, crop_px))
            if not looks[-1].problem:  # its bands decide what a band tagged as alpha is in the others
                looks.extend(pool.map(partial(_look, crop_px=crop_px, bands=len(looks[-1].bands)), remaining))
    usable = [look for look in looks if not look.problem]
    if not usable:
        problem = looks[0].problem
        raise RasterError(problem if len(names) == 1 else f"none of the {len(names)} rasters can be used; {problem}")
    first = usable[0]
    for look in usable:
        if len(look.bands) != len(first.bands):
            raise RasterError(
                f"{look.path} has {len(look.bands)} bands, but {first.path} has {len(first.bands)}; "
                f"train on rasters of one kind"
            )
        if look.dtype != first.dtype:
            raise RasterError(
                f"{look.path} has pixels of type {look.dtype}, but {first.path} has {first.dtype}; "
                f"train on rasters of one kind"
            )
    scenes = Scenes(
        paths=tuple(look.path for look in usable),
        shapes=tuple(look.shape for look in usable),
        block_shapes=tuple(look.block_shape for look in usable),
        bands=first.bands,
        dtype=first.dtype,
    )
    for look in looks:
        if look.problem:
            scenes.skip(look.path, look.problem)
    return scenes


class _Look(NamedTuple):
    """What opening a raster shows of it; ``problem`` says why it has to be skipped, if it has to."""

    path: str
    shape: tuple[int, int] = (0, 0)
    block_shape: tuple[int, int] = (0, 0)
    bands: tuple[str, ...] = ()
    dtype: str = ""
    problem: str = ""


def _look(path: str, crop_px: int, bands: int | None = None) -> _Look:
    try:
        with RasterReader(path, bands=bands) as raster:
            height, width = raster.height, raster.width
            small = f"{path} has {height} x {width} px, which is smaller than a crop of {crop_px} px; use a smaller crop_px"
            problem = small if min(height, width) < crop_px else ""
            return _Look(path, (height, width), raster.block_shape, raster.bands, raster.dtype, problem)
    except DamagedRasterError as error:
        return _Look(path, problem=str(error))


def estimate_normalisation(scenes: Scenes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each band over the pixels that are data; never zero, and no raster is held.

    Reads every super-block, or an even sample of 256 where there are more, and merges their moments. Damaged ones are
    skipped.

    Raises:
        RasterError: none has any data.
    """
    bands = len(scenes.bands)
    with Handles(scenes.open) as handles:

        def measure(place: tuple[int, Window]) -> Moments:
            return Moments.of(*scenes.read(handles, *place))

        with closing(in_background(measure, _even_superblocks(scenes), depth=2 * THREADS, threads=THREADS)) as measured:
            moments = sum((found for _, found in measured), start=Moments.none(bands))
    if moments.count == 0:
        damage = next(iter(scenes.skipped.values()), "expected imagery")
        raise RasterError(f"none of the {len(scenes.paths)} rasters has a pixel with data; {damage}")
    return moments.mean, moments.std


def _even_superblocks(scenes: Scenes) -> Iterator[tuple[int, Window]]:
    """Raster and window of every super-block, or of an even sample."""
    sides = [scenes.superblock_shape(index) for index in range(len(scenes.paths))]
    columns = [-(-shape[1] // side[1]) for shape, side in zip(scenes.shapes, sides, strict=True)]
    counts = [-(-shape[0] // side[0]) * cols for shape, side, cols in zip(scenes.shapes, sides, columns, strict=True)]
    ends = np.cumsum(counts)
    wanted = min(int(ends[-1]), _STATISTICS_SUPERBLOCKS)
    for number in range(wanted):
        position = number * int(ends[-1]) // wanted
        index = int(np.searchsorted(ends, position, side="right"))
        row, col = divmod(position - int(ends[index]) + counts[index], columns[index])
        height, width = sides[index]
        yield index, Window(row * height, col * width, height, width).clipped(*scenes.shapes[index])
