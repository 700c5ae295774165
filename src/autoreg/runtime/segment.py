"""Segment an array or rasters of any size, tile by tile.

The labels are those of one pass over the whole, unless the model looks at the whole tile: then tiles overlap and blend.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.raster.blending import Blending, plan_blending
from autoreg.raster.statistics import Read, match_scene
from autoreg.raster.tiling import Tiling, plan_tiles
from autoreg.raster.window import Window
from autoreg.runtime.engine import Engine
from autoreg.runtime.maps import job_digest, least_bytes, map_files, provenance
from autoreg.runtime.pipeline import Job, Outputs, run
from autoreg.spec import NODATA_LABEL, ModelSpec

if TYPE_CHECKING:
    from autoreg.raster.imagery import Imagery
    from autoreg.raster.rasters import Part
    from autoreg.raster.writer import MapFile, Totals

Progress = Callable[[int, int], None]
"""Called with the pixels done and the pixels in all, after each part."""


@dataclass(frozen=True)
class TilingOptions:
    """How to cut a raster; none of it changes a label, unless the model looks at its whole tile: then ``tile_px`` does.

    Attributes:
        tile_px: side of the tile that the engine sees, halo included. If None, one whose core is 512 px; for a model that
            looks at its whole tile, the crop that it was trained on.
        batch_size: tiles per call of the engine.
        cache_bytes: of decoded blocks that neighbouring tiles share, at most.
    """

    tile_px: int | None = None
    batch_size: int = 1
    cache_bytes: int = 256 * 2**20

    def plan(
        self, spec: ModelSpec, height: int, width: int, *, region: Window | None = None, by_rows: bool = False
    ) -> Tiling | Blending:
        """The tiles of a raster of ``height`` x ``width`` px for a model: exact ones if its receptive field is finite.

        Args:
            spec: of the model.
            height: of the raster.
            width: of the raster.
            region: the part to label; all of it if None.
            by_rows: the raster stores its rows whole, so that exact tiles should go along them.
        """
        if spec.receptive_field_px is None:
            tile_px = spec.crop_px if self.tile_px is None else self.tile_px
            return plan_blending(height, width, tile_px=tile_px, stride=spec.stride, region=region)
        return plan_tiles(
            height,
            width,
            tile_px=self.tile_px,
            receptive_field_px=spec.receptive_field_px,
            stride=spec.stride,
            region=region,
            by_rows=by_rows,
        )


@dataclass(frozen=True)
class Segmented:
    """What ``segment_raster`` wrote.

    Attributes:
        maps: the files; the first is the map of labels.
        pixels: how many were labelled: those with data.
        tiling_dependent: share of their labels, 0..1, that depend on how the raster was cut: 0 if the model's receptive
            field is finite. Else the mean over the pixels of the share of covering tiles, each counted with its weight in
            the blend, whose own label is not the blended one. Pixels that one tile covers, as in a corner, count as 0.
        class_pixels: of each label, how many pixels have it.
        class_areas_m2: likewise, their area on the ground; None where the CRS does not say how large a pixel is.
        resumed: whether an earlier process had begun or finished it.
    """

    maps: tuple[Path, ...]
    pixels: int
    tiling_dependent: float
    class_pixels: dict[int, int]
    class_areas_m2: dict[int, float] | None
    resumed: bool = False


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
    labels = np.full((height, width), NODATA_LABEL, np.uint8)
    read = scene_reader(engine.spec, array_reader(image, data), height, width)
    options = options or TilingOptions()

    def put(parts: Sequence[NDArray[np.uint8]] | None, core: Window, _tiling_dependent: float) -> None:
        if parts is not None:
            labels[core.slices] = parts[0][..., 0]

    run(Job(engine, options.plan(engine.spec, height, width), read, put, Outputs(), options.batch_size))
    return labels


def segment_raster(
    engine: Engine,
    source: str | Path,
    target: str | Path,
    *,
    neighbours: Sequence[str | Path] = (),
    outputs: Outputs | None = None,
    options: TilingOptions | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Segmented:
    """Segment a raster file into a class map of the same size and place, holding some tiles in memory.

    The map is a Cloud-Optimized GeoTIFF of uint8 labels with a colour table, nodata 255 where the source has no data, and
    tags that say which model made it, and, in ``AUTOREG_CLASSES``, what the labels mean: the classes of its spec, as JSON.
    The other ``outputs`` are beside it, ``<name>.confidence.tif`` and ``<name>.probabilities.tif``.

    Args:
        engine: from ``load_engine``.
        source: a raster that GDAL opens.
        target: the map to write, ``.tif``; it appears when it is complete.
        neighbours: further rasters: those that touch ``source`` and whose pixels lie on its grid are looked at across its
            edges, so that the maps of them all fit together.
        outputs: which maps to write besides the labels.
        options: how to cut it; see there what depends on this.
        overwrite: replace ``target`` if it exists.
        resume: go on from what an earlier process, killed or interrupted, has done of the same job; leave a map of the same
            job as it is.
        progress: called with the pixels done and the pixels in all, after each part.

    Returns:
        What was written, and what it adds up to.

    Raises:
        RasterError: ``source`` cannot be read, changed meanwhile, or does not have the model's bands or type.
        OutputError: ``target`` exists or cannot be written.
        EngineError: the engine failed.
    """
    from autoreg.raster.rasters import Rasters

    with Rasters([source, *neighbours], bands=len(engine.spec.bands)) as rasters:
        return segment_part(
            engine,
            rasters.part(0),
            Path(target),
            outputs=outputs,
            options=options,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )


def segment_part(
    engine: Engine,
    part: "Part",
    target: Path,
    *,
    outputs: Outputs | None = None,
    options: TilingOptions | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Segmented:
    """Segment one raster of many, or many as one; otherwise as ``segment_raster``.

    Args:
        engine: from ``load_engine``.
        part: from ``Rasters``, which has to stay open.
        target: the map to write.
        outputs: as in ``segment_raster``.
        options: as in ``segment_raster``.
        overwrite: as in ``segment_raster``.
        resume: as in ``segment_raster``.
        progress: as in ``segment_raster``.
    """
    from autoreg.optional import require
    from autoreg.raster.imagery import cache_bytes
    from autoreg.raster.journal import remove_journal
    from autoreg.raster.writer import write_maps

    spec, options, outputs = engine.spec, options or TilingOptions(), outputs or Outputs()
    imagery = part.imagery
    check_fit(part.name, imagery, spec)
    by_rows = imagery.block_shape[1] >= part.place.width
    plan = options.plan(spec, imagery.height, imagery.width, region=part.region, by_rows=by_rows)
    job = job_digest(engine, part, plan, outputs)
    files = map_files(spec, target, outputs)
    if resume and (finished := _finished(files, job, spec)):
        remove_journal(target, job)
        return finished
    done, total = 0, part.region.height * part.region.width
    cache = cache_bytes(imagery, plan.tile_shape[0], plan.strip_px + plan.tile_shape[1])
    with (
        require("rasterio").Env(GDAL_CACHEMAX=min(cache, options.cache_bytes)),
        write_maps(
            files,
            like=part.place,
            tags=provenance(engine, part),
            job=job,
            needed_bytes=least_bytes(part, files),
            overwrite=overwrite,
            resume=resume,
        ) as writer,
    ):
        begun = bool(writer.totals.pixels.any())
        read = scene_reader(spec, imagery.read, imagery.height, imagery.width)

        def put(parts: Sequence[NDArray[np.uint8]] | None, core: Window, tiling_dependent: float) -> None:
            writer.write(parts, core.within(part.region), tiling_dependent)

        def is_done(core: Window) -> bool:
            return writer.is_done(core.within(part.region))

        def advance(pixels: int) -> None:
            nonlocal done
            done += pixels
            if progress:
                progress(done, total)

        run(Job(engine, plan, read, put, outputs, options.batch_size, imagery.is_empty, is_done, advance))
        if job != job_digest(engine, part, plan, outputs):
            raise RasterError(f"{part.name} changed while it was segmented, so there is no map of it; segment it again")
    return _segmented(files, writer.totals, spec, resumed=begun)


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


def check_fit(name: str, imagery: "Imagery", spec: ModelSpec) -> None:
    """Make sure that a model can see some imagery.

    Raises:
        RasterError: it has other bands or another type of pixels.
    """
    bands, dtype = imagery.bands, imagery.dtype
    if len(bands) != len(spec.bands):
        raise RasterError(
            f"{name} has {len(bands)} {'band' if len(bands) == 1 else 'bands'} ({', '.join(bands)}), "
            f"but the model expects {len(spec.bands)} ({', '.join(spec.bands)})"
        )
    if dtype != spec.dtype:
        raise RasterError(
            f"{name} has pixels of type {dtype}, but the model was trained on {spec.dtype}, "
            f"which has another range of values; convert it with gdal_translate -ot, scaled as in the training"
        )


def _segmented(files: "Sequence[MapFile]", totals: "Totals", spec: ModelSpec, *, resumed: bool) -> Segmented:
    labels = [item.label for item in spec.classes]
    pixels = int(totals.pixels.sum() - totals.pixels[NODATA_LABEL])
    areas = totals.areas_m2
    return Segmented(
        maps=tuple(file.path for file in files),
        pixels=pixels,
        tiling_dependent=totals.tiling_dependent / max(pixels, 1),
        class_pixels={label: int(totals.pixels[label]) for label in labels},
        class_areas_m2=None if areas is None else {label: float(areas[label]) for label in labels},
        resumed=resumed,
    )


def _finished(files: "Sequence[MapFile]", job: bytes, spec: ModelSpec) -> Segmented | None:
    """What an earlier process has written, if all of it is there and of the same job."""
    from autoreg.raster.writer import read_totals

    totals = None
    for file in reversed(files):
        totals = read_totals(file.path, job)
        if totals is None:
            return None
    return None if totals is None else _segmented(files, totals, spec, resumed=True)
