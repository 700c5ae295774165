"""``autoreg build``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoreg.commands.options import PATH, MemorySize, as_json_option, command, overwrite_option, quiet_option
from autoreg.terminal import counting_bar

if TYPE_CHECKING:
    from autoreg.runtime.engines.tensorrt import EngineFile

_LIBRARIES = ("tensorrt", "tensorrt_rtx")


def _split(_context: click.Context, _parameter: click.Parameter, listed: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in listed.split(",") if part.strip())


@command(
    epilog="autoreg build model.onnx\nautoreg build model.int8.onnx --batch-size 4 --timing-cache build.cache\n"
    "autoreg build model.onnx --library tensorrt_rtx --compute-capability 8.6,8.9"
)
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, help="Engine to write.  [default: MODEL with .engine instead of .onnx]")
@click.option("--tile-px", type=click.IntRange(1), help="Side of the tiles, halo included.  [default: that of segment]")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Tiles per call of the engine.")
@click.option(
    "--library",
    type=click.Choice(_LIBRARIES),
    help="What builds it, and will run it.  [default: the first that is installed]",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    callback=_split,
    default="",
    metavar="8.6,8.9",
    help="GPUs to build for, with tensorrt_rtx, which needs none to build.  [default: the GPU here]",
)
@click.option("--tf32", is_flag=True, help="Let the GPU round float32 to 10 bits where it multiplies.")
@click.option(
    "--level", type=click.IntRange(0, 5), help="How long to look for what is fastest.  [default: the library's, 3]"
)
@click.option("--workspace", type=MemorySize(), metavar="SIZE", help="Most memory of the GPU for a layer's own use, as 2GB.")
@click.option(
    "--timing-cache", type=PATH, metavar="FILE", help="Keep what was measured here, for faster builds; tensorrt only."
)
@overwrite_option
@as_json_option
@quiet_option
def build(
    model: Path,
    output: Path | None,
    tile_px: int | None,
    batch_size: int,
    library: str | None,
    compute_capabilities: tuple[str, ...],
    tf32: bool,
    level: int | None,
    workspace: int | None,
    timing_cache: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compile a model for a GPU: TensorRT's engine, and beside it FILE.json, which says what it is.

    It computes in the precision of MODEL, and is fastest on tiles of the size and number that it is built for. It runs with
    that version of the library, on GPUs of that model, or, with tensorrt_rtx, of those compute capabilities: elsewhere,
    segment builds another one from MODEL.

    If such a GPU is here, the labels are compared with those of ONNX Runtime on the CPU, and an engine that differs is not
    written. An engine is code: run none that comes from somebody whose programs you would not run.
    """
    from autoreg.runtime.engines.tensorrt import BuildOptions, build_engine

    target = output or model.with_suffix(".engine")
    options = BuildOptions(tile_px, batch_size, compute_capabilities, tf32, level, workspace, timing_cache)
    with counting_bar("building", quiet or as_json) as progress:
        built = build_engine(model, target, options, flavour=library, overwrite=overwrite, progress=progress)
    size = target.stat().st_size
    found = {"engine": str(target), "bytes": size, **built.facts()}
    click.echo(json.dumps(found) if as_json else _describe(built, target, size, model))


def _describe(built: "EngineFile", target: Path, size: int, model: Path) -> str:
    """What was built, in lines; ``size`` is that of the engine, in bytes."""
    height, width = built.tile_shape
    proven = (
        "no label was compared, as no GPU that it was built for is here: run autoreg verify where one is"
        if built.parity is None
        else f"{built.parity}, compared with ONNX Runtime on the CPU, on noise"
    )
    capabilities, weights = ", ".join(built.compute_capabilities), f"{size / 1e6:.1f} MB"
    lane = "more, which was not measured" if built.lane_bytes is None else f"{built.lane_bytes / 1e6:.1f} MB"
    return (
        f"{target}: {built.spec.precision}, {weights}, {built.flavour} {built.version} for compute capability "
        f"{capabilities}, {built.batch_size} x {height} x {width} px\n{proven}\n"
        f"memory of the GPU: {weights}, and for each lane {lane}\n"
        f"next: autoreg segment -m {model if target == model.with_suffix('.engine') else target} --device tensorrt TILES..."
    )
