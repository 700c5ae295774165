"""Segmenting a raster from file to map, against the engine alone on preloaded tiles; and how fast all but the engine is."""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from autoreg import Engine, TilingOptions, load_engine, segment_raster
from autoreg.demo import write_scene
from autoreg.export import export_onnx
from autoreg.raster.reader import RasterReader
from autoreg.raster.tiling import Tiling, round_up
from autoreg.raster.window import Window
from autoreg.runtime.engine import Images, Labels, Prediction
from autoreg.spec import ModelSpec
from autoreg.train import TrainConfig, train_network
from record import record

SIDES = {"tiny": 4096, "small": 4096, "base": 1024}
"""Of the rasters that networks of each size segment, so that each takes some seconds."""
ROUNDS = 5
EXACT_SIDE = 2047
TILES_PX = (96, 200, 333, 1000)
CORES_PX = (256, 512, 1024)
FAST_SIDE = 10_000


@dataclasses.dataclass(frozen=True)
class FastEngine:
    """Labels by two thresholds: so little work that reading and writing set the speed."""

    spec: ModelSpec
    model_digest: str = ""
    device: str = "numpy"
    lanes: int = 1

    def label(self, images: Images) -> Labels:
        """0, 1 or 2."""
        return (images[:, 1] > 90).view(np.uint8) + (images[:, 0] > 120)

    def predict(self, images: Images) -> Prediction:
        """Nobody asks for it."""
        raise NotImplementedError


def main() -> None:
    """Train the networks briefly; their speed does not depend on it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {size: make_model(size, folder) for size in SIDES}
        result: dict[str, Any] = {"load_before": os.getloadavg()[0], "lanes": os.cpu_count()}
        result["sizes"] = {size: compare(models[size], SIDES[size], folder) for size in SIDES}
        result["tiles"] = {size: compare_tiles(models[size]) for size in ("tiny", "small")}
        result["differing_labels_by_tile_px"] = count_differing(models["tiny"], folder)
        result["all_but_the_engine"] = measure_the_rest(models["tiny"], folder)
        record("segment", result)


def make_model(size: str, folder: Path) -> Path:
    """A model of a network of ``size``."""
    scene, checkpoint = folder / "train.tif", folder / f"{size}.pt"
    write_scene(0, 512, 512, scene)
    train_network([scene], checkpoint, TrainConfig(classes=5, size=size, steps=30, crop_px=64, device="cpu"))
    export_onnx(checkpoint, folder / f"{size}.onnx")
    return folder / f"{size}.onnx"


def compare(model: Path, side: int, folder: Path) -> dict[str, Any]:
    """Seconds of the engine alone, one tile on all cores or one on each, and from file to map; turn by turn."""
    scene, target = folder / f"scene{side}.tif", folder / "map.tif"
    write_scene(0, side, side, scene)
    cores = os.cpu_count() or 1
    alone, lanes = load_engine(model), load_engine(model, lanes=cores)
    with RasterReader(scene) as raster:
        plan = TilingOptions().plan(alone.spec, raster.height, raster.width)
        assert isinstance(plan, Tiling)
        images = [raster.read(window)[0][None].astype(np.float32) for _, (window,) in plan]
    with ThreadPoolExecutor(cores) as pool:
        ways: dict[str, Callable[[], object]] = {
            "engine_a_tile_on_all_cores": lambda: [alone.label(image) for image in images],
            "engine_a_tile_on_each_core": lambda: list(pool.map(lanes.label, images)),
            "segment": lambda: segment_raster(lanes, scene, target, overwrite=True),
        }
        seconds = time_in_turn(ways)
    found = {f"{way}_mpx_s": round(side**2 / 1e6 / median, 2) for way, median in seconds.items()}
    return {
        "raster": f"{side} x {side} px, 4 bands uint8, deflate",
        **found,
        "of_a_tile_on_all_cores": round(seconds["engine_a_tile_on_all_cores"] / seconds["segment"], 3),
        "of_a_tile_on_each_core": round(seconds["engine_a_tile_on_each_core"] / seconds["segment"], 3),
    }


def time_in_turn(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median of the seconds that each way takes; the first round does not count."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 + ROUNDS):
        for way, work in ways.items():
            start = time.perf_counter()
            work()
            taken[way].append(time.perf_counter() - start)
    return {way: statistics.median(times[1:]) for way, times in taken.items()}


def compare_tiles(model: Path) -> dict[str, float]:
    """Million pixels of core per second, of the engine alone, by the side of the core and the batch."""
    engine = load_engine(model)
    halo_px = round_up((engine.spec.receptive_field_px or 0) // 2, engine.spec.stride)
    images = {}
    for core_px in CORES_PX:
        for batch in (1, 4):
            side = core_px + 2 * halo_px
            images[core_px, batch] = np.zeros((batch, len(engine.spec.bands), side, side), np.float32)

    def way(core_px: int, batch: int) -> Callable[[], object]:
        times = max(CORES_PX[-1] ** 2 // (core_px**2 * batch), 1)
        return lambda: [engine.label(images[core_px, batch]) for _ in range(times)]

    seconds = time_in_turn({f"{core} px, batch {batch}": way(core, batch) for core, batch in images})
    pixels = {f"{core} px, batch {batch}": max(CORES_PX[-1] ** 2, core**2 * batch) for core, batch in images}
    return {name: round(pixels[name] / 1e6 / median, 2) for name, median in seconds.items()}


def count_differing(model: Path, folder: Path) -> dict[str, int]:
    """How many labels of tiles are other ones than those of one pass over the whole raster."""
    scene, target = folder / "exact.tif", folder / "map.tif"
    write_scene(0, EXACT_SIDE, EXACT_SIDE - 2, scene)  # no multiple of the stride
    engine = load_engine(model)
    reference = label_whole(engine, scene)
    differing = {}
    for tile_px in TILES_PX:
        segment_raster(engine, scene, target, options=TilingOptions(tile_px, 2), overwrite=True)
        with rasterio.open(target) as dataset:
            labels = dataset.read(1)
        differing[str(tile_px)] = int(((labels != reference) & (labels != 255)).sum())
    return differing


def label_whole(engine: Engine, scene: Path) -> Labels:
    """Labels of one pass over a raster."""
    with rasterio.open(scene) as dataset:
        image = dataset.read()
    fill = np.asarray(engine.spec.fill, np.float32)
    full = np.where((image == 0).all(axis=0), fill[:, None, None], image.astype(np.float32))
    height, width = image.shape[1:]
    extended = Window(0, 0, *(round_up(size, engine.spec.stride) for size in (height, width))).extend(full)
    return engine.label(extended[None])[0, :height, :width]


def measure_the_rest(model: Path, folder: Path) -> dict[str, Any]:
    """Speed with an engine that does next to nothing, on 3 bands of a tiled deflate file."""
    scene = folder / "fast.tif"
    with rasterio.open(folder / "scene4096.tif") as dataset:
        part = dataset.read([1, 2, 3], window=((0, 1024), (0, 1024)))
    shape = {"width": FAST_SIDE, "height": FAST_SIDE, "count": 3, "dtype": "uint8", "nodata": 0}
    tiled = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    with rasterio.open(scene, "w", driver="GTiff", crs="EPSG:32633", **shape, **tiled) as dataset:
        for window in Window(0, 0, FAST_SIDE, FAST_SIDE).cut(1024, 1024):
            rows, cols = ((start, start + size) for start, size in zip(window[:2], window[2:], strict=True))
            dataset.write(part[:, : window.height, : window.width], window=(rows, cols))
    spec = dataclasses.replace(load_engine(model).spec, bands=("red", "green", "blue"), mean=(0.0,) * 3, std=(1.0,) * 3)
    engine = FastEngine(spec)
    seconds = time_in_turn({"segment": lambda: segment_raster(engine, scene, folder / "map.tif", overwrite=True)})
    return {
        "raster": f"{FAST_SIDE} x {FAST_SIDE} px, 3 bands uint8, deflate, {scene.stat().st_size / 1e6:.0f} MB",
        "segment_mpx_s": round(FAST_SIDE**2 / 1e6 / seconds["segment"], 1),
    }


if __name__ == "__main__":
    main()
