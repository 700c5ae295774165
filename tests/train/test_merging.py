"""Merging of trained clusters by their surroundings."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import entr
from torch import nn

from autoreg.network.config import NetworkConfig
from autoreg.network.network import Network
from autoreg.train import features, merging
from autoreg.train.data import Batch
from autoreg.train.merging import entropy_exponent, fit_linear, fit_merged_decoder, merge_clusters


def joint_of(parts: list[list[float]], mixing: float) -> torch.Tensor:
    """Clusters in groups of the given shares: within a group they mix, between groups they hardly meet."""
    shares = [share for part in parts for share in part]
    group = [index for index, part in enumerate(parts) for _ in part]
    size = [sum(part) for part in parts]
    joint = torch.zeros(len(shares), len(shares))
    for a, share in enumerate(shares):
        for b, other in enumerate(shares):
            same = group[a] == group[b]
            joint[a, b] = share * other * ((1 - mixing) / size[group[a]] * same + mixing)
    return joint


def coloured_regions() -> tuple[list[Batch], NDArray[np.intp]]:
    """Batches of pixels of six colours, three to a region, and the region of each row of pixels, (32, 1)."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 3, (8, 2, 32, 32))
    regions = (np.arange(32) >= 20).astype(np.intp)[:, None]
    images = np.eye(6, dtype=np.float32)[colours + 3 * regions].transpose(1, 0, 4, 2, 3)
    return [Batch(np.ascontiguousarray(part), np.ones((8, 32, 32), np.bool_)) for part in images], regions


def test_clusters_with_the_same_surroundings_are_merged_whatever_their_sizes() -> None:
    joint = joint_of([[0.3, 0.25, 0.2], [0.1, 0.1], [0.05]], mixing=0.1)
    assert merge_clusters(joint, 3).tolist() == [0, 0, 0, 1, 1, 2]


def test_the_order_of_the_clusters_does_not_matter() -> None:
    joint = joint_of([[0.3, 0.25, 0.2], [0.1, 0.1], [0.05]], mixing=0.1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    expected = merge_clusters(joint, 3)[order]
    assert merge_clusters(joint[order][:, order], 3).tolist() == expected.tolist()


@pytest.mark.parametrize("groups", [2, 3, 4, 5, 6])
def test_the_pair_is_merged_that_leaves_the_most_information(groups: int) -> None:
    """Against the definition, I / H^e of all pairings."""
    joint = np.random.default_rng(0).random((7, 7)) ** 4
    joint = (joint + joint.T) / (2 * joint.sum())

    def gain(members: list[tuple[int, ...]]) -> float:
        merged = np.array([[joint[np.ix_(one, other)].sum() for other in members] for one in members])
        entropy = float(entr(merged.sum(axis=1)).sum())
        return float((2 * entropy - entr(merged).sum()) / entropy ** entropy_exponent(groups))

    expected: list[tuple[int, ...]] = [(index,) for index in range(7)]
    while len(expected) > groups:
        mergings = [
            [*(item for item in expected if item not in pair), pair[0] + pair[1]]
            for pair in itertools.combinations(expected, 2)
        ]
        expected = max(mergings, key=gain)
    found = merge_clusters(torch.from_numpy(joint), groups)
    assert {frozenset(item) for item in expected} == {
        frozenset(np.flatnonzero(found == group).tolist()) for group in range(groups)
    }


def test_of_many_groups_few_are_next_to_nothing() -> None:
    """Clusters that meet the more, the nearer they are: with the exponent for few groups, three of twelve would be."""
    rng = np.random.default_rng(0)
    places = rng.random((100, 2))
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    shares = rng.uniform(0.5, 1.5, 100) ** 3
    joint = np.outer(shares, shares) * np.exp(-((distances / 0.3) ** 2))
    sizes = np.bincount(merge_clusters(torch.from_numpy(joint), 12), weights=joint.sum(axis=1), minlength=12)
    assert (sizes / sizes.sum() > 0.2 / 12).sum() >= 11


@pytest.mark.parametrize("ghost", [0.0, 1e-4])
def test_a_cluster_that_is_hardly_used_makes_no_group(ghost: float) -> None:
    joint = torch.zeros(7, 7)
    joint[:6, :6] = joint_of([[0.3, 0.25, 0.2], [0.1, 0.1], [0.05]], mixing=0.1)
    joint[6, 5] = ghost
    found = merge_clusters(joint, 3).tolist()
    assert found[:6] == [0, 0, 0, 1, 1, 2]
    assert ghost == 0 or found[6] == 2, "it joins what it meets most"


def test_no_group_is_next_to_nothing_if_another_can_be_made() -> None:
    """The last cluster is like no other, but has less than a tenth of a third; so one with two clusters stays two groups."""
    joint = joint_of([[0.5, 0.2], [0.18, 0.1], [0.02]], mixing=0.01)
    joint[4, 2] = joint[2, 4] = 1e-3
    assert merge_clusters(joint, 3).tolist() == [0, 0, 1, 2, 1]
    assert merge_clusters(joint_of([[0.5, 0.2], [0.15, 0.1], [0.05]], mixing=0.01), 3).tolist() == [0, 0, 1, 1, 2]


def test_of_many_clusters_those_with_like_surroundings_are_joined_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(8), 20))
    shares = rng.uniform(0.5, 1.5, len(truth)) * (1 + truth)
    sizes = np.bincount(truth, weights=shares)
    meetings = np.outer(shares, shares) * (0.3 + 0.7 * (truth[:, None] == truth) * shares.sum() / sizes[truth])
    joint = torch.from_numpy(meetings * rng.gamma(5, 0.2, meetings.shape))
    monkeypatch.setattr(merging, "_MOST_AGGLOMERATED", 40)
    assert (merge_clusters(joint, 8) == np.argsort(np.argsort(-sizes))[truth]).all()
    assert len(set(merge_clusters(joint, 60).tolist())) == 60


def test_there_are_as_many_groups_as_asked_for_even_if_fewer_clusters_are_used() -> None:
    joint = torch.zeros(5, 5)
    joint[0, 0], joint[1, 1] = 0.7, 0.3
    found = merge_clusters(joint, 3)
    assert set(found.tolist()) == {0, 1, 2}
    assert found[0] == 0
    assert found[1] == 1


def test_logistic_regression_reproduces_linear_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 5 + 3 * torch.randn(4000, 8, generator=generator)
    truth = (features @ torch.randn(8, 4, generator=generator) + torch.tensor([3.0, 0, 0, -3])).argmax(dim=1)
    decoder = nn.Conv2d(8, 4, 1).requires_grad_(False)
    fit_linear(decoder, features, nn.functional.one_hot(truth, 4).float())
    found = decoder(features.T[None, :, :, None])[0, :, :, 0].argmax(dim=0)
    assert (found == truth).float().mean() > 0.99


@pytest.mark.parametrize(("decoders", "values_at_once"), [(1, 2**25), (3, 2**25), (3, 1)])
def test_the_decoder_says_the_groups(decoders: int, values_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose features are the pixels: six colours, which lie in two regions of three colours each."""
    monkeypatch.setattr(features, "_VALUES_AT_ONCE", values_at_once)
    network = Network(NetworkConfig(6, 2, 6, (), 1, extractor="pixels", aux_classes=6, aux_decoders=decoders))
    with torch.no_grad():
        for turn, decoder in enumerate(network.aux_decoders):
            decoder.weight.copy_(20 * torch.eye(6).roll(turn, 0)[:, :, None, None])
    batches, regions = coloured_regions()
    fit_merged_decoder([network], batches)
    with torch.no_grad():
        labels = network(torch.from_numpy(batches[0].images)).argmax(dim=1).numpy()
    assert (labels == np.broadcast_to(regions, labels.shape)).all()


def test_networks_vote_and_the_one_that_says_the_groups_best_is_kept() -> None:
    """Six colours in two regions; one network does not see two of them, and the clusters of one lie across the regions."""
    networks = [Network(NetworkConfig(6, 2, 6, (), 1, extractor="pixels", aux_classes=6)) for _ in range(4)]
    blind, across, *_ = networks
    with torch.no_grad():
        for network in networks:
            network.aux_decoders[0].weight.copy_(20 * torch.eye(6)[:, :, None, None])
        across.aux_decoders[0].weight.copy_(20 * torch.eye(3).tile(2, 2)[:, :, None, None])
        blind.std.copy_(torch.tensor([1e9, 1, 1, 1, 1, 1e9]))
    batches, regions = coloured_regions()
    kept = fit_merged_decoder(networks, batches)
    assert kept is not blind
    with torch.no_grad():
        labels = kept(torch.from_numpy(batches[0].images)).argmax(dim=1).numpy()
    assert (labels == np.broadcast_to(regions, labels.shape)).all()
