"""The command line: the group of commands, and how an error ends it."""

import logging
import os
import sys

import click

from autoreg.commands.bench import bench
from autoreg.commands.build import build
from autoreg.commands.calibrate import calibrate
from autoreg.commands.data import data
from autoreg.commands.demo import demo
from autoreg.commands.doctor import doctor
from autoreg.commands.evaluate import evaluate, probe
from autoreg.commands.export import export
from autoreg.commands.info import info
from autoreg.commands.match import match
from autoreg.commands.options import INTERRUPTED
from autoreg.commands.orderings import orderings
from autoreg.commands.report import report
from autoreg.commands.segment import segment
from autoreg.commands.selftest import selftest
from autoreg.commands.train import baseline, train
from autoreg.commands.verify import verify
from autoreg.commands.verify_tiling import verify_tiling
from autoreg.errors import AutoregError, RankError
from autoreg.optional import explain_missing


class _Commands(click.Group):
    """The commands in the order of the pipeline."""

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


for _command in (
    train,
    baseline,
    report,
    export,
    calibrate,
    build,
    match,
    segment,
    verify,
    verify_tiling,
    bench,
    selftest,
    evaluate,
    probe,
    info,
    doctor,
    data,
    orderings,
    demo,
):
    cli.add_command(_command)


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
        if not (isinstance(reason, RankError) and os.environ.get("RANK", "0") != "0"):  # one process says it for all
            click.echo(f"autoreg: {reason}", err=True)
        status = 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("autoreg: interrupted", err=True)
        status = INTERRUPTED
    sys.exit(status if isinstance(status, int) else 0)
