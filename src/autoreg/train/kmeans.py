"""Clusters of features that were not trained to be clusters: PCA whitening, K-means, and both folded into the decoder.

Whitening is linear, and the nearest of K centres is the largest of K linear functions, so the clusters become an ordinary
1 x 1 decoder. A network that learned representations then deploys like one that learned clusters (paper, section 3.2).
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoreg.network.network import Network, evaluating
from autoreg.train.data import Batch
from autoreg.train.features import fitting_batches, unmasked_features

_KEPT_VARIANCE, _MOST_COMPONENTS = 0.99, 64
_RESTARTS, _ITERATIONS = 10, 100
_SETTLED = 1e-4
"""The iteration ends when the mean squared distance shrinks by less than this share."""


class Whitening(NamedTuple):
    """A linear map to uncorrelated components of variance 1: ``(x - mean) @ projection``.

    Attributes:
        mean: (C,), float64.
        projection: (C, components), float64.
    """

    mean: Tensor
    projection: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """(n, C) to (n, components), float64."""
        return (features.double() - self.mean) @ self.projection


def fit_whitening(features: Tensor) -> Whitening:
    """PCA whitening of ``features`` (n, C): the components that hold 99 % of the variance, at most 64."""
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(features))
    variances, axes = variances.flip(0).clamp_min(0), axes.flip(1)
    share = variances.cumsum(0) / variances.sum().clamp_min(1e-300)
    kept = min(int((share < _KEPT_VARIANCE).sum()) + 1, _MOST_COMPONENTS, len(variances))
    # A feature that is the same everywhere has no variance to divide by.
    scale = variances[:kept].clamp_min(1e-12 * max(float(variances[0]), 1e-12)).rsqrt()
    return Whitening(mean, axes[:, :kept] * scale)


def fit_centres(points: Tensor, clusters: int, seed: int) -> Tensor:
    """K-means (Lloyd, started by k-means++): the best of ten runs.

    Args:
        points: (n, C).
        clusters: K, at most n.
        seed: of the starts.

    Returns:
        Centres (K, C), in the type of ``points``.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = [_run(points, _spread(points, clusters, generator)) for _ in range(_RESTARTS)]
    return min(runs, key=lambda run: run[1])[0]


def assign(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point, int64 (n,), and the squared distance to it (n,)."""
    # The squares of the points are the same for all centres.
    nearest = (points @ centres.T - centres.square().sum(dim=1) / 2).max(dim=1)
    return nearest.indices, (points.square().sum(dim=1) - 2 * nearest.values).clamp_min(0)


def linear_clusters(whitening: Whitening, centres: Tensor) -> tuple[Tensor, Tensor]:
    """K-means on whitened features as linear functions of the features, of which the nearest centre's is the largest.

    Args:
        whitening: of the features.
        centres: (K, components), of the whitened features.

    Returns:
        Weight (K, C) and bias (K,), float64.
    """
    weight = centres @ whitening.projection.T
    return weight, -weight @ whitening.mean - centres.square().sum(dim=1) / 2


@torch.no_grad()
def fit_decoder(decoder: nn.Conv2d, features: Tensor, seed: int) -> Tensor:
    """Let a 1 x 1 decoder say which of its clusters a cell belongs to, by K-means on whitened features.

    Args:
        decoder: with a bias; as many outputs as there shall be clusters.
        features: (n, C), on the processor.
        seed: of K-means.

    Returns:
        The cluster of each of ``features``, int64 (n,).
    """
    whitening = fit_whitening(features)
    points = whitening.apply(features)
    centres = fit_centres(points, decoder.out_channels, seed)
    weight, bias = linear_clusters(whitening, centres)
    decoder.weight.copy_(weight[:, :, None, None])
    cast(Tensor, decoder.bias).copy_(bias)
    return assign(points, centres)[0]


@torch.no_grad()
def fit_clusters(network: Network, batches: Iterable[Batch], seed: int) -> None:
    """Let a network's decoder say which cluster a cell belongs to, by K-means on the features without ordering.

    Args:
        network: in any mode; the features are those of evaluation.
        batches: of the training; some cells of the first ones are used.
        seed: of the choice of cells and of K-means.
    """
    rng = np.random.default_rng((seed, 2))
    parts = []
    values_per_px = network.decoder.in_channels / network.config.stride**2
    with evaluating(network):
        for batch, count in fitting_batches(batches, values_per_px):
            (features,), cells = unmasked_features([network], batch)
            found = features.movedim(1, -1)[cells].cpu()
            parts.append(found[torch.from_numpy(rng.permutation(len(found))[:count])])
    fit_decoder(network.decoder, torch.cat(parts), seed)


def _spread(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """First centres by k-means++: each a point, drawn by its squared distance to the nearest one so far."""
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    nearest = assign(points, centres)[1]
    while len(centres) < clusters:
        # By inverting the cumulative sum: torch.multinomial ends at 2^24 points.
        total = nearest.double().cumsum(0)
        place = torch.searchsorted(total, torch.rand(1, generator=generator, dtype=torch.float64) * total[-1])
        centre = points[place.clamp_max(len(points) - 1)]
        centres = torch.cat([centres, centre])
        nearest = torch.minimum(nearest, assign(points, centre)[1])
    return centres


def _run(points: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """Lloyd's iteration to its end; the centres and the mean squared distance to them."""
    before = float("inf")
    for _ in range(_ITERATIONS):
        labels, distances = assign(points, centres)
        cost = distances.mean().item()
        if cost >= before * (1 - _SETTLED):
            break
        before = cost
        counts = labels.bincount(minlength=len(centres))
        sums = functional.one_hot(labels, len(centres)).T.to(points) @ points
        # A centre that nobody is nearest to stays where it is.
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centres)
    return centres, cost
