"""The interface of an objective."""

from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from autoreg.network.network import Network


class Step(NamedTuple):
    """What an objective sees of one step.

    Attributes:
        images: raw pixels, float32 (N, bands, H, W); those without data hold the mean.
        valid: bool (N, H, W), True where a pixel is data.
        number: of the step, from 0.
        rng: of the step's random choices.
    """

    images: Tensor
    valid: Tensor
    number: int
    rng: np.random.Generator


class Gain(NamedTuple):
    """What a step gained.

    Attributes:
        objective: to maximise; a scalar that carries the gradient.
        information: mutual information in nats, or a lower bound of it; a scalar.
    """

    objective: Tensor
    information: Tensor


class Objective(nn.Module):
    """What a training maximises.

    Its parameters, such as critics and heads of pretext tasks, are trained together with the network and not deployed; its
    buffers are part of what ``--resume`` restores.

    Attributes:
        trains_decoder: whether the decoder's clusters are trained; else they are fitted to the features by K-means.
    """

    trains_decoder = True

    def forward(self, network: Network, step: Step) -> Gain:
        """The gain of one step; ``network`` is in training mode."""
        raise NotImplementedError
