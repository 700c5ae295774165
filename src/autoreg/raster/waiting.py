"""Blocks of maps of which pixels are missing, in bounded memory.

A map is labelled in an order in which the parts of a block come soon after each other, unless its raster stores whole rows:
then a row of tiles begins as many blocks as the raster is wide. So only the blocks that were touched last are in memory, and
the others compressed in a file, from where they come back when further pixels do.
"""

import os
from typing import IO, NamedTuple

import numpy as np

from autoreg.raster.cog import BLOCK_PX, Block, compress, expand
from autoreg.spec import NODATA_LABEL

WAITING_BLOCKS = 13
"""In memory, of each band: those along a strip of tiles as wide as most, and of its overviews."""


class Place(NamedTuple):
    """Where a block is.

    Attributes:
        number: of the map.
        level: 0 for the full resolution, 1 for the first overview.
        row, col: counted in blocks.
    """

    number: int
    level: int
    row: int
    col: int


class WaitingBlocks:
    """Blocks by their place. Use it from one thread at a time."""

    def __init__(self, file: IO[bytes], bands: int) -> None:
        """Begin with no blocks.

        Args:
            file: where those go that do not stay in memory; at its end.
            bands: of all maps together, whose blocks may be of different maps.
        """
        self._file = file
        self._room = WAITING_BLOCKS * bands * BLOCK_PX**2
        self._here: dict[Place, Block] = {}  # the one that was touched last is the last
        self._away: dict[Place, tuple[int, int]] = {}

    def take(self, place: Place, bands: int) -> Block:
        """Take a block out, to write into it; one that was not there is nodata.

        Raises:
            OSError: it cannot be read.
        """
        if place in self._here:
            self._room += self._here[place].nbytes
            return self._here.pop(place)
        start, size = self._away.pop(place, (0, 0))
        if size == 0:
            return np.full((BLOCK_PX, BLOCK_PX, bands), NODATA_LABEL, np.uint8)
        self._file.seek(start)
        return expand(self._file.read(size), bands).copy()

    def put(self, place: Place, block: Block) -> None:
        """Let a block wait; those that have waited longest may make room for it.

        Raises:
            OSError: there is no space for them.
        """
        self._here[place] = block
        self._room -= block.nbytes
        while self._room < 0:
            oldest = next(iter(self._here))
            content = compress(self._here[oldest]) or b""
            self._away[oldest] = self._file.seek(0, os.SEEK_END), len(content)
            self._file.write(content)
            self._room += self._here.pop(oldest).nbytes
