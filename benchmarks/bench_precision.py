"""The precisions and engines of this processor, on trained networks and real images: speed, and labels that stay.

    python benchmarks/bench_precision.py

Networks train on two thirds of the scenes of ../shared/data/dubai, INT8 ranges are measured on these, and what is recorded
is measured on the third left out. All rows of a network take turns, so what else the machine does falls on all of them.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from autoreg.calibration import calibrate_model
from autoreg.evaluation import pair_files
from autoreg.export import export_onnx
from autoreg.runtime.engine import load_engine
from autoreg.runtime.measure.bench import Row, bench_models
from autoreg.runtime.parity import compare_engines
from autoreg.runtime.verify import raster_tiles
from autoreg.train import TrainConfig, train_network
from bench_recipe import split
from record import record

CLASSES = 5
TRAINING: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 300, "batch_size": 8},
    "small": {"steps": 150, "batch_size": 8},
    "base": {"steps": 60, "batch_size": 4},
}
"""By the size of the network: what a processor does in minutes."""
EXPORTED = ("fp32", "fp16", "bf16")
REFERENCE = ("fp32", "cpu")
TILE_PX = 576
"""As `segment` cuts: a core of 512 px and its halos."""


def main() -> None:
    """Train, convert, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "dubai")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to measure the models of a network")
    parser.add_argument("--networks", type=Path, help="folder that keeps the trained networks; a temporary one if left out")
    options = parser.parse_args()
    trained, left_out = split(pair_files(options.data / "images", options.data / "labels"), 0)
    scenes, tiles = ([image for image, _ in pairs] for pairs in (trained, left_out))
    sizes = {}
    with tempfile.TemporaryDirectory() as name:
        for size in TRAINING:
            checkpoint = (options.networks or Path(name)) / f"{size}.pt"
            if not checkpoint.exists():
                train(size, scenes, checkpoint)
            models = convert(checkpoint, scenes, Path(name) / size)
            sizes[size] = measure(models, tiles, options.seconds)
    record("precision", {"data": "dubai", "tiles_px": TILE_PX, "left_out": len(tiles), "sizes": sizes})


def train(size: str, scenes: list[Path], checkpoint: Path) -> None:
    """A network that has seen enough to have something to say."""
    config = TrainConfig(
        classes=CLASSES, size=size, stride=4, learning_rate=5e-4, ensemble=1, device="cpu", **TRAINING[size]
    )
    start = time.monotonic()
    train_network(scenes, checkpoint, config)
    print(f"{size}: trained in {time.monotonic() - start:.0f} s", flush=True)


def convert(checkpoint: Path, scenes: list[Path], folder: Path) -> dict[str, Path]:
    """A model of each precision."""
    folder.mkdir()
    models = {precision: folder / f"{precision}.onnx" for precision in (*EXPORTED, "int8")}
    for precision in EXPORTED:
        export_onnx(checkpoint, models[precision], precision=precision)
    calibrate_model(models["fp32"], scenes, models["int8"])
    return models


def measure(models: dict[str, Path], tiles: list[Path], seconds: float) -> dict[str, Any]:
    """Speed of all models on all engines of the processor, and the labels that are those of ONNX Runtime in float32."""
    paths = [str(tile) for tile in tiles]
    bench = bench_models(list(models.values()), rasters=paths, tile_px=TILE_PX, devices=("cpu", "openvino"), seconds=seconds)
    reference = load_engine(models[REFERENCE[0]], device=REFERENCE[1])
    rows = []
    for (precision, path), device in ((item, device) for item in models.items() for device in ("cpu", "openvino")):
        candidate = load_engine(path, device=device)
        parity = compare_engines(reference, candidate, raster_tiles(paths, reference.spec, candidate.spec)).parity
        mine, plain = (_row(bench.rows, wanted) for wanted in ((precision, device), REFERENCE))
        rows.append(
            {
                "precision": precision,
                "engine": mine.engine,
                "ms": round(mine.ms_per_tile, 2),
                "mpx_s": round(mine.mpx_per_s, 2),
                "times_fp32_of_onnx_runtime": round(plain.ms_per_tile / mine.ms_per_tile, 2),
                "sgemm_percent": None if mine.sgemm_share is None else round(100 * mine.sgemm_share),
                "agreement_percent": round(100 * parity.agreement, 4),
                "clear_agreement_percent": None
                if parity.clear_agreement is None
                else round(100 * parity.clear_agreement, 4),
                "greatest_probability_difference": float(f"{parity.max_probability_difference:.3g}"),
            }
        )
    plain = _row(bench.rows, REFERENCE)
    return {
        "gflop_per_tile": None if plain.gflop_per_tile is None else round(plain.gflop_per_tile, 2),
        "sgemm": str(bench.sgemm),
        "disturbed": bench.sgemm.disturbed,
        "lanes": plain.lanes,
        "rounds": bench.rounds,
        "rows": rows,
    }


def _row(rows: tuple[Row, ...], wanted: tuple[str, str]) -> Row:
    """Of a precision on a device, with a tile on each core."""
    found = [row for row in rows if (row.precision, row.device) == wanted]
    return max(found, key=lambda row: row.lanes)


if __name__ == "__main__":
    main()
