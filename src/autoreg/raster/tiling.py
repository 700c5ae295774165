"""Exact tiling: how a raster is cut so that the tiled labels equal those of one pass over the whole raster.

Two things make a convolutional network's answer depend on where a tile lies. A pixel nearer to a cut than the network can
look sees zero padding instead of its neighbours, and a tile that does not start on the stride grid is subsampled at other
places. So every tile carries a halo at least as wide as the receptive field's radius, and every tile starts on a multiple of
the stride. Where the raster really ends, there is no halo: the tile ends with it, and the network's own zero padding falls
where it falls in the whole pass. For that the last tile of a row or column is moved inwards, so all tiles of a raster have
one shape, and an engine never sees another.

Tiles come in strips of columns, each from top to bottom, so that the blocks that a tile shares with those above it are few
enough to be kept: then hardly a block is decoded twice, and memory does not depend on the raster's width. Where a file
stores whole rows, the strip is as wide as the raster.

The whole raster here is the *extended* one: its last row and column are repeated up to the next multiple of the stride.
The cores of the tiles are the cells of a plain grid, so each pixel is written exactly once. A part of a raster, such as one
of several that make a mosaic, is labelled by the same rules, so the labels of the parts are those of the whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from autoreg.errors import ConfigError
from autoreg.raster.window import Window

CORE_PX = 512
"""Side of what a tile writes by default: one block of a map."""


_STRIP_PX = 3072
"""Least width of a strip: blocks at its sides are decoded for two strips, and those of all its width are kept."""


class Area(NamedTuple):
    """A part of a raster that is labelled at once.

    Attributes:
        core: the pixels that are labelled; inside the raster.
        tiles: what the engine has to see for that; may reach past the raster by less than a stride.
    """

    core: Window
    tiles: tuple[Window, ...]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Tiling:
    """A plan that covers a raster, or a part of it, with tiles of one shape. Iterating yields areas of one tile each.

    A tile begins on the stride grid of the raster, wherever the part begins.

    Attributes:
        height, width: size of the raster in pixels.
        region: the part to label.
        core_px: side of a core; a multiple of ``stride``. Cores are the cells of a grid that begins where ``region`` does.
        halo_px: what a tile sees around its core; a multiple of ``stride``, at least the receptive field's radius.
        stride: pixels per cell of the network's feature map.
        strip_px: width of a strip; a multiple of ``core_px``.
    """

    height: int
    width: int
    region: Window
    core_px: int
    halo_px: int
    stride: int
    strip_px: int

    def __post_init__(self) -> None:
        if self.core_px < 1 or self.core_px % self.stride or self.halo_px % self.stride:
            raise ConfigError(
                f"a core of {self.core_px} px with a halo of {self.halo_px} px is off the stride grid: "
                f"both must be multiples of {self.stride}, the core at least {self.stride}"
            )

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Height and width of every tile: core plus two halos, or the extended raster where that is smaller."""
        row, col, height, width = self.region
        return self._tile_size(row, height, self.height), self._tile_size(col, width, self.width)

    def __len__(self) -> int:
        return -(-self.region.height // self.core_px) * -(-self.region.width // self.core_px)

    def __iter__(self) -> Iterator[Area]:
        tile_height, tile_width = self.tile_shape
        for strip in self.region.cut(self.region.height, self.strip_px):
            for core in strip.cut(self.core_px, self.core_px):
                row = self._origin(core.row, self.height, tile_height)
                col = self._origin(core.col, self.width, tile_width)
                yield Area(core, (Window(row, col, tile_height, tile_width),))

    def _tile_size(self, start: int, length: int, size: int) -> int:
        """Side of the tiles along one axis, on which the region has ``length`` pixels and the raster ``size``."""
        off_grid = start % self.stride > 0  # then tiles begin up to a stride before the halo
        tile_px = round_up(min(self.core_px, length), self.stride) + 2 * self.halo_px + off_grid * self.stride
        return min(tile_px, round_up(size, self.stride))

    def _origin(self, core_start: int, size: int, tile_size: int) -> int:
        """First pixel of a tile along one axis: a halo before its core, moved so that the tile stays in the raster."""
        last = round_up(size, self.stride) - tile_size
        return min(max((core_start - self.halo_px) // self.stride * self.stride, 0), last)


def plan_tiles(
    height: int,
    width: int,
    *,
    tile_px: int | None,
    receptive_field_px: int,
    stride: int,
    region: Window | None = None,
    by_rows: bool = False,
) -> Tiling:
    """Plan exact tiles of at most ``tile_px`` pixels a side.

    Args:
        height: of the raster, in pixels.
        width: of the raster, in pixels.
        tile_px: side of the tile that the engine sees, halo included; if None, one whose core is ``CORE_PX``.
        receptive_field_px: side of the square of pixels that one label depends on (odd).
        stride: pixels per cell of the network's feature map.
        region: the part to label; all of it if None. Off the stride grid, its tiles have a stride more.
        by_rows: whether a strip is as wide as the region.

    Raises:
        ConfigError: ``tile_px`` leaves no core between the halos.
    """
    region = region or Window(0, 0, height, width)
    halo_px = round_up(receptive_field_px // 2, stride)
    core_px = round_up(CORE_PX, stride) if tile_px is None else (tile_px - 2 * halo_px) // stride * stride
    if core_px < stride:
        raise ConfigError(
            f"a tile of {tile_px} px leaves no core between two halos of {halo_px} px; "
            f"use at least {2 * halo_px + stride} px"
        )
    strip_px = round_up(region.width if by_rows else _STRIP_PX, core_px)
    return Tiling(height, width, region, core_px, halo_px, stride, strip_px)
