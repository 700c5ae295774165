"""Read a raster window by window: its pixels, and which of them are data. The only reader of rasters in autoreg."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import DamagedRasterError, RasterError
from autoreg.raster.gdal import is_remote, load_rasterio, network_options, open_dataset, reason_of
from autoreg.raster.window import Window
from autoreg.spec import DTYPES

Pixels = NDArray[Any]
"""(bands, height, width), in the type of the file."""
Valid = NDArray[np.bool_]
"""(height, width), True where a pixel is data."""

_BANDS_LIMIT = 4096
_ALPHA_PLACES = 8
_ALPHA_PLACE_PX = 32
_ALPHA_SHARE = 0.99
_BLOCK_LIMIT_BYTES = 256 * 2**20
_DATA_CELLS = 64
_OVERVIEW_LIMIT_VALUES = 2**24


class RasterReader:
    """An open raster of imagery. Use it as a context manager, and from one thread at a time.

    A pixel is data unless it is NaN or infinite in some band, equals the nodata value in every band, or is masked by the
    file's mask or alpha band. A fourth (or last) band that is *tagged* as alpha, as GDAL does by default with any fourth
    byte band, may really be near infrared; it is alpha if the caller expects one band fewer than the file has, and, where
    the caller expects nothing, if nearly all its values are 0 or the maximum.

    Attributes:
        path: as it was given.
        height, width: in pixels.
        bands: name of each data band: its description, else its colour, else ``band<n>``.
        dtype: ``uint8``, ``uint16``, ``int16`` or ``float32``.
    """

    def __init__(self, path: str | Path, *, bands: int | None = None) -> None:
        """Open ``path``.

        Args:
            path: a file, or any other name that GDAL opens.
            bands: number of data bands that the caller expects, if it knows; it decides what a band tagged as alpha is.

        Raises:
            DamagedRasterError: not an image, or GDAL cannot read it.
            RasterError: no such file, a palette image, pixels of another type than ``dtype`` lists, more than 4096 bands, or
                blocks of more than 256 MiB.
        """
        self.path = path
        self._dataset = open_dataset(path)
        # A raster that lies here may still be a list of rasters that lie elsewhere.
        self._needs_options = is_remote(path) or self._dataset.driver in ("VRT", "PNG")
        try:
            with self._asking():
                self._set_up(bands)
        except BaseException:
            self.close()
            raise

    def _connection(self) -> AbstractContextManager[Any]:
        return network_options(self.path) if self._needs_options else nullcontext()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Ask GDAL about the file, which may find only then that what the answer stands in is damaged."""
        rasterio = load_rasterio()
        try:
            with self._connection():
                yield
        except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:
            raise DamagedRasterError(f"{self.path} is damaged: {reason_of(error)}") from error

    def _set_up(self, bands: int | None) -> None:
        dataset = self._dataset
        self.height: int = dataset.height
        self.width: int = dataset.width
        self._alpha: int | None = None
        if dataset.count > _BANDS_LIMIT:
            raise RasterError(
                f"{self.path} has {dataset.count} bands, expected at most {_BANDS_LIMIT}; select some with gdal_translate -b"
            )
        # A mask whose directory is cut off is left out; rasterio tells of what GDAL finds there with the next question.
        flags = [flag.name for flag in dataset.mask_flag_enums[0]]
        colours = [colour.name for colour in dataset.colorinterp]
        if "palette" in colours:
            raise RasterError(
                f"{self.path} is a palette image: its values are colour numbers, not measurements; "
                f"expand it first with gdal_translate -expand rgb"
            )
        dtypes = sorted(set(dataset.dtypes))
        if len(dtypes) != 1 or dtypes[0] not in DTYPES:
            raise RasterError(
                f"{self.path} has pixels of type {' and '.join(dtypes)}, expected one of {', '.join(DTYPES)}; "
                f"convert it first with gdal_translate -ot"
            )
        self.dtype: str = dtypes[0]
        block_height, block_width = self.block_shape
        block_bytes = block_height * block_width * dataset.count * np.dtype(self.dtype).itemsize
        if block_bytes > _BLOCK_LIMIT_BYTES:
            raise RasterError(
                f"{self.path} is stored in blocks of {block_height} x {block_width} pixels in {dataset.count} bands, which "
                f"are {block_bytes / 2**20:.0f} MiB, expected at most {_BLOCK_LIMIT_BYTES // 2**20} MiB; "
                f"store it in smaller ones first with gdal_translate -co TILED=YES"
            )
        if dataset.count > 1 and colours[-1] == "alpha":
            expected = bands == dataset.count - 1
            if expected or (bands is None and self._looks_like_alpha(dataset.count)):
                self._alpha = dataset.count
        self._indexes = [index for index in range(1, dataset.count + 1) if index != self._alpha]
        self.bands: tuple[str, ...] = tuple(
            _band_name(index, description, colour)
            for index, (description, colour) in enumerate(zip(dataset.descriptions, colours, strict=True), 1)
            if index != self._alpha
        )
        nodata = [_representable(dataset.nodatavals[index - 1], self.dtype) for index in self._indexes]
        # A band without such a value has data everywhere, and so has the raster.
        self._nodata = [value for value in nodata if value is not None] if None not in nodata else []
        self._has_mask = "per_dataset" in flags and "alpha" not in flags
        self._may_lack_data = bool(self._nodata) or self._has_mask or self._alpha is not None or self.dtype == "float32"

    def _looks_like_alpha(self, index: int) -> bool:
        """Whether a band that is tagged as alpha switches pixels on and off, rather than measuring something."""
        # Places, not every n-th pixel: of a large raster without overviews, that would decode the whole.
        tops, lefts = (
            {size * place // _ALPHA_PLACES for place in range(_ALPHA_PLACES)} for size in (self.height, self.width)
        )
        windows = [
            Window(top, left, _ALPHA_PLACE_PX, _ALPHA_PLACE_PX).clipped(self.height, self.width)
            for top, left in product(sorted(tops), sorted(lefts))
        ]
        values = np.concatenate([self._read(index, **_place(window)).ravel() for window in windows])
        full = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else values.max()
        return float(np.mean((values == 0) | (values == full))) >= _ALPHA_SHARE

    @property
    def block_shape(self) -> tuple[int, int]:
        """Height and width in pixels of the blocks that the file stores; reads aligned to them waste nothing."""
        height, width = self._dataset.block_shapes[0]
        return height, width

    @property
    def georeference(self) -> dict[str, Any]:
        """Where the raster lies, as the keywords that ``rasterio.open`` takes to write a raster at the same place."""
        with self._asking():  # some of it may lie beside the file
            return self._find_place()

    def _find_place(self) -> dict[str, Any]:
        dataset = self._dataset
        gcps, gcps_crs = dataset.gcps
        place: dict[str, Any] = {}
        if gcps:  # rasterio writes none without a CRS, be it an empty one
            place |= {"gcps": gcps, "crs": gcps_crs or load_rasterio().CRS()}
        else:
            place |= {"crs": dataset.crs} if dataset.crs else {}
            place |= {} if dataset.transform.is_identity else {"transform": dataset.transform}
        if dataset.rpcs:
            place["rpcs"] = dataset.rpcs
        return place

    @property
    def stores_rows(self) -> bool:
        """Whether a block of the file is as wide as the raster."""
        return self.block_shape[1] >= self.width

    def find_data(self) -> Valid | None:
        """Look in the smallest overview where the raster has data, without decoding the raster itself.

        Returns:
            (rows, cols), at most 64 each: the raster cut evenly, True where a cell has data in the overview. None if the
            file marks no pixels as nodata, or has no overview of at most 16 million values.

        Raises:
            DamagedRasterError: the overview cannot be read.
        """
        with self._asking():
            factors = self._dataset.overviews(self._indexes[0]) if self._may_lack_data else []
        if not factors:
            return None
        height, width = (-(-size // max(factors)) for size in (self.height, self.width))
        if height * width * len(self._indexes) > _OVERVIEW_LIMIT_VALUES:
            return None
        shape = {"out_shape": (height, width)}
        valid = self._valid(self._read(self._indexes, **shape), shape)
        for axis, size in enumerate((height, width)):
            starts = np.arange(min(size, _DATA_CELLS)) * size // min(size, _DATA_CELLS)
            valid = np.logical_or.reduceat(valid, starts, axis=axis)
        return valid

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Read the pixels of ``window`` and which of them are data.

        A window may reach past the right and bottom edges: there the last column and row are repeated.

        Raises:
            DamagedRasterError: the file cannot be read there.
        """
        place = _place(window.clipped(self.height, self.width))
        pixels = self._read(self._indexes, **place)
        return window.extend(pixels), window.extend(self._valid(pixels, place))

    def _valid(self, pixels: Pixels, place: dict[str, Any]) -> Valid:
        """Which of ``pixels``, that were read with the options ``place``, are data."""
        valid = self._differs_from_nodata(pixels)
        if pixels.dtype.kind == "f":
            for band in pixels:
                valid &= np.isfinite(band)
        if self._alpha is not None:
            valid &= self._read(self._alpha, **place) != 0
        if self._has_mask:
            valid &= self._read_masks(place) != 0
        return valid

    def _differs_from_nodata(self, pixels: Pixels) -> Valid:
        """Where some band of ``pixels`` has another value than its nodata value."""
        if self._nodata:
            equal: Valid = pixels[0] == self._nodata[0]
            for band, value in zip(pixels[1:], self._nodata[1:], strict=True):
                if not equal.any():
                    break
                equal &= band == value
            return np.logical_not(equal, out=equal)
        return np.ones(pixels.shape[1:], np.bool_)

    def is_empty(self, window: Window) -> bool:
        """Whether the file has certainly no data in ``window``: it stores no block there, and the absence means nodata.

        It decodes nothing, and takes some microseconds for each block. False says nothing.
        """
        inside = window.clipped(self.height, self.width)
        block_height, block_width = self.block_shape
        rows = range(inside.row // block_height, -(-inside.bottom // block_height))
        cols = range(inside.col // block_width, -(-inside.right // block_width))
        return any(
            all(self._lacks_block(row, col, index) for row in rows for col in cols for index in indexes)
            for indexes in self._indexes_of_absence
        )

    def _lacks_block(self, row: int, col: int, index: int) -> bool:
        return self._dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index) is None

    @cached_property
    def _indexes_of_absence(self) -> list[list[int]]:
        """Lists of bands: where the file lacks the blocks of all bands of a list, there is no data.

        GDAL fills such blocks with the nodata value, or else with 0.
        """
        dataset = self._dataset
        # GDAL presents strips in other blocks than the file has.
        if dataset.driver != "GTiff" or is_remote(self.path) or self.stores_rows:
            return []
        found = []
        if self._alpha is not None and dataset.nodatavals[self._alpha - 1] in (None, 0):
            found.append([self._alpha])
        is_nan = self.dtype == "float32" and all(np.isnan(value or 0) for value in dataset.nodatavals)
        if self._nodata or is_nan:
            found.append(self._indexes[:1] if dataset.interleaving.name == "pixel" else self._indexes)
        try:
            if found:  # a list of blocks that is cut off looks as if the last ones were not stored
                self.read(Window(self.height - 1, self.width - 1, 1, 1))
        except DamagedRasterError:
            return []
        return found

    def _read(self, indexes: int | list[int], **options: Any) -> Pixels:
        try:
            with self._connection():
                return np.asarray(self._dataset.read(indexes, **options))
        except load_rasterio().errors.RasterioError as error:
            raise DamagedRasterError(f"{self.path} is damaged: {reason_of(error)}") from error

    def _read_masks(self, place: dict[str, Any]) -> NDArray[np.uint8]:
        try:
            with self._connection():
                return np.asarray(self._dataset.read_masks(1, **place))
        except load_rasterio().errors.RasterioError as error:
            raise DamagedRasterError(f"the mask of {self.path} is damaged: {reason_of(error)}") from error

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _place(window: Window) -> dict[str, Any]:
    """``window`` as rasterio's options for reading it."""
    return {"window": ((window.row, window.bottom), (window.col, window.right))}


def _band_name(index: int, description: str | None, colour: str) -> str:
    if description:
        return str(description)
    return colour if colour not in ("undefined", "gray", "alpha") else f"band{index}"


def _representable(value: float | None, dtype: str) -> float | int | None:
    """A nodata value as the file's type can hold it, or None: a byte raster tagged with -9999 has no nodata pixels."""
    if value is None or not math.isfinite(value):  # pixels that are not finite are no data anyway
        return None
    if dtype == "float32":
        return float(np.float32(value))
    limits = np.iinfo(dtype)
    return int(value) if value == int(value) and limits.min <= value <= limits.max else None
