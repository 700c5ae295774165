"""Peak memory of ``autoreg segment`` against the size of the raster; and of a huge raster that is all but empty."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from autoreg.demo import write_scene
from autoreg.export import export_onnx
from autoreg.train import TrainConfig, train_network
from launch import Run, launch
from record import record

SIDES = (4_000, 16_000, 36_000)
SPARSE_SIDE = 250_000
PIECE = 2000
TILED = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}


def main() -> None:
    """Train the smallest network briefly, and segment squares of ``SIDES``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where 4 GB of rasters go; a temporary folder if left out")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as name:
        folder = Path(name)
        piece, checkpoint, model = folder / "piece.tif", folder / "checkpoint.pt", folder / "model.onnx"
        write_scene(0, PIECE, PIECE, piece)
        train_network(
            [piece], checkpoint, TrainConfig(classes=5, stride=2, steps=30, batch_size=16, crop_px=64, device="cpu")
        )
        export_onnx(checkpoint, model)
        with rasterio.open(piece) as dataset:
            pixels = dataset.read()
        squares = {}
        for side in SIDES:
            squares[str(side)] = describe(segment(repeat(pixels, side, folder / f"{side}.tif"), model, folder), side)
        peaks = [square["peak_mb"] for square in squares.values()]
        sparse = segment(leave_out(pixels, folder / "sparse.tif"), model, folder)
        record(
            "memory",
            {
                "raster": "4 bands uint8, deflate, blocks of 512 px",
                "squares": squares,
                "largest_peak_of_smallest": round(max(peaks) / min(peaks), 3),
                "sparse": describe(sparse, SPARSE_SIDE) | {"with_data": f"{PIECE} x {PIECE} px"},
            },
        )


def describe(run: Run, side: int) -> dict[str, Any]:
    """A row of the record."""
    return {
        "seconds": round(run.seconds, 1),
        "mpx_s": round(side**2 / 1e6 / run.seconds, 2),
        "peak_mb": round(run.peak_mb, 1),
    }


def segment(source: Path, model: Path, folder: Path) -> Run:
    """Segment a raster in a process of its own, and remove it."""
    log = folder / "log.txt"
    command = [sys.executable, "-m", "autoreg", "segment", source, "-m", model, "-o", folder / "out", "--overwrite", "-q"]
    run = launch([str(word) for word in command], log, folder)
    if run is None:
        raise SystemExit(log.read_text(encoding="utf-8"))
    source.unlink()
    return run


def repeat(pixels: np.ndarray[Any, Any], side: int, path: Path) -> Path:
    """A square of ``side`` px, of repeated ``pixels``."""
    shape = {"width": side, "height": side, "count": len(pixels), "dtype": "uint8", "nodata": 0, "crs": "EPSG:32633"}
    with rasterio.open(path, "w", **TILED, **shape, bigtiff="if_safer", num_threads=2) as dataset:
        for row in range(0, side, PIECE):
            for col in range(0, side, PIECE):
                dataset.write(pixels, window=((row, row + PIECE), (col, col + PIECE)))
    return path


def leave_out(pixels: np.ndarray[Any, Any], path: Path) -> Path:
    """A square of ``SPARSE_SIDE`` px that has data in one corner only."""
    shape = {"width": SPARSE_SIDE, "height": SPARSE_SIDE, "count": len(pixels), "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", **TILED, **shape, crs="EPSG:32633", sparse_ok=True, bigtiff="yes") as dataset:
        start = SPARSE_SIDE - PIECE
        dataset.write(pixels, window=((start, SPARSE_SIDE), (start, SPARSE_SIDE)))
    return path


if __name__ == "__main__":
    main()
