"""Segment an array or a raster of any size, tile by tile, with the labels of one pass over the whole."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.raster.read_ahead import read_ahead
from autoreg.raster.tiling import Tile, Tiling, plan_tiles
from autoreg.raster.window import Window
from autoreg.runtime.engine import Engine
from autoreg.spec import NODATA_LABEL, ModelSpec

_READ_AHEAD_BATCHES = 2

Read = Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]]
"""From a window to its pixels (C, h, w) and which of them are data (h, w)."""


@dataclass(frozen=True)
class TilingOptions:
    """How to cut a raster; none of it changes a label.

    Attributes:
        tile_px: side of the tile that the engine sees, halo included; if None, one whose core is 512 px.
        batch_size: tiles per call of the engine.
    """

    tile_px: int | None = None
    batch_size: int = 1

    def plan(self, spec: ModelSpec, height: int, width: int) -> Tiling:
        """The tiles of a raster of ``height`` x ``width`` px for a model."""
        return plan_tiles(
            height, width, tile_px=self.tile_px, receptive_field_px=spec.receptive_field_px, stride=spec.stride
        )


def segment_array(
    engine: Engine,
    image: NDArray[Any],
    valid: NDArray[np.bool_] | None = None,
    *,
    options: TilingOptions | None = None,
) -> NDArray[np.uint8]:
    """Segment an image in memory.

    Args:
        engine: from ``load_engine``.
        image: (bands, height, width), raw pixel values as in the rasters of the training.
        valid: (height, width), True where a pixel is data; if None, where all bands are finite.
        options: how to cut it; the labels do not depend on this.

    Returns:
        (height, width), uint8: 0 .. K-1, and 255 where ``valid`` is False.

    Raises:
        RasterError: the image does not have the model's bands, or no pixels.
    """
    if image.ndim != 3 or len(image) != len(engine.spec.bands) or image.size == 0:
        raise RasterError(
            f"the image has shape {image.shape}, expected ({len(engine.spec.bands)}, height, width), "
            f"bands {', '.join(engine.spec.bands)}"
        )
    height, width = image.shape[1:]
    data = np.isfinite(image).all(axis=0) if valid is None else valid
    if data.shape != (height, width):
        raise RasterError(f"valid has shape {data.shape}, expected {(height, width)}, the image's")
    labels = np.empty((height, width), np.uint8)

    def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        inside = window.clipped(height, width).slices
        return window.extend(image[:, *inside]), window.extend(data[inside])

    plan = options or TilingOptions()
    for core, part in _segment_tiles(engine, plan.plan(engine.spec, height, width), read, plan.batch_size):
        labels[core.slices] = part
    return labels


def segment_raster(
    engine: Engine,
    source: str | Path,
    target: str | Path,
    *,
    options: TilingOptions | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Segment a raster file into a class map of the same size and place, holding a few tiles in memory.

    The map is a Cloud-Optimized GeoTIFF of uint8 labels with a colour table, nodata 255 where the source has no data, and
    tags that say which model made it.

    Args:
        engine: from ``load_engine``.
        source: a raster that GDAL opens.
        target: the map to write, ``.tif``; it appears when it is complete.
        options: how to cut it; the labels do not depend on this.
        overwrite: replace ``target`` if it exists.
        progress: called with the pixels done and the pixels in all, after each tile.

    Raises:
        RasterError: ``source`` cannot be read, or does not have the model's bands or type.
        OutputError: ``target`` exists or cannot be written.
        EngineError: the engine failed.
    """
    from autoreg.optional import require
    from autoreg.raster.reader import RasterReader
    from autoreg.raster.writer import write_labels

    spec, plan = engine.spec, options or TilingOptions()
    with RasterReader(source, bands=len(spec.bands)) as raster:
        _check_raster(raster.path, raster.bands, raster.dtype, spec)
        tiling = plan.plan(spec, raster.height, raster.width)
        done, total = 0, raster.height * raster.width
        cache = raster.cache_bytes(tiling.tile_shape[0])
        with (
            require("rasterio").Env(GDAL_CACHEMAX=cache),
            write_labels(
                Path(target), like=raster, classes=len(spec.classes), tags=_provenance(engine), overwrite=overwrite
            ) as writer,
        ):
            for core, part in _segment_tiles(engine, tiling, raster.read, plan.batch_size):
                writer.write(part, core)
                done += part.size
                if progress:
                    progress(done, total)


def _check_raster(path: str | Path, bands: tuple[str, ...], dtype: str, spec: ModelSpec) -> None:
    if len(bands) != len(spec.bands):
        raise RasterError(
            f"{path} has {len(bands)} {'band' if len(bands) == 1 else 'bands'} ({', '.join(bands)}), "
            f"but the model expects {len(spec.bands)} ({', '.join(spec.bands)})"
        )
    if dtype != spec.dtype:
        raise RasterError(
            f"{path} has pixels of type {dtype}, but the model was trained on {spec.dtype}, "
            f"which has another range of values; convert it with gdal_translate -ot, scaled as in the training"
        )


def _provenance(engine: Engine) -> dict[str, str]:
    from autoreg import __version__

    spec = engine.spec
    return {
        "TIFFTAG_SOFTWARE": f"autoreg {__version__}",
        "AUTOREG_MODEL_SHA256": engine.model_digest,
        "AUTOREG_CHECKPOINT_SHA256": spec.checkpoint_digest,
        "AUTOREG_PRECISION": spec.precision,
        "AUTOREG_ENGINE": engine.device,
        "AUTOREG_CLASSES": ",".join(spec.classes),
    }


def _segment_tiles(
    engine: Engine, tiling: Tiling, read: Read, batch_size: int
) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Yield the core of each tile with its labels. Reading runs ahead of the engine in another thread."""
    fill = np.asarray(engine.spec.mean, np.float32)

    def prepare(tiles: tuple[Tile, ...]) -> tuple[NDArray[np.float32], list[NDArray[np.bool_]]]:
        images = np.empty((len(tiles), len(fill), *tiling.tile_shape), np.float32)
        masks = []
        for image, tile in zip(images, tiles, strict=True):
            pixels, valid = read(tile.window)
            image[:] = pixels
            if not valid.all():
                image[:, ~valid] = fill[:, None]  # what is no data says nothing: the mean, 0 after normalisation
            masks.append(valid)
        return images, masks

    for tiles, (images, masks) in read_ahead(prepare, _batched(tiling, batch_size), depth=_READ_AHEAD_BATCHES):
        for tile, labels, valid in zip(tiles, engine.label(images), masks, strict=True):
            inside = tile.core.within(tile.window).slices
            yield tile.core, np.where(valid[inside], labels[inside], np.uint8(NODATA_LABEL))


def _batched(tiles: Iterable[Tile], size: int) -> Iterator[tuple[Tile, ...]]:
    """Tuples of ``size`` tiles; the last may be shorter."""
    iterator = iter(tiles)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch
