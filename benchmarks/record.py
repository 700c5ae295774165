"""Write down a measurement with the machine and the versions that it was made with."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

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
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": None,
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": versions,
    }
    text = json.dumps({"benchmark": name, "machine": machine, "result": result}, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def load(name: str) -> dict[str, Any]:
    """Read what ``record`` wrote."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
