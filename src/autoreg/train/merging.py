"""Merge many trained clusters into the few that were asked for.

Mutual information wants all clusters equally large, and land covers are not: with as many clusters as classes, a large
class is cut in two and small ones share a cluster. So more clusters are trained, several times as many, and then merged two
by two, as in the agglomerative information bottleneck (Slonim and Tishby, NIPS 1999). What the groups are to tell is their
surroundings: I is the mutual information of a cell's group and the groups within some cells of it, from the joint
distribution that the training uses too. It is divided by a power of the groups' entropy H. I alone would make groups of
equal size again, and I / H, how much of a group its surroundings explain, one of nearly everything and others of next to
nothing.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from autoreg.network.network import Network, evaluating
from autoreg.optional import require
from autoreg.train.data import Batch
from autoreg.train.features import fitting_batches, unmasked_features
from autoreg.train.losses import joint_distribution
from autoreg.train.status import LEAST_SHARE

SURROUNDINGS_CELLS = 2
"""How far around a cell its surroundings reach."""

_MOST_AGGLOMERATED = 512
"""More clusters than this are first brought down to it in a way that is coarser, but not as slow."""

_TINY = float(np.finfo(np.float64).tiny)


def entropy_exponent(groups: int) -> float:
    """Of e in I / H^e, which so many groups are to have the highest of.

    The higher, the more unequal are the groups; where there are to be many, 0.6 would leave most of them next to nothing.
    """
    return min(0.6, 3 / groups)


def merge_clusters(joint: Tensor, groups: int) -> NDArray[np.intp]:
    """Group clusters by their surroundings.

    Args:
        joint: how often cluster a meets cluster b in its surroundings, non-negative, (A, A).
        groups: how many to make; fewer than A.

    Returns:
        The group of each cluster, (A,), from 0; the larger a group, the smaller its number. If it can be, none has less than
        a tenth of an equal share: clusters that would make such a group join the one that they meet most.
    """
    meetings = joint.double().cpu().numpy()
    meetings = meetings + meetings.T
    meetings /= max(meetings.sum(), _TINY)
    shares = meetings.sum(axis=1)
    order = np.argsort(-shares, kind="stable")
    used = order[: max(groups, int((shares >= LEAST_SHARE / len(shares)).sum()))]
    between = meetings[np.ix_(used, used)]
    alike = _join_alike(between, max(groups, _MOST_AGGLOMERATED))
    sums = np.eye(alike.max() + 1)[alike]
    parts = _agglomerate(sums.T @ between @ sums, groups)
    members = [used[np.isin(alike, part)] for part in parts]
    found = np.full(len(shares), groups)
    for group, indexes in enumerate(members):
        found[indexes] = group
    rest = np.flatnonzero(found == groups)
    found[rest] = np.stack([meetings[np.ix_(rest, indexes)].sum(axis=1) for indexes in members]).argmax(axis=0)
    sizes = np.bincount(found, weights=shares, minlength=groups)
    numbers = np.empty(groups, np.intp)
    numbers[np.argsort(-sizes, kind="stable")] = np.arange(groups)
    return cast(NDArray[np.intp], numbers[found])


def _join_alike(joint: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Where there are more than ``most`` clusters, join those whose surroundings are most alike: the part of each, (A,).

    By Ward's method, on the Hellinger distances of the distributions of their surroundings.
    """
    if len(joint) <= most:
        return np.arange(len(joint))
    hierarchy = require("scipy.cluster.hierarchy")  # a fifth of a second that most trainings can do without
    profiles = joint / np.maximum(joint.sum(axis=1, keepdims=True), _TINY)
    np.sqrt(profiles, out=profiles)
    parts = hierarchy.fcluster(hierarchy.linkage(profiles, "ward"), most, "maxclust")
    return np.asarray(parts - 1, np.intp)


def _agglomerate(joint: NDArray[np.float64], groups: int) -> list[list[int]]:
    """Merge rows and columns of a symmetric joint distribution two by two, always those that leave the highest I / H^e.

    Cubic in the number of clusters: what merging would do is held for all pairs, and brought up to date after each merging.

    Returns:
        The members of as many groups as asked for: where the tree of mergings has so many that are large enough, and as few
        others as possible, those; else the last ones.
    """

    def changes(index: int) -> NDArray[np.float64]:
        """For each pair with this cluster, entropy terms: of the merged row, to correct its corner, of the share."""
        row, own, shares = joint[index], np.diag(joint), joint.sum(axis=1)
        merged = _terms(row + joint).sum(axis=1)
        corner = _terms(own[index] + own + 2 * row) - 2 * (_terms(own[index] + row) + _terms(own + row))
        before = _terms(own[index : index + 1]) + _terms(own) + 2 * _terms(row)
        return np.stack([merged, corner + before, _terms(shares[index] + shares)])

    exponent, least = entropy_exponent(groups), LEAST_SHARE / groups * joint.sum()
    members = [[index] for index in range(len(joint))]
    pairs = np.stack([changes(index) for index in range(len(joint))], axis=1)
    best: list[list[int]] = []
    while True:
        shares = joint.sum(axis=1)
        large = np.flatnonzero(shares >= least)
        if len(large) == groups:
            best = [list(members[index]) for index in large]
        if len(members) == groups:
            return best or members
        merged, corner, union = pairs
        rows, one = _terms(joint).sum(axis=1), _terms(shares)
        joint_entropy = rows.sum() - 2 * (rows[:, None] + rows) + 2 * merged + corner
        entropy = one.sum() - one[:, None] - one + union
        left = (2 * entropy - joint_entropy) / np.maximum(entropy, _TINY) ** exponent
        np.fill_diagonal(left, -np.inf)
        kept, gone = sorted(int(index) for index in np.unravel_index(left.argmax(), left.shape))
        members[kept] += members.pop(gone)
        for column, sign in ((joint[:, kept], -1), (joint[:, gone], -1), (joint[:, kept] + joint[:, gone], 1)):
            merged += sign * _terms(column[:, None] + column)
        joint[:, kept] += joint[:, gone]
        joint[kept] += joint[gone]
        joint = np.delete(np.delete(joint, gone, axis=0), gone, axis=1)
        pairs = np.delete(np.delete(pairs, gone, axis=1), gone, axis=2)
        pairs[:, kept] = pairs[:, :, kept] = changes(kept)


def _terms(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """-p log p of each; that of 0 is 0. Two and a half times as fast as SciPy's ``entr``."""
    return -probabilities * np.log(np.maximum(probabilities, _TINY))


@torch.no_grad()
def fit_merged_decoder(networks: Sequence[Network], batches: Iterable[Batch]) -> Network:
    """Let one network's decoder say which group of the auxiliary decoders' clusters a cell belongs to.

    Clusters of all decoders of all networks are merged together: where one cuts a land cover in an odd way, the others
    outvote it. The decoder stays one 1 x 1 convolution: it is fitted to the groups by logistic regression on the features.
    Of several networks the one whose features say the groups best is kept.

    Args:
        networks: with auxiliary decoders, in any mode; clusters and features are those of evaluation.
        batches: of the training; the first ones are used.

    Returns:
        The network to keep, whose decoder was fitted.
    """
    joint, clusters = torch.zeros(()), []
    features: list[list[Tensor]] = [[] for _ in networks]
    layers = networks[0].config
    values_per_px = len(networks) * layers.aux_decoders * layers.aux_classes / layers.stride**2
    with evaluating(*networks):
        for batch, count in fitting_batches(batches, values_per_px):
            found, cells = unmasked_features(networks, batch)
            # Not a slice of all cells, which would keep them all in memory.
            some = cells.nonzero()[:: -(-cells.numel() // count)].unbind(1)
            probs = []
            for network, encoded, seen in zip(networks, found, features, strict=True):
                seen.append(encoded.movedim(1, -1)[some].float().cpu())
                probs += [decoder(encoded).softmax(dim=1) for decoder in network.aux_decoders]
            # All of a cell's probabilities sum to one, like those of a single decoder.
            votes = torch.cat(probs, dim=1) / len(probs)
            masked = votes * cells[:, None]
            joint = joint + joint_distribution(masked, masked, SURROUNDINGS_CELLS).cpu()
            clusters.append(votes.movedim(1, -1)[some].float().cpu())
    groups = functional.one_hot(torch.from_numpy(merge_clusters(joint, layers.classes)), layers.classes).float()
    merged = torch.cat(clusters) @ groups
    losses = [fit_linear(network.decoder, torch.cat(seen), merged) for network, seen in zip(networks, features, strict=True)]
    return networks[losses.index(min(losses))]


def fit_linear(decoder: nn.Conv2d, features: Tensor, probs: Tensor) -> float:
    """Fit a 1 x 1 decoder to probabilities by multinomial logistic regression (L-BFGS).

    Args:
        decoder: with a bias.
        features: (n, C).
        probs: to reproduce, (n, K).

    Returns:
        The cross-entropy that is left, in nats.
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    points = (features - mean) / std
    weight = torch.zeros(decoder.out_channels, points.shape[1], requires_grad=True)
    bias = probs.mean(dim=0).clamp_min(1e-6).log().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def left() -> Tensor:
        return functional.cross_entropy(points @ weight.T + bias, probs)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = left() + 1e-5 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    scaled = weight.detach() / std
    decoder.weight.copy_(scaled[:, :, None, None])
    cast(Tensor, decoder.bias).copy_(bias.detach() - scaled @ mean)
    return float(left().detach())
