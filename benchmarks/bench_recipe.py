"""The recipe of `autoreg train`, beside the methods it should beat, on the real images of ../shared/data.

    python benchmarks/bench_recipe.py dubai
    python benchmarks/bench_recipe.py dubai --set size=small steps=500 batch_size=16 learning_rate=3e-4

Labels score and never train. Each seed trains on two thirds of the scenes and is scored on these, as in the paper, and on
the third left out, which is what a user gets; the pieces of one scene stay together. All rows have the same network size,
crops and steps.
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from autoreg.evaluation import pair_files
from autoreg.train import BASELINES, PAPER, Status
from autoreg.train.study import Pairs, run_study
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
    folder = options.data / options.name
    pairs = pair_files(folder / "images", folder / "labels")
    common = {"classes": CLASSES[options.name]} | dict(parse_setting(text) for text in options.set)
    rows = {name: settings for name, settings in ROWS.items() if not options.rows or name in options.rows}
    kept = _recorded(options.name, common, options.seeds) if options.rows else {}
    start = time.monotonic()

    def report(name: str, seed: int, status: Status) -> None:
        if status.step in (1, status.steps):
            print(f"{time.monotonic() - start:6.0f} s  {name}, seed {seed}, step {status.step}", file=sys.stderr, flush=True)

    for name, settings in rows.items():
        (row,) = run_study(
            lambda seed: split(pairs, seed),
            {name: settings},
            common=common,
            seeds=options.seeds,
            moments=1,
            progress=report,
        )
        kept[name] = row.summary()
        print(f"{time.monotonic() - start:6.0f} s  {kept[name]}", file=sys.stderr, flush=True)
    record(
        f"recipe_{options.name}",
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


def _recorded(name: str, common: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """The rows of the record, if it is of the same settings and seeds."""
    before = load(f"recipe_{name}")["result"]
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
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all rows, as in TOML")
    return parser.parse_args()


if __name__ == "__main__":
    main()
