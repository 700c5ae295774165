"""Random crops of 256 px from tiled deflate files, per second of processor time, against a plain read for each crop."""

import os
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling

from autoreg.demo import make_scene
from autoreg.raster.gdal import georeference_optional
from autoreg.train.data import read_batches
from autoreg.train.scenes import open_scenes
from record import record

CROP_PX, BATCH_SIZE = 256, 16
SIDE = 8192
CACHE_MIB = 64
"""Of GDAL: less than a file, so that blocks have to be decoded."""

KINDS = {"uint8 x 3": (np.uint8, 3), "uint16 x 4": (np.uint16, 4)}
BLOCKS_PX = (256, 512)
BATCHES, ROUNDS = 24, 3
FILES = 1000


def main() -> None:
    os.environ["GDAL_CACHEMAX"] = str(CACHE_MIB)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [measure_file(folder, kind, block_px) for kind in KINDS for block_px in BLOCKS_PX]
        result = {
            "crop_px": CROP_PX,
            "batch_size": BATCH_SIZE,
            "file_px": SIDE,
            "gdal_cache_mib": CACHE_MIB,
            "files": rows,
            "nodata_99_percent": measure_nodata(folder),
            "opening": measure_opening(folder),
        }
    record("data", result)


def measure_file(folder: Path, kind: str, block_px: int) -> dict[str, Any]:
    """Median rate of ours and of the reference, measured in turns."""
    dtype, bands = KINDS[kind]
    path = folder / "scene.tif"
    image = make_scene(0, 2048, 2048)[0][:bands].astype(dtype)
    if dtype == np.uint16:  # reflectance with noise in its lower bits
        image = image * 16 + np.random.default_rng(0).integers(0, 16, image.shape, dtype)
    write(path, np.tile(image, (1, SIDE // 2048, SIDE // 2048)), block_px)
    ours, plain = stream_crops(path, bands), read_plainly(path)
    next(ours)
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(ROUNDS):
        rates["ours"].append(rate(ours, BATCHES))
        rates["plain"].append(rate(plain, BATCHES * BATCH_SIZE // 4))
    ours.close()
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["plain"], strict=True))
    row = {f"{name}_crops_per_cpu_second": round(statistics.median(found)) for name, found in rates.items()}
    return {"pixels": kind, "block_px": block_px, "mib": path.stat().st_size >> 20, **row, "ratio": round(ratio, 1)}


def write(path: Path, image: NDArray[Any], block_px: int, **profile: Any) -> None:
    shape = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype}
    tiles = {"tiled": True, "blockxsize": block_px, "blockysize": block_px, "compress": "deflate", "interleave": "pixel"}
    with georeference_optional(), rasterio.open(path, "w", driver="GTiff", **shape, **tiles, **profile) as dataset:
        dataset.write(image)


def rate(stream: Iterator[NDArray[np.float32]], count: int) -> float:
    """Crops per second of processor time, of all threads, over the next ``count`` batches."""
    start = time.process_time()
    crops = sum(len(batch) for batch in islice(stream, count))
    return crops / (time.process_time() - start)


def stream_crops(path: Path, bands: int) -> Generator[NDArray[np.float32]]:
    scenes = open_scenes([path], crop_px=CROP_PX)
    for batch in read_batches(scenes, crop_px=CROP_PX, batch_size=BATCH_SIZE, fill=np.zeros(bands), seed=0):
        yield batch.images


def read_plainly(path: Path) -> Iterator[NDArray[np.float32]]:
    """The reference: a window of an open file for each crop."""
    rng = np.random.default_rng(0)
    with georeference_optional(), rasterio.open(path) as dataset:
        while True:
            row, col = rng.integers(SIDE - CROP_PX + 1, size=2).tolist()
            yield dataset.read(window=((row, row + CROP_PX), (col, col + CROP_PX))).astype(np.float32)[None]


def measure_nodata(folder: Path) -> dict[str, Any]:
    """Rate in a scene of which 1 % is data, without and with overviews."""
    path = folder / "empty.tif"
    image = np.zeros((3, SIDE, SIDE), np.uint8)
    image[:, 5000:5819, 2000:2819] = make_scene(1, 819, 819)[0][:3]
    write(path, image, 512, nodata=0)
    result = {}
    for name in ("without_overviews", "with_overviews"):
        crops = stream_crops(path, 3)
        result[f"{name}_crops_per_cpu_second"] = round(rate(crops, BATCHES))
        crops.close()
        with georeference_optional(), rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4, 8, 16], Resampling.average)
    return result


def measure_opening(folder: Path) -> dict[str, Any]:
    """Time to look at many small files."""
    many = folder / "many"
    many.mkdir()
    image = make_scene(2, CROP_PX, CROP_PX)[0]
    for index in range(FILES):
        write(many / f"{index}.tif", image, 256)
    start, used = time.perf_counter(), time.process_time()
    open_scenes(sorted(many.iterdir()), crop_px=CROP_PX)
    milliseconds = 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - used)
    wall, processor = (round(value / FILES, 2) for value in milliseconds)
    return {"files": FILES, "milliseconds_per_file": wall, "cpu_milliseconds_per_file": processor}


if __name__ == "__main__":
    main()
