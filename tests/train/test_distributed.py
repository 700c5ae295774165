"""Two processes on the CPU, linked by gloo, against one with twice the images."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoreg.errors import AutoregError
from autoreg.network.checkpoint import load_checkpoint
from autoreg.network.network import Network
from autoreg.network.orderings import find_orderings
from autoreg.train import TrainConfig, resume_training, train_network
from autoreg.train.distributed import average_gradients, join_ranks, rank, rank_count, share_batch
from autoreg.train.objectives import Step, make_objective
from autoreg.train.shared_norm import SharedBatchNorm2d, share_norms
from autoreg.train.views import CROSSED, calibrate_network
from conftest import noise, shorten_fits
from forks import FORKS

RANKS = 2
SHORT = TrainConfig(
    classes=5, stride=2, steps=6, batch_size=4, crop_px=32, displacement_px=2, learning_rate=3e-4, device="cpu"
)
BANDS = ("red", "green", "blue")

STEPS: dict[str, dict[str, Any]] = {
    "default": {},
    "no merging": {"merge": False, "overclustering": 0, "resolution": "pixels"},
    "uncrossed": {"crossed": False, "sampling": "random"},
    "hard": {"sampling": "hard", "entropy_weight": 1.0},
    "separate": {"network": "F4", "displacements": "separate", "merge": False, "overclustering": 2},
    "attention": {"network": "F3", "attention": True, "orderings": ("zigzag",)},
    "transforms": {"colour_jitter": 0.1, "flip": True, "rotate": True, "overclustering": 2},
    "resnet": {"network": "F5", "orderings": (), "crossed": False, "colour_jitter": 0.1, "flip": True},
}


def run_ranks(work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call ``work`` in two linked processes; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [FORKS.Process(target=_enter, args=(number, port, work, arguments)) for number in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    return [process.exitcode for process in processes]


def _enter(number: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    here = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    with pytest.MonkeyPatch.context() as patch, join_ranks():
        shorten_fits(patch)
        work(*arguments)


def one_step(config: TrainConfig, batch_size: int) -> dict[str, Tensor]:
    """Objective, gradients and statistics of a step in float64, of this rank's part of a batch."""
    torch.manual_seed(0)
    network = Network(config.network_config(len(BANDS))).double().train()
    share_norms(network)
    objective = make_objective(config, network, BANDS)
    share = share_batch(batch_size, CROSSED**2 if config.crossed else 1)
    images = torch.stack([torch.from_numpy(noise(3, 32, 32, seed)).double() for seed in range(share.total)])[share.places]
    valid = torch.from_numpy(np.random.default_rng(0).random((share.total, 32, 32)) > 0.1)[share.places]
    network.mean.fill_(100)
    network.std.fill_(50)
    calibrate_network(network, images, find_orderings(config.orderings))
    gain = objective(network, Step(images, valid, 3, np.random.default_rng(1), share))
    (-gain.objective).backward()
    average_gradients(network.parameters())
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
    gained = {"objective": gain.objective.detach(), "information": gain.information.detach()}
    return gained | dict(network.named_buffers()) | {name: value for name, value in gradients.items() if value is not None}


def save_steps(folder: Path) -> None:
    for name, settings in STEPS.items():
        result = one_step(dataclasses.replace(SHORT, **settings), SHORT.batch_size)
        torch.save(result, folder / f"{name}.{rank()}.pt")


def test_a_step_of_two_ranks_is_the_step_of_one_with_all_images(tmp_path: Path) -> None:
    assert run_ranks(save_steps, tmp_path) == [0, 0]
    for name, settings in STEPS.items():
        whole = one_step(dataclasses.replace(SHORT, **settings), SHORT.batch_size * RANKS)
        assert whole["objective"].abs() > 1e-4
        assert any(key.startswith("gradient") and value.abs().max() > 1e-4 for key, value in whole.items())
        for number in range(RANKS):
            part = torch.load(tmp_path / f"{name}.{number}.pt")
            torch.testing.assert_close(part, whole, rtol=1e-7, atol=1e-11)


def test_torchrun_trains_what_one_process_trains_with_twice_the_batch(scenes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(
        "stride = 2\nsteps = 6\nbatch_size = 4\ncrop_px = 32\ndisplacement_px = 2\nlearning_rate = 3e-4\n"
        "checkpoint_steps = 4\nmerge = false\n"
    )
    words = ["-m", "autoreg", "train", *map(str, scenes), "-c", "train.toml", "-k", "5", "-o", "two.pt", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), *words]
    done = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    # One of them reports.
    assert done.stdout.count("two.pt: step 6 of 6") == 1
    assert done.stderr.count("step 3 of 6") == 1
    assert sorted(path.name for path in tmp_path.glob("**/*.pt")) == ["two.best.pt", "two.pt"]

    config = dataclasses.replace(SHORT, batch_size=4 * RANKS, checkpoint_steps=4, merge=False)
    train_network(scenes, tmp_path / "one.pt", config)
    for name in ("{}.pt", "{}.best.pt"):
        one, two = (load_checkpoint(tmp_path / name.format(count)) for count in ("one", "two"))
        assert one.loop["step"] == two.loop["step"]
        assert two.loop["score"] == pytest.approx(one.loop["score"], abs=1e-6)
        for key, value in one.weights.items():
            # A bias in front of a batch norm has no gradient; Adam makes a step of what rounding leaves of it.
            if key not in ("extractor.0.conv.conv.bias", "extractor.0.conv.norm.running_mean"):
                torch.testing.assert_close(two.weights[key], value, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            logits = [part.build_network().train()(one.samples) for part in (one, two)]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def train_ensemble(scenes: list[Path], folder: Path) -> None:
    config = dataclasses.replace(
        SHORT, overclustering=2, ensemble=2, steps=3, batch_size=SHORT.batch_size * 2 // rank_count()
    )
    train_network(scenes, folder / f"{rank_count()}.pt", config)


def test_two_ranks_train_the_ensemble_of_one_with_twice_the_batch(scenes: list[Path], tmp_path: Path) -> None:
    assert run_ranks(train_ensemble, scenes, tmp_path) == [0, 0]
    train_ensemble(scenes, tmp_path)
    one, two = (load_checkpoint(tmp_path / f"{count}.pt").loop["members"] for count in (1, 2))
    for expected, found in zip(one, two, strict=True):
        for name, value in expected.items():
            if name.startswith("auxiliary."):
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def stop_and_resume(scenes: list[Path], folder: Path) -> None:
    told: list[int] = []
    asked: list[int] = []

    def interrupt_one() -> bool:
        asked.append(1)
        return rank() == 1 and len(asked) == 3

    config = dataclasses.replace(SHORT, dropout=0.1, overclustering=2)
    train_network(scenes, folder / "whole.pt", config, progress=lambda status: told.append(status.step))
    stopped = train_network(scenes, folder / "parts.pt", config, should_stop=interrupt_one)
    resumed = resume_training(scenes, folder / "parts.pt")
    record = {"told": told, "stopped": stopped.step, "resumed": resumed.step, "usage": sum(resumed.usage)}
    (folder / f"{rank()}.json").write_text(json.dumps(record))


def test_a_stop_on_one_rank_stops_all_and_resuming_is_exact(
    scenes: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run_ranks(stop_and_resume, scenes, tmp_path) == [0, 0]
    records = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(RANKS)]
    assert [record["told"] for record in records] == [[1, 2, 3, 4, 5, 6], []]
    assert [(record["stopped"], record["resumed"]) for record in records] == [(3, 6), (3, 6)]
    assert records[0]["usage"] == pytest.approx(1)
    whole, parts = (load_checkpoint(tmp_path / name).weights for name in ("whole.pt", "parts.pt"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)

    resume_training(scenes, tmp_path / "parts.pt", {"steps": 7})
    assert "was trained by 2 processes and goes on with 1: its batches now have 4 crops" in caplog.text


def fail_in_many_ways(scenes: list[Path], folder: Path) -> None:
    said: list[str] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except AutoregError as error:
            said.append(f"{type(error).__name__}: {error}")
        (folder / f"{rank()}.json").write_text(json.dumps(said))

    def kill_one() -> bool:
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    (folder / "there.pt").touch()
    attempt(lambda: train_network(scenes, folder / "there.pt", SHORT))
    attempt(lambda: train_network([folder / "none.tif"], folder / "c.pt", SHORT))
    attempt(lambda: train_network(scenes, folder / "c.pt", dataclasses.replace(SHORT, objective="representation")))
    attempt(lambda: resume_training(scenes, folder / "none.pt"))
    attempt(lambda: train_network(scenes, folder / "c.pt", SHORT, should_stop=kill_one))


def test_each_failure_ends_all_ranks_and_one_says_why(scenes: list[Path], tmp_path: Path) -> None:
    assert run_ranks(fail_in_many_ways, scenes, tmp_path)[1] == -signal.SIGKILL
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(RANKS))
    assert "OutputError: " in first[0]
    assert "RasterError: " in first[1]
    assert "ConfigError: objective representation can be trained by one process only, not by 2" in first[2]
    assert "CheckpointError: there is no checkpoint" in first[3]
    assert second == ["RankError: process 0 of the training failed; it says why"] * 4
    assert first[4].startswith("RankError: another process of the training has ended or does not answer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "1.json", "there.pt"]


def test_alone_a_shared_norm_is_a_batch_norm() -> None:
    plain = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3, momentum=None)))
    shared = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3, momentum=None)))
    share_norms(shared)
    assert [type(module) for module in shared.modules()].count(SharedBatchNorm2d) == 2
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(plain(x), shared(x))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), shared.buffers(), strict=True))
    assert shared.state_dict().keys() == plain.state_dict().keys()
