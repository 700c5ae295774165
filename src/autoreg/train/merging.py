"""Merge many trained clusters into the few that were asked for.

Mutual information wants all clusters equally large, and land covers are not: with as many clusters as classes, a large
class is cut in two and small ones share a cluster. So more clusters are trained, several times as many, and those that mean
the same are merged. Two clusters mean the same if they have the same surroundings: cluster a is described by how often each
cluster occurs within some cells of it, a row of the joint distribution that the training itself maximises the information
of, and the distance between two of them is the Jensen-Shannon distance of their rows. Average linkage then merges the
nearest ones; unlike Ward's it does not prefer groups of equal size.
"""

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import jensenshannon, squareform
from torch import Tensor, nn
from torch.nn import functional

from autoreg.network.network import Network, evaluating
from autoreg.train.data import Batch
from autoreg.train.features import fitting_batches, unmasked_features
from autoreg.train.losses import joint_distribution
from autoreg.train.status import LEAST_SHARE

SURROUNDINGS_CELLS = 2
"""How far around a cell its surroundings reach."""


def merge_clusters(joint: Tensor, groups: int) -> NDArray[np.intp]:
    """Group clusters by their surroundings.

    Args:
        joint: how often cluster a meets cluster b in its surroundings, non-negative, (A, A).
        groups: how many to make; fewer than A.

    Returns:
        The group of each cluster, (A,), from 0; the larger a group, the smaller its number. Clusters with less than a tenth
        of an equal share say nothing of their own and join the nearest of the others.
    """
    meetings = joint.double().cpu().numpy()
    meetings = meetings + meetings.T
    shares = meetings.sum(axis=1) / max(meetings.sum(), np.finfo(np.float64).tiny)
    order = np.argsort(-shares, kind="stable")
    used = order[: max(groups, int((shares >= LEAST_SHARE / len(shares)).sum()))]
    rows = meetings / np.maximum(meetings.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    distances = _distances(rows)
    tree = linkage(squareform(distances[np.ix_(used, used)], checks=False), "average")
    found = np.empty(len(shares), np.intp)
    found[used] = fcluster(tree, groups, "maxclust") - 1
    unused = order[len(used) :]
    found[unused] = found[used[distances[np.ix_(unused, used)].argmin(axis=1)]]
    sizes = np.bincount(found, weights=shares, minlength=groups)
    numbers = np.empty(groups, np.intp)
    numbers[np.argsort(-sizes, kind="stable")] = np.arange(groups)
    return numbers[found]


def _distances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jensen-Shannon distances between all pairs of distributions, (A, A); an empty row is far from all others."""
    with np.errstate(invalid="ignore"):
        distances = np.stack([jensenshannon(rows, row[None], axis=1) for row in rows])
    return cast(NDArray[np.float64], np.nan_to_num(distances, nan=1.0))


@torch.no_grad()
def fit_merged_decoder(network: Network, batches: Iterable[Batch]) -> None:
    """Let the network's decoder say which group of the auxiliary decoders' clusters a cell belongs to.

    Clusters of all of them are merged together: where one decoder cuts a land cover in an odd way, the others outvote it.
    The decoder stays one 1 x 1 convolution: it is fitted to the groups by logistic regression on the features, which
    reproduces them but for a share of the cells below one percent.

    Args:
        network: with auxiliary decoders, in any mode; clusters and features are those of evaluation.
        batches: of the training; the first ones are used.
    """
    decoders = network.aux_decoders
    joint, features, clusters = torch.zeros(()), [], []
    with evaluating(network):
        for batch, count in fitting_batches(batches):
            encoded, cells = unmasked_features(network, batch)
            # All of a cell's probabilities sum to one, like those of a single decoder.
            probs = torch.cat([decoder(encoded).softmax(dim=1) for decoder in decoders], dim=1) / len(decoders)
            masked = probs * cells[:, None]
            joint = joint + joint_distribution(masked, masked, SURROUNDINGS_CELLS).cpu()
            step = -(-cells.numel() // count)
            features.append(encoded.movedim(1, -1)[cells][::step].float().cpu())
            clusters.append(probs.movedim(1, -1)[cells][::step].float().cpu())
    groups = torch.from_numpy(merge_clusters(joint, network.decoder.out_channels))
    merged = functional.one_hot(groups, network.decoder.out_channels).float()
    fit_linear(network.decoder, torch.cat(features), torch.cat(clusters) @ merged)


def fit_linear(decoder: nn.Conv2d, features: Tensor, probs: Tensor) -> None:
    """Fit a 1 x 1 decoder to probabilities by multinomial logistic regression (L-BFGS).

    Args:
        decoder: with a bias.
        features: (n, C).
        probs: to reproduce, (n, K).
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    points = (features - mean) / std
    weight = torch.zeros(decoder.out_channels, points.shape[1], requires_grad=True)
    bias = probs.mean(dim=0).clamp_min(1e-6).log().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(points @ weight.T + bias, probs) + 1e-5 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    scaled = weight.detach() / std
    decoder.weight.copy_(scaled[:, :, None, None])
    cast(Tensor, decoder.bias).copy_(bias.detach() - scaled @ mean)
