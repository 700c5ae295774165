"""Export: a checkpoint to a model, that is an ONNX file with a ModelSpec, proven equal to PyTorch before it appears."""

from autoreg.export.onnx import Exported, export_onnx

__all__ = ["Exported", "export_onnx"]
