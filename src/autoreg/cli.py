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
from autoreg.terminal import counting_bar, pixel_bar, stop_on_interrupt, training_bar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autoreg.evaluation import Evaluation
    from autoreg.train import Status, TrainConfig

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


_seed = click.option("--seed", type=int, help="Of the initial weights, crops and orderings.  [default: 0]")
_device = click.option("--device", help="auto, cpu or cuda.  [default: auto]")
_config = click.option("-c", "--config", "config_path", type=_PATH, help="Settings in TOML; options given here win over it.")
_classes = click.option("-k", "--classes", type=int, help="Number of clusters.  [default: 6]")
_size = click.option("--size", help="tiny, small, base or paper.  [default: small]")
_steps = click.option("--steps", type=int, help="Updates of the weights in all.  [default: 1000]")
_checkpoint = click.option(
    "-o", "--output", type=_PATH, default="checkpoint.pt", show_default=True, help="Checkpoint to write."
)
_backbone = click.option(
    "--backbone", metavar="MODULE:FUNCTION", help="Your own function from the number of bands to a torch module; it is run."
)


@cli.command(epilog="autoreg train scenes/*.tif -k 6\nautoreg train scenes/*.tif -c train.toml -o base.pt --device cuda")
@click.argument("scenes", nargs=-1, required=True, metavar="SCENES...")
@_checkpoint
@_config
@click.option("--preset", help="Settings of the paper for potsdam, potsdam3, coco-stuff or coco-stuff3 (Table 8).")
@_classes
@_size
@_steps
@_seed
@_device
@_backbone
@click.option("--resume", is_flag=True, help="Go on with the checkpoint at -o, up to --steps.")
@_overwrite
@_quiet
def train(
    scenes: tuple[str, ...],
    output: Path,
    config_path: Path | None,
    preset: str | None,
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
    from autoreg.train import PRESETS, load_config, resume_training

    if not resume:
        settings = load_config(config_path, options, _choose(PRESETS, preset, "preset"))
        _train(scenes, output, settings, overwrite, quiet)
        return
    if config_path or preset:
        raise ConfigError("--resume takes the settings from the checkpoint; leave --config and --preset out")
    with stop_on_interrupt() as stopped, training_bar(quiet) as progress:
        status = resume_training(scenes, output, options, progress=progress, should_stop=stopped.is_set)
    _report_training(status, scenes, output)


@cli.command(epilog="autoreg baseline kmeans scenes/*.tif -k 6 -o kmeans.pt\nautoreg baseline iic scenes/*.tif --steps 2000")
@click.argument("name")
@click.argument("scenes", nargs=-1, required=True, metavar="SCENES...")
@_checkpoint
@_config
@_classes
@_size
@_steps
@_seed
@_device
@_overwrite
@_quiet
def baseline(
    name: str,
    scenes: tuple[str, ...],
    output: Path,
    config_path: Path | None,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a method to compare with.

    NAME is random (a network as it was initialised), kmeans (of the pixels' colours), sift, doersch, isola, deepcluster or
    iic. Writes a checkpoint like that of train, for export, segment and evaluate.
    """
    from autoreg.train import BASELINES, load_config

    _train(scenes, output, load_config(config_path, options, _choose(BASELINES, name, "baseline")), overwrite, quiet)


def _choose(presets: "Mapping[str, dict[str, Any]]", name: str | None, kind: str) -> dict[str, Any]:
    if name is not None and name not in presets:
        raise ConfigError(f"there is no {kind} {name!r}, expected one of {', '.join(presets)}")
    return presets[name] if name else {}


def _train(scenes: tuple[str, ...], output: Path, config: "TrainConfig", overwrite: bool, quiet: bool) -> None:
    from autoreg.train import train_network

    with stop_on_interrupt() as stopped, training_bar(quiet) as progress:
        status = train_network(scenes, output, config, overwrite=overwrite, progress=progress, should_stop=stopped.is_set)
    _report_training(status, scenes, output)


def _report_training(status: "Status", scenes: tuple[str, ...], output: Path) -> None:
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
@_backbone
@_overwrite
def export(checkpoint: Path, output: Path, fp16: bool, backbone: str | None, overwrite: bool) -> None:
    """Turn a checkpoint into an ONNX model.

    Proves that it says what PyTorch says before it appears. CHECKPOINT is checkpoint.pt if not given.
    """
    from autoreg.export import export_onnx

    precision = "fp16" if fp16 else "fp32"
    exported = export_onnx(checkpoint, output, precision=precision, backbone=backbone, overwrite=overwrite)
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


@cli.command(
    epilog="autoreg evaluate out/scene.tif truth/scene.tif\nautoreg evaluate out/ truth/ --json\n"
    "autoreg evaluate out/ truth/ --matching many-to-one --map-on 10\nautoreg evaluate out/ potsdam/ --protocol iic+"
)
@click.argument("labels", type=_PATH)
@click.argument("truth", type=_PATH)
@click.option(
    "--matching",
    metavar="[one-to-one|many-to-one]",
    default="one-to-one",
    show_default=True,
    help="A cluster for each class, or any number of clusters.",
)
@click.option("--map-on", type=int, metavar="N", help="Match on N pairs drawn at random, and score the others.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw of --map-on.")
@click.option("--protocol", metavar="[iic|labelled_test|iic+]", help="What to match on and to score in a prepared data set.")
@_as_json
def evaluate(
    labels: Path, truth: Path, matching: str, map_on: int | None, seed: int, protocol: str | None, as_json: bool
) -> None:
    """Score class maps against true ones.

    Clusters are matched to classes first. LABELS and TRUTH are two rasters, or two folders whose files are paired by
    name. 255 in either is ignored.

    With --protocol, TRUTH is a data set that autoreg data prepared, and LABELS holds the maps of its images: iic matches
    on and scores all labelled ones, labelled_test only those of that list; iic+ matches on labelled_train and scores
    labelled_test.
    """
    from autoreg.evaluation import evaluate as evaluate_maps
    from autoreg.evaluation import pair_files, split_pairs

    mapping: list[tuple[Path, Path]] | None = None
    if protocol is not None:
        if map_on is not None:
            raise ConfigError(f"--protocol {protocol} and --map-on {map_on} both say what to match on; leave one out")
        mapping, pairs = _protocol_pairs(labels, truth, protocol)
    else:
        pairs = pair_files(labels, truth)
        if map_on is not None:
            mapping, pairs = split_pairs(pairs, map_on, seed)
    result = evaluate_maps(pairs, mapping_pairs=mapping, matching=matching)
    click.echo(json.dumps(result.as_dict()) if as_json else _table(result))


def _protocol_pairs(
    labels: Path, truth: Path, protocol: str
) -> tuple[list[tuple[Path, Path]] | None, list[tuple[Path, Path]]]:
    """Maps and truths to match on, None if they are those to score, and maps and truths to score."""
    from autoreg.datasets.layout import LABELS, protocol_pairs
    from autoreg.evaluation import pair_files

    mapping, scoring = protocol_pairs(truth, protocol)
    pairs = pair_files(labels, truth / LABELS, scoring)
    return None if mapping == scoring else pair_files(labels, truth / LABELS, mapping), pairs


@cli.command(
    epilog="autoreg probe checkpoint.pt images truth\nautoreg probe arl.pt images truth --train-on 40 --kind non-linear"
)
@click.argument("checkpoint", type=_PATH)
@click.argument("images", type=_PATH)
@click.argument("truth", type=_PATH)
@click.option("--train-on", type=int, metavar="N", help="Images with labels to train on, drawn at random.  [default: half]")
@click.option("--kind", metavar="[linear|non-linear]", default="linear", show_default=True, help="Of the classifier.")
@click.option(
    "--on", metavar="[features|decoder]", default="features", show_default=True, help="What it sees; the paper: decoder."
)
@click.option("--protocol", metavar="[iic|labelled_test|iic+]", help="What to train on and to score in a prepared data set.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw and the first weights.")
@_backbone
@_as_json
def probe(
    checkpoint: Path,
    images: Path,
    truth: Path,
    train_on: int | None,
    kind: str,
    on: str,
    protocol: str | None,
    seed: int,
    backbone: str | None,
    as_json: bool,
) -> None:
    """Measure what a network has learned.

    Trains a classifier on the frozen network, with the labels of some images, and scores it on the others. IMAGES and
    TRUTH are two folders whose files are paired by name; with --protocol, TRUTH is a data set that autoreg data prepared,
    and iic+ is the paper's choice: train on labelled_train, score labelled_test.
    """
    from autoreg.evaluation import pair_files, split_pairs
    from autoreg.network.backbone import load_backbone
    from autoreg.network.checkpoint import load_checkpoint
    from autoreg.train.probes import probe as train_probe

    content = load_checkpoint(checkpoint)
    network = content.build_network(load_backbone(backbone, len(content.bands)))
    if protocol is not None:
        if train_on is not None:
            raise ConfigError(f"--protocol {protocol} and --train-on {train_on} both say what to train on; leave one out")
        mapping, test_pairs = _protocol_pairs(images, truth, protocol)
        train_pairs = mapping or test_pairs
    else:
        pairs = pair_files(images, truth)
        train_pairs, test_pairs = split_pairs(pairs, len(pairs) // 2 if train_on is None else train_on, seed)
    result = train_probe(
        network,
        train_pairs,
        test_pairs,
        bands=content.bands,
        dtype=content.dtype,
        crop_px=content.samples.shape[-1],
        kind=kind,
        on=on,
        seed=seed,
    )
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
    if promises["receptive_field_px"] is None:
        promises["receptive_field_px"] = "whole tile"
    width = max(map(len, promises))
    for name, value in promises.items():
        text = (
            ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
            if isinstance(value, tuple)
            else value
        )
        click.echo(f"{name:<{width}}  {text}")


@cli.command(
    epilog="autoreg data potsdam downloads/potsdam potsdam\nautoreg data coco-stuff3 downloads/coco coco3 --iic-compat"
)
@click.argument("name")
@click.argument("raw", type=_PATH)
@click.argument("output", type=_PATH)
@click.option("--iic-compat", is_flag=True, help="With the faults of the recipe that the published figures were made with.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw of the labelled test images."
)
@_overwrite
@_quiet
def data(name: str, raw: Path, output: Path, iic_compat: bool, seed: int, overwrite: bool, quiet: bool) -> None:
    """Prepare a data set of the paper.

    NAME is potsdam, potsdam3, coco-stuff or coco-stuff3. RAW is the folder with the original downloads, OUTPUT the one to
    make: images and labels as GeoTIFF, and lists of what is for training and for testing.
    """
    from autoreg.datasets import prepare

    with counting_bar(name, quiet) as progress:
        prepared = prepare(name, raw, output, iic_compat=iic_compat, seed=seed, overwrite=overwrite, progress=progress)
    click.echo(
        f"{output}: {prepared.unlabelled_train} images without labels, {prepared.labelled_train} with labels to train, "
        f"{prepared.labelled_test} to test"
    )
    click.echo(f"next: autoreg train {output}/images/*.tif --preset {name}")


@cli.command(epilog="autoreg orderings figures\nautoreg orderings docs/figures --overwrite")
@click.argument("folder", type=_PATH)
@_overwrite
def orderings(folder: Path, overwrite: bool) -> None:
    """Draw the scan orders.

    Writes four SVG files into FOLDER: the paths of the sixteen orderings, their attention masks, the masked kernels, and
    what a pixel sees after some convolutions, with the blind spots that attention opens (Figs. 2 to 6, 9 and 10 of the
    paper).
    """
    from autoreg.network.figures import draw_figures

    _make_folder(folder)
    for path in draw_figures(folder, overwrite=overwrite):
        click.echo(path)


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
        preset=None,
        resume=False,
        quiet=quiet,
    )
    run(export, f"export {checkpoint} -o {model}", checkpoint=checkpoint, output=model, fp16=False, backbone=None)
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
    lines = [
        f"accuracy {100 * result.accuracy:.2f} %   mIoU {100 * result.mean_iou:.2f} %   NMI {result.nmi:.4f}   "
        f"most frequent class {100 * result.majority_share:.2f} %   {result.pixels} pixels",
        "",
    ]
    clusters: list[list[int]] = [[] for _ in result.iou]
    for cluster, true_class in enumerate(result.matching):
        if true_class is not None:
            clusters[true_class].append(cluster)
    names = [" ".join(map(str, found)) or "-" for found in clusters]
    width = max(7, *map(len, names))
    lines.append(f"{'class':>5}  {'cluster':>{width}}  {'share %':>8}  {'recall %':>8}  {'IoU %':>6}")
    sizes = result.confusion.sum(axis=0).tolist()
    for true_class, (name, size, iou) in enumerate(zip(names, sizes, result.iou, strict=True)):
        recall = f"{100 * int(result.confusion[clusters[true_class], true_class].sum()) / size:.2f}" if size else "-"
        overlap = f"{100 * iou:.2f}" if size else "-"
        lines.append(f"{true_class:>5}  {name:>{width}}  {100 * size / result.pixels:>8.2f}  {recall:>8}  {overlap:>6}")
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
