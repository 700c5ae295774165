"""The demo over several seeds: accuracy on an unseen landscape beside K-means on colour, and how long it takes.

Given seeds as arguments it runs those and records nothing. It fails where the demo beats K-means by less than 10 points.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record

SEEDS = (0, 1, 2)
LEAST_MARGIN_PERCENT = 10
_SCORES = re.compile(r"accuracy on the unseen landscape: ([\d.]+) %, K-means on colour ([\d.]+) %")


def run(seed: int) -> dict[str, Any]:
    """One demo, as a user runs it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("autoreg")), "demo", folder, "--seed", str(seed), "--quiet"]
        start = time.perf_counter()
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - start
    match = _SCORES.search(output)
    if match is None:
        raise RuntimeError(f"the demo printed no scores: {output}")
    ours, colours = (float(value) for value in match.groups())
    result = {"seed": seed, "accuracy_percent": ours, "kmeans_on_colour_percent": colours, "seconds": round(seconds)}
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    runs = [run(int(seed)) for seed in sys.argv[1:] or SEEDS]
    if not sys.argv[1:]:
        record("demo", {"runs": runs})
    margins = [result["accuracy_percent"] - result["kmeans_on_colour_percent"] for result in runs]
    sys.exit(min(margins) < LEAST_MARGIN_PERCENT)
