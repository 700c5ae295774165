"""``autoreg report``."""

from pathlib import Path

import click

from autoreg.commands.options import PATH, backbone_option, command, overwrite_option


@command(epilog="autoreg report --overwrite\nautoreg report checkpoint.best.pt --log checkpoint.log.jsonl")
@click.argument("checkpoint", type=PATH, default="checkpoint.pt")
@click.option("-o", "--output", type=PATH, help="Page to write.  [default: CHECKPOINT with .report.html]")
@click.option("--log", type=PATH, help="Log of the training.  [default: CHECKPOINT with .log.jsonl]")
@backbone_option
@overwrite_option
def report(checkpoint: Path, output: Path | None, log: Path | None, backbone: str | None, overwrite: bool) -> None:
    """Write a page about a training.

    Its curves, what the network says of sample crops, and what it learned in numbers: one HTML file that needs nothing
    but itself. A training writes it when it ends; this makes it anew, or for a training that still runs.
    """
    from autoreg.train.report import write_report

    click.echo(write_report(checkpoint, output, log=log, backbone=backbone, overwrite=overwrite))
