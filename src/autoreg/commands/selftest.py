"""``autoreg selftest``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoreg.commands.options import PATH, as_json_option, command, overwrite_option, quiet_option
from autoreg.output import atomic_output, check_output
from autoreg.runtime.devices import AUTO, DEVICE_NAMES

if TYPE_CHECKING:
    from autoreg.runtime.measure.selftest import Selftest, Tested

FAILED = 1


@command(epilog="autoreg selftest --device cuda\nautoreg selftest model.onnx model.int8.onnx --device tensorrt")
@click.argument("models", nargs=-1, type=PATH, metavar="MODEL...")
@click.option(
    "--device",
    type=click.Choice([name for name in DEVICE_NAMES if name != AUTO]),
    required=True,
    help="What to test.",
)
@click.option("--tiles", multiple=True, metavar="RASTER", help="Test on this raster; may be repeated. By default on noise.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=10, show_default=True, help="How long to segment with each MODEL."
)
@click.option("-o", "--output", type=PATH, metavar="FILE.json", help="Write what was found, and the machine.")
@overwrite_option
@as_json_option
@quiet_option
def selftest(
    models: tuple[Path, ...],
    device: str,
    tiles: tuple[str, ...],
    seconds: float,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Test that a device says what it should here, and how fast it is.

    Each MODEL (model.onnx if none is given), best one of each precision, is loaded, with TensorRT built; its labels are
    compared with those of ONNX Runtime on the CPU, and tiles with one pass; then rasters are segmented, and speed, memory
    and the share of the time in which the GPU is busy are measured. If something is not as it should be, the exit status
    is 1.
    """
    from autoreg.runtime.measure.selftest import run_selftest

    if output is not None:
        check_output(output, overwrite=overwrite)
    silent = quiet or as_json
    found = run_selftest(
        models or (Path("model.onnx"),),
        device,
        rasters=tiles,
        seconds=seconds,
        progress=lambda text: None if silent else click.echo(text, err=True),
    )
    content = json.dumps(found.to_json(), indent=None if as_json else 2)
    if output is not None:
        with atomic_output(output, overwrite=overwrite) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")
    click.echo(content if as_json else "\n".join(_lines(found)))
    if not found.passed:
        raise click.exceptions.Exit(FAILED)


def _lines(found: "Selftest") -> Iterator[str]:
    for tested in found.models:
        yield f"{tested.model}: {tested.precision}, {tested.engine}, loaded in {tested.load_seconds:.1f} s"
        yield f"  labels: {tested.parity}"
        yield f"  {_tiling(tested)}"
        yield f"  {', '.join(_speed(tested))}"
        yield from (f"  PROBLEM: {problem}" for problem in tested.problems)
    untested = ", save for what was not tested" if any(tested.untested for tested in found.models) else ""
    yield f"passed{untested}" if found.passed else "FAILED"


def _tiling(tested: "Tested") -> str:
    if tested.untested is not None:
        return f"tiles against one pass: NOT TESTED, as {tested.untested}"
    differing, labels = (sum(getattr(check, name) for check in tested.tiling) for name in ("differing", "labels"))
    sides = ", ".join(str(side) for side in dict.fromkeys(check.tile_px for check in tested.tiling))
    return f"tiles of {sides} px against one pass: {differing} of {labels} labels differ"


def _speed(tested: "Tested") -> Iterator[str]:
    yield f"engine alone {tested.engine_mpx_s:.1f} MPx/s"
    yield f"from file to map {tested.segment_mpx_s:.1f} MPx/s"
    if tested.busy is not None:
        yield f"GPU busy {100 * tested.busy:.0f} % of the time"
    if tested.gpu_bytes is not None:
        yield f"{tested.gpu_bytes / 1e6:.0f} MB of GPU memory"
    if tested.memory_bytes is not None:
        yield f"{tested.memory_bytes / 1e6:.0f} MB of memory"
