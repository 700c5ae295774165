import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from autoreg.raster.sieve import sieve

Labels = NDArray[np.uint8]


def run(labels: Labels, min_area: float, cuts: list[int], sides: tuple[float, float] = (1, 1)) -> Labels:
    strips = [strip for strip in np.split(labels, cuts) if len(strip)]
    areas = np.linspace(1, 1.1, len(labels)) * sides[0] * sides[1]
    return np.vstack(list(sieve(lambda: strips, areas, sides, min_area)))


def regions(labels: Labels, row_areas: NDArray[np.float64]) -> list[tuple[NDArray[np.bool_], float]]:
    """The pixels and the area of each region but those of nodata."""
    found = []
    for label in set(labels.ravel().tolist()) - {255}:
        numbers, count = ndimage.label(labels == label)
        found += [numbers == number for number in range(1, count + 1)]
    return [(region, float((region * row_areas[:, None]).sum())) for region in found]


@given(
    labels=hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.sampled_from([0, 1, 2, 255]),
        fill=st.nothing(),
    ),
    min_area=st.floats(0.5, 30),
    cuts=st.sets(st.integers(1, 11)).map(sorted),
)
def test_what_is_small_is_gone_unless_nothing_touches_it(labels: Labels, min_area: float, cuts: list[int]) -> None:
    result = run(labels, min_area, cuts)
    areas = np.linspace(1, 1.1, len(labels))
    np.testing.assert_array_equal(result == 255, labels == 255)
    for region, area in regions(labels, areas):
        if area >= min_area:
            np.testing.assert_array_equal(result[region], labels[region])
    for region, area in regions(result, areas):
        if area < min_area:
            around = ndimage.binary_dilation(region) & ~region
            assert (result[around] == 255).all()
    np.testing.assert_array_equal(result, run(labels, min_area, []))


@pytest.mark.parametrize(
    ("sides", "expected"), [((1, 1), 1), ((10, 1), 3)], ids=["square pixels", "pixels ten times as wide as high"]
)
def test_the_neighbour_with_the_longest_border_takes_it(sides: tuple[float, float], expected: int) -> None:
    labels = np.full((9, 9), 3, np.uint8)
    labels[4:6] = [1, 1, 1, 1, 9, 2, 2, 2, 2]
    labels[5, 5:] = 4
    result = run(labels, 2.5 * sides[0] * sides[1], [5], sides)
    labels[labels == 9] = expected
    np.testing.assert_array_equal(result, labels)


def test_the_smallest_goes_first_and_what_becomes_one_is_one() -> None:
    labels = np.array([[0, 0, 0, 0, 0, 0], [1, 1, 2, 1, 1, 1], [0, 0, 0, 0, 0, 0]], np.uint8)
    # The 2 becomes 0, since 0 lies above and below it; so do the two 1, which are too small each.
    assert (run(labels, 4, []) == 0).all()
    labels = np.array([[1, 1, 2, 1, 1, 1]], np.uint8)
    assert (run(labels, 4, []) == 1).all()
