"""``autoreg match``."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoreg.commands.options import PATH, as_json_option, command, overwrite_option, quiet_option
from autoreg.errors import ConfigError
from autoreg.optional import require
from autoreg.output import check_output
from autoreg.terminal import counting_bar

if TYPE_CHECKING:
    from autoreg.evaluation import Evaluation
    from autoreg.naming import Matched
    from autoreg.spec import MapClass


@command(
    epilog="autoreg match model.onnx images --truth truth\n"
    "autoreg match model.onnx images --truth truth --matching many-to-one\n"
    "autoreg match model.onnx --classes legend.toml\nautoreg match new.onnx scenes/*.tif --like model.onnx"
)
@click.argument("model", type=PATH)
@click.argument("images", nargs=-1, type=PATH, metavar="[IMAGES...]")
@click.option("--truth", type=PATH, help="Truth of an image, or a folder of truths, paired with IMAGES by name.")
@click.option("--like", type=PATH, metavar="EARLIER", help="Take over the classes of this model, as both see IMAGES.")
@click.option("--classes", type=PATH, metavar="TOML", help="Names and colours of classes, and perhaps their clusters.")
@click.option(
    "--matching",
    metavar="[one-to-one|many-to-one]",
    help="A cluster for each class, or any number.  [default: one-to-one; with --like as EARLIER is]",
)
@click.option("-o", "--output", type=PATH, help="Model to write.  [default: MODEL itself]")
@overwrite_option
@as_json_option
@quiet_option
def match(
    model: Path,
    images: tuple[Path, ...],
    truth: Path | None,
    like: Path | None,
    classes: Path | None,
    matching: str | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Give the clusters of a model names, colours and numbers.

    Writes into MODEL which class each cluster stands for; its maps then hold the numbers of these classes, with their
    colours and names. What the network computes does not change, and the model can be matched again.

    With --truth, from those of IMAGES that have a truth; its labels become the numbers. With --like, from what an earlier
    model says of IMAGES, so that a new model goes on with its numbers. With --classes alone, by hand, from a file
    with a table for each class:

    \b
    [[classes]]
    name = "water"
    colour = "#1f69c9"    # if left out, of the palette
    label = 0             # if left out, its place in the file
    clusters = [2, 5]     # leave out with --truth

    A cluster that stands for no class keeps a class of its own, after the others.
    """  # noqa: D301
    from autoreg.naming import read_legend, write_classes

    require("onnx")  # here, because it writes the model at the end
    legend = read_legend(classes) if classes else ()
    by_hand = any(item.clusters for item in legend)
    _check_sources({"--truth": truth, "--like": like, f"the clusters in {classes}": by_hand})
    if by_hand:
        _check_unused(f"the clusters in {classes} say what they stand for", {"IMAGES": images, "--matching": matching})
    elif not images:
        raise ConfigError(f"{'--truth' if truth else '--like'} was given without IMAGES, expected at least one to look at")
    if like:
        _check_unused(f"--like takes over the classes of {like}", {"--classes": classes})
    target, replace = (model, True) if output is None else (output, overwrite)
    check_output(target, overwrite=replace)
    with counting_bar("matching", quiet or as_json) as progress:
        matched = None if by_hand else _match(model, images, truth, like, legend, matching, progress)
    spec = write_classes(model, target, matched.classes if matched else legend, overwrite=replace)
    scores = matched.scores if matched else None
    if as_json:
        result = {"model": str(target), "classes": [dataclasses.asdict(item) for item in spec.classes]}
        click.echo(json.dumps(result | (scores.as_dict() if scores else {})))
        return
    if scores:
        click.echo(
            f"{100 * scores.accuracy:.2f} % of {scores.pixels} pixels are as in {truth or like}, "
            f"mIoU {100 * scores.mean_iou:.2f} %\n"
        )
    click.echo(_table(spec.classes, scores))
    click.echo(f"next: autoreg segment -m {target} TILES...")


def _check_sources(sources: Mapping[str, object]) -> None:
    """Exactly one says what the clusters stand for."""
    given = [name for name, value in sources.items() if value]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]} both say what the clusters stand for; leave one out")
    if not given:
        raise ConfigError("nothing says what the clusters stand for; give --truth, --like, or --classes with clusters")


def _check_unused(reason: str, options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value:
            raise ConfigError(f"{reason}, so {name} would have no effect; leave it out")


def _match(
    model: Path,
    images: Sequence[Path],
    truth: Path | None,
    like: Path | None,
    legend: Sequence["MapClass"],
    matching: str | None,
    progress: Callable[[int, int], None],
) -> "Matched":
    from autoreg.evaluation import pair_labelled
    from autoreg.naming import match_to_model, match_to_truth

    if truth is None:
        assert like is not None
        return match_to_model(model, images, earlier=like, matching=matching, progress=progress)
    pairs = pair_labelled(images, truth)
    return match_to_truth(model, pairs, matching=matching or "one-to-one", legend=legend, progress=progress)


def _table(classes: Sequence["MapClass"], scores: "Evaluation | None") -> str:
    """The classes as text, a row each; with scores, where there are some, of the images that were matched on."""
    rows = [["label", "class", "colour", "clusters", *(["share %", "recall %", "IoU %"] if scores else [])]]
    for item in classes:
        row = [str(item.label), item.name, item.colour, " ".join(map(str, item.clusters)) or "-"]
        rows.append(row + (_scores(item, scores) if scores else []))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _scores(item: "MapClass", scores: "Evaluation") -> list[str]:
    """Share of the pixels, recall and IoU of one class, in %; a class without pixels has none."""
    size = int(scores.confusion[:, item.label].sum()) if item.label < len(scores.iou) else 0
    if not size:
        return ["0.00", "-", "-"]
    hits = int(scores.confusion[list(item.clusters), item.label].sum())
    return [f"{100 * share:.2f}" for share in (size / scores.pixels, hits / size, scores.iou[item.label])]
