"""``autoreg calibrate``."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoreg.commands.options import PATH, as_json_option, command, overwrite_option, quiet_option
from autoreg.optional import require
from autoreg.terminal import counting_bar

if TYPE_CHECKING:
    from autoreg.calibration import Calibrated


@command(epilog="autoreg calibrate model.onnx scenes/*.tif\nautoreg calibrate model.onnx scenes/*.tif --min-agreement 0.998")
@click.argument("model", type=PATH)
@click.argument("scenes", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", type=PATH, help="Model to write.  [default: MODEL with .int8 before .onnx]")
@click.option(
    "--method",
    metavar="[min-max|percentile|entropy|mse]",
    default="mse",
    show_default=True,
    help="How the range of an activation follows from its values.",
)
@click.option("--tiles", type=int, default=128, show_default=True, help="How many to measure on, at most.")
@click.option(
    "--tile-px",
    type=int,
    help="Side of a tile.  [default: 256; the crops of the training, if the model looks at all of a tile]",
)
@click.option(
    "--min-agreement",
    type=float,
    default=0.994,
    show_default=True,
    help="Least share of labels that have to stay the same on held-out tiles; on other scenes some more change.",
)
@click.option("--ranges", type=PATH, metavar="JSON", help="Keep what was measured in this file, or use what it keeps.")
@overwrite_option
@as_json_option
@quiet_option
def calibrate(
    model: Path,
    scenes: tuple[Path, ...],
    output: Path | None,
    method: str,
    tiles: int,
    tile_px: int | None,
    min_agreement: float,
    ranges: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn a float32 model into one that computes in INT8.

    SCENES are unlabelled rasters such as the model will see. Tiles that are spread over them and over their content show how
    large the values inside the network get. Others, a quarter as many, show whether the labels stay what MODEL says: the
    layers that do the most harm stay in float32 until --min-agreement holds. If it cannot hold, nothing is written.
    """
    require("onnx")
    from autoreg.calibration import calibrate_model

    target = output or model.with_name(f"{model.stem}.int8{model.suffix}")
    with ExitStack() as stack:
        result = calibrate_model(
            model,
            scenes,
            target,
            method=method,
            tiles=tiles,
            tile_px=tile_px,
            min_agreement=min_agreement,
            ranges=ranges,
            overwrite=overwrite,
            progress=_Bars(stack, quiet or as_json),
        )
    if as_json:
        figures = {"model": str(target), "bytes": result.bytes, "parity": result.parity.as_dict()}
        click.echo(json.dumps(figures | result.as_dict()))
        return
    click.echo(f"{_table(result)}\n")
    parity = result.parity
    click.echo(
        f"{target}: int8, {result.bytes / 1e6:.1f} MB; {100 * parity.agreement:.2f} % of {parity.pixels} labels equal on "
        f"{result.held_out_tiles} held-out tiles; ranges by {result.method} on {result.tiles} tiles of {result.tile_px} px"
    )
    click.echo(f"next: autoreg segment -m {target} TILES...")


class _Bars:
    """A bar for each kind of work, which appears with its first piece of news."""

    def __init__(self, stack: ExitStack, quiet: bool) -> None:
        self._stack, self._quiet = stack, quiet
        self._reports: dict[str, Callable[[int, int], None]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._reports:
            self._reports[what] = self._stack.enter_context(counting_bar(what, self._quiet))
        self._reports[what](done, total)


def _table(result: "Calibrated") -> str:
    """What was decided about each layer, a row each; one line if no layer had to be compared with others."""
    if all(item.agreement is None for item in result.layers):
        return f"all {len(result.layers)} layers compute in int8: {result.layers[0].reason}"
    rows = [("layer", "computes in", "why")] + [(item.name, item.precision, item.reason) for item in result.layers]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
