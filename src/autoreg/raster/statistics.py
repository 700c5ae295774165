"""Mean and deviation of the bands of rasters, and the rescaling that gives one scene the statistics of all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoreg.raster.window import Window

Read = Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]]
"""From a window to its pixels (C, h, w) and which of them are data (h, w)."""
Float64s = NDArray[np.float64]

_SAMPLE_PX = 256
_SAMPLES = 8
"""A scene is measured on at most 8 x 8 windows of 256 px: 4 million pixels, however large it is."""


@dataclass(frozen=True)
class Moments:
    """First and second moments of some pixels, band by band.

    Attributes:
        count: how many pixels.
        mean: per band, float64.
        squares: per band, float64: sum of the squared differences from the mean.
    """

    count: int
    mean: Float64s
    squares: Float64s

    @classmethod
    def none(cls, bands: int) -> "Moments":
        """Those of no pixels."""
        return cls(0, np.zeros(bands), np.zeros(bands))

    @classmethod
    def of(cls, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> "Moments":
        """Those of the pixels (bands, height, width) that are data."""
        count = int(np.count_nonzero(valid))
        mean, squares = np.zeros(len(pixels)), np.zeros(len(pixels))
        for band, values in enumerate(pixels if count else ()):
            data = (values if count == values.size else values[valid]).astype(np.float64)
            mean[band] = data.mean()
            data -= mean[band]
            squares[band] = np.square(data, out=data).sum()
        return cls(count, mean, squares)

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both sets of pixels together (Chan et al., 1979)."""
        total = self.count + other.count
        if total == 0:
            return self
        shift, weight = other.mean - self.mean, other.count / total
        squares = self.squares + other.squares + shift**2 * (self.count * weight)
        return Moments(total, self.mean + shift * weight, squares)

    @property
    def varies(self) -> NDArray[np.bool_]:
        """Whether a band holds more than one value, as far as float64 can tell."""
        return np.asarray(self._deviation > 1e-6 * (1 + np.abs(self.mean)))

    @property
    def std(self) -> Float64s:
        """Standard deviation per band; 1 where a band does not vary, so that one can divide by it."""
        return np.where(self.varies, self._deviation, 1.0)

    @property
    def _deviation(self) -> Float64s:
        return np.sqrt(self.squares / max(self.count, 1))


class Rescaling(NamedTuple):
    """Shifts and scales the bands of one scene.

    Attributes:
        scale, shift: float32 (bands, 1, 1).
    """

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]

    def apply(self, image: NDArray[np.float32]) -> None:
        """Replace raw values in ``image`` (bands, height, width) by ``scale * image + shift``."""
        image *= self.scale
        image += self.shift


def match_scene(read: Read, height: int, width: int, *, mean: ArrayLike, std: ArrayLike) -> Rescaling:
    """The rescaling after which the bands of a scene have ``mean`` and ``std``.

    A scene is measured on all its pixels if it is small, else on windows that are spread evenly and depend on its size only:
    so it is the same wherever the scene is read, in training or by a model, and however it is tiled. A band that
    does not vary is only shifted, and a scene without data stays as it is.

    Args:
        read: from a window to its pixels (bands, h, w) and which of them are data (h, w).
        height: of the scene, in pixels.
        width: of the scene, in pixels.
        mean: per band.
        std: per band.
    """
    bands = len(np.asarray(mean))
    moments = sum((Moments.of(*read(window)) for window in _sample_windows(height, width)), start=Moments.none(bands))
    if moments.count == 0:
        scale, shift = np.ones(bands), np.zeros(bands)
    else:
        scale = np.where(moments.varies, np.asarray(std, np.float64) / moments.std, 1.0)
        shift = np.asarray(mean, np.float64) - scale * moments.mean
    return Rescaling(*(values.astype(np.float32)[:, None, None] for values in (scale, shift)))


def _sample_windows(height: int, width: int) -> Iterator[Window]:
    for row in _starts(height):
        for col in _starts(width):
            yield Window(row, col, _SAMPLE_PX, _SAMPLE_PX).clipped(height, width)


def _starts(size: int) -> list[int]:
    """First pixels of the windows along one axis: multiples of their side, as the blocks of most files are."""
    cells = -(-size // _SAMPLE_PX)
    count = min(cells, _SAMPLES)
    return [_SAMPLE_PX * (index * (cells - 1) // max(count - 1, 1)) for index in range(count)]
