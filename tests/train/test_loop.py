import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from autoreg.errors import CheckpointError, ConfigError, OutputError
from autoreg.network.checkpoint import load_checkpoint, save_checkpoint
from autoreg.train import Status, TrainConfig, resume_training, train_network
from conftest import noise, save_raster

SHORT = TrainConfig(classes=5, stride=2, steps=8, batch_size=4, crop_px=32, displacement_px=2, device="cpu")


def test_it_learns(scenes: list[Path], tmp_path: Path) -> None:
    seen: list[Status] = []
    config = dataclasses.replace(SHORT, steps=60, batch_size=8, learning_rate=3e-3)
    train_network(scenes, tmp_path / "c.pt", config, progress=seen.append)
    values = [status.mutual_information for status in seen]
    assert [status.step for status in seen] == list(range(1, 61))
    assert np.mean(values[-10:]) > 0.25
    assert np.mean(values[-10:]) > 5 * np.mean(values[:3])
    assert sum(seen[-1].usage) == pytest.approx(1)
    assert not seen[-1].collapsed


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(scenes: list[Path], tmp_path: Path) -> None:
    weights = []
    for index, seed in enumerate((3, 3, 4)):
        train_network(scenes, tmp_path / f"{index}.pt", dataclasses.replace(SHORT, seed=seed))
        weights.append(load_checkpoint(tmp_path / f"{index}.pt").weights)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["decoder.weight"], weights[2]["decoder.weight"])


def test_the_networks_of_an_ensemble_train_as_if_alone_and_one_is_kept(scenes: list[Path], tmp_path: Path) -> None:
    seen: list[Status] = []
    config = dataclasses.replace(SHORT, overclustering=2)
    for ensemble in (1, 3):
        path = tmp_path / f"{ensemble}.pt"
        train_network(scenes, path, dataclasses.replace(config, ensemble=ensemble), progress=seen.append)
    assert {status.images for status in seen} == {4, 12}
    alone, together = (load_checkpoint(tmp_path / f"{ensemble}.pt") for ensemble in (1, 3))
    trained = [name for name in alone.weights if not name.startswith("decoder.")]
    first, *others = together.loop["members"]
    assert all(torch.equal(first[name], alone.weights[name]) for name in trained)
    for other in others:
        assert not torch.equal(other["auxiliary.0.weight"], first["auxiliary.0.weight"])
        assert not torch.equal(other["extractor.0.conv.norm.running_mean"], first["extractor.0.conv.norm.running_mean"])
    kept = [all(torch.equal(state[name], together.weights[name]) for name in state) for state in together.loop["members"]]
    assert sorted(kept) == [False, False, True]
    assert (tmp_path / "3.pt").stat().st_size < 3.3 * (tmp_path / "1.pt").stat().st_size, "what is kept is not held twice"


def test_an_ensemble_goes_on_with_all_its_networks(scenes: list[Path], tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, overclustering=2, steps=2)
    train_network(scenes, tmp_path / "c.pt", config)
    whole = load_checkpoint(tmp_path / "c.pt")
    broken = dataclasses.replace(whole, loop=whole.loop | {"members": whole.loop["members"][:2]})
    save_checkpoint(broken, tmp_path / "broken.pt", overwrite=False)
    with pytest.raises(CheckpointError, match=r"broken\.pt has no valid state of the training to go on from"):
        resume_training(scenes, tmp_path / "broken.pt", {"steps": 4})
    train_network(scenes, tmp_path / "longer.pt", dataclasses.replace(config, steps=4))
    resume_training(scenes, tmp_path / "c.pt", {"steps": 4})
    longer, resumed = (load_checkpoint(tmp_path / name) for name in ("longer.pt", "c.pt"))
    for one, other in zip(longer.loop["members"], resumed.loop["members"], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(longer.weights[name], resumed.weights[name]) for name in longer.weights)


def test_stopping_and_resuming_gives_the_weights_of_an_uninterrupted_training(scenes: list[Path], tmp_path: Path) -> None:
    train_network(scenes, tmp_path / "whole.pt", SHORT)
    stopped = train_network(scenes, tmp_path / "parts.pt", SHORT, should_stop=iter([False, False, True]).__next__)
    assert stopped.step == load_checkpoint(tmp_path / "parts.pt").loop["step"] == 3
    assert resume_training(scenes, tmp_path / "parts.pt").step == 8
    whole, parts = (load_checkpoint(tmp_path / name).weights for name in ("whole.pt", "parts.pt"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_resuming_takes_more_steps_but_no_other_setting(checkpoint: Path, scenes: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "c.pt"
    copy.write_bytes(checkpoint.read_bytes())
    with pytest.raises(ConfigError, match=r"has done all 10 steps; to go on give more, such as --steps 20"):
        resume_training(scenes, copy)
    with pytest.raises(ConfigError, match=r"trained with classes 5, not 7; --resume can change only .*device.* and steps"):
        resume_training(scenes, copy, {"classes": 7})
    other = save_raster(tmp_path / "other.tif", noise(3, 64, 64))
    with pytest.raises(CheckpointError, match=r"trained on 4 bands of uint8, but .*other\.tif has 3"):
        resume_training([other], copy, {"steps": 12})
    assert copy.read_bytes() == checkpoint.read_bytes()
    assert resume_training(scenes, copy, {"steps": 12, "classes": 5}).step == 12


def test_an_existing_checkpoint_is_kept(checkpoint: Path, scenes: list[Path]) -> None:
    before = checkpoint.read_bytes()
    with pytest.raises(OutputError, match="exists; use --overwrite"):
        train_network(scenes, checkpoint, SHORT)
    assert checkpoint.read_bytes() == before


def test_a_device_that_does_not_exist_is_named(scenes: list[Path], tmp_path: Path) -> None:
    for name in ("toaster", "cuda:77"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used"):
            train_network(scenes, tmp_path / "c.pt", dataclasses.replace(SHORT, device=name))


def test_a_collapse_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = save_raster(tmp_path / "flat.tif", np.full((2, 64, 64), 50, np.uint8))
    with caplog.at_level(logging.WARNING, logger="autoreg"):
        status = train_network([flat], tmp_path / "c.pt", dataclasses.replace(SHORT, steps=2))
    assert status.collapsed
    assert "the training has collapsed" in caplog.text


def test_options_train_and_resume_exactly(scenes: list[Path], tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, colour_jitter=0.1, flip=True, rotate=True, displacements="separate")
    train_network(scenes, tmp_path / "whole.pt", config)
    train_network(scenes, tmp_path / "parts.pt", config, should_stop=iter([False, True]).__next__)
    resume_training(scenes, tmp_path / "parts.pt")
    whole, parts, plain = (tmp_path / name for name in ("whole.pt", "parts.pt", "plain.pt"))
    train_network(scenes, plain, SHORT)
    weights = [load_checkpoint(path).weights["decoder.weight"] for path in (whole, parts, plain)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_colour_jitter_needs_colours(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", noise(2, 64, 64))
    with pytest.raises(ConfigError, match="bands named red, green and blue, but the rasters have band1, band2"):
        train_network([path], tmp_path / "c.pt", dataclasses.replace(SHORT, colour_jitter=0.1))


@pytest.mark.parametrize("bands", [1, 7])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_any_number_of_bands_and_any_type(tmp_path: Path, bands: int, dtype: str) -> None:
    image = noise(bands, 64, 64).astype(dtype) * 100
    if dtype == "float32":
        image[:, :10] = np.nan
    path = save_raster(tmp_path / "a.tif", image)
    train_network([path], tmp_path / "c.pt", dataclasses.replace(SHORT, steps=2))
    saved = load_checkpoint(tmp_path / "c.pt")
    assert (len(saved.bands), saved.dtype) == (bands, dtype)
    assert all(value.isfinite().all() for value in saved.weights.values())
    assert saved.samples.isfinite().all()
