"""The interface of an objective."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autoreg.network.network import Network
from autoreg.train.data import Batch
from autoreg.train.distributed import Share
from autoreg.train.kmeans import fit_clusters


class Step(NamedTuple):
    """What an objective sees of one step.

    Attributes:
        images: raw pixels, float32 (N, bands, H, W); those without data hold the mean.
        valid: bool (N, H, W), True where a pixel is data.
        number: of the step, from 0.
        rng: of the step's random choices.
        share: where these images lie in the whole batch, if several processes train; else they are the whole.
    """

    images: Tensor
    valid: Tensor
    number: int
    rng: np.random.Generator
    share: Share | None = None


class Gain(NamedTuple):
    """What a step gained.

    Attributes:
        objective: to maximise; a scalar that carries the gradient.
        information: mutual information in nats, or a lower bound of it; a scalar.
        entropies: H(y) and H(z) in nats, how evenly each view uses the clusters, (2,); None where no clusters are trained.
    """

    objective: Tensor
    information: Tensor
    entropies: Tensor | None = None

    def detach(self) -> "Gain":
        """Without gradient."""
        entropies = None if self.entropies is None else self.entropies.detach()
        return Gain(self.objective.detach(), self.information.detach(), entropies)


def average_gains(gains: Sequence[Gain]) -> Gain:
    """The mean of each part; all gains have entropies, or none has."""
    objective = torch.stack([gain.objective for gain in gains]).mean()
    information = torch.stack([gain.information for gain in gains]).mean()
    entropies = [gain.entropies for gain in gains if gain.entropies is not None]
    return Gain(objective, information, torch.stack(entropies).mean(dim=0) if entropies else None)


class Objective(nn.Module):
    """What a training maximises.

    Its parameters, such as critics and heads of pretext tasks, are trained together with the network and not deployed; its
    buffers are part of what ``--resume`` restores.

    Attributes:
        parallel: whether several processes can train it: the mean of their gains must be what one process gains with all
            images (see ``train/distributed.py``).
    """

    parallel = False

    def forward(self, network: Network, step: Step) -> Gain:
        """The gain of one step; ``network`` is in training mode."""
        raise NotImplementedError

    def trained_decoder(self, network: Network) -> nn.Conv2d | None:  # noqa: ARG002
        """The decoder whose clusters are trained, if there is one; its gains then compare networks."""
        return None

    def fit_decoder(self, networks: Sequence[Network], batches: Iterable[Batch], seed: int) -> Network:
        """Fit the decoder, where it is not the trained one, to what was learned: here by K-means on the features.

        Args:
            networks: those that were trained, in any mode; one, unless clusters are merged.
            batches: of the training; the first ones are used.
            seed: of random choices.

        Returns:
            The network to keep, whose decoder was fitted.
        """
        (network,) = networks
        fit_clusters(network, batches, seed)
        return network
