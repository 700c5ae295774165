"""Against definitions that go pixel by pixel; agreement with OpenCV itself (4.5 and 5.0) was checked by hand."""

import math

import numpy as np
import pytest

from autoreg.datasets.resampling import halve_linear, halve_nearest, pad_centred, shrink_linear, shrink_nearest

FACTOR = 0.33


def random_bytes(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def test_halving_takes_the_mean_of_four_and_rounds_halves_up() -> None:
    band = random_bytes(10, 14)
    half, nearest = halve_linear(band), halve_nearest(band)
    assert half.shape == nearest.shape == (5, 7)
    for row in range(5):
        for col in range(7):
            four = [int(band[2 * row + i, 2 * col + j]) for i in (0, 1) for j in (0, 1)]
            assert half[row, col] == math.floor(sum(four) / 4 + 0.5)
            assert nearest[row, col] == band[2 * row, 2 * col]
    np.testing.assert_array_equal(halve_linear(np.full((2, 2), 255, np.uint8)), [[255]])


@pytest.mark.parametrize("shape", [(50, 37), (3, 2), (100, 101), (1, 1)])
def test_shrinking_interpolates_between_aligned_centres(shape: tuple[int, int]) -> None:
    image = random_bytes(2, *shape)
    small = shrink_linear(image, FACTOR)
    assert small.shape == (2, *(max(1, round(size * FACTOR)) for size in shape))
    for row in range(small.shape[1]):
        for col in range(small.shape[2]):
            y, x = ((place + 0.5) / FACTOR - 0.5 for place in (row, col))
            (top, down), (left, right) = ((math.floor(place), place - math.floor(place)) for place in (y, x))
            expected = np.zeros(2)
            for i, share_y in ((top, 1 - down), (top + 1, down)):
                for j, share_x in ((left, 1 - right), (left + 1, right)):
                    expected += share_y * share_x * image[:, min(max(i, 0), shape[0] - 1), min(max(j, 0), shape[1] - 1)]
            assert np.abs(small[:, row, col] - expected).max() <= 0.5 + 1e-4


def test_what_opencv_says() -> None:
    # cv2.resize(image.astype(float32), None, fx=.33, fy=.33) of OpenCV 4.5.5, rounded, and the same with INTER_NEAREST.
    image = (np.arange(7)[:, None] * 31 + np.arange(10)[None, :] * 13).astype(np.uint8)
    np.testing.assert_array_equal(shrink_linear(image[None], FACTOR)[0], [[45, 84, 123], [139, 178, 217]])
    np.testing.assert_array_equal(shrink_nearest(image, FACTOR), [[0, 39, 78], [93, 132, 171]])


@pytest.mark.parametrize("shape", [(50, 37), (3, 2), (100, 101), (1, 1)])
def test_labels_are_never_mixed(shape: tuple[int, int]) -> None:
    labels = random_bytes(*shape)
    small = shrink_nearest(labels, FACTOR)
    assert small.shape == tuple(max(1, round(size * FACTOR)) for size in shape)
    for row in range(small.shape[0]):
        for col in range(small.shape[1]):
            assert small[row, col] == labels[math.floor(row / FACTOR), math.floor(col / FACTOR)]


@pytest.mark.parametrize("size", [1, 4, 5, 6, 7])
def test_padding_keeps_the_middle_in_the_middle(size: int) -> None:
    padded = pad_centred(np.full((3, size, 9), 7, np.uint8), 6, 1)
    assert padded.shape == (3, max(size, 6), 9)
    assert (padded == 7).sum() == 3 * size * 9
    assert (padded[:, padded.shape[1] // 2] == 7).all()
    inside = np.flatnonzero(padded[0, :, 0] == 7)
    assert inside[0] == padded.shape[1] // 2 - size // 2
