"""``autoreg export``."""

from pathlib import Path

import click

from autoreg.commands.options import PATH, backbone_option, command, overwrite_option


@command(epilog="autoreg export\nautoreg export base.pt -o base.fp16.onnx --fp16")
@click.argument("checkpoint", type=PATH, default="checkpoint.pt")
@click.option("-o", "--output", type=PATH, default="model.onnx", show_default=True, help="Model to write.")
@click.option("--fp16", is_flag=True, help="Compute in float16; inputs and outputs stay float32.")
@backbone_option
@overwrite_option
def export(checkpoint: Path, output: Path, fp16: bool, backbone: str | None, overwrite: bool) -> None:
    """Turn a checkpoint into an ONNX model.

    Proves that it says what PyTorch says before it appears. CHECKPOINT is checkpoint.pt if not given.
    """
    from autoreg.export import export_onnx

    precision = "fp16" if fp16 else "fp32"
    exported = export_onnx(checkpoint, output, precision=precision, backbone=backbone, overwrite=overwrite)
    click.echo(f"{output}: {exported.spec.precision}, {exported.bytes / 1e6:.1f} MB; {exported.parity}")
    click.echo(f"next: autoreg segment -m {output} TILES...")
