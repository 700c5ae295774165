import numpy as np
import pytest
import torch
from torch import Tensor

from autoreg.network.network import Network, NetworkConfig, upsample
from autoreg.network.orderings import RASTER_ORDERINGS, Ordering
from autoreg.train.losses import joint_distribution, joint_per_displacement, mutual_information
from autoreg.train.views import calibrate_decoder, draw_orderings, predict_crossed, predict_views


@pytest.mark.parametrize("seed", range(20))
def test_predictions_that_depend_on_the_ordering_alone_score_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    answers = {ordering: (9 * torch.randn(5, generator=generator)).softmax(dim=0) for ordering in RASTER_ORDERINGS}

    def predict(images: Tensor, ordering: Ordering) -> Tensor:
        return answers[ordering][None, :, None, None].expand(len(images), 5, 32, 32)

    first, second = draw_orderings(np.random.default_rng(seed))
    images = torch.zeros(16, 1)
    views = predict_crossed(predict, images, first, 0), predict_crossed(predict, images, second, 1)
    for joint in (joint_distribution, joint_per_displacement):
        assert abs(mutual_information(joint(*views, 5)).value.item()) <= 1e-6


def test_the_shortcut_that_this_guards_against_pays_in_the_symmetrised_loss() -> None:
    first, second = (torch.eye(2)[answer][None, :, None, None].expand(4, 2, 16, 16) for answer in (0, 1))
    joint = joint_distribution(first, second, 5)
    assert mutual_information(joint + joint.T).value.item() == pytest.approx(np.log(2))
    assert mutual_information(joint).value.item() == pytest.approx(0)


def test_crossing_gives_every_pair_the_same_number_of_images_in_their_order() -> None:
    first, second = draw_orderings(np.random.default_rng(1))
    assert len({*first, *second}) == 4
    number = {ordering: index for index, ordering in enumerate(RASTER_ORDERINGS)}

    def predict(images: Tensor, ordering: Ordering) -> Tensor:
        return torch.stack([images[:, 0], torch.full((len(images),), float(number[ordering]))], dim=1)

    images = torch.arange(12.0)[:, None]
    view_y, view_z = (predict_crossed(predict, images, orderings, axis) for axis, orderings in enumerate((first, second)))
    assert view_y[:, 0].tolist() == view_z[:, 0].tolist() == list(range(12))
    pairs = list(zip(view_y[:, 1].tolist(), view_z[:, 1].tolist(), strict=True))
    assert sorted(pairs.count(pair) for pair in set(pairs)) == [3, 3, 3, 3]
    assert set(pairs) == {(number[a], number[b]) for a in first for b in second}


def test_views_are_the_network_under_their_orderings() -> None:
    network = Network(NetworkConfig(2, 3, 4, (4,), 2)).eval()
    images = torch.randn(4, 2, 16, 16)
    first, second = draw_orderings(np.random.default_rng(0))
    view_y, view_z = predict_views(network, images, first, second)
    assert view_y.shape == view_z.shape == (4, 3, 16, 16)
    for index in range(4):
        for view, ordering in ((view_y, first[index // 2]), (view_z, second[index % 2])):
            alone = upsample(network(images[index : index + 1], ordering), 2).softmax(dim=1)[0]
            torch.testing.assert_close(view[index], alone, atol=1e-6, rtol=1e-5)


def test_a_calibrated_decoder_starts_with_balanced_logits() -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig(3, 6, 16, (16, 16, 16), 2)).train()
    images = torch.rand(8, 3, 32, 32)
    calibrate_decoder(network, images)
    with torch.no_grad():
        logits = torch.cat([network(images, ordering) for ordering in RASTER_ORDERINGS])
    torch.testing.assert_close(logits.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(logits.std(dim=(0, 2, 3)), torch.ones(6), atol=1e-3, rtol=0)
