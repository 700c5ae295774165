"""What the commands share: their form, and the options that several of them have."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autoreg.errors import OutputError
from autoreg.runtime.devices import AUTO, DEVICE_NAMES

INTERRUPTED = 130

PATH = click.Path(path_type=Path)


class MemorySize(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """An amount of memory, to bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: D102
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT])i?B?", str(value).strip(), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no size, expected a number and a unit, such as 500MB or 2GB", param, ctx)
        number, unit = found.groups()
        return int(float(number) * 1000 ** ("kmgt".index(unit.lower()) + 1))


class Examples(click.Command):
    """A command whose help ends with the examples of its epilog, one a line."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002, D102
        with formatter.section("Examples"):
            for line in (self.epilog or "").splitlines():
                formatter.write_text(line)


def command(epilog: str) -> Callable[[Callable[..., None]], Examples]:
    """A command whose help ends with the lines of ``epilog`` as examples."""
    return click.command(cls=Examples, epilog=epilog)


def _silence(_context: click.Context, _parameter: click.Parameter, quiet: bool) -> bool:
    if quiet:
        logging.getLogger("autoreg").setLevel(logging.ERROR)
    return quiet


quiet_option = click.option("-q", "--quiet", is_flag=True, callback=_silence, help="No progress and no warnings.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing files.")
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
backbone_option = click.option(
    "--backbone", metavar="MODULE:FUNCTION", help="Your own function from the number of bands to a torch module; it is run."
)

device_option = click.option(
    "--device",
    type=click.Choice(DEVICE_NAMES),
    default=AUTO,
    show_default=True,
    help="What runs the model: TensorRT, ONNX Runtime on the GPU or the CPU, or OpenVINO on the CPU; auto takes what "
    "autoreg bench found fastest here, else a GPU if it can.",
)
require_gpu_option = click.option("--require-gpu", is_flag=True, help="Fail rather than run on a CPU.")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}") from error
