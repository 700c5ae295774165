"""Scan orders of an image, defined by geometry.

An ordering is a total order of the pixels (paper, section 3.1). A pixel may look at itself and at the pixels that the scan
visited before it. Every mask in autoreg is derived from one function, ``Ordering.rank``. Terms: the *axis* is the one
along which the scan moves first, and ``down`` and ``right`` give its direction along rows and columns.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ordering:
    """One of the eight raster scan orders (paper, Fig. 2).

    Attributes:
        axis: ``"row"`` scans row by row, ``"col"`` column by column.
        down: rows are visited from top to bottom; else from bottom to top.
        right: columns are visited from left to right; else from right to left.
    """

    axis: Literal["row", "col"]
    down: bool
    right: bool

    def rank(self, height: int, width: int) -> Tensor:
        """When each pixel is visited: int64 (height, width), a permutation of 0 .. height * width - 1."""
        rows = torch.arange(height) if self.down else torch.arange(height - 1, -1, -1)
        cols = torch.arange(width) if self.right else torch.arange(width - 1, -1, -1)
        if self.axis == "row":
            return rows[:, None] * width + cols[None, :]
        return cols[None, :] * height + rows[:, None]

    @property
    def reverse(self) -> "Ordering":
        """The ordering that visits the pixels from the last to the first: the two share no pixel but the current one."""
        return Ordering(self.axis, not self.down, not self.right)

    def padding(self, kernel_size: int) -> tuple[int, int, int, int]:
        """Zeros to add (left, right, top, bottom) so that the kernel covers the current pixel and the past ones.

        The shifted convolution of Fig. 3: along the axis the kernel looks back by twice its radius; across it, it stays
        centred. The padding is asymmetric and nothing is cropped: with the crop of the paper's footnote the last rows
        could not see their own pixel.
        """
        radius = kernel_size // 2
        if self.axis == "row":
            return (radius, radius, 2 * radius, 0) if self.down else (radius, radius, 0, 2 * radius)
        return (2 * radius, 0, radius, radius) if self.right else (0, 2 * radius, radius, radius)

    def kernel_mask(self, kernel_size: int) -> Tensor:
        """Taps of the shifted kernel that may be used: bool (kernel_size, kernel_size), floor(kernel_size / 2) are False."""
        left, _, top, _ = self.padding(kernel_size)
        reach = 2 * kernel_size  # a grid that holds the kernel wherever it lies around the centre
        rank = self.rank(2 * reach + 1, 2 * reach + 1)
        taps = rank[reach - top : reach - top + kernel_size, reach - left : reach - left + kernel_size]
        return taps <= rank[reach, reach]

    def __str__(self) -> str:
        return f"{self.axis}-{'down' if self.down else 'up'}-{'right' if self.right else 'left'}"


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
