"""``autoreg verify``."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoreg.commands.options import PATH, as_json_option, backbone_option, command, device_option, overwrite_option
from autoreg.errors import ConfigError

if TYPE_CHECKING:
    from autoreg.network.checkpoint import Checkpoint
    from autoreg.runtime.engine import Engine
    from autoreg.runtime.parity import Compared, Tile

DIFFERENT = 1


@command(epilog="autoreg verify checkpoint.pt model.onnx\nautoreg verify model.onnx half.onnx --tiles tiles/*.tif")
@click.argument("first", type=PATH, metavar="A")
@click.argument("second", type=PATH, metavar="B")
@click.option(
    "--tiles",
    multiple=True,
    metavar="TILES...",
    help="Rasters to compare on. By default the sample crops of the checkpoint, if A or B is one.",
)
@click.argument("more", nargs=-1, metavar="")  # what a shell makes of --tiles tiles/*.tif
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    help="Least share of equal labels. By default 0.999, and 0.99 if one of the two is int8 or bf16.",
)
@click.option("--picture", type=PATH, metavar="FILE.png", help="Draw the worst tile: image, labels of both, difference.")
@device_option
@backbone_option
@overwrite_option
@as_json_option
def verify(
    first: Path,
    second: Path,
    tiles: tuple[str, ...],
    more: tuple[str, ...],
    min_agreement: float | None,
    picture: Path | None,
    device: str,
    backbone: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compare what two models say.

    A and B are each a checkpoint, run by PyTorch, or a model, run on --device, or an engine of autoreg build, run by
    TensorRT. If fewer labels are equal than --min-agreement, or a probability is NaN, the exit status is 1.
    """
    from autoreg.output import check_output
    from autoreg.runtime.parity import LEAST_AGREEMENT, check_comparable, compare_engines

    if picture is not None:
        check_output(picture, overwrite=overwrite)
    checkpoints = {path: _checkpoint(path) for path in (first, second)}
    engines = [_engine(path, checkpoints[path], device, backbone) for path in (first, second)]
    check_comparable(engines[0].spec, engines[1].spec)
    most_px = min(_side_px(path, device) for path in checkpoints)
    shown = _tiles((*tiles, *more), engines, list(checkpoints.values()), most_px)
    compared = compare_engines(engines[0], engines[1], shown)
    least = min(LEAST_AGREEMENT[engine.spec.precision] for engine in engines) if min_agreement is None else min_agreement
    passed = compared.parity.reaches(least)
    if picture is not None:
        _draw(compared, engines[0], picture, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(_as_dict(compared, least, passed)))
    else:
        for name, path, engine in zip("AB", (first, second), engines, strict=True):
            click.echo(f"{name}  {path}: {engine.spec.precision}, {engine.device}")
        click.echo(_table(compared, least, passed))
    if not passed:
        raise click.exceptions.Exit(DIFFERENT)


def _checkpoint(path: Path) -> "Checkpoint | None":
    """What a file is if it is a zip archive, as a checkpoint is; else it is a model."""
    if not zipfile.is_zipfile(path):
        return None
    from autoreg.network.checkpoint import check_fitted, load_checkpoint

    checkpoint = load_checkpoint(path)
    check_fitted(checkpoint, path)
    return checkpoint


def _engine(path: Path, checkpoint: "Checkpoint | None", device: str, backbone: str | None) -> "Engine":
    """What runs a file."""
    from autoreg.runtime.devices import AUTO
    from autoreg.runtime.engine import ENGINE_SUFFIX, load_engine

    if checkpoint is None:
        named = path.suffix == ENGINE_SUFFIX  # it is that very file which is to be compared, on the one device that runs it
        return load_engine(path, device=AUTO if named else device, rebuild=not named)
    from autoreg.network.backbone import load_backbone
    from autoreg.train.scoring import TorchEngine

    network = checkpoint.build_network(load_backbone(backbone, len(checkpoint.bands)))
    return TorchEngine(
        network,
        checkpoint.bands,
        checkpoint.dtype,
        checkpoint.samples.shape[-1],
        normalisation=checkpoint.normalisation,
    )


def _side_px(path: Path, device: str) -> int:
    """Most pixels of a side of the tiles to show: an engine of TensorRT is made for tiles of some size."""
    from autoreg.runtime.devices import AUTO, TENSORRT
    from autoreg.runtime.engine import ENGINE_SUFFIX, choose_for
    from autoreg.runtime.verify import TILE_PX

    if zipfile.is_zipfile(path) or choose_for(path, AUTO if path.suffix == ENGINE_SUFFIX else device).name != TENSORRT:
        return TILE_PX
    from autoreg.runtime.engines.tensorrt import describe_engine

    return min(TILE_PX, *describe_engine(path).tile_shape)


def _tiles(
    rasters: tuple[str, ...], engines: "list[Engine]", checkpoints: "list[Checkpoint | None]", most_px: int
) -> "Iterator[Tile]":
    """What to compare on."""
    from autoreg.runtime.verify import raster_tiles, sample_tiles

    if rasters:
        return raster_tiles(rasters, engines[0].spec, engines[1].spec, most_px=most_px)
    for checkpoint in checkpoints:
        if checkpoint is not None:
            return sample_tiles(checkpoint.samples.numpy(), engines[0].spec)
    raise ConfigError("two models were given and nothing to compare them on, as a model carries no imagery; give --tiles")


def _draw(compared: "Compared", engine: "Engine", target: Path, *, overwrite: bool) -> None:
    from autoreg.output import atomic_output
    from autoreg.raster.picture import encode_picture
    from autoreg.runtime.verify import draw_difference

    drawn = encode_picture(draw_difference(compared.worst, engine.spec.bands, engine.spec.clusters))
    with atomic_output(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(drawn)


def _as_dict(compared: "Compared", least: float, passed: bool) -> dict[str, object]:
    worst = {"place": compared.worst.tile.place, "differing": int(compared.worst.differing.sum())}
    return {**compared.parity.as_dict(), "min_agreement": least, "passed": passed, "worst": worst}


def _table(compared: "Compared", least: float, passed: bool) -> str:
    """The figures as text, one a line."""
    from autoreg.runtime.parity import CLEAR_MARGIN

    parity, worst = compared.parity, compared.worst
    clear = "-" if parity.clear_agreement is None else f"{100 * parity.clear_agreement:.4f} %"
    iou = " ".join("-" if value is None else f"{100 * value:.2f}" for value in parity.iou)
    verdict = "equal enough" if passed else "DIFFERENT"
    return "\n".join(
        (
            f"labels that are equal    {100 * parity.agreement:.4f} % of {parity.pixels}",
            f"  where A is clear       {clear} of {parity.clear_pixels}, whose margin is above {CLEAR_MARGIN}",
            f"IoU of each cluster, %   {iou}",
            f"probability difference   {parity.max_probability_difference:.1e} at most, "
            f"{parity.mean_probability_difference:.1e} on average",
            f"worst tile               {worst.tile.place}: {int(worst.differing.sum())} labels differ",
            f"{verdict}: expected at least {100 * least:.4g} % of the labels",
        )
    )
