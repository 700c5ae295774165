"""The rows of the paper's tables on a folder of images with labels: configurations over seeds, to a record.

    python benchmarks/bench_ablation.py IMAGES LABELS --classes 5 --name dubai --seeds 0 1 2 --every 3 \
        --set size=tiny steps=120 --rows "AC" "Table 3"

The settings that all rows share are the paper's (one random pair of orderings, entropy weight 1) unless ``--set`` says
otherwise. Labels score and never train; the images scored are those trained on, as in the paper.
"""

import argparse
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from autoreg.evaluation import pair_files
from autoreg.train import BASELINES, PAPER, Status
from autoreg.train.study import run_study
from record import record

TABLES = Path(__file__).parent / "ablation" / "tables.toml"


def main() -> None:
    """Parse, run, record."""
    options = _parse()
    pairs = pair_files(options.images, options.labels)[:: options.every]
    rows = _rows(options.config, options.rows)
    common = PAPER | {"classes": options.classes} | dict(parse_setting(text) for text in options.set)
    start = time.monotonic()

    def report(name: str, seed: int, status: Status) -> None:
        if status.step in (1, status.steps):
            print(f"{time.monotonic() - start:6.0f} s  {name}, seed {seed}: {status}", file=sys.stderr, flush=True)

    result = run_study(pairs, rows, common=common, seeds=options.seeds, moments=options.moments, progress=report)
    record(
        f"ablation_{options.name}",
        {
            "data": options.name,
            "images": len(pairs),
            "common": common,
            "seeds": options.seeds,
            "rows": [row.summary() for row in result],
            "majority_percent": round(100 * result[0].runs[0][-1].evaluation.majority_share, 2),
            "minutes": round((time.monotonic() - start) / 60, 1),
        },
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--name", required=True, help="of the record")
    parser.add_argument("--config", type=Path, default=TABLES, help="TOML with a table per row")
    parser.add_argument("--rows", nargs="*", default=[""], help="parts of the names of the rows to run")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    parser.add_argument("--moments", type=int, default=4, help="how often a run is scored")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all rows, as in TOML")
    return parser.parse_args()


def _rows(path: Path, parts: list[str]) -> dict[str, dict[str, Any]]:
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["rows"]
    chosen = {name: settings for name, settings in rows.items() if any(part in name for part in parts)}
    return {name: {**BASELINES.get(settings.pop("baseline", ""), {}), **settings} for name, settings in chosen.items()}


def parse_setting(text: str) -> tuple[str, Any]:
    """One ``NAME=VALUE``; what is not TOML is a string."""
    name, _, value = text.partition("=")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


if __name__ == "__main__":
    main()
