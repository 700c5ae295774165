import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autoreg.network.config import NetworkConfig
from autoreg.network.network import Network
from autoreg.network.orderings import ORDERINGS, RASTER_ORDERINGS, Ordering, find_orderings
from autoreg.train.losses import joint_distribution, joint_per_displacement, mutual_information
from autoreg.train.transforms import IDENTITY, Dihedral
from autoreg.train.views import calibrate_network, draw_orderings, predict_crossed, view_features

SAMPLINGS = ("random", "no_rep", "hard")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def overlap(first: Ordering, second: Ordering) -> float:
    """Share of the image that a pixel sees under both, on average."""
    ranks = [ordering.rank(16, 16).flatten() for ordering in (first, second)]
    return float(torch.stack([rank[None, :] <= rank[:, None] for rank in ranks]).all(dim=0).float().mean())


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("names", [("raster",), ("raster", "zigzag"), ("o1", "o7")], ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_predictions_that_depend_on_the_ordering_alone_score_nothing(
    seed: int, sampling: str, names: tuple[str, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    answers = {ordering: (9 * torch.randn(5, generator=generator)).softmax(dim=0) for ordering in ORDERINGS}

    def predict(images: Tensor, orderings: Sequence[Ordering | None]) -> Tensor:
        chosen = torch.stack([answers[ordering] for ordering in orderings if ordering])
        return chosen.repeat_interleave(len(images) // len(orderings), dim=0)[:, :, None, None].expand(-1, 5, 32, 32)

    first, second = draw_orderings(find_orderings(names), sampling, rng(seed))
    images = torch.zeros(16, 1)
    views = predict_crossed(predict, images, images, first, second)
    for joint in (joint_distribution, joint_per_displacement):
        assert abs(mutual_information(joint(*views, 5)).value.item()) <= 1e-6


def test_the_shortcut_that_this_guards_against_pays_in_the_symmetrised_loss() -> None:
    first, second = (torch.eye(2)[answer][None, :, None, None].expand(4, 2, 16, 16) for answer in (0, 1))
    joint = joint_distribution(first, second, 5)
    assert mutual_information(joint + joint.T).value.item() == pytest.approx(np.log(2))
    assert mutual_information(joint).value.item() == pytest.approx(0)


@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_drawing_is_seeded_and_reaches_every_ordering(sampling: str, crossed: bool) -> None:
    drawn = [draw_orderings(ORDERINGS, sampling, rng(seed), crossed=crossed) for seed in range(300)]
    assert drawn == [draw_orderings(ORDERINGS, sampling, rng(seed), crossed=crossed) for seed in range(300)]
    assert all(len(first) == len(second) == (2 if crossed else 1) for first, second in drawn)
    for view in (0, 1):
        assert {ordering for pair in drawn for ordering in pair[view]} == set(ORDERINGS)


def test_random_sampling_may_repeat_and_no_rep_does_not() -> None:
    pairs = [draw_orderings(RASTER_ORDERINGS, "random", rng(seed), crossed=False) for seed in range(200)]
    assert any(first == second for first, second in pairs)
    for crossed, size in itertools.product((True, False), (2, 3, 4, 8)):
        for seed in range(50):
            first, second = draw_orderings(RASTER_ORDERINGS[:size], "no_rep", rng(seed), crossed=crossed)
            assert not set(first) & set(second)
            assert len({*first, *second}) == min(size, 4 if crossed else 2)


@pytest.mark.parametrize("orderings", [RASTER_ORDERINGS, ORDERINGS[8:]], ids=["raster", "zigzag"])
def test_hard_pairs_are_exact_reverses_and_share_at_most_a_line(orderings: tuple[Ordering, ...]) -> None:
    for seed in range(30):
        (first,), (second,) = draw_orderings(orderings, "hard", rng(seed), crossed=False)
        assert first
        assert second == first.reverse
        firsts, seconds = draw_orderings(orderings, "hard", rng(seed))
        assert [ordering.reverse for ordering in firsts if ordering] == seconds
        pairs = list(itertools.product(firsts, seconds))
        assert len(set(pairs)) == 4
        assert all(overlap(a, b) < 0.034 for a, b in pairs if a and b)


def test_hard_pairs_stay_within_the_orderings_to_choose_from() -> None:
    for seed in range(10):
        first, second = draw_orderings(find_orderings(["o1", "o7"]), "hard", rng(seed))
        assert len({*first}) == len({*second}) == 1


@pytest.mark.parametrize("crossed", [True, False])
def test_without_orderings_both_views_are_unmasked(crossed: bool) -> None:
    first, second = draw_orderings((), "no_rep", rng(), crossed=crossed)
    assert {*first, *second} == {None}


def test_crossing_gives_every_pair_the_same_number_of_images_in_their_order() -> None:
    first, second = draw_orderings(RASTER_ORDERINGS, "no_rep", rng(1))
    assert len({*first, *second}) == 4
    number: dict[Ordering | None, int] = {ordering: index for index, ordering in enumerate(RASTER_ORDERINGS)}

    def predict(images: Tensor, orderings: Sequence[Ordering | None]) -> Tensor:
        numbers = torch.tensor([float(number[ordering]) for ordering in orderings])
        return torch.stack([images[:, 0], numbers.repeat_interleave(len(images) // len(orderings))], dim=1)

    images = torch.arange(12.0)[:, None]
    view_y, view_z = predict_crossed(predict, images, 100 + images, first, second)
    assert view_y[:, 0].tolist() == (view_z[:, 0] - 100).tolist() == list(range(12))
    pairs = list(zip(view_y[:, 1].tolist(), view_z[:, 1].tolist(), strict=True))
    assert sorted(pairs.count(pair) for pair in set(pairs)) == [3, 3, 3, 3]
    assert set(pairs) == {(number[a], number[b]) for a in first for b in second}


@pytest.mark.parametrize(
    ("layers", "crossed", "names", "transform"),
    [
        ({}, True, ("raster",), IDENTITY),
        ({"attention": True}, True, ("raster", "zigzag"), IDENTITY),
        ({"attention": True}, True, ("zigzag",), Dihedral(flip=True, quarter_turns=1)),
        ({"extractor": "identity", "masking": "relaxed"}, True, ("raster",), Dihedral(quarter_turns=3)),
        ({"unmasked": 1, "kernel_size": 5, "masking": "standard"}, True, ("raster",), IDENTITY),
        ({"attention": True}, False, ("raster",), Dihedral(flip=True)),
        ({"attention": True}, True, (), IDENTITY),
    ],
)
def test_views_equal_each_image_alone_under_its_ordering_in_value_and_gradient(
    layers: dict[str, Any], crossed: bool, names: tuple[str, ...], transform: Dihedral
) -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig(2, 3, 4, (4, 6), 2, **layers)).double().eval()
    images = torch.randn(8, 2, 16, 16, dtype=torch.float64)
    first, second = draw_orderings(find_orderings(names), "no_rep", rng(), crossed=crossed)
    weights = torch.randn(2, 8, 6, 8, 8, dtype=torch.float64)

    def alone(image: Tensor, ordering: Ordering | None, turned: Dihedral) -> Tensor:
        encoded = network.encode(turned.apply(image[None]))
        return turned.invert(network.features(encoded, turned.carry(ordering) if ordering else None))[0]

    side = len(first)
    groups = np.arange(8).reshape(side, side, -1)
    expected = torch.zeros(2, 8, 6, 8, 8, dtype=torch.float64)
    for row, col in np.ndindex(side, side):
        for index in groups[row, col]:
            expected[0, index] = alone(images[index], first[row], IDENTITY)
            expected[1, index] = alone(images[index], second[col], transform)
    views = torch.stack(view_features(network, images, first, second, transform=transform))
    torch.testing.assert_close(views, expected, atol=1e-11, rtol=1e-11)
    parameters = [*network.extractor.parameters(), *network.masked.parameters()]
    gradients = [torch.autograd.grad((result * weights).sum(), parameters) for result in (views, expected)]
    for together, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(together, apart, atol=1e-9, rtol=1e-9)


def test_a_calibrated_decoder_starts_with_balanced_logits() -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig(3, 6, 16, (16, 16, 16), 2, aux_classes=12, aux_decoders=2)).train()
    images = torch.rand(8, 3, 32, 32)
    calibrate_network(network, images, RASTER_ORDERINGS)
    assert len(network.aux_decoders) == 2
    for decoder in (network.decoder, *network.aux_decoders):
        with torch.no_grad():
            encoded = network.encode(images)
            logits = torch.cat([decoder(network.features(encoded, ordering)) for ordering in RASTER_ORDERINGS])
        torch.testing.assert_close(logits.mean(dim=(0, 2, 3)), torch.zeros(logits.shape[1]), atol=1e-3, rtol=0)
        torch.testing.assert_close(logits.std(dim=(0, 2, 3)), torch.ones(logits.shape[1]), atol=1e-3, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(network.eval().encode(images), network.train().encode(images), atol=1e-2, rtol=1e-2)
