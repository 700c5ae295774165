"""The recipe of `autoreg train`, beside the methods it should beat, on the real images of ../shared/data.

    python benchmarks/bench_recipe.py dubai
    python benchmarks/bench_recipe.py dubai --set size=small steps=500 batch_size=16 learning_rate=3e-4

Labels score and never train. Each seed trains on two thirds of the scenes and is scored on these, as in the paper, and on
the third left out, which is what a user gets; the pieces of one scene stay together. All rows have the same network size,
crops and steps.
"""

import argparse
import multiprocessing
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autoreg.evaluation import Evaluation, pair_files
from autoreg.train import BASELINES, PAPER
from autoreg.train.study import Moment, Pairs, Row, run_study
from bench_ablation import parse_setting
from record import load, record

CLASSES = {"dubai": 5, "india_rgbn": 3}
ROWS: dict[str, dict[str, Any]] = {
    "autoreg train": {},
    "paper": PAPER,
    # Over all pixels, the joint distributions of IIC's auxiliary clusters would take longer than all the rest.
    "IIC": BASELINES["iic"] | {"resolution": "cells"},
    "K-means on colour": BASELINES["kmeans"],
    "random network": BASELINES["random"],
}
FOLDS = 3


def main() -> None:
    """Parse, run, record."""
    options = _parse()
    pairs = _find(options)
    common = {"classes": CLASSES[options.name]} | dict(parse_setting(text) for text in options.set)
    record_name = f"recipe_{options.name}{'_gpu' if torch.cuda.is_available() else ''}"
    names = [name for name in ROWS if not options.rows or name in options.rows]
    kept = _recorded(record_name, common, options.seeds) if options.rows else {}
    start = time.monotonic()
    rows = {name: Row(name, ROWS[name]) for name in names}
    # A process that has used a GPU cannot be forked.
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        runs = [(name, seed) for name in names for seed in options.seeds]
        for (name, seed), run in zip(runs, pool.map(partial(train, options, common), *zip(*runs, strict=True)), strict=True):
            rows[name].runs.append(run)
            scores = [f"{100 * score:.2f}" for image in (run[-1].evaluation, run[-1].left_out) for score in _scores(image)]
            print(f"{time.monotonic() - start:6.0f} s  {name}, seed {seed}: {' '.join(scores)}", file=sys.stderr, flush=True)
    kept |= {name: row.summary() for name, row in rows.items()}
    record(
        record_name,
        {
            "data": options.name,
            "images": len(pairs),
            "left_out": [len(split(pairs, seed)[1]) for seed in options.seeds],
            "common": common,
            "seeds": options.seeds,
            "rows": [kept[name] for name in ROWS if name in kept],
            "minutes": round((time.monotonic() - start) / 60, 1),
        },
    )


def train(options: argparse.Namespace, common: dict[str, Any], name: str, seed: int) -> list[Moment]:
    """One run of one row."""
    pairs = _find(options)
    (row,) = run_study(lambda seed: split(pairs, seed), {name: ROWS[name]}, common=common, seeds=[seed], moments=1)
    return row.runs[0]


def _find(options: argparse.Namespace) -> Pairs:
    folder = options.data / options.name
    return pair_files(folder / "images", folder / "labels")


def _scores(evaluation: Evaluation | None) -> tuple[float, float]:
    assert evaluation
    return evaluation.accuracy, evaluation.mean_iou


def _recorded(name: str, common: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """The rows of the record, if it is of the same settings and seeds."""
    before = load(name)["result"]
    if (before["common"], before["seeds"]) != (common, seeds):
        raise SystemExit(f"the record is of {before['common']} and seeds {before['seeds']}: run all rows, or those")
    return {row["name"]: row for row in before["rows"]}


def split(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """The pairs to train on, and those of the scenes to leave out: another third for each of three seeds."""
    scenes: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for pair in pairs:
        scenes[pair[0].stem.split("_")[0]].append(pair)
    parts = [scenes[name] for name in sorted(scenes)]
    left_out = {index for index in range(len(parts)) if index % FOLDS == seed % FOLDS}
    trained = [pair for index, part in enumerate(parts) if index not in left_out for pair in part]
    return trained, [pair for index in sorted(left_out) for pair in parts[index]]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CLASSES)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--rows", nargs="*", default=[], help="rows to run, and the others stay as recorded; all if none")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(9)))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time; each has one thread or more")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all rows, as in TOML")
    return parser.parse_args()


if __name__ == "__main__":
    main()
