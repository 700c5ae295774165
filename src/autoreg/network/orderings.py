"""Scan orders of an image, defined by geometry.

An ordering is a total order of the pixels (paper, section 3.1). A pixel may look at itself and at the pixels that the scan
visited before it. Every mask in autoreg, of kernels and of attention, is derived from one function, ``Ordering.rank``.
Terms: the *axis* is the one along which the scan moves first, and ``down`` and ``right`` give its direction along rows and
columns.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from autoreg.errors import ConfigError

Kind = Literal["raster", "zigzag"]
Masking = Literal["shifted", "relaxed", "standard"]

MASKINGS: tuple[Masking, ...] = ("shifted", "relaxed", "standard")
"""Fig. 3 (c), (b) and (a): how a convolution is kept from looking ahead. ``standard`` leaves the current pixel out too."""


@dataclass(frozen=True)
class Ordering:
    """One of the sixteen scan orders: eight raster scans (paper, Fig. 2) and eight zigzags (Fig. 4).

    Attributes:
        axis: ``"row"`` scans row by row, ``"col"`` column by column. A zigzag visits the anti-diagonals one after the other,
            each in the direction of the rows (``"row"``) or of the columns: not back and forth, because only then is the
            raster scan's kernel causal for the zigzag of the same directions.
        down: rows are visited from top to bottom; else from bottom to top.
        right: columns are visited from left to right; else from right to left.
        kind: ``"raster"`` or ``"zigzag"``.
    """

    axis: Literal["row", "col"]
    down: bool
    right: bool
    kind: Kind = "raster"

    def rank(self, height: int, width: int) -> Tensor:
        """When each pixel is visited: int64 (height, width), a permutation of 0 .. height * width - 1."""
        rows = (torch.arange(height) if self.down else torch.arange(height - 1, -1, -1))[:, None]
        cols = (torch.arange(width) if self.right else torch.arange(width - 1, -1, -1))[None, :]
        if self.kind == "raster":
            return rows * width + cols if self.axis == "row" else cols * height + rows
        place = (rows + cols) * max(height, width) + (rows if self.axis == "row" else cols)
        return place.flatten().argsort().argsort().reshape(height, width)

    @property
    def reverse(self) -> "Ordering":
        """The ordering that visits the pixels from the last to the first: the two share no pixel but the current one."""
        return replace(self, down=not self.down, right=not self.right)

    @property
    def twin(self) -> "Ordering":
        """The other ordering that visits the same lines (rows, columns or diagonals) in the same sequence.

        It shares all earlier lines with this ordering, and with this one's reverse no more than the current line.
        """
        if self.kind == "zigzag":
            return replace(self, axis="col" if self.axis == "row" else "row")
        return replace(self, right=not self.right) if self.axis == "row" else replace(self, down=not self.down)

    def padding(self, kernel_size: int, masking: Masking = "shifted") -> tuple[int, int, int, int]:
        """Zeros to add (left, right, top, bottom) so that the kernel covers the current pixel and past ones.

        The shifted convolution of Fig. 3 (c): along the axis the kernel looks back by twice its radius; across it, it stays
        centred. The padding is asymmetric and nothing is cropped: with the crop of the paper's footnote the last rows
        could not see their own pixel. The other two kinds of masking leave the kernel centred.
        """
        radius = kernel_size // 2
        if masking != "shifted":
            return (radius, radius, radius, radius)
        if self.axis == "row":
            return (radius, radius, 2 * radius, 0) if self.down else (radius, radius, 0, 2 * radius)
        return (2 * radius, 0, radius, radius) if self.right else (0, 2 * radius, radius, radius)

    def kernel_mask(self, kernel_size: int, masking: Masking = "shifted") -> Tensor:
        """Taps of the kernel that may be used: bool (kernel_size, kernel_size).

        Of a raster scan's shifted kernel floor(kernel_size / 2) are False, of a relaxed one floor(kernel_size^2 / 2).
        """
        left, _, top, _ = self.padding(kernel_size, masking)
        reach = 2 * kernel_size  # a grid that holds the kernel wherever it lies around the centre
        rank = self.rank(2 * reach + 1, 2 * reach + 1)
        taps = rank[reach - top : reach - top + kernel_size, reach - left : reach - left + kernel_size]
        now = rank[reach, reach]
        return taps < now if masking == "standard" else taps <= now

    def anchor(self, stride: int) -> tuple[int, int]:
        """Row and column, 0 .. stride - 1, of the pixel that this scan visits first in a block of ``stride`` x ``stride``.

        A strided convolution has to be taken there: elsewhere a block would depend on pixels of blocks visited later.
        """
        return (0 if self.down else stride - 1, 0 if self.right else stride - 1)

    def __str__(self) -> str:
        name = f"{self.axis}-{'down' if self.down else 'up'}-{'right' if self.right else 'left'}"
        return name if self.kind == "raster" else f"zigzag-{name}"


RASTER_ORDERINGS: tuple[Ordering, ...] = (
    Ordering("row", down=True, right=True),  # o1
    Ordering("col", down=True, right=True),  # o2
    Ordering("row", down=True, right=False),  # o3
    Ordering("col", down=True, right=False),  # o4
    Ordering("col", down=False, right=True),  # o5
    Ordering("row", down=False, right=True),  # o6
    Ordering("row", down=False, right=False),  # o7
    Ordering("col", down=False, right=False),  # o8
)
"""o1 .. o8. The paper's text pins o1 and o2; the other numbers are a reading of Fig. 2, and nothing depends on them."""

ZIGZAG_ORDERINGS: tuple[Ordering, ...] = tuple(replace(ordering, kind="zigzag") for ordering in RASTER_ORDERINGS)
"""o9 .. o16: o(8 + k) has the directions of o(k)."""

ORDERINGS: tuple[Ordering, ...] = RASTER_ORDERINGS + ZIGZAG_ORDERINGS

Orderings = Ordering | None | Sequence[Ordering | None]
"""Under what a batch is seen: one ordering, or None, for all of it, or one for each of as many equal groups of images."""

_BY_NAME: dict[str, tuple[Ordering, ...]] = {
    "raster": RASTER_ORDERINGS,
    "zigzag": ZIGZAG_ORDERINGS,
    **{str(ordering): (ordering,) for ordering in ORDERINGS},
    **{f"o{number}": (ordering,) for number, ordering in enumerate(ORDERINGS, start=1)},
}


def find_orderings(names: Iterable[str]) -> tuple[Ordering, ...]:
    """The orderings that ``names`` stand for, each once.

    Args:
        names: ``raster`` and ``zigzag`` (eight each), single ones such as ``row-down-right`` or ``zigzag-col-up-left``, or
            their numbers ``o1`` to ``o16``.

    Raises:
        ConfigError: a name is unknown.
    """
    found: dict[Ordering, None] = {}
    for name in names:
        if name not in _BY_NAME:
            raise ConfigError(
                f"there is no ordering {name!r}, expected raster, zigzag, o1 to o16, "
                f"or a name like {ORDERINGS[0]} or {ORDERINGS[-1]}"
            )
        found |= dict.fromkeys(_BY_NAME[name])
    return tuple(found)


@functools.lru_cache(maxsize=64)
def scan(ordering: Ordering, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pixels in the order of their visit, and each pixel's rank: two int64 (height * width), each other's inverse."""
    rank = ordering.rank(height, width).flatten()
    return rank.argsort().to(device), rank.to(device)


def by_group(look: Callable[..., Tensor], orderings: Orderings, *batches: Tensor) -> Tensor:
    """Look at each group of images under its ordering.

    What knows orderings goes through here; all else works on the whole batch at once, whatever its orderings.

    Args:
        look: from some images of each of ``batches``, and an ordering or None, to one result per image, (n, ...).
        orderings: of the groups, which lie one after the other; neighbours with the same one are looked at together.
        batches: (N, ...) each; N is a multiple of the number of groups.

    Returns:
        (N, ...).
    """
    if orderings is None or isinstance(orderings, Ordering):
        return look(*batches, orderings)
    runs = [(ordering, len(list(run))) for ordering, run in itertools.groupby(orderings)]
    if len(runs) == 1:
        return look(*batches, runs[0][0])
    sizes = [batches[0].shape[0] // len(orderings) * groups for _, groups in runs]
    parts = zip(*(torch.split(batch, sizes) for batch in batches), strict=True)
    return torch.cat([look(*part, ordering) for part, (ordering, _) in zip(parts, runs, strict=True)])
