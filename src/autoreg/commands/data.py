"""``autoreg data``."""

from pathlib import Path

import click

from autoreg.commands.options import PATH, command, overwrite_option, quiet_option
from autoreg.terminal import counting_bar


@command(epilog="autoreg data potsdam downloads/potsdam potsdam\nautoreg data coco-stuff3 downloads/coco coco3 --iic-compat")
@click.argument("name")
@click.argument("raw", type=PATH)
@click.argument("output", type=PATH)
@click.option("--iic-compat", is_flag=True, help="With the faults of the recipe that the published figures were made with.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw of the labelled test images."
)
@overwrite_option
@quiet_option
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
