"""``autoreg export``."""

from pathlib import Path

import click
from click.core import ParameterSource

from autoreg.commands.options import PATH, backbone_option, command, overwrite_option


@command(
    epilog="autoreg export\nautoreg export base.pt -o base.fp16.onnx --fp16\n"
    "autoreg export model.onnx --for triton repository"
)
@click.argument("source", type=PATH, default="checkpoint.pt")
@click.option("-o", "--output", type=PATH, default="model.onnx", show_default=True, help="Model to write.")
@click.option("--fp16", is_flag=True, help="Compute in float16; inputs and outputs stay float32.")
@click.option("--bf16", is_flag=True, help="Compute in bfloat16 where an engine can: OpenVINO on processors that have it.")
@click.option(
    "--for",
    "target",
    type=(click.Choice(["triton"]), PATH),
    metavar="triton DIR",
    help="Put the model into DIR, a model repository of Triton Inference Server.",
)
@backbone_option
@overwrite_option
@click.pass_context
def export(
    context: click.Context,
    source: Path,
    output: Path,
    fp16: bool,
    bf16: bool,
    target: tuple[str, Path] | None,
    backbone: str | None,
    overwrite: bool,
) -> None:
    """Turn a checkpoint into an ONNX model.

    Proves that it says what PyTorch says before it appears. SOURCE is checkpoint.pt if not given; with --for, it may also be
    a model (.onnx) or a TensorRT engine (.engine), which are served as they are.
    """
    finished = source.suffix in (".onnx", ".engine")
    given = [option for option in context.params if context.get_parameter_source(option) == ParameterSource.COMMANDLINE]
    if finished and not target:
        raise click.UsageError(f"{source} is exported already, expected a checkpoint, or --for triton DIR to serve it")
    if finished and (wrong := {"output", "fp16", "bf16", "backbone"}.intersection(given)):
        raise click.UsageError(f"--{min(wrong)} is for checkpoints, and {source} is served as it is; leave it out")
    if fp16 and bf16:
        raise click.UsageError("--fp16 and --bf16 exclude each other; export two models")
    model = source if finished else output
    if target:
        from autoreg.export.triton import find_place

        find_place(model, target[1], overwrite=overwrite)
    if not finished:
        precision = "fp16" if fp16 else "bf16" if bf16 else "fp32"
        _export_checkpoint(source, output, precision, backbone, overwrite)
    if target:
        _serve(model, target[1], overwrite)
    else:
        click.echo(f"next: autoreg segment -m {output} TILES...")


def _export_checkpoint(checkpoint: Path, output: Path, precision: str, backbone: str | None, overwrite: bool) -> None:
    from autoreg.export import export_onnx

    exported = export_onnx(checkpoint, output, precision=precision, backbone=backbone, overwrite=overwrite)
    click.echo(f"{output}: {exported.spec.precision}, {exported.bytes / 1e6:.1f} MB; {exported.parity}")


def _serve(model: Path, repository: Path, overwrite: bool) -> None:
    from autoreg.export.triton import write_repository

    served = write_repository(model, repository, overwrite=overwrite)
    tile = f"{served.tile_shape[0]} x {served.tile_shape[1]} px" if served.tile_shape else "any size"
    click.echo(
        f"{served.folder}: {served.spec.precision}, {served.platform}, tiles of {tile}, at most {served.batch_size} at once"
    )
    if "autoreg.tensorrt_version" in served.parameters:
        click.echo(
            f"needs: TensorRT {served.parameters['autoreg.tensorrt_version']} in the server, as the engine was built with it"
        )
    click.echo(f"next: tritonserver --model-repository {repository}")
