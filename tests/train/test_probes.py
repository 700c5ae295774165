from pathlib import Path

import numpy as np
import pytest
import torch

from autoreg.errors import ConfigError, RasterError
from autoreg.evaluation import confusion_matrix, score
from autoreg.network.checkpoint import load_checkpoint
from autoreg.network.network import upsample
from autoreg.runtime.engine import load_engine
from autoreg.runtime.segment import segment_array
from autoreg.train import probes
from autoreg.train.probes import _sample, probe
from autoreg.train.scoring import TorchEngine, confusion_of_network, read_pair
from conftest import noise, save_raster


@pytest.fixture(scope="module")
def pairs(scenes: list[Path]) -> list[tuple[Path, Path]]:
    return [(path, path.with_name(f"truth{index}.tif")) for index, path in enumerate(scenes)]


def test_a_network_scores_as_its_exported_model(checkpoint: Path, model: Path, pairs: list[tuple[Path, Path]]) -> None:
    network = load_checkpoint(checkpoint).build_network().train()
    confusion = confusion_of_network(TorchEngine(network, ("a", "b", "c", "d"), "uint8", 32), pairs)
    expected = np.zeros((256, 256), np.int64)
    for image_path, truth_path in pairs:
        image, valid, truth = read_pair(image_path, truth_path, 4)
        expected += confusion_matrix(segment_array(load_engine(model), image, valid), truth)
    assert confusion.sum() == expected.sum()
    assert np.abs(confusion - expected).sum() <= 1e-4 * expected.sum()
    assert network.training


@pytest.mark.parametrize("kind", ["linear", "non-linear"])
@pytest.mark.parametrize("on", ["features", "decoder"])
def test_a_probe_with_labels_beats_the_clusters(
    kind: str, on: str, checkpoint: Path, pairs: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_MOST_PIXELS", 4000), ("_BATCH", 1024), ("_STEPS", 100)):
        monkeypatch.setattr(probes, name, value)
    network = load_checkpoint(checkpoint).build_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    bands = ("a", "b", "c", "d")
    result = probe(network, pairs[:1], pairs[1:], bands=bands, dtype="uint8", crop_px=32, kind=kind, on=on)
    clusters = score(confusion_of_network(TorchEngine(network, bands, "uint8", 32), pairs[1:]))
    assert result.accuracy > clusters.accuracy + 0.05
    assert result.accuracy > result.majority_share
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    again = probe(network, pairs[:1], pairs[1:], bands=bands, dtype="uint8", crop_px=32, kind=kind, on=on)
    assert again.accuracy == result.accuracy


def test_sampled_inputs_are_the_upsampled_features(checkpoint: Path, tmp_path: Path) -> None:
    network = load_checkpoint(checkpoint).build_network()
    image = noise(4, 21, 34)
    truth = np.full((21, 34), 255, np.uint8)
    places = [(0, 0), (20, 33), (7, 12), (8, 12)]
    for index, place in enumerate(places):
        truth[place] = index
    paths = save_raster(tmp_path / "image.tif", image), save_raster(tmp_path / "truth.tif", truth[None])
    spec = TorchEngine(network, ("a", "b", "c", "d"), "uint8", 32).spec
    with torch.no_grad():
        sampled, classes = _sample(network, spec, network.decoder, *paths, 100, np.random.default_rng(0))
        extended = torch.from_numpy(np.pad(image, ((0, 0), (0, 1), (0, 0)), mode="edge")[None].astype(np.float32))
        maps = upsample(network(extended), 2)[0]
    assert sorted(classes.tolist()) == [0, 1, 2, 3]
    for value, index in zip(sampled, classes.tolist(), strict=True):
        row, col = places[index]
        torch.testing.assert_close(value, maps[:, row, col], atol=1e-4, rtol=1e-4)


def test_wrong_probes_are_refused(checkpoint: Path, pairs: list[tuple[Path, Path]], tmp_path: Path) -> None:
    network = load_checkpoint(checkpoint).build_network()
    options = {"bands": ("a", "b", "c", "d"), "dtype": "uint8", "crop_px": 32}
    with pytest.raises(ConfigError, match="probe's kind is 'cubic', expected one of linear, non-linear"):
        probe(network, pairs[:1], pairs[1:], kind="cubic", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="probe's input is 'pixels'"):
        probe(network, pairs[:1], pairs[1:], on="pixels", **options)  # type: ignore[arg-type]
    empty = save_raster(tmp_path / "empty.tif", np.full((1, 160, 144), 255, np.uint8))
    with pytest.raises(ConfigError, match="none of the 1 images to train the probe on has a label"):
        probe(network, [(pairs[0][0], empty)], pairs[1:], **options)  # type: ignore[arg-type]
    small = save_raster(tmp_path / "small.tif", np.zeros((1, 10, 10), np.uint8))
    with pytest.raises(RasterError, match=r"small\.tif has 1 bands of uint8 and 10 x 10 px, expected a truth for"):
        probe(network, [(pairs[0][0], small)], pairs[1:], **options)  # type: ignore[arg-type]
