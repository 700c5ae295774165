"""Transforms of the second view: colour jitter, flips and quarter turns; the latter two have exact inverses.

A turned or flipped image is scanned in a turned or flipped order: an ordering of the original frame has a counterpart in
the transformed one. Which orderings a step compares is decided in the original frame, and the transform carries them over.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from autoreg.errors import ConfigError
from autoreg.network.orderings import ORDERINGS, Ordering
from autoreg.train.distributed import Share

_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=torch.float64)
"""RGB to luma and two chroma axes; turning these two changes the hue, stretching them the saturation."""


class Dihedral(NamedTuple):
    """A mirror image or not, then some quarter turns: the eight symmetries of the square.

    Attributes:
        flip: mirror left and right first.
        quarter_turns: counter-clockwise, 0 to 3.
    """

    flip: bool = False
    quarter_turns: int = 0

    def apply(self, x: Tensor) -> Tensor:
        """Transform the last two axes of ``x``."""
        return torch.rot90(x.flip(-1) if self.flip else x, self.quarter_turns, (-2, -1))

    def invert(self, x: Tensor) -> Tensor:
        """Undo ``apply``, exactly."""
        x = torch.rot90(x, -self.quarter_turns, (-2, -1))
        return x.flip(-1) if self.flip else x

    def carry(self, ordering: Ordering) -> Ordering:
        """The ordering that visits the transformed pixels in the sequence in which ``ordering`` visits the original ones."""
        return _carry(self, ordering)


IDENTITY = Dihedral()


@functools.cache
def _carry(transform: Dihedral, ordering: Ordering) -> Ordering:
    rank = transform.apply(ordering.rank(3, 4))
    return next(other for other in ORDERINGS if torch.equal(other.rank(*rank.shape), rank))


def draw_dihedral(rng: np.random.Generator, *, flip: bool, rotate: bool) -> Dihedral:
    """A random symmetry: a mirror image half of the time if ``flip``, any number of quarter turns if ``rotate``."""
    return Dihedral(flip and bool(rng.integers(2)), int(rng.integers(4)) if rotate else 0)


def find_rgb(bands: tuple[str, ...]) -> tuple[int, int, int]:
    """Positions of the red, green and blue band.

    Raises:
        ConfigError: the names do not say.
    """
    names = [name.lower() for name in bands]
    try:
        return names.index("red"), names.index("green"), names.index("blue")
    except ValueError as error:
        raise ConfigError(
            f"colour_jitter needs bands named red, green and blue, but the rasters have {', '.join(bands)}; "
            f"name them, or set colour_jitter to 0"
        ) from error


def jitter_colours(
    images: Tensor, rgb: tuple[int, int, int], strength: float, rng: np.random.Generator, share: Share | None = None
) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image at random; other bands, such as infrared, stay.

    Args:
        images: raw pixels, float32 (N, bands, H, W).
        rgb: positions of the red, green and blue band.
        strength: factors are drawn from 1 - strength to 1 + strength, the hue turns by up to this share of a full turn.
        rng: of the random choices.
        share: where these images lie in a whole batch, which is what the choices are made for; None if they are the whole.
    """

    def draw() -> np.ndarray:
        """A number from -strength to strength for each image."""
        numbers = strength * rng.uniform(-1, 1, share.total if share else len(images))
        return numbers[share.places] if share else numbers

    brightness, contrast, saturation = (_column(1 + draw(), images) for _ in range(3))
    angle = torch.from_numpy(2 * math.pi * draw())
    turn = torch.zeros(len(images), 3, 3, dtype=torch.float64)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    hue = (torch.linalg.inv(_YIQ) @ turn @ _YIQ).to(images)
    luma = _YIQ[0].to(images)

    colours = images[:, rgb]
    colours = torch.einsum("nij,njhw->nihw", hue, colours)
    grey = torch.einsum("c,nchw->nhw", luma, colours)[:, None]
    colours = brightness * (grey + saturation * (colours - grey))
    mean = (brightness * grey).mean(dim=(1, 2, 3), keepdim=True)
    result = images.clone()
    result[:, rgb] = mean + contrast * (colours - mean)
    return result


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like).reshape(-1, 1, 1, 1)
