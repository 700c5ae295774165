"""Write down a measurement with the machine and the versions that it was made with."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from autoreg.runtime.measure.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("autoreg", "numpy", "onnx", "onnxruntime", "rasterio", "scipy", "torch")


def record(name: str, result: dict[str, Any]) -> None:
    """Write ``results/<name>.json`` and print it."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = describe_machine()
    description = {
        "processor": machine.processor,
        "cores": os.cpu_count(),
        "gpu": ", ".join(machine.gpus) or None,
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": versions,
    }
    text = json.dumps({"benchmark": name, "machine": description, "result": result}, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def load(name: str) -> dict[str, Any]:
    """Read what ``record`` wrote."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content
