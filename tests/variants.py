"""Every configuration that changes the deployed graph, by name, as differences from a training of a few steps."""

from typing import Any

from autoreg.train import BASELINES

SETTINGS: dict[str, Any] = {
    "classes": 4,
    "stride": 2,
    "steps": 4,
    "batch_size": 4,
    "crop_px": 32,
    "displacement_px": 2,
    "learning_rate": 1e-3,
    "device": "cpu",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "F1": {"network": "F1"},
    "F1 stride 4": {"network": "F1", "stride": 4},
    "F2 stride 4": {"stride": 4},
    "F2 attention": {"attention": True},
    "F3": {"network": "F3", "dropout": 0.1, "overclustering": 2},
    "F3 attention stride 4": {"network": "F3", "attention": True, "stride": 4},
    "F4": {"network": "F4"},
    "F5": {"network": "F5"},
    "F5 stride 4": {"network": "F5", "stride": 4},
    "kernel 5": {"kernel_size": 5},
    "double": {"widths": "double", "max_width": 64},
    "representation": {"objective": "representation"},
    "pixels": {**BASELINES["kmeans"]},
    "sift": {**BASELINES["sift"]},
}
