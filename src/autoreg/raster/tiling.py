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
The cores of the tiles are the cells of a plain grid, so each pixel is written exactly once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from autoreg.errors import ConfigError
from autoreg.raster.window import Window

CORE_PX = 512
"""Side of what a tile writes by default: one block of a map."""


_STRIP_PX = 4096
"""Least width of a strip."""


class Tile(NamedTuple):
    """One tile of a raster.

    Attributes:
        window: the pixels that the engine sees; starts on the stride grid; may reach past the raster by less than a stride.
        core: the pixels that the tile writes; inside ``window`` and inside the raster.
    """

    window: Window
    core: Window


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Tiling:
    """A plan that covers a raster with tiles of one shape. Iterating yields the tiles by strips, and there by rows.

    Attributes:
        height, width: size of the raster in pixels.
        core_px: side of a core; a multiple of ``stride``.
        halo_px: what a tile sees around its core; a multiple of ``stride``, at least the receptive field's radius.
        stride: pixels per cell of the network's feature map.
        strip_px: width of a strip; a multiple of ``core_px``.
    """

    height: int
    width: int
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
        tile_px = self.core_px + 2 * self.halo_px
        return (
            min(tile_px, round_up(self.height, self.stride)),
            min(tile_px, round_up(self.width, self.stride)),
        )

    def __len__(self) -> int:
        return -(-self.height // self.core_px) * -(-self.width // self.core_px)

    def __iter__(self) -> Iterator[Tile]:
        tile_height, tile_width = self.tile_shape
        for left in range(0, self.width, self.strip_px):
            for row in range(0, self.height, self.core_px):
                for col in range(left, min(left + self.strip_px, self.width), self.core_px):
                    window = Window(
                        self._origin(row, self.height, tile_height),
                        self._origin(col, self.width, tile_width),
                        tile_height,
                        tile_width,
                    )
                    core = Window(row, col, self.core_px, self.core_px).clipped(self.height, self.width)
                    yield Tile(window, core)

    def _origin(self, core_start: int, size: int, tile_size: int) -> int:
        """First pixel of a tile along one axis: a halo before its core, moved so that the tile stays in the raster."""
        last = round_up(size, self.stride) - tile_size
        return min(max(core_start - self.halo_px, 0), last)


def plan_tiles(
    height: int, width: int, *, tile_px: int | None, receptive_field_px: int, stride: int, by_rows: bool = False
) -> Tiling:
    """Plan exact tiles of at most ``tile_px`` pixels a side.

    Args:
        height: of the raster, in pixels.
        width: of the raster, in pixels.
        tile_px: side of the tile that the engine sees, halo included; if None, one whose core is ``CORE_PX``.
        receptive_field_px: side of the square of pixels that one label depends on (odd).
        stride: pixels per cell of the network's feature map.
        by_rows: whether a strip is as wide as the raster.

    Raises:
        ConfigError: ``tile_px`` leaves no core between the halos.
    """
    halo_px = round_up(receptive_field_px // 2, stride)
    core_px = round_up(CORE_PX, stride) if tile_px is None else (tile_px - 2 * halo_px) // stride * stride
    if core_px < stride:
        raise ConfigError(
            f"a tile of {tile_px} px leaves no core between two halos of {halo_px} px; "
            f"use at least {2 * halo_px + stride} px"
        )
    strip_px = round_up(width if by_rows else _STRIP_PX, core_px)
    return Tiling(height, width, core_px, halo_px, stride, strip_px)
