"""How long ``autoreg --help`` takes, as a process: the median must stay below 0.3 s where only numpy and click are there."""

import statistics
import subprocess
import sys
import time

LIMIT_S = 0.3


def main() -> None:
    """Time the command given as the first argument."""
    times = []
    for _ in range(9):
        start = time.perf_counter()
        subprocess.run([sys.argv[1], "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(f"autoreg --help: median {median:.3f} s of {len(times)} (limit {LIMIT_S} s)")
    sys.exit(median > LIMIT_S)


if __name__ == "__main__":
    main()
