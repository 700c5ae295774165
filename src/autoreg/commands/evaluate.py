"""``autoreg evaluate`` and ``autoreg probe``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoreg.commands.options import PATH, as_json_option, backbone_option, command
from autoreg.errors import ConfigError

if TYPE_CHECKING:
    from autoreg.evaluation import Evaluation


@command(
    epilog="autoreg evaluate out/scene.tif truth/scene.tif\nautoreg evaluate out/ truth/ --json\n"
    "autoreg evaluate out/ truth/ --matching many-to-one --map-on 10\nautoreg evaluate out/ potsdam/ --protocol iic+"
)
@click.argument("labels", type=PATH)
@click.argument("truth", type=PATH)
@click.option(
    "--matching",
    metavar="[one-to-one|many-to-one|given]",
    default="one-to-one",
    show_default=True,
    help="A cluster for each class, or any number of clusters; given: the labels are classes, of a named model.",
)
@click.option("--map-on", type=int, metavar="N", help="Match on N pairs drawn at random, and score the others.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw of --map-on.")
@click.option("--protocol", metavar="[iic|labelled_test|iic+]", help="What to match on and to score in a prepared data set.")
@as_json_option
def evaluate(
    labels: Path, truth: Path, matching: str, map_on: int | None, seed: int, protocol: str | None, as_json: bool
) -> None:
    """Score class maps against true ones.

    Clusters are matched to classes first, or taken as the classes that autoreg match has made of them (--matching given).
    LABELS and TRUTH are two rasters, or two folders whose files are paired by name. 255 in either is ignored.

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


@command(
    epilog="autoreg probe checkpoint.pt images truth\nautoreg probe arl.pt images truth --train-on 40 --kind non-linear"
)
@click.argument("checkpoint", type=PATH)
@click.argument("images", type=PATH)
@click.argument("truth", type=PATH)
@click.option("--train-on", type=int, metavar="N", help="Images with labels to train on, drawn at random.  [default: half]")
@click.option("--kind", metavar="[linear|non-linear]", default="linear", show_default=True, help="Of the classifier.")
@click.option(
    "--on", metavar="[features|decoder]", default="features", show_default=True, help="What it sees; the paper: decoder."
)
@click.option("--protocol", metavar="[iic|labelled_test|iic+]", help="What to train on and to score in a prepared data set.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw and the first weights.")
@backbone_option
@as_json_option
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
        normalisation=content.normalisation,
        kind=kind,
        on=on,
        seed=seed,
    )
    click.echo(json.dumps(result.as_dict()) if as_json else _table(result))


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
