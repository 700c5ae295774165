"""Fixtures: small, seeded, built in code."""

import dataclasses
import functools
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import settings
from numpy.typing import NDArray
from rasterio.rpc import RPC

from autoreg.demo import write_scene
from autoreg.export import export_onnx
from autoreg.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from autoreg.network.config import NetworkConfig
from autoreg.network.network import Network
from autoreg.network.orderings import RASTER_ORDERINGS
from autoreg.raster.gdal import georeference_optional
from autoreg.runtime.engine import Engine, load_engine
from autoreg.train import TrainConfig, features, train_network
from autoreg.train.views import calibrate_network

# Here and in the processes that tests start. Networks of this size are slower on two threads than on one, much slower where
# another process wants the second core; and with another number of threads, a training gives slightly other weights.
os.environ["OMP_NUM_THREADS"] = "1"
# What somebody has found to be fastest on this machine is to choose no engine here.
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "autoreg-tests-have-no-cache")
torch.set_num_threads(1)
# A shell starts what follows `&` with Ctrl-C ignored, and so would be all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines are shared: no example is too slow. The same examples each time: a red test is red for everybody.
settings.register_profile("autoreg", deadline=None, derandomize=True)
settings.load_profile("autoreg")

EDGE = Path(os.environ.get("AUTOREG_EDGE_RASTERS", Path(__file__).resolve().parents[2] / "shared/data/edge"))
"""Odd rasters, most from the tests of other projects: they are not ours to copy here."""
needs_edge = pytest.mark.skipif(not EDGE.is_dir(), reason="no folder of edge rasters: set AUTOREG_EDGE_RASTERS")

Models = Callable[[int, str], Path]
"""From a number of bands and a type of pixels to a model file."""

RANGES = {"uint8": (1.0, 0.0), "uint16": (200.0, 0.0), "int16": (100.0, -10_000.0), "float32": (0.01, -1.0)}
"""Scale and offset that make pixels of each type of ``noise``, which is of bytes."""

LENSES = RPC(
    height_off=50.0,
    height_scale=500.0,
    lat_off=50.0,
    lat_scale=0.1,
    line_den_coeff=[1.0] + [0.0] * 19,
    line_num_coeff=[0.0, 0.0, -1.0] + [0.0] * 17,
    line_off=10.0,
    line_scale=10.0,
    long_off=7.0,
    long_scale=0.1,
    samp_den_coeff=[1.0] + [0.0] * 19,
    samp_num_coeff=[0.0, 1.0] + [0.0] * 18,
    samp_off=15.0,
    samp_scale=15.0,
)
"""A camera that looks straight down."""

SHORT = TrainConfig(
    classes=4,
    stride=2,
    steps=25,
    batch_size=4,
    crop_px=32,
    displacement_px=2,
    merge=False,
    overclustering=0,
    device="cpu",
)
"""A training of a second or two, of clusters that are those of the maps."""


def save_raster(path: Path, pixels: NDArray[Any], mask: NDArray[np.uint8] | None = None, **profile: Any) -> Path:
    """Write (bands, height, width) as a raster; keywords as in ``rasterio.open``."""
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    options = {"driver": "GTiff"} | shape | profile
    with georeference_optional(), rasterio.open(path, "w", **options) as dataset:
        dataset.write(pixels)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def save_map(path: Path, labels: NDArray[np.uint8], colours: Mapping[int, tuple[int, int, int]]) -> Path:
    """Write labels (height, width) as a class map, as GDAL does; nodata is 255."""
    shape = {"count": 1, "height": labels.shape[0], "width": labels.shape[1], "dtype": "uint8"}
    table = {label: (*colour, 255) for label, colour in colours.items()} | {255: (0, 0, 0, 0)}
    with rasterio.open(path, "w", driver="COG", nodata=255, compress="deflate", **shape) as dataset:
        dataset.write(labels, 1)
        dataset.write_colormap(1, table)
    return path


def damage_raster(path: Path) -> Path:
    """Overwrite some of the blocks in the middle of a compressed raster."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    return path


def save_random_checkpoint(path: Path, *, stride: int, classes: int = 4, bands: int = 2) -> Path:
    """A checkpoint of an untrained network that spreads its labels, for rasters of uint8 noise."""
    torch.manual_seed(stride)
    network = Network(NetworkConfig(bands, classes, 16, (16, 16), stride)).train()
    network.mean.fill_(100.0)
    network.std.fill_(50.0)
    samples = torch.from_numpy(noise(bands, 64, 64).astype(np.float32))[None].expand(2, -1, -1, -1).contiguous()
    calibrate_network(network, samples, RASTER_ORDERINGS)
    names = tuple(f"band{index + 1}" for index in range(bands))
    weights = dict(network.state_dict())
    save_checkpoint(Checkpoint(network.config, weights, names, "uint8", samples, {}, {"step": 0}), path, overwrite=True)
    return path


def noise(bands: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random pixels: neighbours matter, and all labels occur."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (bands, height // 6 + 1, width // 6 + 1)).repeat(6, axis=1).repeat(6, axis=2)
    return (coarse[:, :height, :width] + rng.integers(0, 56, (bands, height, width))).astype(np.uint8)


def shorten_fits(patch: pytest.MonkeyPatch) -> None:
    """Let trainings of this process find their clusters by an eighth of the cells, plenty for networks of this size.

    Most tests that train do so for a few steps, and finding the clusters would take longer than these.
    """
    patch.setattr(features, "_CROPS", 64)
    patch.setattr(features, "_CELLS", 2**12)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """``--quiet`` silences a process, and the commands of many tests run in one."""
    log = logging.getLogger("autoreg")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _short_fits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shorten_fits(patch)
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    paths = [folder / f"{index}.tif" for index in range(2)]
    for index, path in enumerate(paths):
        write_scene(index, 160, 144, path, folder / f"truth{index}.tif")
    return paths


@pytest.fixture(scope="session")
def checkpoint(scenes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short but real training."""
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    config = TrainConfig(
        classes=5, stride=2, steps=10, batch_size=4, crop_px=32, displacement_px=2, learning_rate=2e-3, device="cpu"
    )
    train_network(scenes, path, config)
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Path:
    path = checkpoint.with_name("model.onnx")
    export_onnx(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def trained(scenes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned enough to be sure of most labels: one in INT8 can then keep them."""
    path = tmp_path_factory.mktemp("trained") / "checkpoint.pt"
    train_network(scenes, path, dataclasses.replace(SHORT, classes=5, steps=80, learning_rate=2e-3))
    export_onnx(path, path.with_name("model.onnx"))
    return path.with_name("model.onnx")


@pytest.fixture(scope="session")
def random_engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Engine]:
    """An untrained two-band model of each stride."""
    folder = tmp_path_factory.mktemp("random")
    for stride in (2, 4):
        checkpoint = save_random_checkpoint(folder / f"{stride}.pt", stride=stride)
        export_onnx(checkpoint, folder / f"{stride}.onnx")
    return {stride: load_engine(folder / f"{stride}.onnx") for stride in (2, 4)}


# Not itself of the session: pytest would sort the tests by its parameters, and make the fixtures of modules anew for each.
@pytest.fixture(params=[2, 4], ids=["stride2", "stride4"])
def random_engine(request: pytest.FixtureRequest, random_engines: dict[int, Engine]) -> Engine:
    return random_engines[request.param]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Untrained models for rasters of any number of bands and type of pixels, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def make(bands: int, dtype: str) -> Path:
        path = save_random_checkpoint(folder / f"{bands}{dtype}.pt", stride=4, bands=bands)
        checkpoint = load_checkpoint(path)
        scale, offset = RANGES[dtype]
        mean, std = checkpoint.weights["mean"] * scale + offset, checkpoint.weights["std"] * scale
        weights, samples = checkpoint.weights | {"mean": mean, "std": std}, checkpoint.samples * scale + offset
        changed = dataclasses.replace(checkpoint, dtype=dtype, weights=weights, samples=samples)
        save_checkpoint(changed, path, overwrite=True)
        export_onnx(path, path.with_suffix(".onnx"))
        return path.with_suffix(".onnx")

    return make


@pytest.fixture(scope="session")
def scene_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An untrained model that normalises each scene by itself."""
    folder = tmp_path_factory.mktemp("scene")
    path = save_random_checkpoint(folder / "checkpoint.pt", stride=2)
    checkpoint = load_checkpoint(path)
    save_checkpoint(dataclasses.replace(checkpoint, settings={"normalisation": "scene"}), path, overwrite=True)
    export_onnx(path, folder / "model.onnx")
    return load_engine(folder / "model.onnx")
