"""What is on the disk while a training runs, and after it was killed."""

import dataclasses
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import conftest
from autoreg.errors import CheckpointError, OutputError
from autoreg.export import export_onnx
from autoreg.network.checkpoint import load_checkpoint
from autoreg.train import Status, resume_training, train_network
from forks import autoreg

SHORT = dataclasses.replace(conftest.SHORT, classes=5, steps=8, checkpoint_steps=2)
MERGED = dataclasses.replace(SHORT, merge=True, overclustering=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_weights(first: Path, second: Path) -> bool:
    one, two = (load_checkpoint(path).weights for path in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_it_saves_every_few_steps_and_keeps_the_best(scenes: list[Path], tmp_path: Path) -> None:
    path, best = tmp_path / "c.pt", tmp_path / "c.best.pt"
    seen: list[Status] = []
    saved: list[int | None] = []

    def look(status: Status) -> None:
        seen.append(status)
        saved.append(load_checkpoint(path).loop["step"] if path.exists() else None)

    train_network(scenes, path, dataclasses.replace(SHORT, steps=9), progress=look)
    # What a save holds is seen after the next step.
    assert saved == [None, None, 2, 2, 4, 4, 6, 6, 8]
    assert load_checkpoint(path).loop["step"] == 9
    assert names(tmp_path) == ["c.best.pt", "c.pt"]
    means = {step: np.mean([seen[step - 2].objective, seen[step - 1].objective]) for step in (2, 4, 6, 8)}
    assert load_checkpoint(best).loop["step"] == max(means, key=lambda step: means[step])


def test_where_clusters_are_merged_in_the_end_the_best_one_gets_them_too(scenes: list[Path], tmp_path: Path) -> None:
    path, best = tmp_path / "c.pt", tmp_path / "c.best.pt"
    fitted: dict[int, tuple[bool, bool]] = {}

    def look(status: Status) -> None:
        if path.exists():
            fitted[status.step] = load_checkpoint(path).fitted, load_checkpoint(best).fitted

    train_network(scenes, path, dataclasses.replace(MERGED, steps=9), progress=look)
    assert set(fitted.values()) == {(False, False)}
    last, kept = load_checkpoint(path), load_checkpoint(best)
    assert last.fitted
    assert kept.fitted
    assert kept.loop["step"] < last.loop["step"] == 9
    assert not torch.equal(kept.weights["decoder.weight"], last.weights["decoder.weight"])


def test_saving_changes_nothing_and_a_short_training_has_no_best(scenes: list[Path], tmp_path: Path) -> None:
    train_network(scenes, tmp_path / "often.pt", dataclasses.replace(SHORT, checkpoint_steps=1))
    for every in (0, 100):
        train_network(scenes, tmp_path / f"{every}.pt", dataclasses.replace(SHORT, checkpoint_steps=every))
        assert same_weights(tmp_path / "often.pt", tmp_path / f"{every}.pt")
    assert names(tmp_path) == ["0.pt", "100.pt", "often.best.pt", "often.pt"]


def test_a_stop_between_two_saves_does_not_change_which_one_is_best(scenes: list[Path], tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, checkpoint_steps=3, steps=9)
    train_network(scenes, tmp_path / "whole.pt", config)
    train_network(scenes, tmp_path / "parts.pt", config, should_stop=iter([False, False, False, True]).__next__)
    resume_training(scenes, tmp_path / "parts.pt")
    for suffix in ("pt", "best.pt"):
        whole, parts = (load_checkpoint(tmp_path / f"{name}.{suffix}") for name in ("whole", "parts"))
        assert whole.loop["score"] == parts.loop["score"]
        assert whole.loop["step"] == parts.loop["step"]
        assert same_weights(tmp_path / f"whole.{suffix}", tmp_path / f"parts.{suffix}")


def test_the_best_one_of_another_training_is_asked_for_and_then_removed(scenes: list[Path], tmp_path: Path) -> None:
    path, best = tmp_path / "c.pt", tmp_path / "c.best.pt"
    best.write_text("precious")
    with pytest.raises(OutputError, match=r"c\.best\.pt exists; use --overwrite"):
        train_network(scenes, path, SHORT)
    assert best.read_text() == "precious"
    train_network(scenes, path, dataclasses.replace(SHORT, steps=1), overwrite=True)
    assert names(tmp_path) == ["c.pt"]


def test_a_killed_training_goes_on_to_the_weights_of_one_that_was_not(scenes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        "stride = 2\nsteps = 30\nbatch_size = 4\ncrop_px = 32\ndisplacement_px = 2\ndropout = 0.1\noverclustering = 2\n"
    )
    whole, path = tmp_path / "whole.pt", tmp_path / "c.pt"
    command = [sys.executable, "-m", "autoreg", "train", *map(str, scenes), "-o", str(path), "--checkpoint-steps", "1"]
    options = ["-c", "t.toml", "-k", "5", "--device", "cpu"]
    with subprocess.Popen(
        command + options, cwd=tmp_path, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert any("step 6 of 30" in line for line in process.stderr)
        time.sleep(random.uniform(0, 0.1))  # any moment will do, so it need not be the same one each time
        process.kill()
    assert process.returncode < 0
    assert load_checkpoint(path).loop["step"] in range(5, 30)
    path.with_name(".c.0123abcd.part.pt").write_text("half")  # should it not have been killed in the midst of a save

    done = autoreg("train", *scenes, "-o", path, "--checkpoint-steps", 1, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".*"))
    done = autoreg("train", *scenes, "-o", whole, "--checkpoint-steps", 1, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert same_weights(whole, path)
    assert same_weights(tmp_path / "whole.best.pt", tmp_path / "c.best.pt")
    states = [load_checkpoint(file).loop["optimizer"]["state"] for file in (whole, path)]
    assert all(torch.equal(states[0][key]["exp_avg_sq"], states[1][key]["exp_avg_sq"]) for key in states[0])


@contextmanager
def full_disk(free: int = 50_000) -> Iterator[None]:
    """As if no file could grow beyond ``free`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_in_the_midst_is_a_warning_and_the_next_save_is_tried(
    scenes: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.pt"
    disk = full_disk()

    def fill_and_free(status: Status) -> None:
        if status.step == 3:
            disk.__enter__()
        if status.step == 5:
            disk.__exit__(None, None, None)
        if status.step in (4, 5):
            assert load_checkpoint(path).loop["step"] == 2

    train_network(scenes, path, SHORT, progress=fill_and_free)
    assert load_checkpoint(path).loop["step"] == 8
    warning = next(record.getMessage() for record in caplog.records if "c.pt was not written" in record.getMessage())
    assert "File too large; " in warning
    assert "c.pt still holds step 2; the training goes on and tries again after 2 steps" in warning
    train_network(scenes, tmp_path / "other.pt", SHORT)
    assert same_weights(path, tmp_path / "other.pt")
    assert names(tmp_path) == ["c.best.pt", "c.pt", "other.best.pt", "other.pt"]


def test_a_full_disk_at_the_end_is_an_error_that_loses_no_save(scenes: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    disk = full_disk()

    def fill(status: Status) -> None:
        if status.step == 7:
            disk.__enter__()

    try:
        with pytest.raises(OutputError, match=r"c\.pt was not written: File too large; .*c\.pt still holds step 6"):
            train_network(scenes, path, SHORT, progress=fill)
    finally:
        disk.__exit__(None, None, None)
    assert load_checkpoint(path).loop["step"] == 6
    assert names(tmp_path) == ["c.best.pt", "c.pt"]
    resume_training(scenes, path)
    train_network(scenes, tmp_path / "whole.pt", SHORT)
    assert same_weights(path, tmp_path / "whole.pt")


def test_a_checkpoint_without_clusters_yet_is_not_exported_but_resumed(scenes: list[Path], tmp_path: Path) -> None:
    path, midst = tmp_path / "c.pt", tmp_path / "midst.pt"

    def keep(status: Status) -> None:
        if status.step == 3:
            midst.write_bytes(path.read_bytes())

    train_network(scenes, path, dataclasses.replace(SHORT, objective="representation", steps=4), progress=keep)
    with pytest.raises(CheckpointError, match=r"midst\.pt has no clusters yet.*--resume"):
        export_onnx(midst, tmp_path / "m.onnx")
    resume_training(scenes, midst)
    assert same_weights(path, midst)
    assert load_checkpoint(midst).fitted
    assert names(tmp_path) == ["c.pt", "midst.pt"]
