"""Decoding a Potsdam label image of 6000 x 6000 px by table, against the loop over pixels of IIC's public code."""

import statistics
import time

import numpy as np
from numpy.typing import NDArray

from autoreg.datasets.potsdam import COLOURS, decode_colours
from record import record

SIDE, LOOP_ROWS = 6000, 100


def decode_by_loop(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A dictionary asked for each pixel."""
    classes = {colour: label for label, colour in enumerate(COLOURS)}
    _, height, width = rgb.shape
    labels = np.empty((height, width), np.uint8)
    for row in range(height):
        for col in range(width):
            labels[row, col] = classes[tuple(rgb[:, row, col].tolist())]
    return labels


def main() -> None:
    """Measure both; the loop on some rows, from which its time for all is extrapolated."""
    truth = np.random.default_rng(0).integers(0, len(COLOURS), (SIDE, SIDE))
    rgb = np.array(COLOURS, np.uint8)[truth].transpose(2, 0, 1).copy()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        labels = decode_colours(rgb, merged=False)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    looped = decode_by_loop(rgb[:, :LOOP_ROWS])
    loop_seconds = (time.perf_counter() - start) * SIDE / LOOP_ROWS
    record(
        "labels",
        {
            "pixels": SIDE * SIDE,
            "table_s": round(statistics.median(times), 3),
            "loop_s_extrapolated": round(loop_seconds, 1),
            "ratio": round(loop_seconds / statistics.median(times)),
            "equal": bool((labels == truth).all() and (labels[:LOOP_ROWS] == looped).all()),
        },
    )


if __name__ == "__main__":
    main()
