"""``autoreg verify-tiling``."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoreg.commands.options import PATH, as_json_option, command, device_option

if TYPE_CHECKING:
    from autoreg.runtime.verify_tiling import TilingCheck

DIFFERENT = 1


@command(epilog="autoreg verify-tiling model.onnx tiles/a.tif\nautoreg verify-tiling model.onnx tiles/a.tif --tile-px 300")
@click.argument("model", type=PATH)
@click.argument("raster")
@click.option(
    "--tile-px",
    "tiles_px",
    type=click.IntRange(1),
    multiple=True,
    help="Side of the tiles, halo included; may be repeated. By default those of segment and some awkward ones.",
)
@click.option(
    "--max-px",
    type=click.IntRange(1),
    help="Most pixels of one pass; a larger raster is checked on pieces. By default 4194304 (16384 cells for a model that "
    "looks at the whole tile), 1 or 2 GB for networks up to the size base; larger networks need more memory.",
)
@device_option
@as_json_option
def verify_tiling(
    model: Path, raster: str, tiles_px: tuple[int, ...], max_px: int | None, device: str, as_json: bool
) -> None:
    """Prove on RASTER that tiled labels are those of one pass over the whole.

    For each tile size, with one tile and with two per call of the engine, the labels that MODEL gives tile by tile are
    compared with those of one pass. If one differs, the exit status is 1, and the margin between the two logits tells
    rounding from an error.

    A large raster is checked on up to 9 pieces from corner to corner, each of them as a raster of its own. Labels of a model
    that looks at the whole tile (attention) depend on the tiling: then the share that differs is printed, and the exit
    status is 0.
    """
    from autoreg.runtime.engine import load_engine
    from autoreg.runtime.verify_tiling import verify_tiling as verify

    checks = []
    for check in verify(load_engine(model, device=device), raster, tiles_px=tiles_px, max_px=max_px):
        click.echo(json.dumps(dataclasses.asdict(check)) if as_json else _describe(check))
        checks.append(check)
    if not as_json:
        click.echo(_conclude(checks))
    if any(check.failed for check in checks):
        raise click.exceptions.Exit(DIFFERENT)


def _describe(check: "TilingCheck") -> str:
    where = f"{check.pieces} pieces, {100 * check.checked:.4g} % of the raster" if check.pieces > 1 else "the whole raster"
    cut = f"{check.tiles} {'tile' if check.tiles == 1 else 'tiles'} in {where}"
    share = "" if check.exact else f" ({100 * check.differing_share:.2f} %)"
    text = f"tiles of {check.tile_px} px, batches of {check.batch_size}: {check.differing} of {check.labels} labels differ"
    return f"{text}{share}; {cut}"


def _conclude(checks: "list[TilingCheck]") -> str:
    """What the checks say together."""
    pieces = "; each piece was checked as a raster of its own" if any(check.pieces > 1 for check in checks) else ""
    worst = max(checks, key=lambda check: (check.differing_nodata, check.max_margin))
    if not any(check.labels or check.differing for check in checks):
        return "there is no data where it was checked, so no labels were compared"
    if not worst.exact:
        share = max(check.differing_share for check in checks)
        return (
            f"tiled labels cannot be those of one pass, as the model looks at the whole tile: "
            f"up to {100 * share:.2f} % differ{pieces}"
        )
    if not any(check.failed for check in checks):
        uncut = "; nothing was cut, as a tile holds it all" if all(check.tiles == check.pieces for check in checks) else ""
        return f"equal: tiled labels are those of one pass{pieces}{uncut}"
    if worst.differing_nodata:
        return f"DIFFERENT: {worst.differing_nodata} pixels are nodata (255) only when tiled, or only in one pass"
    return (
        f"DIFFERENT: where labels differ, their logits are up to {worst.max_margin:.1e} apart, and as large as "
        f"{worst.largest_logit:.1e}: about 1e-6 of that (1e-3 for fp16) is rounding at a tie, more is an error, "
        f"such as a receptive field that is larger than the model's spec says"
    )
