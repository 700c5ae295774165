"""From a histogram to a range: the largest absolute value that an INT8 activation can hold.

What is beyond is clipped, what is below is rounded, and each method weighs the two in its own way.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from autoreg.calibration.histogram import BINS, Histogram

LEVELS = 127
"""The largest INT8 number; -128 is left out, so that the numbers are symmetric."""

PERCENTILE = 99.99

_MAGNITUDES = LEVELS + 1
_ENTROPY_STEP = 4
_ERROR_STEP = 16
_POINTS_PER_BIN = 4
_LEAST_COUNT = 1e-4
"""Of a bin, as in the calibrators of MXNet and ONNX Runtime."""


def min_max(histogram: Histogram) -> float:
    """The largest absolute value: nothing is clipped."""
    return histogram.maximum


def percentile(histogram: Histogram) -> float:
    """The upper edge of the bin below which 99.99 % of the values are."""
    reached = np.cumsum(histogram.counts)
    enough = int(np.searchsorted(reached, PERCENTILE / 100 * reached[-1]))
    return histogram.maximum * min(enough + 1, BINS) / BINS


def entropy(histogram: Histogram) -> float:
    """The range whose rounded values tell most of the clipped ones: least Kullback-Leibler divergence.

    After S. Migacz, "8-bit inference with TensorRT", 2017. As in NVIDIA's pytorch-quantization, zeros count as the bin
    beside them, because any range holds them exactly, and after a ReLU they are most of the values.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    if not counts.any():
        return histogram.maximum
    candidates = range(BINS, _MAGNITUDES - 1, -_ENTROPY_STEP)  # of equals, the widest
    best = min(candidates, key=lambda bins: _divergence(counts, bins))
    return histogram.maximum * best / BINS


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """Of the distribution clipped to its first ``bins`` bins from the same rounded to 128 magnitudes."""
    inside = counts[:bins]
    clipped = inside.copy()
    clipped[-1] += counts[bins:].sum()
    present = clipped > 0
    starts = np.arange(_MAGNITUDES) * bins // _MAGNITUDES
    sums, sizes = np.add.reduceat(inside, starts), np.add.reduceat(present.astype(np.int64), starts)
    lengths = np.diff(np.append(starts, bins))
    # What is clipped may fall into bins that were empty: no divergence is infinite.
    rounded = np.maximum(np.repeat(sums / np.maximum(sizes, 1), lengths)[present], _LEAST_COUNT)
    p = clipped[present] / clipped.sum()
    q = rounded / rounded.sum()
    return float(np.sum(p * np.log(p / q)))


def mean_squared_error(histogram: Histogram) -> float:
    """The range with the least mean squared error of clipping and rounding together."""
    # Several points for each bin: for narrow ranges a magnitude is hardly wider than a bin.
    places = (np.arange(BINS * _POINTS_PER_BIN) + 0.5) / _POINTS_PER_BIN
    weights = np.repeat(histogram.counts / _POINTS_PER_BIN, _POINTS_PER_BIN)
    # Zeros, which any range holds exactly, are most of the first bin after a ReLU: they are left out of it.
    places, weights = places[_POINTS_PER_BIN:], weights[_POINTS_PER_BIN:]

    def error(bins: int) -> float:
        scale = bins / LEVELS
        rounded = np.minimum(np.rint(places / scale), LEVELS) * scale
        return float(weights @ np.square(places - rounded))

    best = min(range(BINS, _MAGNITUDES - 1, -_ERROR_STEP), key=error)
    return histogram.maximum * best / BINS


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mean_squared_error,
}
"""By the name that ``autoreg calibrate --method`` takes."""
