"""Segmenting a raster end to end against the engine alone on preloaded tiles, and how many labels depend on the tiling."""

import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio

from autoreg import TilingOptions, load_engine, segment_raster
from autoreg.demo import write_scene
from autoreg.export import export_onnx
from autoreg.raster.reader import RasterReader
from autoreg.raster.tiling import Tiling, round_up
from autoreg.raster.window import Window
from autoreg.train import TrainConfig, train_network
from record import record

SIDE = 2048
TILES_PX = (96, 200, 333, 1000)


def main() -> None:
    """Train the demo's network briefly, then segment a landscape of ``SIDE`` x ``SIDE`` px."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene, model = folder / "scene.tif", folder / "model.onnx"
        write_scene(0, SIDE - 1, SIDE - 3, scene)  # no multiple of the stride
        config = TrainConfig(classes=5, size="tiny", steps=30, crop_px=64, device="cpu")
        train_network([scene], folder / "checkpoint.pt", config)
        export_onnx(folder / "checkpoint.pt", model)
        engine = load_engine(model)

        with RasterReader(scene) as raster:
            plan = TilingOptions().plan(engine.spec, raster.height, raster.width)
            assert isinstance(plan, Tiling)
            tiles = [raster.read(window) for _, (window,) in plan]
        images = [pixels[None].astype(np.float32) for pixels, _ in tiles]
        engine_s, whole_s = [], []
        for _ in range(4):
            start = time.perf_counter()
            for image in images:
                engine.label(image)
            engine_s.append(time.perf_counter() - start)
            start = time.perf_counter()
            segment_raster(engine, scene, folder / "map.tif", overwrite=True)
            whole_s.append(time.perf_counter() - start)
        pixels = (SIDE - 1) * (SIDE - 3)
        engine_rate, whole_rate = (pixels / 1e6 / statistics.median(times[1:]) for times in (engine_s, whole_s))

        with rasterio.open(scene) as dataset:
            image = dataset.read()
        stride, mean = engine.spec.stride, np.asarray(engine.spec.mean, np.float32)
        full = np.where((image == 0).all(axis=0), mean[:, None, None], image.astype(np.float32))
        extended = Window(0, 0, *(round_up(size, stride) for size in full.shape[1:])).extend(full)
        reference = engine.label(extended[None])[0, : SIDE - 1, : SIDE - 3]
        differing = {}
        for tile_px in TILES_PX:
            segment_raster(engine, scene, folder / "map.tif", options=TilingOptions(tile_px, 2), overwrite=True)
            with rasterio.open(folder / "map.tif") as dataset:
                labels = dataset.read(1)
            differing[str(tile_px)] = int(((labels != reference) & (labels != 255)).sum())
        record(
            "segment",
            {
                "raster": f"{SIDE - 1} x {SIDE - 3} px, 4 bands uint8, deflate",
                "engine_alone_mpx_s": round(engine_rate, 2),
                "segment_mpx_s": round(whole_rate, 2),
                "ratio": round(whole_rate / engine_rate, 3),
                "differing_labels_by_tile_px": differing,
                "labels": pixels,
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            },
        )


if __name__ == "__main__":
    main()
