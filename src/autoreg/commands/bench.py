"""``autoreg bench``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoreg.commands.options import PATH, Examples, as_json_option, overwrite_option, quiet_option
from autoreg.output import atomic_output, check_output
from autoreg.runtime.devices import AUTO, DEVICE_NAMES
from autoreg.terminal import counting_bar

if TYPE_CHECKING:
    from autoreg.runtime.measure.bench import Bench, Row

_MARK = "*"
_COLUMNS = (
    "",
    "model",
    "engine",
    "precision",
    "batch",
    "lanes",
    "ms/tile",
    "MPx/s",
    "GFLOP/s",
    "sgemm",
    "agreement",
    "memory",
)
_LEFT = 4
"""Columns of words; those of numbers are aligned to the right."""


class _Gathering(Examples):
    """A command whose ``--tiles`` takes all words up to the next option, as a shell leaves them of ``scenes/*.tif``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_repeat_option("--tiles", args)))


def _repeat_option(option: str, words: list[str]) -> Iterator[str]:
    """``--tiles a b`` as ``--tiles a --tiles b``."""
    gathering = first = False
    for word in words:
        if word.startswith("-"):
            gathering = first = word == option
        elif gathering and not first:
            yield option
        else:
            first = False
        yield word


@click.command(
    cls=_Gathering,
    epilog="autoreg bench model.onnx model.int8.onnx --tiles scenes/*.tif\n"
    "autoreg bench model.onnx --batch-size 1 --batch-size 4 -o bench.json",
)
@click.argument("models", nargs=-1, required=True, type=PATH, metavar="MODEL...")
@click.option(
    "--tiles",
    multiple=True,
    metavar="RASTER...",
    help="Rasters to take tiles from; without, they are noise, and no label is compared.",
)
@click.option(
    "--tile-px", type=click.IntRange(16, 4096), help="Side of the tiles, halo included. By default that of segment."
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Tiles per call of the engine; may be repeated.",
)
@click.option(
    "--device",
    "devices",
    type=click.Choice([name for name in DEVICE_NAMES if name != AUTO]),
    multiple=True,
    help="What runs the models; may be repeated. By default all that is there.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=10, show_default=True, help="How long to measure, about."
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Least share of labels that have to be those of the first MODEL.",
)
@click.option("-o", "--output", type=PATH, metavar="FILE.json", help="Write what was measured, and the machine.")
@overwrite_option
@as_json_option
@quiet_option
def bench(
    models: tuple[Path, ...],
    tiles: tuple[str, ...],
    tile_px: int | None,
    batch_sizes: tuple[int, ...],
    devices: tuple[str, ...],
    seconds: float,
    min_agreement: float,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how fast models are here, and mark the fastest that keeps the labels.

    Each MODEL is run on each device, one call at a time and as many at once (lanes) as segment makes, all in turns. Its
    labels are compared with those of the first MODEL, which should be the fp32 one, in ONNX Runtime on the CPU. For the
    device tensorrt, engines are built first, which takes a while; MODEL may be one of autoreg build, too.

    MPx/s counts the pixels that a tile adds to a map, so without halos. GFLOP/s counts convolutions and matrix products, and
    the column sgemm says how much that is of what numpy reaches here on float32 matrices. memory is by how much the process
    grew for a row.

    Where labels were compared on all devices that are there, the fastest of them for each MODEL is kept in the user's cache
    ($XDG_CACHE_HOME/autoreg/bench.json), and --device auto takes it from then on. What auto takes anyway stays unless
    another device is 5 % faster. autoreg doctor lists what is kept.
    """
    from autoreg.runtime.measure.bench import bench_models

    if output is not None:
        check_output(output, overwrite=overwrite)
    with counting_bar("measuring", quiet or as_json) as progress:
        measured = bench_models(
            models,
            rasters=tiles,
            tile_px=tile_px,
            batch_sizes=batch_sizes,
            devices=devices,
            seconds=seconds,
            min_agreement=min_agreement,
            progress=progress,
        )
    content = json.dumps(measured.to_json(), indent=2)
    if output is not None:
        with atomic_output(output, overwrite=overwrite) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")
    click.echo(content if as_json else "\n".join(_describe(measured)))


def _describe(bench: "Bench") -> Iterator[str]:
    """The table, and what it was measured on."""
    machine, rows = bench.machine, [_COLUMNS, *map(_cells, bench.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = (
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
    yield ""
    cores = f"{machine.cores} {'core' if machine.cores == 1 else 'cores'}"
    yield f"{', '.join([machine.processor, cores, *machine.gpus])}; sgemm: {bench.sgemm}"
    source = f"of {len(bench.sources)} {'raster' if len(bench.sources) == 1 else 'rasters'}" if bench.sources else "of noise"
    yield f"{bench.tiles} tiles {source}, {bench.tile_px} px; median of {bench.rounds} rounds"
    if bench.sgemm.disturbed:
        yield "something else uses the cores: all rates are too low, and the column sgemm says little; measure again later"
    yield _conclude(bench)


def _cells(row: "Row") -> tuple[str, ...]:
    return (
        _MARK if row.fastest else "",
        Path(row.model).name,
        row.engine,
        row.precision,
        str(row.batch_size),
        str(row.lanes),
        f"{row.ms_per_tile:.1f}",
        f"{row.mpx_per_s:.2f}",
        "-" if row.gflop_per_s is None else f"{row.gflop_per_s:.1f}",
        "-" if row.sgemm_share is None else f"{100 * row.sgemm_share:.0f} %",
        "-" if row.agreement is None else f"{100 * row.agreement:.3f} %",
        "-" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.0f} MB",
    )


def _conclude(bench: "Bench") -> str:
    least = f"{100 * bench.min_agreement:.4g} % of the labels of {bench.reference}"
    if not bench.sources:
        return "no labels were compared, so none is marked; give --tiles RASTER..."
    if not any(row.fastest for row in bench.rows):
        return f"none is marked, because none has at least {least}"
    return f"{_MARK} is the fastest that has at least {least}"
