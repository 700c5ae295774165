import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoreg.errors import ConfigError
from autoreg.evaluation import confusion_matrix, score
from autoreg.network.checkpoint import load_checkpoint
from autoreg.network.network import valid_cells
from autoreg.train import BASELINES, PRESETS, Status, TrainConfig, load_config, resume_training, train_network
from autoreg.train.objectives.objective import Step
from autoreg.train.objectives.patches import _DIRECTIONS, PatchRelation
from autoreg.train.objectives.representation import _draw
from conftest import noise, save_raster

SHORT: dict[str, Any] = {
    "classes": 4,
    "stride": 2,
    "steps": 40,
    "batch_size": 8,
    "crop_px": 32,
    "displacement_px": 2,
    "learning_rate": 3e-3,
    "samples": 64,
    "device": "cpu",
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "F1": {"network": "F1"},
    "F3": {"network": "F3"},
    "F4": {"network": "F4"},
    "F5": {"network": "F5", "learning_rate": 1e-3},
    "stride 4": {"stride": 4},
    "kernel 5": {"kernel_size": 5},
    "relaxed": {"masking": "relaxed"},
    "standard": {"masking": "standard"},
    "zigzag": {"orderings": ("zigzag",)},
    "attention": {"attention": True, "orderings": ("raster", "zigzag")},
    "random": {"sampling": "random"},
    "hard": {"sampling": "hard"},
    "two orderings": {"orderings": ("o1", "o7")},
    # Without more weight on the entropies, a large learning rate lets it collapse.
    "as in the paper": {"crossed": False, "sampling": "random", "entropy_weight": 1.0, "learning_rate": 1e-3},
    "no orderings": {"orderings": (), "flip": True},
    "dropout": {"dropout": 0.1},
    "double": {"widths": "double", "max_width": 64},
    "separate": {"displacements": "separate"},
    "overclustering": {"overclustering": 3},
    "transforms": {"colour_jitter": 0.1, "flip": True, "rotate": True},
    "representation": {"objective": "representation"},
    "representation with attention": {"objective": "representation", "attention": True},
    # They compare only a pair of patches per crop, so that smaller batches are mostly noise.
    "doersch": {**BASELINES["doersch"], "steps": 60, "batch_size": 32},
    "isola": {**BASELINES["isola"], "steps": 60, "batch_size": 32},
    "deepcluster": BASELINES["deepcluster"],
    "iic": BASELINES["iic"],
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_improves_its_objective(name: str, scenes: list[Path], tmp_path: Path) -> None:
    seen: list[Status] = []
    status = train_network(scenes, tmp_path / "c.pt", TrainConfig(**SHORT | CONFIGURATIONS[name]), progress=seen.append)
    values = np.array([status.mutual_information for status in seen])
    assert np.isfinite(values).all()
    assert values[-10:].mean() > values[:10].mean() + 0.01
    assert sum(status.usage) == pytest.approx(1)


@pytest.mark.parametrize("name", ["representation", "deepcluster", "doersch", "overclustering", "dropout", "attention"])
def test_every_objective_resumes_exactly(name: str, scenes: list[Path], tmp_path: Path) -> None:
    config = TrainConfig(**SHORT | CONFIGURATIONS[name] | {"steps": 4})
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    train_network(scenes, whole, config)
    train_network(scenes, parts, config, should_stop=iter([False, True]).__next__)
    assert resume_training(scenes, parts).step == 4
    first, second = (load_checkpoint(path) for path in (whole, parts))
    assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)
    states = first.loop["objective"], second.loop["objective"]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["random", "kmeans", "sift"])
def test_what_is_not_trained_keeps_its_first_weights(name: str, scenes: list[Path], tmp_path: Path) -> None:
    settings = {key: value for key, value in SHORT.items() if key != "steps"}
    config = load_config(None, settings, BASELINES[name])
    status = train_network(scenes, tmp_path / "c.pt", config)
    assert (status.step, status.collapsed) == (0, False)
    assert status.clusters_used >= 2


def test_clusters_of_colours_are_those_of_the_colours(tmp_path: Path) -> None:
    colours = np.array([[10, 200, 30], [240, 20, 40], [90, 90, 250]], np.uint8)
    truth = np.random.default_rng(0).integers(0, 3, (64, 64))
    path = save_raster(tmp_path / "a.tif", colours[truth].transpose(2, 0, 1).copy())
    train_network([path], tmp_path / "c.pt", load_config(None, {"classes": 3, "crop_px": 32}, BASELINES["kmeans"]))
    network = load_checkpoint(tmp_path / "c.pt").build_network()
    with torch.no_grad():
        labels = network(torch.from_numpy(colours[truth].transpose(2, 0, 1)[None].astype(np.float32))).argmax(dim=1)[0]
    assert score(confusion_matrix(labels.numpy().astype(np.uint8), truth.astype(np.uint8))).accuracy == 1


@pytest.mark.parametrize("name", ["doersch", "isola"])
def test_the_second_patch_lies_where_the_answer_says(name: str) -> None:
    config = TrainConfig(**SHORT | BASELINES[name] | {"crop_px": 64})
    objective = PatchRelation(config, _network(config), ("a",))
    rows, cols = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    images = torch.stack([rows, cols]).expand(64, 2, 64, 64)
    patches, answers = objective._cut(Step(images, torch.ones(64, 64, 64, dtype=torch.bool), 0, np.random.default_rng(0)))
    corners = patches[:, :, 0, 0]
    for answer, first, second in zip(answers.tolist(), *corners.chunk(2), strict=True):
        offset = (second - first).tolist()
        if name == "doersch":
            assert offset == [24 * sign for sign in _DIRECTIONS[answer]]
        else:
            assert max(abs(part) for part in offset) == 16 * (1 + answer)
    assert len(set(answers.tolist())) == (8 if name == "doersch" else 2)


def _network(config: TrainConfig) -> Any:
    from autoreg.network.network import Network

    return Network(config.network_config(1))


def test_cells_with_data_are_drawn_first_and_none_twice() -> None:
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[0, :, 3] = False
    cells = valid_cells(valid, 2)
    assert cells[0].tolist() == [[True, False, True, True]] * 4
    assert cells[1].all()
    drawn = _draw(cells.flatten(1).float().numpy(), 12, np.random.default_rng(0))
    assert all(len(set(row.tolist())) == 12 for row in drawn)
    assert cells[0].flatten()[drawn[0]].all()
    assert _draw(np.ones((2, 4), np.float32), 100, np.random.default_rng(0)).shape == (2, 4)


def test_a_frozen_backbone_stays_and_a_trained_one_moves(scenes: list[Path], tmp_path: Path) -> None:
    for frozen in (True, False):
        backbone = torch.nn.Sequential(torch.nn.Conv2d(4, 16, 8, stride=8), torch.nn.ReLU()).requires_grad_(not frozen)
        before = [parameter.clone() for parameter in backbone.parameters()]
        config = TrainConfig(**SHORT | {"steps": 2})
        path = tmp_path / f"{frozen}.pt"
        train_network(scenes, path, config, extractor=backbone)
        moved = [not torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True)]
        assert any(moved) != frozen
        assert load_checkpoint(path).network.stride == 8
        resumed = dataclasses.replace(config, steps=3)
        assert resume_training(scenes, path, {"steps": resumed.steps}, extractor=backbone).step == 3


def test_a_backbone_is_named_and_never_run_from_a_file(
    scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_backbone.py").write_text(
        "from torch import nn\n"
        "def make(bands):\n    return nn.Conv2d(bands, 16, 4, stride=4)\n"
        "def odd(bands):\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "c.pt"
    train_network(scenes, path, TrainConfig(**SHORT | {"steps": 1, "backbone": "my_backbone:make"}))
    checkpoint = load_checkpoint(path)
    with pytest.raises(ConfigError, match="trained on the backbone my_backbone:make; if you trust it, give --backbone"):
        checkpoint.build_network()
    for name, message in (
        ("my_backbone", "expected package.module:function"),
        ("my_backbone:none", "was not found"),
        ("no_module:make", "was not found"),
        ("my_backbone:odd", "made a int, expected a torch.nn.Module"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_network(scenes, path, TrainConfig(**SHORT | {"backbone": name}), overwrite=True)


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_are_table_8(name: str) -> None:
    config = load_config(None, {}, PRESETS[name])
    assert config.displacement_px == 10
    assert config.attention == name.startswith("potsdam")
    layers = config.network_config(4)
    assert layers.widths == (128, 256, 512, 1024, 2048)
    assert layers.stride == (2 if name.startswith("potsdam") else 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": "F9"}, "network is 'F9', expected one of F1"),
        ({"network": "pixels", "steps": 5}, "network pixels with clustering trains nothing: use 0"),
        ({"objective": "deepcluster", "overclustering": 0}, "deepcluster needs overclustering"),
        ({"orderings": ("o1",)}, "needs two orderings, but there is only row-down-right"),
        ({"orderings": ("o1", "o2"), "sampling": "hard"}, "that of row-down-right is missing"),
        ({"orderings": ("spiral",)}, "there is no ordering 'spiral'"),
        ({"network": "F4", "attention": True}, "this network has none"),
        ({"stride": 3}, "stride of 3"),
        ({"overclustering": 5000}, "overclustering is 5000"),
        ({"overclustering": 1}, "overclustering is 1, expected at least 2, because clusters are merged"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**wrong)


def test_two_bands_can_be_told_apart_in_the_noise(tmp_path: Path) -> None:
    """Representation learning on a raster with nodata: its cells are never anchors while there are others."""
    image = noise(2, 96, 96)
    image[:, :20] = 0
    path = save_raster(tmp_path / "a.tif", image, nodata=0)
    config = TrainConfig(**SHORT | {"objective": "representation", "steps": 3})
    assert np.isfinite(train_network([path], tmp_path / "c.pt", config).mutual_information)
