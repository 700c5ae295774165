"""Make images smaller exactly as OpenCV does, whose results are part of the data sets: no antialiasing, centres aligned.

``cv2.resize`` with a factor takes the scale 1 / factor, not the ratio of the rounded sizes, and no two flags share a
convention: INTER_LINEAR aligns the centres of pixels, INTER_NEAREST their top left corners.
"""

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Scalar = TypeVar("Scalar", np.uint8, np.bool_)


def halve_linear(band: Bytes) -> Bytes:
    """Half the size: the mean of each 2 x 2 px, halves rounded up, as ``cv2.resize(band, None, fx=.5, fy=.5)``.

    Args:
        band: (height, width), both even.

    Returns:
        (height / 2, width / 2).
    """
    pairs = band[:, 0::2].astype(np.uint16) + band[:, 1::2]
    return ((pairs[0::2] + pairs[1::2] + 2) >> 2).astype(np.uint8)


def halve_nearest(pixels: Bytes) -> Bytes:
    """Half the size: the top left of each 2 x 2 px, as ``cv2.resize`` with INTER_NEAREST; (..., height, width)."""
    return pixels[..., ::2, ::2]


def shrunk_size(size: int, factor: float) -> int:
    """Pixels of a side of ``size`` px after shrinking; halves are rounded to even, as OpenCV's cvRound does."""
    return max(1, round(size * factor))


class _Neighbours(NamedTuple):
    """For each of n destination pixels of a side: the two source pixels around it, and the weight of the second."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float32]


def _find_neighbours(size: int, factor: float) -> _Neighbours:
    """Centres aligned: ``source = (destination + 0.5) / factor - 0.5``; past the edges, the edge is repeated."""
    target = np.arange(shrunk_size(size, factor))
    place = np.clip((target + 0.5) * (1 / factor) - 0.5, 0, size - 1)
    low = np.floor(place).astype(np.intp)
    return _Neighbours(low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32))


def shrink_linear(image: Bytes, factor: float) -> Bytes:
    """Shrink as ``cv2.resize(image.astype(float32), None, fx=factor, fy=factor)`` does, rounded to whole numbers.

    IIC resizes in float32; against that, all values are equal except for some that lie halfway between two numbers to within
    1e-4 (OpenCV 4.5 and 5.0). OpenCV's own path for bytes has weights of 11 bits and differs by 1 in an eighth of them.

    Args:
        image: (bands, height, width).
        factor: 0..1.

    Returns:
        (bands, round(height * factor), round(width * factor)).
    """
    rows, cols = (_find_neighbours(size, factor) for size in image.shape[1:])
    top, bottom = (_blend_columns(image[:, index], cols) for index in (rows.low, rows.high))
    weight = rows.weight[:, None]
    return np.asarray(np.rint(top * (1 - weight) + bottom * weight), np.uint8)


def _blend_columns(image: Bytes, cols: _Neighbours) -> NDArray[np.float32]:
    left, right = image[..., cols.low].astype(np.float32), image[..., cols.high].astype(np.float32)
    return np.asarray(left * (1 - cols.weight) + right * cols.weight)


def shrink_nearest(labels: Bytes, factor: float) -> Bytes:
    """Shrink as ``cv2.resize`` with INTER_NEAREST does: ``source = floor(destination / factor)``; (height, width)."""
    rows, cols = (
        np.minimum(np.floor(np.arange(shrunk_size(size, factor)) * (1 / factor)).astype(np.intp), size - 1)
        for size in labels.shape
    )
    return np.asarray(labels[rows[:, None], cols])


def pad_centred(pixels: NDArray[Scalar], least_px: int, value: int) -> NDArray[Scalar]:
    """Surround (..., height, width) with ``value`` so that both sides have at least ``least_px``.

    The middle stays in the middle, by IIC's rounding (``pad_if_too_small``): pixel ``size // 2`` falls on ``new // 2``.
    """
    height, width = pixels.shape[-2:]
    sides = []
    for size in (height, width):
        new = max(size, least_px)
        before = new // 2 - size // 2
        sides.append((before, new - size - before))
    return np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + sides, constant_values=value)
