"""Write down a measurement with the machine and the versions that it was made with."""

import json
from pathlib import Path
from typing import Any

from autoreg.runtime.measure.machine import describe_machine, find_versions

RESULTS = Path(__file__).parent / "results"
_ALSO = ("onnx", "scipy", "torch")
"""Libraries that a benchmark may depend on, besides those that every measurement does."""


def record(name: str, result: dict[str, Any]) -> None:
    """Write ``results/<name>.json`` and print it."""
    machine = describe_machine()
    description = {
        "processor": machine.processor,
        "cores": machine.cores,
        "gpu": ", ".join(machine.gpus) or None,
        "system": machine.system,
        "python": machine.python,
        "libraries": dict(sorted({**machine.libraries, **find_versions(_ALSO)}.items())),
    }
    text = json.dumps({"benchmark": name, "machine": description, "result": result}, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def load(name: str) -> dict[str, Any]:
    """Read what ``record`` wrote."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content
