"""Segment an array or a raster of any size, tile by tile.

The labels are those of one pass over the whole, unless the model looks at the whole tile: then tiles overlap and blend.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.raster.background import in_background
from autoreg.raster.blending import Area, Blending, plan_blending
from autoreg.raster.statistics import Read, match_scene
from autoreg.raster.tiling import Tiling, plan_tiles
from autoreg.raster.window import Window
from autoreg.runtime.blend import Answer, blend
from autoreg.runtime.engine import Engine, Labels, Logits
from autoreg.spec import NODATA_LABEL, ModelSpec

_READ_AHEAD_BATCHES = 2
_BEHIND_PARTS = 4


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

    def plan(self, spec: ModelSpec, height: int, width: int, *, by_rows: bool = False) -> Tiling | Blending:
        """The tiles of a raster of ``height`` x ``width`` px for a model: exact ones if its receptive field is finite.

        ``by_rows``: the raster stores its rows whole, so that exact tiles should go along them.
        """
        if spec.receptive_field_px is None:
            tile_px = spec.crop_px if self.tile_px is None else self.tile_px
            return plan_blending(height, width, tile_px=tile_px, stride=spec.stride)
        return plan_tiles(
            height,
            width,
            tile_px=self.tile_px,
            receptive_field_px=spec.receptive_field_px,
            stride=spec.stride,
            by_rows=by_rows,
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


class _Done(NamedTuple):
    """A part of a raster that is labelled: its pixels, those with data, and how many of these depend on the tiling."""

    pixels: int
    labelled: int
    tiling_dependent: float


Put = Callable[[Labels, Window], None]
"""Takes the labels of a part of the raster, and its place; called in a background thread, one part after the other."""


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

    def put(part: Labels, core: Window) -> None:
        labels[core.slices] = part

    for _ in _segment_tiles(engine, options.plan(engine.spec, height, width), read, options.batch_size, put):
        pass
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
        plan = options.plan(spec, raster.height, raster.width, by_rows=raster.stores_rows)
        done, labelled, dependent, total = 0, 0, 0.0, raster.height * raster.width
        cache = raster.cache_bytes(plan.tile_shape[0], plan.strip_px + plan.tile_shape[1])
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
            for part in _segment_tiles(engine, plan, read, options.batch_size, writer.write):
                labelled += part.labelled
                dependent += part.tiling_dependent
                done += part.pixels
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


def _segment_tiles(engine: Engine, plan: Tiling | Blending, read: Read, batch_size: int, put: Put) -> Generator[_Done]:
    """Label a raster part by part: reading, the engine, and what is done with its answers run side by side.

    The engine runs in the caller's thread; a thread reads ahead of it, and another turns its answers into labels and puts
    them. Both are at most some tiles away from it.
    """
    answers = _answers(engine, plan, read, batch_size)
    finish = _finish_exactly(engine.spec) if isinstance(plan, Tiling) else _finish_blended(engine.spec, plan)

    def finish_and_put(answered: _Answered) -> _Done:
        labels, tiling_dependent = finish(answered)
        put(labels, answered.core)
        return _Done(labels.size, int(np.count_nonzero(labels != NODATA_LABEL)), tiling_dependent)

    with closing(answers), closing(in_background(finish_and_put, answers, depth=_BEHIND_PARTS)) as done:
        for _, part in done:
            yield part


class _Answered(NamedTuple):
    """What an engine said about the tiles of a core; where tiles overlap, about those that no core before it had."""

    core: Window
    answers: dict[Window, Answer]


def _answers(engine: Engine, plan: Tiling | Blending, read: Read, batch_size: int) -> Generator[_Answered]:
    """Run the engine over the tiles of a plan; tiles without data it does not see."""
    spec = engine.spec
    blended = isinstance(plan, Blending)
    for_windows, for_cores = itertools.tee(_areas(plan))
    windows = (window for _, tiles in for_windows for window in tiles)

    def ask(images: NDArray[np.float32]) -> tuple[Labels, Logits | list[None]]:
        return engine.predict(images) if blended else (engine.label(images), [None] * len(images))

    def answered() -> Iterator[Answer]:
        for images, masks in batches:
            if images is None:
                yield from (_nothing(spec, mask) for mask in masks)
            else:
                yield from (Answer(*answer) for answer in zip(*ask(images), masks, strict=True))

    with closing(_read_batches(spec, windows, read, batch_size)) as batches:
        stream = answered()
        for core, tiles in for_cores:
            yield _Answered(core, {tile: next(stream) for tile in tiles})


def _areas(plan: Tiling | Blending) -> Iterator[Area]:
    """The cores of a plan, each with the tiles to run for it."""
    if isinstance(plan, Tiling):
        return (Area(tile.core, (tile.window,)) for tile in plan)
    return iter(plan)


def _nothing(spec: ModelSpec, mask: NDArray[np.bool_]) -> Answer:
    """Stands for what an engine would say about a tile without data: nobody looks at it."""
    height, width = mask.shape
    logits = np.zeros((spec.clusters, height // spec.stride, width // spec.stride), np.float32)
    return Answer(np.zeros(mask.shape, np.uint8), logits, mask)


def _finish_exactly(spec: ModelSpec) -> Callable[[_Answered], tuple[Labels, float]]:
    """Labels of a core from its one tile."""
    labels_of = _labels_of_clusters(spec)

    def finish(answered: _Answered) -> tuple[Labels, float]:
        ((window, answer),) = answered.answers.items()
        inside = answered.core.within(window).slices
        labels = labels_of.take(answer.labels[inside])
        labels[~answer.valid[inside]] = NODATA_LABEL
        return labels, 0.0

    return finish


def _finish_blended(spec: ModelSpec, blending: Blending) -> Callable[[_Answered], tuple[Labels, float]]:
    """Labels of a core from all tiles that cover it, those of the cores before it too; so cores must come in order."""
    labels_of = _labels_of_clusters(spec)
    held: dict[Window, Answer] = {}

    def finish(answered: _Answered) -> tuple[Labels, float]:
        core = answered.core
        passed = [tile for tile in held if core.row == 0 or tile.bottom <= core.row]  # all of them where a strip begins
        for tile in passed:
            del held[tile]
        held.update(answered.answers)
        return blend(core, held, blending.stride, labels_of)

    return finish


def _labels_of_clusters(spec: ModelSpec) -> NDArray[np.uint8]:
    """Label of each cluster, (256,): nodata for what is none, whatever the graph answers."""
    table = np.full(NODATA_LABEL + 1, NODATA_LABEL, np.uint8)
    table[: spec.clusters] = spec.cluster_labels
    return table


def _read_batches(
    spec: ModelSpec, windows: Iterable[Window], read: Read, batch_size: int
) -> Generator[tuple[NDArray[np.float32] | None, list[NDArray[np.bool_]]]]:
    """Yield what the engine sees in ``windows``, all of one shape, and which of it is data; reads ahead of the caller.

    A batch without any data is None.
    """
    fill = np.asarray(spec.mean, np.float32)

    def prepare(batch: tuple[Window, ...]) -> tuple[NDArray[np.float32] | None, list[NDArray[np.bool_]]]:
        found = [read(window) for window in batch]
        masks = [valid for _, valid in found]
        if not any(valid.any() for valid in masks):
            return None, masks
        images = np.empty((len(batch), len(fill), batch[0].height, batch[0].width), np.float32)
        for image, (pixels, valid) in zip(images, found, strict=True):
            image[:] = pixels
            if not valid.all():
                image[:, ~valid] = fill[:, None]  # what is no data says nothing: the mean, 0 after normalisation
        return images, masks

    with closing(in_background(prepare, _batched(windows, batch_size), depth=_READ_AHEAD_BATCHES)) as ahead:
        for _, prepared in ahead:
            yield prepared


def _batched(windows: Iterable[Window], size: int) -> Iterator[tuple[Window, ...]]:
    """Tuples of ``size`` windows; the last may be shorter."""
    iterator = iter(windows)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch
