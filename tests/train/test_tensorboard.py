"""What TensorBoard's own reader finds in the files."""

import dataclasses
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from autoreg.errors import MissingDependencyError
from autoreg.network.checkpoint import load_checkpoint
from autoreg.network.network import label_pixels
from autoreg.raster.gdal import georeference_optional
from autoreg.raster.palette import class_colours
from autoreg.train import Status, resume_training, train_network
from autoreg.train.recording import record_training
from conftest import SHORT

pytest.importorskip("tensorboard")


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def test_scalars_and_pictures_are_those_of_the_training(scenes: list[Path], tmp_path: Path) -> None:
    output, folder, seen = tmp_path / "c.pt", tmp_path / "board", list[Status]()
    with record_training(output, {}, tensorboard=folder) as record:
        record.finish(train_network(scenes, output, SHORT, progress=seen.append, observe=record.observe))
    events = read(folder)
    told = {event.step: event.value for event in events.Scalars("objective/mutual_information")}
    assert told == pytest.approx({step: seen[step - 1].mutual_information for step in (1, 10, 20, 25)}, rel=1e-6)
    for cluster in range(4):
        (*_, last) = events.Scalars(f"usage/cluster_{cluster:03}")
        assert last.value == pytest.approx(seen[-1].usage[cluster], abs=1e-6)
    assert {"clusters/clusters_used", "training/images_per_second", "objective/entropy_y"} <= set(events.Tags()["scalars"])
    assert "training/peak_memory_mib" not in events.Tags()["scalars"]
    pictures = events.Images("samples")
    assert [picture.step for picture in pictures] == list(range(1, 26))
    with georeference_optional(), rasterio.MemoryFile(pictures[-1].encoded_image_string) as file, file.open() as dataset:
        drawn = dataset.read()
    assert drawn.shape == (3, 2 * 32, 4 * 32)
    # The lower row is what the network that was saved says, in the colours of its maps.
    saved = load_checkpoint(output)
    network = saved.build_network()
    labels = label_pixels(network(saved.samples), network.config.stride)
    expected = np.concatenate([np.array(class_colours(4), np.uint8)[part] for part in labels.numpy()], axis=1)
    valid = np.concatenate([*(saved.samples != network.mean[:, None, None]).any(dim=1).numpy()], axis=1)
    shown = drawn[:, 32:].transpose(1, 2, 0)
    assert valid.mean() > 0.5
    assert (shown[valid] == expected[valid]).mean() > 0.999
    assert (shown[~valid] == 255).all()


def test_resuming_replaces_the_steps_that_are_done_again(scenes: list[Path], tmp_path: Path) -> None:
    output, folder = tmp_path / "c.pt", tmp_path / "board"
    whole = train_network(scenes, tmp_path / "whole.pt", SHORT)
    with record_training(output, {}, tensorboard=folder) as record:
        stops = (step == 13 for step in count(1))
        record.finish(train_network(scenes, output, SHORT, observe=record.observe, should_stop=stops.__next__))
    # A training that had gone on and was killed after its last save.
    lost = tmp_path / "lost.pt"
    lost.write_bytes(output.read_bytes())
    with record_training(lost, {}, tensorboard=folder, resume=True) as record:
        stops = (step == 10 for step in count(1))
        resume_training(scenes, lost, observe=record.observe, should_stop=stops.__next__)
    with record_training(output, {}, tensorboard=folder, resume=True) as record:
        record.finish(resume_training(scenes, output, observe=record.observe))
    told = read(folder).Scalars("objective/mutual_information")
    assert [event.step for event in told] == [1, 10, 20, 25]
    assert told[-1].value == pytest.approx(whole.mutual_information, rel=1e-6)


def test_before_clusters_are_merged_the_trained_ones_are_drawn(scenes: list[Path], tmp_path: Path) -> None:
    output, folder = tmp_path / "c.pt", tmp_path / "board"
    config = dataclasses.replace(SHORT, steps=2, merge=True, overclustering=8)
    with record_training(output, {}, tensorboard=folder) as record:
        record.finish(train_network(scenes, output, config, observe=record.observe))
    events = read(folder)
    assert "usage/cluster_031" in events.Tags()["scalars"]
    assert [picture.step for picture in events.Images("samples")] == [1, 2]


def test_watching_does_not_change_the_training(scenes: list[Path], tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, steps=4, dropout=0.2)
    watched, alone = tmp_path / "watched.pt", tmp_path / "alone.pt"
    with record_training(watched, {}, tensorboard=tmp_path / "board") as record:
        train_network(scenes, watched, config, observe=record.observe)
    train_network(scenes, alone, config)
    weights = [load_checkpoint(path).weights for path in (watched, alone)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_library_is_named_if_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    expected = r"tensorboard is not installed, and this needs it: pip install 'autoreg\[tensorboard\]'"
    with (
        pytest.raises(MissingDependencyError, match=expected),
        record_training(tmp_path / "c.pt", {}, tensorboard=tmp_path / "board"),
    ):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []
