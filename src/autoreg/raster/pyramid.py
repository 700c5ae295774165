"""The overviews of a map, made while its blocks come in."""

from collections import defaultdict
from typing import IO

from autoreg.raster.cog import BLOCK_PX, Block, Level, compress
from autoreg.raster.waiting import Place, WaitingBlocks


class Pyramid:
    """A map and its overviews, each half of the one before, until one fits into a block. Use it from one thread at a time.

    Overviews hold every second pixel of every second row: an average of two labels would be a third one. They are made while
    blocks come in, from what is at hand, so nothing is left to do in the end. A block of an overview waits for its parts.

    Attributes:
        levels: the full resolution, whose blocks are kept by others, and the overviews.
    """

    def __init__(self, number: int, full: Level, file: IO[bytes], waiting: WaitingBlocks) -> None:
        """Begin with no blocks.

        Args:
            number: of the map.
            full: the full resolution.
            file: where the blocks of the overviews go.
            waiting: where they are until they are whole.
        """
        self.levels = [full]
        # GDAL tells the factor of an overview from its width, so those of one column would be of no factor.
        while self.levels[-1].width > 1 and max(self.levels[-1].height, self.levels[-1].width) > BLOCK_PX:
            level = self.levels[-1]
            self.levels.append(Level(-(-level.height // 2), -(-level.width // 2), level.bands, file))
        self._number, self._waiting = number, waiting
        self._arrived: defaultdict[Place, int] = defaultdict(int)

    def add(self, row: int, col: int, block: Block | None) -> None:
        """Take a block of the full resolution into the overviews; None if it is nodata."""
        for index, level in enumerate(self.levels[1:], start=1):
            place = Place(self._number, index, row // 2, col // 2)
            half = self._waiting.take(place, level.bands)
            if block is not None:
                side = BLOCK_PX // 2
                down, right = row % 2 * side, col % 2 * side
                half[down : down + side, right : right + side] = block[::2, ::2]
            self._arrived[place] += 1
            if self._arrived[place] < self._parts(place):
                self._waiting.put(place, half)
                return
            del self._arrived[place]
            content = compress(half)
            level.put(place.row, place.col, content)
            row, col, block = place.row, place.col, None if content is None else half

    def _parts(self, place: Place) -> int:
        """Of how many blocks of the level before a block is made: 4, but at the right and at the bottom."""
        rows, cols = map(int, self.levels[place.level - 1].sizes.shape)
        return min(rows - 2 * place.row, 2) * min(cols - 2 * place.col, 2)
