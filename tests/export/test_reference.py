"""A third opinion: ONNX's own evaluator, which takes each operator from the standard's text, says what the engine says."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from autoreg.export import export_onnx
from autoreg.network.checkpoint import Checkpoint, save_checkpoint
from autoreg.network.config import NetworkConfig
from autoreg.network.network import Network
from autoreg.network.orderings import RASTER_ORDERINGS
from autoreg.runtime.engine import load_engine
from autoreg.train.views import calibrate_network
from conftest import noise

VARIANTS: dict[str, dict[str, Any]] = {
    "F1": {"extractor": "identity"},
    "F2": {},
    "F2 stride 4": {"stride": 4},
    "F3 attention": {"unmasked": 1, "attention": True},
    "F4": {"unmasked": 2},
    "F5 stride 4": {"extractor": "resnet18", "widths": (8, 8, 16, 16), "unmasked": 4, "stride": 4},
    "kernel 5": {"kernel_size": 5},
    "pixels": {"extractor": "pixels", "stem_width": 2, "widths": (), "stride": 1},
    "sift": {"extractor": "sift", "stem_width": 128, "widths": ()},
}


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in VARIANTS), ("F2", "fp16")])
def test_the_evaluator_of_the_standard_agrees(name: str, precision: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"bands": 2, "classes": 3, "stem_width": 8, "widths": (8, 8), "stride": 2} | VARIANTS[name]
    torch.manual_seed(0)
    network = Network(NetworkConfig(**fields)).train()
    network.mean.fill_(100.0)
    network.std.fill_(50.0)
    samples = torch.from_numpy(noise(2, 64, 64).astype(np.float32))[None].expand(2, -1, -1, -1).contiguous()
    calibrate_network(network, samples, RASTER_ORDERINGS)
    checkpoint = Checkpoint(network.config, dict(network.state_dict()), ("a", "b"), "uint8", samples, {}, {"step": 0})
    save_checkpoint(checkpoint, tmp_path / "c.pt", overwrite=True)
    export_onnx(tmp_path / "c.pt", tmp_path / "m.onnx", precision=precision)

    image = noise(2, 24, 32, seed=1).astype(np.float32)[None]
    labels, logits = map(np.asarray, ReferenceEvaluator(onnx.load(tmp_path / "m.onnx")).run(None, {"image": image}))
    found = load_engine(tmp_path / "m.onnx").predict(image)
    scale = np.abs(found.logits).max()
    assert np.abs(found.logits - logits).max() <= (1e-4 if precision == "fp32" else 1e-2) * max(scale, 1)
    if precision == "fp32":
        assert np.array_equal(found.labels, labels)
    else:  # rounding breaks ties
        assert (found.labels == labels).mean() >= 0.98
