"""What is served by Triton: a legend that no two clusters have alike, and what a server reads, by Triton's own schema."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from autoreg.spec import MapClass

CLASSES = (
    MapClass(7, "wood", "#000001", (0, 3)),
    MapClass(8, "none", "#000002"),
    MapClass(9, "else", "#000003", (1, 2)),
)
"""Of four clusters: classes of several of them, and of none."""


def read_config(folder: Path) -> ModelConfig:
    """The config of a model, in its folder of a repository."""
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
