"""Write class maps: Cloud-Optimized GeoTIFFs of uint8 labels, and of how sure the model is of them."""

import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import OutputError, RasterError
from autoreg.optional import require
from autoreg.output import atomic_output, check_output, check_space, remove_leftovers
from autoreg.raster.area import row_areas_m2
from autoreg.raster.cog import BLOCK_PX, Block, compress, write_cog
from autoreg.raster.gdal import georeference_optional, open_dataset
from autoreg.raster.imagery import Imagery
from autoreg.raster.journal import Journal, open_journal
from autoreg.raster.palette import Colour
from autoreg.raster.pyramid import Pyramid
from autoreg.raster.waiting import Place, WaitingBlocks
from autoreg.raster.window import Window
from autoreg.spec import NODATA_LABEL

_TEMPLATE = {"driver": "GTiff", "dtype": "uint8", "nodata": NODATA_LABEL, "compress": "deflate", "interleave": "pixel"}
_TEMPLATE |= {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX}
_TEMPLATE |= {"sparse_ok": True, "bigtiff": "no", "endianness": "little", "photometric": "minisblack"}

_JOB_TAG, _TOTALS_TAG = "AUTOREG_JOB_SHA256", "AUTOREG_TOTALS"

Part = NDArray[np.uint8]
"""(height, width, bands): some pixels of a map."""


@dataclass(frozen=True)
class MapFile:
    """A map to write; nodata is 255 in each band.

    Attributes:
        path: ``.tif``.
        bands: description of each.
        colours: of the labels, if it holds labels: the colour table has them, and nodata is transparent.
        scale: what a pixel's value is multiplied with to say what it means.
    """

    path: Path
    bands: tuple[str, ...]
    colours: Mapping[int, Colour] | None = None
    scale: float = 1.0


@dataclass
class Totals:
    """What the labels of a map add up to.

    Attributes:
        pixels: (256,) of each label, nodata too.
        areas_m2: (256,) likewise, on the ground; None where it is not known how large a pixel is.
        tiling_dependent: how many labels depend on the tiling.
    """

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    areas_m2: NDArray[np.float64] | None = None
    tiling_dependent: float = 0.0

    def to_json(self) -> str:
        """One line of JSON."""
        areas = None if self.areas_m2 is None else self.areas_m2.tolist()
        return json.dumps({"pixels": self.pixels.tolist(), "areas_m2": areas, "tiling_dependent": self.tiling_dependent})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What ``to_json`` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            found = json.loads(text)
            pixels = np.array(found["pixels"], np.int64)
            areas = None if found["areas_m2"] is None else np.array(found["areas_m2"], np.float64)
            totals = cls(pixels, areas, float(found["tiling_dependent"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no totals of a map: {text[:40]!r}") from error
        if pixels.shape != (256,) or (areas is not None and areas.shape != (256,)):
            raise ValueError(f"the totals are of {pixels.shape} labels, expected 256")
        return totals


@dataclass
class _Begun:
    """What is known of a block of which pixels are missing."""

    missing: int
    tiling_dependent: float = 0.0


class MapWriter:
    """Maps of one raster that are being written; see ``write_maps``. Threads may share it.

    Attributes:
        totals: of the blocks of the first map that are finished.
        pyramids: of each map.
    """

    def __init__(self, journal: Journal, row_areas: NDArray[np.float64] | None, scratch: IO[bytes]) -> None:
        self._journal = journal
        self._waiting = WaitingBlocks(scratch, sum(level.bands for level in journal.levels))
        self.pyramids = [Pyramid(number, level, scratch, self._waiting) for number, level in enumerate(journal.levels)]
        self._row_areas = row_areas
        self._begun: dict[tuple[int, int], _Begun] = {}
        self._lock = threading.Lock()
        self.totals = Totals(areas_m2=None if row_areas is None else np.zeros(256))

    def write(self, parts: Sequence[Part] | None, window: Window, tiling_dependent: float = 0.0) -> None:
        """Write the pixels of each map at ``window``, each pixel once.

        A block is compressed when its last pixel is there, so windows that are whole blocks are written fastest. Blocks that
        an earlier process has finished stay as they are.

        Args:
            parts: (window.height, window.width, bands) of each map; None for nodata.
            window: of the maps.
            tiling_dependent: how many of the labels depend on the tiling.
        """
        with self._lock:
            for row, col, whole in self._blocks_of(window):
                if self._journal.has(row, col):
                    continue
                if parts is None and whole == window:
                    self._put((row, col), [None] * len(self._journal.levels), 0.0)
                else:
                    self._write_block((row, col), whole, parts, window, tiling_dependent)

    def is_done(self, window: Window) -> bool:
        """Whether all pixels of ``window`` are in blocks that are finished."""
        return all(self._journal.has(row, col) for row, col, _ in self._blocks_of(window))

    def finish(self) -> None:
        """Write the blocks that have pixels missing."""
        for place, begun in list(self._begun.items()):
            self._finish_block(place, self._take_begun(*place), begun.tiling_dependent)

    def take(self, row: int, col: int, blocks: Sequence[Block | None], tiling_dependent: float) -> None:
        """Count the labels of a finished block, and take it into the overviews."""
        for pyramid, block in zip(self.pyramids, blocks, strict=True):
            pyramid.add(row, col, block)
        whole = self._block(row, col)
        labels = np.empty(0, np.uint8) if blocks[0] is None else blocks[0][: whole.height, : whole.width, 0]
        counts = np.bincount(labels.ravel(), minlength=256)
        self.totals.pixels += counts
        self.totals.pixels[NODATA_LABEL] += whole.height * whole.width - labels.size
        self.totals.tiling_dependent += tiling_dependent
        if self.totals.areas_m2 is not None and self._row_areas is not None and labels.size:
            areas = self._row_areas[whole.row : whole.bottom]
            if areas[0] == areas[-1]:
                self.totals.areas_m2 += areas[0] * counts
            else:
                weights = np.broadcast_to(areas[:, None], labels.shape)
                self.totals.areas_m2 += np.bincount(labels.ravel(), weights.ravel(), minlength=256)

    def _blocks_of(self, window: Window) -> Iterator[tuple[int, int, Window]]:
        for row in range(window.row // BLOCK_PX, -(-window.bottom // BLOCK_PX)):
            for col in range(window.col // BLOCK_PX, -(-window.right // BLOCK_PX)):
                yield row, col, self._block(row, col)

    def _block(self, row: int, col: int) -> Window:
        level = self._journal.levels[0]
        return Window(row * BLOCK_PX, col * BLOCK_PX, BLOCK_PX, BLOCK_PX).clipped(level.height, level.width)

    def _write_block(
        self,
        place: tuple[int, int],
        whole: Window,
        parts: Sequence[Part] | None,
        window: Window,
        tiling_dependent: float,
    ) -> None:
        part = window.intersection(whole)
        begun = self._begun.setdefault(place, _Begun(whole.height * whole.width))
        blocks = self._take_begun(*place)
        if parts is not None:
            for block, pixels in zip(blocks, parts, strict=True):
                block[part.within(whole).slices] = pixels[part.within(window).slices]
        share = part.height * part.width / (window.height * window.width)
        begun.tiling_dependent += share * tiling_dependent
        begun.missing -= part.height * part.width
        if begun.missing == 0:
            self._finish_block(place, blocks, begun.tiling_dependent)
        else:
            for number, block in enumerate(blocks):
                self._waiting.put(Place(number, 0, *place), block)

    def _take_begun(self, row: int, col: int) -> list[Block]:
        """The block of each map, with what has been written of it."""
        levels = enumerate(self._journal.levels)
        return [self._waiting.take(Place(number, 0, row, col), level.bands) for number, level in levels]

    def _finish_block(self, place: tuple[int, int], blocks: list[Block], tiling_dependent: float) -> None:
        del self._begun[place]
        self._put(place, blocks, tiling_dependent)

    def _put(self, place: tuple[int, int], blocks: Sequence[Block | None], tiling_dependent: float) -> None:
        contents = [None if block is None else compress(block) for block in blocks]
        self._journal.put(*place, contents, tiling_dependent)
        found = [None if content is None else block for content, block in zip(contents, blocks, strict=True)]
        self.take(*place, found, tiling_dependent)


@contextlib.contextmanager
def write_maps(
    files: Sequence[MapFile],
    *,
    like: Imagery,
    tags: Mapping[str, str],
    job: bytes,
    needed_bytes: int = 0,
    overwrite: bool,
    resume: bool = False,
) -> Iterator[MapWriter]:
    """Write maps of the size and place of ``like``; they appear when the block ends without error, the first one last.

    The blocks go compressed to a journal (``raster/journal.py``), and are put in the order of a Cloud-Optimized GeoTIFF at
    the end.

    Args:
        files: the maps; the first holds the labels, as its only band.
        like: the raster that is being labelled.
        tags: provenance, written as TIFF metadata.
        job: digest of all that a pixel of the maps depends on, 32 bytes; it is one of the tags.
        needed_bytes: what the maps need on their disk, at the least; it is looked for before the work.
        overwrite: replace existing files, and what an earlier process has begun.
        resume: keep what an earlier process of the same job has begun, and replace what it has finished.

    Raises:
        OutputError: a map exists already, cannot be written, or is being written by another process.
        RasterError: GDAL cannot write down where the map lies.
    """
    # A process that ends while the maps appear leaves those without the first one.
    replace = [overwrite or (resume and read_totals(file.path, job) is not None) for file in files]
    for file, may_replace in zip(files, replace, strict=True):
        check_output(file.path, overwrite=may_replace)
    check_space(files[0].path, needed_bytes)
    first = files[0].path
    try:
        for file in files:
            _template(file, like, tags)  # what cannot be written is to be known before the work
        shapes = [(like.height, like.width, len(file.bands)) for file in files]
        with (
            open_journal(first, job, shapes, overwrite=overwrite, resume=resume) as (journal, begun),
            tempfile.TemporaryFile(dir=first.parent) as scratch,
        ):
            place = like.georeference
            writer = MapWriter(journal, row_areas_m2(place.get("crs"), place.get("transform"), like.height), scratch)
            if begun:
                journal.replay(writer.take)
            yield writer
            writer.finish()
            totals = {_JOB_TAG: job.hex(), _TOTALS_TAG: writer.totals.to_json()}
            templates = [_template(file, like, {**tags, **totals}) for file in files]
            _assemble(files, templates, writer.pyramids, replace)
    except OSError as error:
        raise OutputError(f"{first} was not written: {error.strerror or error}") from error


def read_totals(path: Path, job: bytes) -> Totals | None:
    """What the map at ``path`` adds up to; None if it is not there, or not of ``job``."""
    if not path.is_file():
        return None
    try:
        with open_dataset(path) as dataset:
            tags = dataset.tags()
        return Totals.from_json(tags[_TOTALS_TAG]) if tags.get(_JOB_TAG) == job.hex() else None
    except (RasterError, KeyError, ValueError):
        return None


def _assemble(
    files: Sequence[MapFile], templates: Sequence[bytes], pyramids: Sequence[Pyramid], replace: Sequence[bool]
) -> None:
    with ExitStack() as stack:
        for file, template, pyramid, may_replace in zip(files, templates, pyramids, replace, strict=True):
            remove_leftovers(file.path)
            target = stack.enter_context(atomic_output(file.path, overwrite=may_replace))
            write_cog(target, template, pyramid.levels)
    for file in files:
        file.path.with_name(file.path.name + ".aux.xml").unlink(missing_ok=True)  # of a file that was here before


def _template(file: MapFile, like: Imagery, tags: Mapping[str, str]) -> bytes:
    """The map without its pixels, as GDAL writes it."""
    rasterio = require("rasterio")
    profile = _TEMPLATE | {"height": like.height, "width": like.width, "count": len(file.bands)} | like.georeference
    try:
        with georeference_optional(), rasterio.MemoryFile() as memory:
            with memory.open(**profile) as dataset:
                if file.colours is not None:
                    table = {label: (*colour, 255) for label, colour in file.colours.items()}
                    dataset.write_colormap(1, table | {NODATA_LABEL: (0, 0, 0, 0)})
                dataset.descriptions = file.bands
                if file.scale != 1:
                    dataset.scales = (file.scale,) * len(file.bands)
                dataset.update_tags(**tags)
            return bytes(memory.read())
    except rasterio.errors.RasterioError as error:
        raise RasterError(f"{file.path} was not written: {error}") from error
