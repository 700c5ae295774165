"""``autoreg orderings``."""

from pathlib import Path

import click

from autoreg.commands.options import PATH, command, make_folder, overwrite_option


@command(epilog="autoreg orderings figures\nautoreg orderings docs/figures --overwrite")
@click.argument("folder", type=PATH)
@overwrite_option
def orderings(folder: Path, overwrite: bool) -> None:
    """Draw the scan orders.

    Writes four SVG files into FOLDER: the paths of the sixteen orderings, their attention masks, the masked kernels, and
    what a pixel sees after some convolutions, with the blind spots that attention opens (Figs. 2 to 6, 9 and 10 of the
    paper).
    """
    from autoreg.network.figures import draw_figures

    make_folder(folder)
    for path in draw_figures(folder, overwrite=overwrite):
        click.echo(path)
