"""``autoreg info``."""

import json
from pathlib import Path
from typing import Any

import click

from autoreg.commands.options import PATH, as_json_option, command

_MISSING = {
    "receptive_field_px": "whole tile",
    "gpu": "any of these compute capabilities",
    "lane_bytes": "not measured, as no such GPU was there",
}
"""What a promise that is None means."""


@command(epilog="autoreg info checkpoint.pt\nautoreg info model.onnx --json\nautoreg info model.engine")
@click.argument("file", type=PATH)
@as_json_option
def info(file: Path, as_json: bool) -> None:
    """Print what a file promises.

    FILE is a checkpoint, a model, or an engine, which is not loaded: what it is stands in FILE.json, and "digest" says
    whether it is still the one that was built.
    """
    promises = _describe(file)
    if as_json:
        click.echo(json.dumps(promises))
        return
    promises |= {name: meaning for name, meaning in _MISSING.items() if name in promises and promises[name] is None}
    width = max(map(len, promises))
    if promises["kind"] != "checkpoint":
        line = f"\n{'':<{width}}  "
        promises["classes"] = line.join(map(_describe_class, promises["classes"]))
        promises["parity"] = line.join(_describe_parity(promises["parity"]))
        if "calibration" in promises:
            promises["calibration"] = line.join(_describe_calibration(promises["calibration"]))
    for name, value in promises.items():
        text = (
            ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
            if isinstance(value, tuple)
            else value
        )
        click.echo(f"{name:<{width}}  {text}")


def _describe_parity(parity: dict[str, Any] | None) -> list[str]:
    """What was measured when the model was made, one figure a line."""
    if parity is None:
        return ["not in the file"]
    shown = parity | {"iou": " ".join("-" if value is None else f"{value:.4f}" for value in parity["iou"])}
    return [f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()]


def _describe_calibration(calibration: dict[str, Any]) -> list[str]:
    """How an INT8 model was calibrated, one figure or layer a line."""
    figures = [f"{name} {value}" for name, value in calibration.items() if name != "layers"]
    return figures + [f"{item['name']} {item['precision']}: {item['reason']}" for item in calibration["layers"]]


def _read_calibration(text: str) -> dict[str, Any]:
    from autoreg.errors import ModelError
    from autoreg.spec import CALIBRATION_KEY

    try:
        values = json.loads(text)
        layers = [{key: item[key] for key in ("name", "precision", "agreement", "reason")} for item in values["layers"]]
        return {**values, "layers": layers}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"the model's {CALIBRATION_KEY} is not valid ({error!r}); calibrate the model again") from error


def _describe_class(item: dict[str, Any]) -> str:
    clusters = f"cluster{'s' if len(item['clusters']) > 1 else ''} {' '.join(map(str, item['clusters']))}"
    return f"{item['label']} {item['name']} {item['colour']} ({clusters if item['clusters'] else 'no cluster'})"


def _describe(path: Path) -> dict[str, Any]:
    """What a file promises, by name: of an engine by its name, of a checkpoint if it is a zip archive, else of a model."""
    import dataclasses
    import zipfile

    from autoreg.runtime.engine import ENGINE_SUFFIX

    if path.suffix == ENGINE_SUFFIX:
        return _describe_engine(path)
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
    from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine
    from autoreg.runtime.parity import read_parity
    from autoreg.spec import CALIBRATION_KEY

    engine = OnnxRuntimeEngine.from_file(path)
    parity = read_parity(engine.metadata)
    calibration = engine.metadata.get(CALIBRATION_KEY)
    return {
        "kind": "model",
        **dataclasses.asdict(engine.spec),
        "parity": parity.as_dict() if parity else None,
        **({"calibration": _read_calibration(calibration)} if calibration else {}),
        "sha256": engine.model_digest,
    }


def _describe_engine(path: Path) -> dict[str, Any]:
    """What is written beside an engine, and whether it is the one that this was written of."""
    import dataclasses

    from autoreg.errors import EngineError
    from autoreg.runtime.engines.tensorrt.engine_file import load_plan, read_engine_file

    described = read_engine_file(path)
    try:
        load_plan(path, described)
        digest = "ok"
    except EngineError as error:
        digest = str(error)
    facts = described.facts()
    return {
        "kind": "engine",
        **facts,
        # What both have, such as the version, is the engine's.
        **{name: value for name, value in dataclasses.asdict(described.spec).items() if name not in facts},
        "model": described.model,
        "model_sha256": described.model_digest,
        "sha256": described.engine_digest,
        "digest": digest,
    }
