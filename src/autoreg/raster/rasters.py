"""The rasters of one job: opened when they are read, and read across their edges where they fit together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from autoreg.errors import RasterError
from autoreg.raster.handles import Handles
from autoreg.raster.imagery import Imagery
from autoreg.raster.mosaic import Grid, Mosaic, Placed, bounding_grid, find_mosaics, grid_of
from autoreg.raster.reader import Pixels, RasterReader, Valid
from autoreg.raster.window import Window


@dataclass(frozen=True)
class Part:
    """What is to be labelled, in what can be seen of it.

    Attributes:
        name: of it in messages.
        imagery: a raster with all its neighbours, or several rasters as one.
        region: the part of ``imagery`` to label.
        place: a raster of the size and place of the region.
        members: the rasters that make ``imagery``; their windows are places in it.
    """

    name: str
    imagery: Imagery
    region: Window
    place: Imagery
    members: tuple[tuple[str | Path, Window], ...]

    def around(self, reach_px: int | None) -> Window:
        """What is seen of ``imagery`` by labels that depend on pixels at most ``reach_px`` away; None if on all of them."""
        whole = Window(0, 0, self.imagery.height, self.imagery.width)
        if reach_px is None:
            return whole
        row, col, height, width = self.region
        return whole.intersection(Window(row - reach_px, col - reach_px, height + 2 * reach_px, width + 2 * reach_px))

    def members_in(self, window: Window) -> list[tuple[str | Path, Window]]:
        """The rasters that reach into ``window``, and their places relative to the region."""
        return [(path, place.within(self.region)) for path, place in self.members if min(window.intersection(place)[2:]) > 0]


class _Alone:
    """A raster without neighbours, which threads may share: each reads through a handle of its own."""

    def __init__(self, raster: RasterReader, handles: Handles, index: int) -> None:
        self.height, self.width, self.bands, self.dtype = raster.height, raster.width, raster.bands, raster.dtype
        self.block_shape, self.georeference = raster.block_shape, raster.georeference
        self._handles = handles
        self._index = index

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        return self._handles[self._index].read(window)

    def is_empty(self, window: Window) -> bool:
        return self._handles[self._index].is_empty(window)


class Rasters:
    """Rasters by number. Use it as a context manager that ends after the threads which read through it."""

    def __init__(self, paths: Sequence[str | Path], *, bands: int) -> None:
        """Look at ``paths``, which may be thousands: they are opened one after the other, and closed again.

        Those that cannot be opened have no neighbours; who asks for them is told why.

        Args:
            paths: files, or other names that GDAL opens.
            bands: number of data bands that they are to have.
        """
        self.paths = list(paths)
        self._bands = bands
        self._handles = Handles(self._open)
        self._kinds: dict[int, tuple[tuple[str, ...], tuple[int, int]]] = {}
        self._grids = [self._look_at(index) for index in range(len(self.paths))] if len(self.paths) > 1 else [None]
        self._mosaics = find_mosaics(self._grids)
        self._mosaic_of = {member.index: mosaic for mosaic in self._mosaics for member in mosaic}

    def part(self, index: int) -> Part:
        """One raster, among its neighbours.

        Raises:
            RasterError: it cannot be opened.
        """
        raster = self._handles[index]
        name, whole = self.paths[index], Window(0, 0, raster.height, raster.width)
        members = self._mosaic_of.get(index, [])
        if len(members) < 2:
            return Part(str(name), _Alone(raster, self._handles, index), whole, raster, ((name, whole),))
        own = next(member for member in members if member.index == index)
        others = [member for member in members if member.index != index]
        return Part(str(name), self._join([own, *others], primary=index), own.window, raster, self._named(members))

    def whole(self) -> Part:
        """All rasters as one.

        Raises:
            RasterError: one of them cannot be opened, or they do not fit together.
        """
        if len(self.paths) == 1:
            return self.part(0)
        for index, grid in enumerate(self._grids):
            if grid is None:
                self._handles[index]  # says what is wrong with it, or
                raise RasterError(f"{self.paths[index]} lies nowhere on Earth, so it cannot be a part of a mosaic")
        if len(self._mosaics) > 1:
            one, other = (self.paths[mosaic[0].index] for mosaic in self._mosaics[:2])
            raise RasterError(
                f"{one} and {other} do not fit together: a mosaic is of rasters that touch or overlap, whose CRS, pixel "
                f"size and bands are the same, and whose pixels lie on one grid; make {len(self._mosaics)} mosaics of them"
            )
        imagery = self._join(self._mosaics[0], primary=None)
        whole = Window(0, 0, imagery.height, imagery.width)
        name = f"{len(self.paths)} rasters"
        return Part(name, imagery, whole, imagery, self._named(self._mosaics[0]))

    def _join(self, members: Sequence[Placed], primary: int | None) -> Mosaic:
        bands, block_shape = self._kinds[members[0].index]
        return Mosaic(
            members,
            bounding_grid(members, self._grids),
            self._read,
            bands=bands,
            block_shape=block_shape,
            primary=primary,
            member_is_empty=lambda index, window: self._handles[index].is_empty(window),
        )

    def _named(self, members: Sequence[Placed]) -> tuple[tuple[str | Path, Window], ...]:
        return tuple((self.paths[member.index], member.window) for member in members)

    def _look_at(self, index: int) -> Grid | None:
        try:
            with self._open(index) as raster:
                self._kinds[index] = (raster.bands, raster.block_shape)
                return grid_of(raster)
        except RasterError:
            return None

    def _open(self, index: int) -> RasterReader:
        return RasterReader(self.paths[index], bands=self._bands)

    def _read(self, index: int, window: Window) -> tuple[Pixels, Valid]:
        return self._handles[index].read(window)

    def __enter__(self) -> Self:
        self._handles.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handles.__exit__(kind, error, trace)
