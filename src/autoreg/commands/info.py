"""``autoreg info``."""

import json
from pathlib import Path
from typing import Any

import click

from autoreg.commands.options import PATH, as_json_option, command


@command(epilog="autoreg info checkpoint.pt\nautoreg info model.onnx --json")
@click.argument("file", type=PATH)
@as_json_option
def info(file: Path, as_json: bool) -> None:
    """Print what a file promises.

    FILE is a checkpoint or a model.
    """
    promises = _describe(file)
    if as_json:
        click.echo(json.dumps(promises))
        return
    if promises["receptive_field_px"] is None:
        promises["receptive_field_px"] = "whole tile"
    width = max(map(len, promises))
    if promises["kind"] == "model":
        promises["classes"] = f"\n{'':<{width}}  ".join(map(_describe_class, promises["classes"]))
    for name, value in promises.items():
        text = (
            ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
            if isinstance(value, tuple)
            else value
        )
        click.echo(f"{name:<{width}}  {text}")


def _describe_class(item: dict[str, Any]) -> str:
    clusters = f"cluster{'s' if len(item['clusters']) > 1 else ''} {' '.join(map(str, item['clusters']))}"
    return f"{item['label']} {item['name']} {item['colour']} ({clusters if item['clusters'] else 'no cluster'})"


def _describe(path: Path) -> dict[str, Any]:
    """What a file promises, by name: of a checkpoint if it is a zip archive, else of a model."""
    import dataclasses
    import zipfile

    if zipfile.is_zipfile(path):
        from autoreg.network.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(path)
        network = checkpoint.build_network()
        return {
            "kind": "checkpoint",
            "bands": checkpoint.bands,
            "dtype": checkpoint.dtype,
            **{name: value for name, value in dataclasses.asdict(checkpoint.network).items() if name != "bands"},
            "receptive_field_px": network.receptive_field_px,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "step": checkpoint.loop.get("step"),
            **{name: value for name, value in checkpoint.settings.items() if name not in ("classes", "device")},
        }
    from autoreg.runtime.engine import load_engine

    engine = load_engine(path)
    return {"kind": "model", **dataclasses.asdict(engine.spec), "sha256": engine.model_digest}
