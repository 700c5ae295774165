"""Blending: how a raster is cut for a network that looks at its whole tile, as one with attention does.

There is no exact tiling then (``raster/tiling.py``): no halo is wide enough. So tiles overlap by half, and each pixel's
probabilities are a mean over the tiles that cover it, in which a tile weighs most at its centre and least at its border. The
labels still depend on the tiling, but the weights change nowhere abruptly.

Tiles start on the stride grid, and the last of a row or column is moved inwards, so all tiles of a raster have one shape.
The raster is extended to a multiple of the stride, as in exact tiling; one that is smaller than a tile is one tile.

Overhead: half a tile from the raster's edge, every pixel is seen by 4 tiles, so a large raster costs 4 times one pass over
its pixels. Memory does not depend on the raster's size: it is labelled in strips, from top to bottom, and a tile is
forgotten when the strip has passed it. Only the tiles that reach from one strip into the next are run for both: at most 2 in
``_STRIP_STEPS`` (6 %), none in a raster that is no wider than a strip. A part of a raster has the tiles of the whole.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import ConfigError
from autoreg.raster.tiling import CORE_PX, Area, round_up
from autoreg.raster.window import Window

_STRIP_STEPS = 32
"""Least width of a strip, in steps from tile to tile."""


@dataclass(frozen=True)
class Blending:
    """A plan that covers a raster, or a part of it, with overlapping tiles of one shape. Iterating yields areas.

    The cores are the parts of a plain grid, strip by strip, each from top to bottom; the tiles of an area are all that reach
    into its core, so most of them are those of the area before it, too.

    Attributes:
        height, width: size of the raster in pixels.
        region: the part to label. Cores are the cells of a grid that begins where it does.
        tile_px: side of a tile; a multiple of ``stride``.
        stride: pixels per cell of the network's feature map.
    """

    height: int
    width: int
    region: Window
    tile_px: int
    stride: int

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Height and width of every tile: ``tile_px``, or the extended raster where that is smaller."""
        return (
            min(self.tile_px, round_up(self.height, self.stride)),
            min(self.tile_px, round_up(self.width, self.stride)),
        )

    @property
    def step_px(self) -> int:
        """From one tile to the next: half a tile, rounded down to the stride."""
        return max(self.tile_px // 2 // self.stride, 1) * self.stride

    @property
    def strip_px(self) -> int:
        """Width of a strip, in pixels."""
        return round_up(_STRIP_STEPS * self.step_px, round_up(CORE_PX, self.stride))

    def __iter__(self) -> Iterator[Area]:
        core_px = round_up(CORE_PX, self.stride)
        tile_height, tile_width = self.tile_shape
        for strip in self.region.cut(self.region.height, self.strip_px):
            cols = self._starts(self.width, tile_width, strip.col, strip.right)
            for core in strip.cut(core_px, self.strip_px):
                rows = self._starts(self.height, tile_height, core.row, core.bottom)
                yield Area(core, tuple(Window(row, col, tile_height, tile_width) for row in rows for col in cols))

    def _starts(self, size: int, tile_size: int, start: int, end: int) -> list[int]:
        """Where the tiles begin, along one axis of ``size`` pixels, that reach into ``start`` .. ``end``."""
        last = round_up(size, self.stride) - tile_size
        regular = range(round_up(max(start - tile_size + 1, 0), self.step_px), min(end, last), self.step_px)
        return [*regular, last] if start - tile_size < last < end else [*regular]


def plan_blending(height: int, width: int, *, tile_px: int, stride: int, region: Window | None = None) -> Blending:
    """Plan overlapping tiles of at most ``tile_px`` pixels a side.

    Args:
        height: of the raster, in pixels.
        width: of the raster, in pixels.
        tile_px: side of a tile; rounded down to the stride.
        stride: pixels per cell of the network's feature map.
        region: the part to label; all of it if None.

    Raises:
        ConfigError: ``tile_px`` is smaller than the stride.
    """
    if tile_px < stride:
        raise ConfigError(f"a tile of {tile_px} px is smaller than the model's stride; use at least {stride} px")
    return Blending(height, width, region or Window(0, 0, height, width), tile_px // stride * stride, stride)


def cells(core: Window, tiles: Collection[Window]) -> Iterator[tuple[Window, list[Window]]]:
    """Cut ``core`` where a tile begins or ends: yield each piece and the tiles that cover it, which cover all of it.

    The order of the covering tiles is that of ``tiles``.
    """
    rows = _cuts(core.row, core.bottom, [edge for tile in tiles for edge in (tile.row, tile.bottom)])
    cols = _cuts(core.col, core.right, [edge for tile in tiles for edge in (tile.col, tile.right)])
    for top, bottom in pairwise(rows):
        beside = [tile for tile in tiles if tile.row <= top and bottom <= tile.bottom]
        for left, right in pairwise(cols):
            covering = [tile for tile in beside if tile.col <= left and right <= tile.right]
            yield Window(top, left, bottom - top, right - left), covering


def _cuts(start: int, end: int, edges: list[int]) -> list[int]:
    return sorted({start, end, *(edge for edge in edges if start < edge < end)})


def weights(tile: Window, part: Window) -> NDArray[np.float32]:
    """Weight of ``tile`` at the pixels of ``part``, which lies inside it; not normalised.

    Returns:
        (part.height, part.width), positive: along each axis the distance in pixels from the tile's border, so it falls
        linearly from the centre to half a pixel; the two distances are multiplied.
    """
    row, col, height, width = part.within(tile)
    return np.outer(_triangle(tile.height, row, height), _triangle(tile.width, col, width))


def _triangle(size: int, start: int, count: int) -> NDArray[np.float32]:
    centres = np.arange(start, start + count, dtype=np.float32) + np.float32(0.5)
    return np.asarray(np.minimum(centres, size - centres), np.float32)
