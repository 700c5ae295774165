"""Each method against a slow, obvious definition, on distributions whose answer is known."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from autoreg.calibration.histogram import BINS, Histogram
from autoreg.calibration.ranges import LEVELS, METHODS, entropy, mean_squared_error, min_max, percentile

SIZE = 200_000


def distributions() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    normal = rng.normal(0, 2, SIZE)
    return {
        name: values.astype(np.float32)
        for name, values in {
            "uniform": rng.uniform(-3, 3, SIZE),
            "normal": normal,
            "relu": np.maximum(normal, 0),
            "laplace": rng.laplace(0, 1, SIZE),
            "outlier": np.append(normal, 500.0),
        }.items()
    }


VALUES = distributions()
each_distribution = pytest.mark.parametrize("name", list(VALUES))


def histogram_of(values: NDArray[np.float32], pieces: int = 7) -> Histogram:
    found = Histogram(float(np.abs(values).max()))
    for piece in np.array_split(values, pieces):
        found.add(piece)
    return found


@each_distribution
def test_a_histogram_that_grows_is_the_one_of_all_values_at_once(name: str) -> None:
    values = VALUES[name]
    found = histogram_of(values)
    assert found.counts.sum() == values.size
    at_once, _ = np.histogram(np.abs(values), BINS, (0, found.maximum))
    # A value on an edge may round to either side of it.
    assert np.abs(found.counts - at_once).sum() <= 20


def test_large_activations_are_counted_in_pieces_without_being_changed() -> None:
    values = np.linspace(-1, 1, 2**20 + 3, dtype=np.float32).reshape(1, 1, -1)
    before = values.copy()
    found = Histogram(1.0)
    found.add(values)
    assert found.counts.sum() == values.size
    np.testing.assert_array_equal(values, before)


@each_distribution
def test_min_max_is_the_largest_absolute_value(name: str) -> None:
    assert min_max(histogram_of(VALUES[name])) == np.abs(VALUES[name]).max()


@each_distribution
def test_the_percentile_is_that_of_the_values_but_for_a_bin(name: str) -> None:
    values = np.sort(np.abs(VALUES[name]))
    exact = values[math.ceil(0.9999 * values.size) - 1]
    found = percentile(histogram_of(VALUES[name]))
    assert exact <= found * (1 + 1e-6) <= exact + values[-1] / BINS * 1.01


def rounding_error(values: NDArray[np.float32], limit: float) -> float:
    scale = limit / LEVELS
    return float(np.mean((values - np.clip(np.rint(values / scale), -LEVELS, LEVELS) * scale) ** 2, dtype=np.float64))


@each_distribution
def test_no_range_has_a_clearly_smaller_squared_error_than_that_of_mse(name: str) -> None:
    values = VALUES[name]
    found = mean_squared_error(histogram_of(values))
    narrowest = 128 / BINS  # of the largest value: then a magnitude is a bin
    best = min(rounding_error(values, float(limit)) for limit in np.linspace(narrowest, 1, 200) * np.abs(values).max())
    assert rounding_error(values, found) <= 1.02 * best


def naive_divergence(counts: list[float], bins: int) -> float:
    """Of the clipped distribution from the rounded one, bin by bin."""
    p = counts[:bins]
    p[-1] += sum(counts[bins:])
    q = [0.0] * bins
    for level in range(128):
        members = range(level * bins // 128, (level + 1) * bins // 128)
        present = [place for place in members if p[place] > 0]
        for place in present:
            q[place] = max(sum(counts[place] for place in members) / len(present), 1e-4)
    return sum(
        one / sum(p) * math.log((one / sum(p)) / (other / sum(q))) for one, other in zip(p, q, strict=True) if one > 0
    )


@pytest.mark.parametrize("name", ["relu", "laplace", "outlier"])
def test_entropy_is_where_the_divergence_is_least(name: str) -> None:
    histogram = histogram_of(VALUES[name])
    counts = [float(count) for count in histogram.counts]
    counts[0] = counts[1]
    found = round(entropy(histogram) / histogram.maximum * BINS)
    # Not all candidates, as the definition is slow: some on both sides, and the neighbours.
    others = [bins for bins in (128, 132, 200, 400, 1000, 2048, found - 4, found + 4) if 128 <= bins <= BINS]
    least = naive_divergence(list(counts), found)
    assert all(least <= naive_divergence(list(counts), bins) + 1e-9 for bins in others)


def test_an_outlier_widens_the_range_of_min_max_most() -> None:
    histogram = histogram_of(VALUES["outlier"])
    assert METHODS["min-max"](histogram) == 500
    assert all(METHODS[name](histogram) < 50 for name in ("percentile", "entropy"))
    assert METHODS["mse"](histogram) < 500  # to clip it costs as much as to round all the others more coarsely


def test_a_uniform_distribution_is_hardly_clipped_by_any() -> None:
    assert all(method(histogram_of(VALUES["uniform"])) > 2.9 for method in METHODS.values())


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_an_activation_of_one_value_has_a_range_that_holds_it(method: str, value: float) -> None:
    found = METHODS[method](histogram_of(np.full(100, value, np.float32)))
    assert found == pytest.approx(value)
