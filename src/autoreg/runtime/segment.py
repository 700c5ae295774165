"""Segment an array or a raster of any size, tile by tile.

The labels are those of one pass over the whole, unless the model looks at the whole tile: then tiles overlap and blend.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.raster.blending import Blending, plan_blending
from autoreg.raster.read_ahead import read_ahead
from autoreg.raster.statistics import Read, match_scene
from autoreg.raster.tiling import Tiling, plan_tiles
from autoreg.raster.window import Window
from autoreg.runtime.blend import Answer, blend
from autoreg.runtime.engine import Engine, Labels
from autoreg.spec import NODATA_LABEL, ModelSpec

_READ_AHEAD_BATCHES = 2


@dataclass(frozen=True)
class TilingOptions:
    """How to cut a raster; none of it changes a label, unless the model looks at its whole tile: then ``tile_px`` does.

    Attributes:
        tile_px: side of the tile that the engine sees, halo included. If None, one whose core is 512 px; for a model that
            looks at its whole tile, the crop that it was trained on.
        batch_size: tiles per call of the engine.
    """

    tile_px: int | None = None
    batch_size: int = 1

    def plan(self, spec: ModelSpec, height: int, width: int) -> Tiling | Blending:
        """The tiles of a raster of ``height`` x ``width`` px for a model: exact ones if its receptive field is finite."""
        if spec.receptive_field_px is None:
            tile_px = spec.crop_px if self.tile_px is None else self.tile_px
            return plan_blending(height, width, tile_px=tile_px, stride=spec.stride)
        return plan_tiles(
            height, width, tile_px=self.tile_px, receptive_field_px=spec.receptive_field_px, stride=spec.stride
        )


@dataclass(frozen=True)
class Segmented:
    """What ``segment_raster`` wrote.

    Attributes:
        pixels: how many were labelled: those with data.
        tiling_dependent: share of their labels, 0..1, that depend on how the raster was cut: 0 if the model's receptive
            field is finite. Else the mean over the pixels of the share of covering tiles, each counted with its weight in
            the blend, whose own label is not the blended one. Pixels that one tile covers, as in a corner, count as 0.
    """

    pixels: int
    tiling_dependent: float


class _Part(NamedTuple):
    """The labels of one core, and how many of them, in pixels, depend on the tiling."""

    core: Window
    labels: Labels
    tiling_dependent: float


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
        image: (bands, height, width), raw pixel values as in the rasters of the training. A model of normalisation ``scene``
            measures it, so it should be a whole scene then: a piece of one has other statistics, and gets other labels.
        valid: (height, width), True where a pixel is data; if None, where all bands are finite.
        options: how to cut it; see there what depends on this.

    Returns:
        (height, width), uint8: labels of ``engine.spec.classes``, and 255 where ``valid`` is False.

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
    read = scene_reader(engine.spec, array_reader(image, data), height, width)
    options = options or TilingOptions()
    for part in _segment_tiles(engine, options.plan(engine.spec, height, width), read, options.batch_size):
        labels[part.core.slices] = part.labels
    return labels


def segment_raster(
    engine: Engine,
    source: str | Path,
    target: str | Path,
    *,
    options: TilingOptions | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Segmented:
    """Segment a raster file into a class map of the same size and place, holding some tiles in memory.

    The map is a Cloud-Optimized GeoTIFF of uint8 labels with a colour table, nodata 255 where the source has no data, and
    tags that say which model made it, and, in ``AUTOREG_CLASSES``, what the labels mean: the classes of its spec, as JSON.

    Args:
        engine: from ``load_engine``.
        source: a raster that GDAL opens.
        target: the map to write, ``.tif``; it appears when it is complete.
        options: how to cut it; see there what depends on this.
        overwrite: replace ``target`` if it exists.
        progress: called with the pixels done and the pixels in all, after each tile.

    Returns:
        How many pixels were labelled, and the share of labels that depend on the tiling.

    Raises:
        RasterError: ``source`` cannot be read, or does not have the model's bands or type.
        OutputError: ``target`` exists or cannot be written.
        EngineError: the engine failed.
    """
    from autoreg.optional import require
    from autoreg.raster.reader import RasterReader
    from autoreg.raster.writer import write_labels

    spec, options = engine.spec, options or TilingOptions()
    with RasterReader(source, bands=len(spec.bands)) as raster:
        _check_raster(raster.path, raster.bands, raster.dtype, spec)
        plan = options.plan(spec, raster.height, raster.width)
        done, labelled, dependent, total = 0, 0, 0.0, raster.height * raster.width
        cache = raster.cache_bytes(plan.tile_shape[0])
        with (
            require("rasterio").Env(GDAL_CACHEMAX=cache),
            write_labels(
                Path(target),
                like=raster,
                colours={item.label: item.rgb for item in spec.classes},
                tags=_provenance(engine),
                overwrite=overwrite,
            ) as writer,
        ):
            read = scene_reader(spec, raster.read, raster.height, raster.width)
            for core, labels, tiling_dependent in _segment_tiles(engine, plan, read, options.batch_size):
                writer.write(labels, core)
                labelled += int(np.count_nonzero(labels != NODATA_LABEL))
                dependent += tiling_dependent
                done += labels.size
                if progress:
                    progress(done, total)
    return Segmented(labelled, dependent / max(labelled, 1))


def array_reader(image: NDArray[Any], valid: NDArray[np.bool_]) -> Read:
    """Read windows of an image (bands, height, width) in memory; past its edges, the last row and column are repeated."""

    def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        inside = window.clipped(*valid.shape).slices
        return window.extend(image[:, *inside]), window.extend(valid[inside])

    return read


def scene_reader(spec: ModelSpec, read: Read, height: int, width: int) -> Read:
    """Read what goes into a model: raw pixels, rescaled by the statistics of the scene if that is the model's normalisation.

    Args:
        spec: of the model.
        read: the raw pixels of the scene.
        height: of the scene, in pixels.
        width: of the scene, in pixels.
    """
    if spec.normalisation == "global":
        return read
    rescaling = match_scene(read, height, width, mean=spec.mean, std=spec.std)

    def read_rescaled(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        pixels, valid = read(window)
        image = pixels.astype(np.float32)
        rescaling.apply(image)
        return image, valid

    return read_rescaled


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
        "AUTOREG_CLASSES": json.dumps([dataclasses.asdict(item) for item in spec.classes], ensure_ascii=False),
    }


def _segment_tiles(engine: Engine, plan: Tiling | Blending, read: Read, batch_size: int) -> Iterator[_Part]:
    """Yield the labels of the raster, core by core."""
    if isinstance(plan, Tiling):
        return _segment_exactly(engine, plan, read, batch_size)
    return _segment_blended(engine, plan, read, batch_size)


def _segment_exactly(engine: Engine, tiling: Tiling, read: Read, batch_size: int) -> Iterator[_Part]:
    batches = _read_batches(engine.spec, (tile.window for tile in tiling), read, batch_size)
    answers = (answer for images, masks in batches for answer in zip(engine.label(images), masks, strict=True))
    labels_of = _labels_of_clusters(engine.spec)
    for tile, (clusters, valid) in zip(tiling, answers, strict=True):
        inside = tile.core.within(tile.window).slices
        yield _Part(tile.core, np.where(valid[inside], labels_of.take(clusters[inside]), np.uint8(NODATA_LABEL)), 0.0)


def _segment_blended(engine: Engine, blending: Blending, read: Read, batch_size: int) -> Iterator[_Part]:
    batches = _read_batches(engine.spec, (tile for area in blending for tile in area.tiles), read, batch_size)
    answers = (Answer(*answer) for images, masks in batches for answer in zip(*engine.predict(images), masks, strict=True))
    labels_of = _labels_of_clusters(engine.spec)
    held: dict[Window, Answer] = {}
    for core, tiles in blending:
        if core.row == 0:
            held.clear()  # a new strip
        held = {tile: answer for tile, answer in held.items() if tile.bottom > core.row}
        held |= {tile: next(answers) for tile in tiles}
        yield _Part(core, *blend(core, held, blending.stride, labels_of))


def _labels_of_clusters(spec: ModelSpec) -> NDArray[np.uint8]:
    """Label of each cluster, (256,): nodata for what is none, whatever the graph answers."""
    table = np.full(NODATA_LABEL + 1, NODATA_LABEL, np.uint8)
    table[: spec.clusters] = spec.cluster_labels
    return table


def _read_batches(
    spec: ModelSpec, windows: Iterable[Window], read: Read, batch_size: int
) -> Iterator[tuple[NDArray[np.float32], list[NDArray[np.bool_]]]]:
    """Yield what the engine sees in ``windows``, all of one shape, and which of it is data; reads ahead of the caller."""
    fill = np.asarray(spec.mean, np.float32)

    def prepare(batch: tuple[Window, ...]) -> tuple[NDArray[np.float32], list[NDArray[np.bool_]]]:
        images = np.empty((len(batch), len(fill), batch[0].height, batch[0].width), np.float32)
        masks = []
        for image, window in zip(images, batch, strict=True):
            pixels, valid = read(window)
            image[:] = pixels
            if not valid.all():
                image[:, ~valid] = fill[:, None]  # what is no data says nothing: the mean, 0 after normalisation
            masks.append(valid)
        return images, masks

    for _, prepared in read_ahead(prepare, _batched(windows, batch_size), depth=_READ_AHEAD_BATCHES):
        yield prepared


def _batched(windows: Iterable[Window], size: int) -> Iterator[tuple[Window, ...]]:
    """Tuples of ``size`` windows; the last may be shorter."""
    iterator = iter(windows)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch
