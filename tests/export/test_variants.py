"""Every configuration that changes the deployed graph: it exports, says what PyTorch says, and segments."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from autoreg.errors import ConfigError
from autoreg.export import export_onnx
from autoreg.export.strip import strip
from autoreg.network.checkpoint import load_checkpoint
from autoreg.network.masked_conv import MaskedConv2d
from autoreg.runtime.engine import load_engine
from autoreg.runtime.segment import TilingOptions, segment_array, segment_raster
from autoreg.train import TrainConfig, load_config, train_network
from variants import SETTINGS, VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_it_exports_agrees_and_segments(name: str, scenes: list[Path], tmp_path: Path) -> None:
    checkpoint, model, target = (tmp_path / file for file in ("c.pt", "m.onnx", "map.tif"))
    config = load_config(None, SETTINGS | VARIANTS[name])
    train_network(scenes, checkpoint, config)
    exported = export_onnx(checkpoint, model)  # raises where they disagree
    assert exported.parity.agreement >= 0.9999

    network = load_checkpoint(checkpoint).build_network()
    stripped = strip(network)
    kinds = {type(module) for module in stripped.modules()}
    assert not kinds & {MaskedConv2d, nn.BatchNorm2d, nn.Dropout}
    samples = load_checkpoint(checkpoint).samples
    torch.testing.assert_close(stripped(samples)[1], network(samples), atol=1e-4, rtol=1e-4)

    engine = load_engine(model)
    segmented = segment_raster(engine, scenes[0], target)
    with rasterio.open(target) as dataset, rasterio.open(scenes[0]) as scene:
        labels, image, valid = dataset.read(1), scene.read(), scene.dataset_mask() > 0
    assert segmented.pixels == valid.sum()
    assert (labels[valid] < 4).all()
    assert (labels[~valid] == 255).all()
    if config.attention:
        assert engine.spec.receptive_field_px is None
        assert 0 <= segmented.tiling_dependent < 1
        return
    field = engine.spec.receptive_field_px
    assert field
    halo = -(-(field // 2) // engine.spec.stride) * engine.spec.stride
    tiled = segment_array(engine, image, valid, options=TilingOptions(tile_px=2 * halo + 32))
    assert np.array_equal(tiled, labels)
    assert segmented.tiling_dependent == 0


def test_a_network_on_a_backbone_of_the_user_exports_with_it(scenes: list[Path], tmp_path: Path) -> None:
    backbone = nn.Sequential(nn.Conv2d(4, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU())
    checkpoint, model = tmp_path / "c.pt", tmp_path / "m.onnx"
    train_network(scenes, checkpoint, TrainConfig(**SETTINGS), extractor=backbone)
    with pytest.raises(ConfigError, match="backbone of its own: give the same one again"):
        export_onnx(checkpoint, model)
    assert not model.exists()
    fresh = nn.Sequential(nn.Conv2d(4, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU())
    exported = export_onnx(checkpoint, model, extractor=fresh)  # its weights are those of the checkpoint
    assert exported.spec.stride == 8
    assert exported.spec.receptive_field_px is None
    assert segment_array(load_engine(model), np.zeros((4, 40, 50), np.uint8)).shape == (40, 50)
