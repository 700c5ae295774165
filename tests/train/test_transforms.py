import itertools

import numpy as np
import pytest
import torch

import naive
from autoreg.errors import ConfigError
from autoreg.network.config import NetworkConfig
from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.network import Network, upsample
from autoreg.network.orderings import ORDERINGS, RASTER_ORDERINGS, Ordering
from autoreg.train.transforms import Dihedral, draw_dihedral, find_rgb, jitter_colours
from autoreg.train.views import draw_orderings, view_features

SYMMETRIES = [Dihedral(flip, turns) for flip, turns in itertools.product((False, True), range(4))]
every_symmetry = pytest.mark.parametrize("transform", SYMMETRIES, ids=str)


@every_symmetry
def test_the_inverse_is_exact(transform: Dihedral) -> None:
    image = torch.arange(2 * 3 * 5.0).reshape(2, 3, 5)
    assert torch.equal(transform.invert(transform.apply(image)), image)


def test_the_symmetries_are_eight() -> None:
    image = torch.arange(9.0).reshape(3, 3)
    assert len({tuple(transform.apply(image).flatten().tolist()) for transform in SYMMETRIES}) == 8


@every_symmetry
@pytest.mark.parametrize("ordering", ORDERINGS, ids=str)
def test_a_carried_ordering_visits_the_same_pixels_in_the_same_sequence(transform: Dihedral, ordering: Ordering) -> None:
    pixels = torch.arange(5 * 7).reshape(5, 7)
    turned = transform.apply(pixels)
    expected = [int(pixels[place]) for place in naive.scan(ordering, 5, 7)]
    assert [int(turned[place]) for place in naive.scan(transform.carry(ordering), *turned.shape)] == expected


@every_symmetry
@pytest.mark.parametrize("ordering", ORDERINGS, ids=str)
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_with_a_turned_kernel_a_turned_image_gives_the_same(
    transform: Dihedral, ordering: Ordering, kernel_size: int
) -> None:
    image = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    conv, turned = MaskedConv2d(2, 3, kernel_size).double(), MaskedConv2d(2, 3, kernel_size).double()
    assert conv.bias is not None
    turned.load_state_dict({"weight": transform.apply(conv.weight.detach()), "bias": conv.bias.detach()})
    result = transform.invert(turned(transform.apply(image), transform.carry(ordering)))
    torch.testing.assert_close(result, conv(image, ordering), rtol=0, atol=1e-12)


@every_symmetry
def test_the_views_lie_pixel_on_pixel(transform: Dihedral) -> None:
    """A network that looks at one pixel only predicts the same whichever way the image is turned."""
    network = Network(NetworkConfig(1, 3, 4, (4,), 2, kernel_size=1)).eval()
    with torch.no_grad():
        mask = torch.zeros(3, 3)
        mask[1, 1] = 1
        network.extractor[0].conv.conv.weight.mul_(mask)  # type: ignore[union-attr, operator]
    blocks = torch.rand(4, 1, 4, 4).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    first, second = draw_orderings(RASTER_ORDERINGS, "no_rep", np.random.default_rng(0))
    features = view_features(network, blocks, first, second, transform=transform)
    view_y, view_z = (upsample(network.decoder(view), 2).softmax(dim=1) for view in features)
    # Away from the borders of the blocks, where the pooling and the upsampling see a neighbour.
    inner = torch.zeros(8, dtype=torch.bool)
    inner[3:5] = True
    inner = inner.repeat(4)
    torch.testing.assert_close(view_y[:, :, inner][..., inner], view_z[:, :, inner][..., inner], atol=1e-6, rtol=0)


def test_drawing_respects_what_is_allowed() -> None:
    rng = np.random.default_rng(0)
    for flip, rotate in itertools.product((False, True), repeat=2):
        drawn = {draw_dihedral(rng, flip=flip, rotate=rotate) for _ in range(200)}
        assert len(drawn) == (2 if flip else 1) * (4 if rotate else 1)


def test_jitter_changes_colours_within_its_strength_and_nothing_else() -> None:
    images = 50 + 100 * torch.rand(6, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    rgb = (2, 1, 0)
    changed = jitter_colours(images, rgb, 0.1, np.random.default_rng(0))
    assert torch.equal(changed[:, 3:], images[:, 3:])
    luma = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
    before, after = ((luma * image[:, rgb]).sum(dim=1).mean(dim=(1, 2)) for image in (images, changed))
    assert ((after / before - 1).abs() <= 0.101).all()
    assert len({round(value, 4) for value in (after / before).tolist()}) == 6  # each image for itself
    assert torch.equal(
        jitter_colours(images, rgb, 0.0, np.random.default_rng(0)).round(decimals=2), images.round(decimals=2)
    )


def test_grey_stays_grey_whatever_the_hue() -> None:
    images = torch.full((4, 3, 8, 8), 80.0)
    changed = jitter_colours(images, (0, 1, 2), 0.5, np.random.default_rng(1))
    assert (changed.amax(dim=1) - changed.amin(dim=1)).max() < 0.1


def test_bands_without_names_are_refused() -> None:
    assert find_rgb(("nir", "Red", "green", "blue")) == (1, 2, 3)
    with pytest.raises(ConfigError, match="rasters have band1, band2, band3; name them"):
        find_rgb(("band1", "band2", "band3"))
