"""Export: a checkpoint to a model, that is an ONNX file with a ModelSpec, proven equal to PyTorch before it appears; and a
model or an engine to what a server reads.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoreg.export.onnx import Exported, export_onnx
    from autoreg.export.triton import Served, write_repository

__all__ = ["Exported", "Served", "export_onnx", "write_repository"]

_HOMES = {
    "Exported": "autoreg.export.onnx",
    "Served": "autoreg.export.triton",
    "export_onnx": "autoreg.export.onnx",
    "write_repository": "autoreg.export.triton",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: a machine that only deploys has neither torch nor ``onnx``."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
