"""The command line: a command parses, calls one function of the library and prints what it returned."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoreg.errors import AutoregError, ConfigError, OutputError
from autoreg.optional import explain_missing
from autoreg.terminal import pixel_bar, stop_on_interrupt, training_bar

if TYPE_CHECKING:
    from autoreg.evaluation import Evaluation

SOME_FAILED = 3
INTERRUPTED = 130

_PATH = click.Path(path_type=Path)


class _Examples(click.Command):
    """A command whose help ends with the examples of its epilog, one a line."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Examples"):
            for line in (self.epilog or "").splitlines():
                formatter.write_text(line)


class _Commands(click.Group):
    """The commands in the order of the pipeline."""

    command_class = _Examples

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="autoreg", message="%(version)s")
def cli() -> None:
    """Unlabelled satellite and aerial imagery to fast, deployable segmentation.

    \b
    autoreg train scenes/*.tif      learns without labels      -> checkpoint.pt
    autoreg export                  strips, converts, proves   -> model.onnx
    autoreg segment tiles/*.tif     writes class maps          -> out/*.tif
    """  # noqa: D301


def _silence(_context: click.Context, _parameter: click.Parameter, quiet: bool) -> bool:
    if quiet:
        logging.getLogger("autoreg").setLevel(logging.ERROR)
    return quiet


_quiet = click.option("-q", "--quiet", is_flag=True, callback=_silence, help="No progress and no warnings.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace existing files.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@cli.command(epilog="autoreg train scenes/*.tif -k 6\nautoreg train scenes/*.tif -c train.toml -o base.pt --device cuda")
@click.argument("scenes", nargs=-1, required=True, metavar="SCENES...")
@click.option("-o", "--output", type=_PATH, default="checkpoint.pt", show_default=True, help="Checkpoint to write.")
@click.option("-c", "--config", "config_path", type=_PATH, help="Settings in TOML; options given here win over it.")
@click.option("-k", "--classes", type=int, help="Number of clusters.  [default: 6]")
@click.option("--size", help="tiny, small, base or paper.  [default: small]")
@click.option("--steps", type=int, help="Updates of the weights in all.  [default: 1000]")
@click.option("--seed", type=int, help="Of the initial weights, crops and orderings.  [default: 0]")
@click.option("--device", help="auto, cpu or cuda.  [default: auto]")
@click.option("--resume", is_flag=True, help="Go on with the checkpoint at -o, up to --steps.")
@_overwrite
@_quiet
def train(
    scenes: tuple[str, ...],
    output: Path,
    config_path: Path | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Learn from unlabelled rasters.

    Writes a checkpoint. SCENES are GeoTIFF, JPEG, PNG or other rasters with the same bands and type. Pixels without
    data (nodata, masks, NaN) are ignored. Ctrl-C stops after the current step and writes the checkpoint; --resume goes
    on from there.
    """
    from autoreg.train import load_config, resume_training, train_network

    with stop_on_interrupt() as stopped, training_bar(quiet) as progress:
        if resume:
            if config_path:
                raise ConfigError("--resume takes the settings from the checkpoint; leave --config out")
            status = resume_training(scenes, output, options, progress=progress, should_stop=stopped.is_set)
        else:
            config = load_config(config_path, options)
            status = train_network(
                scenes, output, config, overwrite=overwrite, progress=progress, should_stop=stopped.is_set
            )
    shares = ", ".join(f"{100 * share:.0f} %" for share in sorted(status.usage, reverse=True))
    click.echo(
        f"{output}: step {status.step} of {status.steps}, mutual information {status.mutual_information:.3f} nats, "
        f"{status.clusters_used} of {len(status.usage)} clusters used ({shares})"
    )
    if status.step < status.steps:
        click.echo(
            f"stopped; go on with: autoreg train {' '.join(scenes[:1])}{' ...' * (len(scenes) > 1)} -o {output} --resume"
        )
        raise click.exceptions.Exit(INTERRUPTED)
    click.echo(f"next: autoreg export {output}")


@cli.command(epilog="autoreg export\nautoreg export base.pt -o base.fp16.onnx --fp16")
@click.argument("checkpoint", type=_PATH, default="checkpoint.pt")
@click.option("-o", "--output", type=_PATH, default="model.onnx", show_default=True, help="Model to write.")
@click.option("--fp16", is_flag=True, help="Compute in float16; inputs and outputs stay float32.")
@_overwrite
def export(checkpoint: Path, output: Path, fp16: bool, overwrite: bool) -> None:
    """Turn a checkpoint into an ONNX model.

    Proves that it says what PyTorch says before it appears. CHECKPOINT is checkpoint.pt if not given.
    """
    from autoreg.export import export_onnx

    exported = export_onnx(checkpoint, output, precision="fp16" if fp16 else "fp32", overwrite=overwrite)
    click.echo(f"{output}: {exported.spec.precision}, {exported.bytes / 1e6:.1f} MB; {exported.parity}")
    click.echo(f"next: autoreg segment -m {output} TILES...")


@cli.command(epilog="autoreg segment tiles/*.tif\nautoreg segment tiles/*.tif -m base.fp16.onnx -o maps --overwrite")
@click.argument("tiles", nargs=-1, required=True, metavar="TILES...")
@click.option("-m", "--model", type=_PATH, default="model.onnx", show_default=True, help="Model to run.")
@click.option("-o", "--output", type=_PATH, default="out", show_default=True, help="Folder for the maps.")
@click.option("--tile-px", type=click.IntRange(1), help="Side of the tiles that the engine sees, halo included.")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Tiles per call of the engine.")
@_overwrite
@_as_json
@_quiet
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

    The labels are exactly those of one pass over the whole raster, whatever the tile size. A raster that fails is reported
    and the others are done; the exit status then is 3.
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
                segment_raster(engine, source, target, options=options, overwrite=overwrite, progress=progress)
        except AutoregError as error:
            failed += 1
            click.echo(f"autoreg: {error}", err=True)
            continue
        seconds = time.perf_counter() - start
        line = {"source": source, "map": str(target), "seconds": round(seconds, 3)}
        click.echo(json.dumps(line) if as_json else f"{target}")
    if failed:
        click.echo(f"autoreg: {failed} of {len(tiles)} rasters failed", err=True)
        raise click.exceptions.Exit(SOME_FAILED)


@cli.command(epilog="autoreg evaluate out/scene.tif truth/scene.tif\nautoreg evaluate out/ truth/ --json")
@click.argument("labels", type=_PATH)
@click.argument("truth", type=_PATH)
@_as_json
def evaluate(labels: Path, truth: Path, as_json: bool) -> None:
    """Score class maps against true ones.

    Clusters are matched to classes one to one. LABELS and TRUTH are two rasters, or two folders whose files are
    paired by name. 255 in either is ignored.
    """
    from autoreg.evaluation import evaluate as evaluate_maps
    from autoreg.evaluation import pair_files

    result = evaluate_maps(pair_files(labels, truth))
    click.echo(json.dumps(result.as_dict()) if as_json else _table(result))


@cli.command(epilog="autoreg info checkpoint.pt\nautoreg info model.onnx --json")
@click.argument("file", type=_PATH)
@_as_json
def info(file: Path, as_json: bool) -> None:
    """Print what a file promises.

    FILE is a checkpoint or a model.
    """
    promises = _describe(file)
    if as_json:
        click.echo(json.dumps(promises))
        return
    width = max(map(len, promises))
    for name, value in promises.items():
        text = (
            ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
            if isinstance(value, tuple)
            else value
        )
        click.echo(f"{name:<{width}}  {text}")


@cli.command(epilog="autoreg demo demo\nautoreg demo /tmp/demo --seed 1 --overwrite")
@click.argument("folder", type=_PATH)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the landscapes and of the training.")
@_overwrite
@_quiet
@click.pass_context
def demo(context: click.Context, folder: Path, seed: int, overwrite: bool, quiet: bool) -> None:
    """Run the whole chain on a synthetic scene.

    Makes landscapes, learns them without labels, maps one that was not seen, scores it and draws the result. Five
    land covers that differ in texture more than in colour. Takes some minutes on two processor cores.
    """
    from autoreg.demo import SETTINGS, compare_with_colours, write_scene

    _make_folder(folder)
    if not overwrite and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; use --overwrite, or name another folder")
    for name in ("scenes", "tiles", "truth"):
        _make_folder(folder / name)
    scenes = [str(folder / "scenes" / f"{index}.tif") for index in range(3)]
    tile, truth, class_map = (folder / name / "unseen.tif" for name in ("tiles", "truth", "out"))
    config, checkpoint, model, picture = (
        folder / name for name in ("train.toml", "checkpoint.pt", "model.onnx", "result.png")
    )
    for index, scene in enumerate(scenes):
        write_scene(4 * seed + index, 512, 512, Path(scene))
    write_scene(4 * seed + len(scenes), 730, 615, tile, truth)
    config.write_text(SETTINGS + f"seed = {seed}\n", encoding="utf-8")

    def run(command: click.Command, words: str, **parameters: Any) -> None:
        click.secho(f"$ autoreg {words}", bold=True)
        context.invoke(command, overwrite=True, **parameters)

    run(
        train,
        f"train {folder}/scenes/*.tif -c {config} -o {checkpoint}",
        scenes=tuple(scenes),
        output=checkpoint,
        config_path=config,
        resume=False,
        quiet=quiet,
    )
    run(export, f"export {checkpoint} -o {model}", checkpoint=checkpoint, output=model, fp16=False)
    run(
        segment,
        f"segment {tile} -m {model} -o {class_map.parent}",
        tiles=(str(tile),),
        model=model,
        output=class_map.parent,
        tile_px=None,
        batch_size=1,
        as_json=False,
        quiet=quiet,
    )
    click.secho(f"$ autoreg evaluate {class_map} {truth}", bold=True)
    context.invoke(evaluate, labels=class_map, truth=truth, as_json=False)
    ours, floor = compare_with_colours(tile, truth, class_map, picture, seed=seed, overwrite=True)
    click.echo(
        f"accuracy on the unseen landscape: {100 * ours.accuracy:.1f} %, K-means on colour {100 * floor.accuracy:.1f} %"
    )
    click.echo(f"image, truth, K-means on colour and our map side by side: {picture}")


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
    _make_folder(folder)
    return targets


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}") from error


def _describe(path: Path) -> dict[str, Any]:
    """What a file promises, by name: of a checkpoint if it is a zip archive, else of a model."""
    import dataclasses
    import zipfile

    if zipfile.is_zipfile(path):
        from autoreg.network.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(path)
        network = checkpoint.build_network()
        return {
            "kind": "checkpoint",
            "bands": checkpoint.bands,
            "dtype": checkpoint.dtype,
            **{name: value for name, value in dataclasses.asdict(checkpoint.network).items() if name != "bands"},
            "receptive_field_px": network.receptive_field_px,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "step": checkpoint.loop.get("step"),
            **{name: value for name, value in checkpoint.settings.items() if name not in ("classes", "device")},
        }
    from autoreg.runtime.engine import load_engine

    engine = load_engine(path)
    return {"kind": "model", **dataclasses.asdict(engine.spec), "sha256": engine.model_digest}


def _table(result: "Evaluation") -> str:
    """The scores as text: a row per class of the truth."""
    lines = [f"accuracy {100 * result.accuracy:.2f} %   mIoU {100 * result.mean_iou:.2f} %   {result.pixels} pixels", ""]
    lines.append(f"{'class':>5}  {'cluster':>7}  {'share %':>8}  {'recall %':>8}  {'IoU %':>6}")
    sizes = result.confusion.sum(axis=0)
    for true_class, (size, iou) in enumerate(zip(sizes.tolist(), result.iou, strict=True)):
        cluster = result.matching.index(true_class) if true_class in result.matching else None
        hits = int(result.confusion[cluster, true_class]) if cluster is not None else 0
        recall = f"{100 * hits / size:.2f}" if size else "-"
        name = "-" if cluster is None else cluster
        overlap = f"{100 * iou:.2f}" if size else "-"
        lines.append(f"{true_class:>5}  {name:>7}  {100 * size / result.pixels:>8.2f}  {recall:>8}  {overlap:>6}")
    return "\n".join(lines)


def main() -> None:
    """Run the command line, and end with its exit status."""
    logging.basicConfig(format="autoreg: %(levelname)s: %(message)s", level=logging.WARNING)
    try:
        status = cli.main(prog_name="autoreg", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (AutoregError, ModuleNotFoundError) as error:
        reason = explain_missing(error) if isinstance(error, ModuleNotFoundError) else error
        if not isinstance(reason, AutoregError):
            raise
        click.echo(f"autoreg: {reason}", err=True)
        status = 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("autoreg: interrupted", err=True)
        status = INTERRUPTED
    sys.exit(status if isinstance(status, int) else 0)
