"""``autoreg segment``."""

import json
import time
from pathlib import Path

import click

from autoreg.commands.options import PATH, as_json_option, command, make_folder, overwrite_option, quiet_option
from autoreg.errors import AutoregError, OutputError
from autoreg.terminal import pixel_bar

SOME_FAILED = 3


@command(epilog="autoreg segment tiles/*.tif\nautoreg segment tiles/*.tif -m base.fp16.onnx -o maps --overwrite")
@click.argument("tiles", nargs=-1, required=True, metavar="TILES...")
@click.option("-m", "--model", type=PATH, default="model.onnx", show_default=True, help="Model to run.")
@click.option("-o", "--output", type=PATH, default="out", show_default=True, help="Folder for the maps.")
@click.option("--tile-px", type=click.IntRange(1), help="Side of the tiles that the engine sees, halo included.")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Tiles per call of the engine.")
@overwrite_option
@as_json_option
@quiet_option
def segment(
    tiles: tuple[str, ...],
    model: Path,
    output: Path,
    tile_px: int | None,
    batch_size: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write class maps of rasters.

    One for each of TILES: a Cloud-Optimized GeoTIFF of uint8 labels at the same place, nodata 255.

    The labels are exactly those of one pass over the whole raster, whatever the tile size, unless the model looks at the
    whole tile (attention): then overlapping tiles are blended, and the share of labels that depend on the tiling is
    printed. A raster that fails is reported and the others are done; the exit status then is 3.
    """
    from autoreg.runtime.engine import load_engine
    from autoreg.runtime.segment import TilingOptions, segment_raster

    engine = load_engine(model)
    targets = _map_paths(tiles, output, overwrite)
    failed = 0
    for source, target in zip(tiles, targets, strict=True):
        start = time.perf_counter()
        try:
            with pixel_bar(source, quiet or as_json) as progress:
                options = TilingOptions(tile_px, batch_size)
                segmented = segment_raster(engine, source, target, options=options, overwrite=overwrite, progress=progress)
        except AutoregError as error:
            failed += 1
            click.echo(f"autoreg: {error}", err=True)
            continue
        seconds = time.perf_counter() - start
        line = {"source": source, "map": str(target), "seconds": round(seconds, 3)}
        line |= {"tiling_dependent": round(segmented.tiling_dependent, 6)}
        share = (
            f": {100 * segmented.tiling_dependent:.2f} % of the labels depend on the tiling "
            "(the model looks at the whole tile)"
            if engine.spec.receptive_field_px is None
            else ""
        )
        click.echo(json.dumps(line) if as_json else f"{target}{share}")
    if failed:
        click.echo(f"autoreg: {failed} of {len(tiles)} rasters failed", err=True)
        raise click.exceptions.Exit(SOME_FAILED)


def _map_paths(tiles: tuple[str, ...], folder: Path, overwrite: bool) -> list[Path]:
    """Where the map of each raster goes; refuses, before any work, what would lose a file."""
    targets = [folder / f"{Path(tile).stem}.tif" for tile in tiles]
    by_target: dict[Path, str] = {}
    for tile, target in zip(tiles, targets, strict=True):
        if target in by_target:
            raise OutputError(
                f"{by_target[target]} and {tile} would both be written to {target}; segment them into two folders"
            )
        by_target[target] = tile
        if target.exists() and Path(tile).exists() and target.samefile(tile):
            raise OutputError(f"the map of {tile} would replace it; give another folder with -o")
    present = [target for target in targets if target.exists()]
    if present and not overwrite:
        more = f" (and {len(present) - 1} more)" if len(present) > 1 else ""
        raise OutputError(f"{present[0]}{more} exists; use --overwrite to replace it, or give another folder with -o")
    make_folder(folder)
    return targets
