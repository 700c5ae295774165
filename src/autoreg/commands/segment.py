"""``autoreg segment``."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoreg.commands.options import (
    PATH,
    MemorySize,
    as_json_option,
    command,
    device_option,
    make_folder,
    overwrite_option,
    quiet_option,
    require_gpu_option,
)
from autoreg.errors import AutoregError, ConfigError, OutputError
from autoreg.output import check_output
from autoreg.spec import MapClass
from autoreg.terminal import pixel_bar

if TYPE_CHECKING:
    from autoreg.raster.rasters import Part, Rasters
    from autoreg.runtime.engine import Engine
    from autoreg.runtime.pipeline import Outputs
    from autoreg.runtime.segment import Segmented, TilingOptions

SOME_FAILED = 3


@command(
    epilog="autoreg segment tiles/*.tif\nautoreg segment tiles/*.tif -m base.fp16.onnx -o maps --resume\n"
    "autoreg segment tiles/*.tif --mosaic map.tif --vector map.gpkg"
)
@click.argument("tiles", nargs=-1, required=True, metavar="TILES...")
@click.option("-m", "--model", type=PATH, default="model.onnx", show_default=True, help="Model to run.")
@device_option
@require_gpu_option
@click.option("-o", "--output", type=PATH, default="out", show_default=True, help="Folder for the maps.")
@click.option("--mosaic", type=PATH, metavar="OUT.tif", help="Write one map of all TILES instead.")
@click.option("--confidence", is_flag=True, help="Write NAME.confidence.tif, too: how sure the model is of each label.")
@click.option("--probabilities", is_flag=True, help="Write NAME.probabilities.tif, too: those of each class.")
@click.option("--quicklook", is_flag=True, help="Write NAME.png, too: the map in its colours, at most 1024 px a side.")
@click.option("--vector", type=PATH, metavar="FILE", help="Write polygons of all maps, too: .gpkg, .fgb or .parquet.")
@click.option("--min-area", type=click.FloatRange(0), metavar="M2", help="Merge smaller polygons into a neighbour.")
@click.option(
    "--simplify", type=click.FloatRange(0), metavar="METRES", help="Simplify polygons; shared borders stay shared."
)
@click.option("--resume", is_flag=True, help="Go on where an earlier run of the same job was killed or interrupted.")
@click.option("--tile-px", type=click.IntRange(1), help="Side of the tiles that the engine sees, halo included.")
@click.option(
    "--batch-size", type=click.IntRange(1), help="Tiles per call of the engine.  [default: 1; with TensorRT, its engine's]"
)
@click.option("--no-rebuild", is_flag=True, help="With TensorRT: fail rather than build an engine that is not here.")
@click.option("--max-memory", type=MemorySize(), metavar="SIZE", help="Choose tiles that fit, as in 500MB or 2GB.")
@overwrite_option
@as_json_option
@quiet_option
def segment(
    tiles: tuple[str, ...],
    model: Path,
    device: str,
    require_gpu: bool,
    output: Path,
    mosaic: Path | None,
    confidence: bool,
    probabilities: bool,
    quicklook: bool,
    vector: Path | None,
    min_area: float | None,
    simplify: float | None,
    resume: bool,
    tile_px: int | None,
    batch_size: int | None,
    no_rebuild: bool,
    max_memory: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write class maps of rasters.

    One for each of TILES: a Cloud-Optimized GeoTIFF of uint8 labels at the same place, nodata 255. TILES that touch, on one
    grid of pixels, are seen across their edges, so that their maps fit together.

    The labels are exactly those of one pass over the whole raster, whatever the tile size, unless the model looks at the
    whole tile (attention): then overlapping tiles are blended, and the share of labels that depend on the tiling is
    printed. A raster that fails is reported and the others are done; the exit status then is 3.
    """
    from autoreg.raster.polygons import write_polygons
    from autoreg.raster.rasters import Rasters
    from autoreg.raster.vector_file import check_vector_target
    from autoreg.runtime.maps import output_paths
    from autoreg.runtime.memory import fit_memory
    from autoreg.runtime.pipeline import Outputs

    if vector is None and not (min_area is None and simplify is None):
        raise ConfigError("--min-area and --simplify are about polygons; give --vector FILE, too")
    engine, options = _load_engine(model, device, tile_px, batch_size, require_gpu=require_gpu, rebuild=not no_rebuild)
    outputs = Outputs(confidence=confidence, probabilities=probabilities)
    targets = _map_paths(tiles, output) if mosaic is None else [mosaic]
    files = [path for target in targets for path in output_paths(target, outputs)]
    files += [_quicklook_path(target) for target in targets if quicklook]
    _refuse_to_lose(tiles, files, overwrite=overwrite or resume)
    make_folder(output if mosaic is None else mosaic.parent)
    if vector is not None:
        check_vector_target(vector)
        make_folder(vector.parent)
        check_output(vector, overwrite=overwrite or resume)
    if max_memory is not None:
        options = fit_memory(engine, max_memory, options, outputs)
    job = _Job(engine, outputs, options, overwrite, resume, quicklook, as_json, quiet)
    with Rasters(tiles, bands=len(engine.spec.bands)) as rasters:
        done = job.run(rasters, targets, whole=mosaic is not None)
    maps = [segmented.maps[0] for segmented in done]
    if vector is not None and maps:
        classes = engine.spec.classes
        write_polygons(
            maps, vector, classes=classes, min_area_m2=min_area, simplify_m=simplify, overwrite=overwrite or resume
        )
        if not as_json:
            click.echo(vector)
    if maps and not (quiet or as_json):
        proven = f"{100 * engine.spec.agreement:.2f} % of the labels stayed when the model was converted"
        click.echo("\n".join([f"run by {engine.device}", proven, *_summary(engine.spec.classes, done)]), err=True)
    if len(maps) < len(targets):
        click.echo(f"autoreg: {len(targets) - len(maps)} of {len(targets)} rasters failed", err=True)
        raise click.exceptions.Exit(SOME_FAILED)


def _load_engine(
    model: Path, device: str, tile_px: int | None, batch_size: int | None, *, require_gpu: bool, rebuild: bool
) -> "tuple[Engine, TilingOptions]":
    """An engine with as many lanes as its device is to have, and the tiles that it is fast on."""
    from autoreg.runtime.devices import TENSORRT, count_lanes
    from autoreg.runtime.engine import choose_for, load_engine
    from autoreg.runtime.segment import TilingOptions

    chosen = choose_for(model, device, require_gpu=require_gpu)
    lanes = count_lanes(chosen)
    engine = load_engine(model, device=chosen.name, lanes=lanes, rebuild=rebuild, tile_px=tile_px, batch_size=batch_size)
    if chosen.name != TENSORRT:
        return engine, TilingOptions(tile_px, batch_size or 1)
    from autoreg.runtime.engines.tensorrt import describe_engine

    described = describe_engine(model)
    return engine, TilingOptions(max(described.tile_shape), described.batch_size)


@dataclass(frozen=True)
class _Job:
    """What is to be done with each raster."""

    engine: "Engine"
    outputs: "Outputs"
    options: "TilingOptions"
    overwrite: bool
    resume: bool
    quicklook: bool
    as_json: bool
    quiet: bool

    def run(self, rasters: "Rasters", targets: Sequence[Path], *, whole: bool) -> "list[Segmented]":
        """Segment all rasters, and say of each what came of it; returns those that did not fail."""
        done = []
        names = [f"{len(rasters.paths)} rasters"] if whole else [str(path) for path in rasters.paths]
        for index, (name, target) in enumerate(zip(names, targets, strict=True)):
            start = time.perf_counter()
            try:
                segmented = self._segment(name, rasters, None if whole else index, target)
            except AutoregError as error:
                click.echo(f"autoreg: {error}{_kept(target)}", err=True)
                if self.as_json:
                    click.echo(json.dumps({"source": name, "error": str(error)}))
                continue
            except KeyboardInterrupt:
                if kept := _kept(target):
                    click.echo(f"\nautoreg: {target} is not finished{kept}", err=True)
                raise
            done.append(segmented)
            seconds = time.perf_counter() - start
            click.echo(json.dumps(self._line(name, segmented, seconds)) if self.as_json else self._words(segmented))
        return done

    def _segment(self, name: str, rasters: "Rasters", index: int | None, target: Path) -> "Segmented":
        from autoreg.raster.attributes import write_attribute_table
        from autoreg.raster.quicklook import write_quicklook
        from autoreg.runtime.segment import segment_part

        part: Part = rasters.whole() if index is None else rasters.part(index)
        with pixel_bar(name, self.quiet or self.as_json) as progress:
            segmented = segment_part(
                self.engine,
                part,
                target,
                outputs=self.outputs,
                options=self.options,
                overwrite=self.overwrite,
                resume=self.resume,
                progress=progress,
            )
        write_attribute_table(target, self.engine.spec.classes, segmented.class_pixels)
        if self.quicklook:
            write_quicklook(target, _quicklook_path(target), overwrite=True)
        return segmented

    def _line(self, name: str, segmented: "Segmented", seconds: float) -> dict[str, Any]:
        areas = segmented.class_areas_m2
        classes = [
            {"label": item.label, "name": item.name, "pixels": segmented.class_pixels[item.label]}
            | ({} if areas is None else {"area_m2": round(areas[item.label], 3)})
            for item in self.engine.spec.classes
        ]
        return {
            "source": name,
            "map": str(segmented.maps[0]),
            "further_maps": [str(path) for path in segmented.maps[1:]],
            "engine": self.engine.device,
            "agreement": self.engine.spec.agreement,
            "seconds": round(seconds, 3),
            "pixels": segmented.pixels,
            "tiling_dependent": round(segmented.tiling_dependent, 6),
            "resumed": segmented.resumed,
            "classes": classes,
        }

    def _words(self, segmented: "Segmented") -> str:
        share = (
            f": {100 * segmented.tiling_dependent:.2f} % of the labels depend on the tiling "
            "(the model looks at the whole tile)"
            if self.engine.spec.receptive_field_px is None
            else ""
        )
        return "\n".join([f"{segmented.maps[0]}{share}", *map(str, segmented.maps[1:])])


def _kept(target: Path) -> str:
    """What to do about a map of which blocks are kept."""
    from autoreg.raster.journal import journal_path

    return "; what is done is kept, go on with --resume" if journal_path(target).exists() else ""


def _map_paths(tiles: Sequence[str], folder: Path) -> list[Path]:
    """Where the map of each raster goes."""
    targets = [folder / f"{Path(tile.partition('?')[0]).stem}.tif" for tile in tiles]
    by_target: dict[Path, str] = {}
    for tile, target in zip(tiles, targets, strict=True):
        if target in by_target:
            raise OutputError(
                f"{by_target[target]} and {tile} would both be written to {target}; segment them into two folders"
            )
        by_target[target] = tile
    return targets


def _quicklook_path(target: Path) -> Path:
    return target.with_suffix(".png")


def _refuse_to_lose(tiles: Sequence[str], files: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse, before any work, to write ``files`` if that would lose one."""
    if len(set(files)) < len(files):
        twice = next(path for path in files if files.count(path) > 1)
        raise OutputError(f"{twice} would be written twice; segment the rasters into two folders")
    sources = {_identity(path): tile for tile in tiles if (path := Path(tile)).exists()}
    present = [path for path in files if path.exists()]
    for path in present:
        if tile := sources.get(_identity(path)):
            raise OutputError(f"the map {path} would replace {tile}; give another folder with -o")
    if present and not overwrite:
        more = f" (and {len(present) - 1} more)" if len(present) > 1 else ""
        raise OutputError(
            f"{present[0]}{more} exists; use --overwrite to replace it, --resume to keep it if it is of the same job, "
            f"or give another folder with -o"
        )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _summary(classes: Sequence[MapClass], done: Sequence["Segmented"]) -> Iterator[str]:
    """What all maps add up to: a line for each class."""
    pixels = {item.label: sum(one.class_pixels[item.label] for one in done) for item in classes}
    areas = [one.class_areas_m2 for one in done]
    total = max(sum(pixels.values()), 1)
    width = max(len(item.name) for item in classes)
    for item in classes:
        known = [area[item.label] for area in areas if area is not None]
        area = _describe_area(sum(known)) if len(known) == len(areas) else ""
        count = pixels[item.label]
        yield f"{item.name:{width}}  {count:>15,} px  {100 * count / total:6.2f} %  {area}".rstrip()


def _describe_area(square_metres: float) -> str:
    return f"{square_metres / 1e6:,.2f} km2" if square_metres >= 1e6 else f"{square_metres:,.0f} m2"
