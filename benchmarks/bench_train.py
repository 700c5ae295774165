"""A training step: what masking costs, what each option gains, and how long a training waits for its data.

The forms that are compared take turns, step by step, so that a machine that others use slows all of them alike. A step's
time is that of the processor, or on a GPU that of the clock. Memory is that of all tensors at once; what a library takes for
itself inside an operation is not in it, except on a GPU.
"""

import dataclasses
import gc
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import rasterio
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoreg.network.network import Network, upsample
from autoreg.network.orderings import RASTER_ORDERINGS
from autoreg.raster.gdal import georeference_optional
from autoreg.train import PRESETS, TrainConfig, load_config, loop, train_network
from autoreg.train.acceleration import accelerate
from autoreg.train.data import Batch, read_batches
from autoreg.train.losses import joint_distribution, mutual_information, widen_logits
from autoreg.train.objectives import Step, make_objective
from autoreg.train.precision import Precision
from autoreg.train.transforms import IDENTITY
from autoreg.train.views import view_features
from bench_attention import attend_dense
from bench_loss import collapsed_by_convolution
from record import record

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BANDS, RUNS, WAITING_STEPS, PAPER_RUNS = 4, 15, 40, 2
SMALL_GPU = 31 * 2**30
"""Bytes that a GPU of 32 GB has for tensors: the size ``paper`` should fit."""
PLAIN = TrainConfig(size="small", batch_size=16, ensemble=1, device=DEVICE.type)
NAIVE = dataclasses.replace(
    PLAIN, stride=2, attention=True, batch_size=8, resolution="pixels", displacement_px=10, overclustering=0, merge=False
)
Change = Callable[[], AbstractContextManager[Any]]


class Trial:
    """A training that makes the same step again and again."""

    def __init__(self, config: TrainConfig, *, channels_last: bool = True, change: Change = nullcontext) -> None:
        self._change = change
        torch.manual_seed(0)
        self._network = Network(config.network_config(BANDS)).train().to(DEVICE)
        self._objective = make_objective(config, self._network, tuple("abcd")).to(DEVICE)
        accelerate(self._network, compiler="inductor" if config.compile else None, checkpointing=config.checkpointing)
        if not channels_last:
            self._network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._precision = Precision(config.precision, DEVICE)
        self._optimizer = torch.optim.Adam(self._network.parameters())
        self._images = torch.rand(config.batch_size, BANDS, config.crop_px, config.crop_px, device=DEVICE)
        self._valid = torch.ones(config.batch_size, config.crop_px, config.crop_px, dtype=torch.bool, device=DEVICE)
        self.seconds: list[float] = []
        self.images = config.batch_size

    def step(self, number: int) -> None:
        """The step of ``train/loop.py``."""
        with self._change():
            start = _clock()
            with self._precision.computing():
                gain = self._objective(self._network, Step(self._images, self._valid, number, np.random.default_rng(number)))
            self._optimizer.zero_grad()
            self._precision.backward(-gain.objective)
            self._precision.update(self._optimizer)
            self.seconds.append(_clock() - start)

    def peak_mib(self) -> float:
        """Memory of a step at its peak, with weights, gradients and the optimiser's state."""
        if DEVICE.type == "cuda":
            self._optimizer.zero_grad()
            others = torch.cuda.memory_allocated() - sum(tensor.nbytes for tensor in self._lasting())
            torch.cuda.reset_peak_memory_stats()
            self.step(1)
            return round((torch.cuda.max_memory_allocated() - others) / 2**20, 1)
        peak = Peak([*self._network.parameters(), *tree_leaves(self._optimizer.state_dict())])
        with peak:
            self.step(1)
        return round(peak.bytes / 2**20, 1)

    def _lasting(self) -> list[Tensor]:
        """What is in memory between two steps, but for the gradients."""
        optimizer = [value for value in tree_leaves(self._optimizer.state_dict()) if isinstance(value, Tensor)]
        return [*self._network.parameters(), *self._network.buffers(), *optimizer, self._images, self._valid]


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors alive, as they come and go, and keeps the largest sum."""

    def __init__(self, present: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self._alive = 0
        self._known: set[int] = set()
        self._add(present)

    def _add(self, values: object) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and id(storage := value.untyped_storage()) not in self._known:
                self._known.add(id(storage))
                self._alive += storage.nbytes()
                self.bytes = max(self.bytes, self._alive)
                weakref.finalize(storage, self._remove, id(storage), storage.nbytes())

    def _remove(self, known: int, size: int) -> None:
        self._known.discard(known)
        self._alive -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self._add(result)
        return result


def compare(trials: dict[str, Trial], reference: str, runs: int = RUNS) -> dict[str, dict[str, float]]:
    """Median seconds of each trial, images per second, and the median of its ratio to the reference, turn by turn."""
    for number in range(runs + 1):
        for trial in trials.values():
            trial.step(number)
    expected = trials[reference].seconds[1:]
    return {
        name: {
            "seconds": round(statistics.median(trial.seconds[1:]), 4),
            "images_s": round(trial.images / statistics.median(trial.seconds[1:]), 2),
            "ratio": round(statistics.median(a / b for a, b in zip(trial.seconds[1:], expected, strict=True)), 3),
        }
        for name, trial in trials.items()
    }


def measure_masking(size: str, runs: int) -> dict[str, Any]:
    """The step with masks against the same step without."""
    config = dataclasses.replace(PLAIN, size=size)
    trials = {"unmasked": Trial(dataclasses.replace(config, orderings=())), "masked": Trial(config)}
    return compare(trials, "unmasked", runs)


def measure_options() -> dict[str, Any]:
    """Each option against the step without options."""
    change = partial(dataclasses.replace, PLAIN)
    trials = {
        "plain": Trial(PLAIN),
        "channels_first": Trial(PLAIN, channels_last=False),
        "bf16": Trial(change(precision="bf16")),
        "compile": Trial(change(compile=True)),
        "checkpointing": Trial(change(checkpointing=True)),
    }
    if DEVICE.type == "cuda":
        trials["fp16"] = Trial(change(precision="fp16"))
    results: dict[str, Any] = compare(trials, "plain")
    for name, trial in trials.items():
        # Where memory is counted tensor by tensor, nothing is compiled.
        results[name]["peak_mib"] = None if name == "compile" and DEVICE.type == "cpu" else trial.peak_mib()
    return results


def measure_naive() -> dict[str, Any]:
    """The step with attention and the loss on all pixels against the loss by convolution and the dense mask."""

    def loss() -> AbstractContextManager[Any]:
        return mock.patch("autoreg.train.objectives.clustering.joint_distribution", collapsed_by_convolution)

    def mask() -> AbstractContextManager[Any]:
        return mock.patch("autoreg.network.attention.attend", attend_dense)

    trials = {"ours": Trial(NAIVE), "naive_loss": Trial(NAIVE, change=loss), "dense_mask": Trial(NAIVE, change=mask)}
    results: dict[str, Any] = compare(trials, "ours", 3)
    for name, trial in trials.items():
        results[name]["peak_mib"] = trial.peak_mib()
    return results


def measure_waiting(folder: Path) -> dict[str, Any]:
    """A training from tiled rasters: images per second by the clock, and the share of its time that it waits for them."""
    paths = [folder / f"{number}.tif" for number in range(2)]
    for number, path in enumerate(paths):
        coarse = np.random.default_rng(number).integers(0, 200, (BANDS, 512, 512), np.uint8)
        fine = np.random.default_rng(number).integers(0, 16, (BANDS, 4096, 4096), np.uint8)
        profile = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
        shape = {"count": BANDS, "height": 4096, "width": 4096, "dtype": "uint8"}
        with georeference_optional(), rasterio.open(path, "w", **profile, **shape) as dataset:
            dataset.write(coarse.repeat(8, axis=1).repeat(8, axis=2) + fine)
    waits: list[float] = []
    ends: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Generator[Batch]:
        with closing(read_batches(*args, **kwargs)) as batches:
            while True:
                start = time.perf_counter()
                batch = next(batches)
                waits.append(time.perf_counter() - start)
                yield batch

    with mock.patch.object(loop, "read_batches", timed):
        config = dataclasses.replace(PLAIN, steps=WAITING_STEPS, checkpoint_steps=0)
        train_network(paths, folder / "c.pt", config, progress=lambda _: ends.append(time.perf_counter()))
    seconds = ends[-1] - ends[0]
    return {
        "images_s": round(PLAIN.batch_size * (WAITING_STEPS - 1) / seconds, 2),
        "waiting_percent": round(100 * sum(waits[1:WAITING_STEPS]) / seconds, 2),
    }


def count_paper(precision: str, *, checkpointing: bool) -> float:
    """GiB of a step of the preset ``potsdam`` at its peak: all tensors are counted and nothing is computed."""
    config = load_config(None, {"precision": precision, "checkpointing": checkpointing}, PRESETS["potsdam"])
    kind = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    orderings = RASTER_ORDERINGS[0], RASTER_ORDERINGS[6]
    network = Network(config.network_config(BANDS)).train()
    accelerate(network, compiler=None, checkpointing=config.checkpointing)
    optimizer = torch.optim.Adam(network.parameters())
    for ordering in orderings:
        IDENTITY.carry(ordering)  # found once, by looking at numbers

    def loss() -> Tensor:
        images = torch.rand(config.batch_size, BANDS, config.crop_px, config.crop_px)
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            features = view_features(network, images, [orderings[0]], [orderings[1]])
            logits = (widen_logits(network.decoder(part)) for part in features)
            probs_y, probs_z = (upsample(part, network.config.stride).softmax(dim=1) for part in logits)
            return -mutual_information(joint_distribution(probs_y, probs_z, config.displacement_px)).value

    peak = Peak([*network.parameters()])
    with FakeTensorMode(allow_non_fake_inputs=True), peak:
        for _ in range(2):  # the optimiser's state is made by the first step
            loss().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    return round(peak.bytes / 2**30, 1)


def count_papers() -> dict[str, float]:
    """Memory of the paper's size with each option, in GiB."""
    return {
        _describe(precision, checkpointing): count_paper(precision, checkpointing=checkpointing)
        for precision, checkpointing in _cases("fp32", "fp16")
    }


def run_papers() -> dict[str, Any]:
    """The step of the preset ``potsdam`` with each option on a GPU; 16 bits and checkpointing in ``SMALL_GPU``."""
    results: dict[str, Any] = {}
    memory = torch.cuda.get_device_properties(DEVICE).total_memory
    for precision, checkpointing in _cases("fp32", "bf16", "fp16"):
        config = load_config(None, {"precision": precision, "checkpointing": checkpointing}, PRESETS["potsdam"])
        limited = precision != "fp32" and checkpointing
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(SMALL_GPU / memory, 1.0) if limited else 1.0)
        try:
            found: dict[str, Any] = run_paper(config)
        except torch.cuda.OutOfMemoryError as error:
            found = {"out_of_memory": str(error).partition(". ")[0]}
        results[_describe(precision, checkpointing)] = {"limit_gib": SMALL_GPU / 2**30 if limited else None, **found}
    torch.cuda.set_per_process_memory_fraction(1.0)
    return results


def run_paper(config: TrainConfig) -> dict[str, Any]:
    """Speed of a step on a GPU, and its memory: of all tensors, and what was taken of the GPU for them."""
    trial = Trial(config)
    found: dict[str, Any] = compare({"step": trial}, "step", PAPER_RUNS)["step"]
    del found["ratio"]
    peak = trial.peak_mib()
    return found | {
        "peak_gib": round(peak / 2**10, 1),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 1),
    }


def _cases(*precisions: str) -> list[tuple[str, bool]]:
    return [(precision, checkpointing) for precision in precisions for checkpointing in (False, True)]


def _describe(precision: str, checkpointing: bool) -> str:
    return f"{precision} checkpointing" if checkpointing else precision


def _clock() -> float:
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main(folder: Path) -> None:
    """Measure everything."""
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "step": {"size": PLAIN.size, "batch": PLAIN.batch_size, "crop_px": PLAIN.crop_px, "bands": BANDS},
        "masking": {"small": measure_masking("small", RUNS), "base": measure_masking("base", 5)},
        "options": measure_options(),
        "naive": {
            "step": {"stride": NAIVE.stride, "batch": NAIVE.batch_size, "displacement_px": NAIVE.displacement_px},
            **measure_naive(),
        },
        "waiting": measure_waiting(folder),
    }
    if DEVICE.type == "cuda":
        record("train_gpu", result | {"paper": run_papers()})
    else:
        record("train", result | {"paper_counted_gib": count_papers()})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
