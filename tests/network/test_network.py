import itertools
from typing import Any

import pytest
import torch
from torch import nn

from autoreg.errors import ConfigError
from autoreg.network.blocks import DenseSift
from autoreg.network.config import SIZES, VARIANTS, NetworkConfig, Size, network_config
from autoreg.network.network import Network, measure_extractor, upsample
from autoreg.network.orderings import ORDERINGS, RASTER_ORDERINGS, Ordering


def small(stride: int, classes: int = 3) -> NetworkConfig:
    return NetworkConfig(bands=2, classes=classes, stem_width=4, widths=(4, 6), stride=stride)


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("ordering", [None, *RASTER_ORDERINGS], ids=str)
def test_logits_come_at_feature_resolution(stride: int, ordering: object) -> None:
    network = Network(small(stride)).eval()
    logits = network(torch.randn(2, 2, 16, 24), ordering)
    assert logits.shape == (2, 3, 16 // stride, 24 // stride)
    assert upsample(logits, stride).shape == (2, 3, 16, 24)


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize(("variant", "kernel_size"), [("F1", 3), ("F2", 3), ("F2", 5), ("F3", 3), ("F4", 3), ("F5", 3)])
def test_receptive_field_is_exactly_what_the_gradient_reaches(stride: int, variant: str, kernel_size: int) -> None:
    torch.manual_seed(0)
    size = Size(4, 2, "constant", 4, stride)
    config = network_config(variant, size, bands=2, classes=3, kernel_size=kernel_size)
    network = Network(config).double().eval()
    assert network.receptive_field_px
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    radius, side = network.receptive_field_px // 2, 96 if variant != "F5" else 552
    reached = 0
    for offset in range(stride):
        image = torch.rand(1, 2, side, side, dtype=torch.float64, requires_grad=True)
        pixel = side // 2 + offset
        # Positive weights: no contribution cancels. Max-pool hides some, hence many images.
        images = image * (1 + torch.rand(64 if variant != "F5" else 1, 2, side, side))
        upsample(network(images), stride)[:, :, pixel, pixel].sum().backward()  # type: ignore[no-untyped-call]
        assert image.grad is not None
        rows = image.grad[0].abs().sum(dim=(0, 2)).nonzero().flatten()
        reached = max(reached, pixel - int(rows.min()), int(rows.max()) - pixel)
    assert reached == radius


def test_normalisation_is_the_first_operation() -> None:
    network = Network(small(2)).eval()
    image = torch.rand(1, 2, 8, 8)
    expected = network(image)
    network.mean.copy_(torch.tensor([100.0, -3.0]))
    network.std.copy_(torch.tensor([20.0, 0.5]))
    raw = image * network.std[:, None, None] + network.mean[:, None, None]
    torch.testing.assert_close(network(raw), expected, atol=1e-5, rtol=0)


def test_the_paper_size_is_table_7() -> None:
    with torch.device("meta"):
        network = Network(network_config("F2", SIZES["paper"], bands=4, classes=6))
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(53.1e6, rel=0.002)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_every_size_builds(variant: str, size: str) -> None:
    with torch.device("meta"):
        network = Network(network_config(variant, SIZES[size], bands=1, classes=2))
    assert network.receptive_field_px is not None
    assert network.receptive_field_px % 2 == 1


def test_widths_double_up_to_a_cap_or_stay() -> None:
    double = SIZES["paper"]
    assert double.widths(5) == (128, 256, 512, 1024, 2048)
    assert double._replace(max_width=512).widths(5) == (128, 256, 512, 512, 512)
    assert double._replace(growth="constant").widths(3) == (64, 64, 64)


def test_the_variants_share_out_the_blocks_as_table_1a_has_it() -> None:
    size = SIZES["paper"]
    layers = {variant: network_config(variant, size, bands=4, classes=6) for variant in VARIANTS}
    shares = {variant: (config.extractor, config.unmasked, config.masked) for variant, config in layers.items()}
    assert shares["F1"] == ("identity", 0, 5)
    assert shares["F2"] == ("stem", 0, 5)
    assert shares["F3"] == ("stem", 1, 4)
    assert shares["F4"] == ("stem", 5, 0)
    assert shares["F5"] == ("resnet18", 4, 0)
    assert layers["F5"].widths == (64, 128, 256, 512)


def variant_config(variant: str, **options: Any) -> NetworkConfig:
    return network_config(variant, Size(4, 5, "double", 8, 2), bands=2, classes=3, **options)


@pytest.mark.parametrize("ordering", ORDERINGS, ids=str)
@pytest.mark.parametrize(("variant", "reach"), [("F1", 0), ("F2", 2), ("F3", 4)])
@pytest.mark.parametrize("attention", [False, True])
def test_t6_a_cell_sees_its_past_and_what_h_looks_around(
    variant: str, reach: int, attention: bool, ordering: Ordering
) -> None:
    torch.manual_seed(0)
    network = Network(variant_config(variant, attention=attention)).double().eval()
    for parameter in network.parameters():  # positive: nothing dies and nothing cancels
        torch.nn.init.uniform_(parameter, 0.05, 0.2)
    # One copy of the image for each cell, so that one backward pass gives the gradients of all cells apart.
    images = torch.rand(1, 2, 12, 16, dtype=torch.float64).repeat(48, 1, 1, 1).requires_grad_()
    logits = network(images, ordering).unflatten(0, (6, 8))
    rank = ordering.rank(6, 8)
    pixels = list(itertools.product(range(6), range(8)))
    (gradients,) = torch.autograd.grad(sum(logits[row, col, :, row, col].sum() for row, col in pixels), images)
    for (row, col), gradient in zip(pixels, gradients, strict=True):
        seen = (gradient != 0).any(dim=0)
        past = (rank <= rank[row, col]).double()[None, None].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        allowed = torch.nn.functional.max_pool2d(past, 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
        assert not (seen & ~allowed).any()
        assert seen.any()


def test_f1_sees_pixels_in_their_order_inside_a_block_too() -> None:
    network = Network(variant_config("F1")).double().eval()
    for ordering in ORDERINGS:
        image = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
        logits, rank = network(image, ordering), ordering.rank(8, 8)
        for row, col in itertools.product(range(4), range(4)):
            (gradient,) = torch.autograd.grad(logits[0, :, row, col].sum(), image, retain_graph=True)
            first = rank[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].min()
            assert not ((gradient[0] != 0).any(dim=0) & (rank > first)).any()


def test_dropout_works_in_training_alone() -> None:
    network = Network(variant_config("F2", dropout=0.5))
    image = torch.randn(1, 2, 16, 16)
    assert not torch.equal(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


def test_a_backbone_of_the_user_stands_in_the_place_of_the_stem() -> None:
    backbone = nn.Sequential(nn.Conv2d(2, 8, 4, stride=4), nn.ReLU())
    assert measure_extractor(backbone, 2) == (8, 4)
    config = network_config("F2", Size(8, 2, "constant", 8, 4), bands=2, classes=3, custom=True)
    weights = backbone[0].weight.clone()  # type: ignore[operator]
    network = Network(config, backbone)
    assert torch.equal(network.extractor[0][0].weight, weights)  # type: ignore[index]
    assert network(torch.randn(1, 2, 32, 32), ORDERINGS[0]).shape == (1, 3, 8, 8)
    assert network.receptive_field_px is None
    with pytest.raises(ConfigError, match="backbone of its own"):
        Network(config)
    with pytest.raises(ConfigError, match="a backbone was given, but the network has the extractor stem"):
        Network(small(2), backbone)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Flatten(), "gives shape .*, expected a feature map"),
        (nn.Conv2d(7, 8, 1), "failed on an image of 2 bands"),
        (nn.Conv2d(2, 8, 3, stride=3), "expected a stride of 1, 2, 4"),
    ],
)
def test_what_is_no_backbone_is_refused(backbone: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_extractor(backbone, 2)


def test_dense_sift_describes_an_edge_by_its_direction() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16:] = 1.0
    sift = DenseSift()
    descriptor = sift(image)[0, :, 8, 8].reshape(16, 8)
    assert sift(image).shape == (1, 128, 16, 16)
    torch.testing.assert_close(sift(image).square().sum(dim=1)[0, 8, 8], torch.tensor(1.0))
    assert descriptor.sum(dim=0).argmax() == 0  # the gradient points along the columns
    turned = sift(torch.rot90(image, 1, (-2, -1)))[0, :, 8, 8].reshape(16, 8)
    assert turned.sum(dim=0).argmax() == 6  # and now upwards
    torch.testing.assert_close(sift(image), sift(3 * image), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 1}, "1 clusters .* expected 2 to 255"),
        ({"bands": 0}, "0 bands"),
        ({"stride": 3}, "stride of 3"),
        ({"kernel_size": 4}, "kernel of 4 px"),
        ({"widths": (8, 4)}, "never shrink"),
        ({"widths": ()}, "widths"),
        ({"masking": "odd"}, "masking is 'odd', expected one of shifted, relaxed, standard"),
        ({"extractor": "odd"}, "extractor is 'odd', expected one of stem"),
        ({"unmasked": 1, "attention": True}, "this network has none"),
        ({"dropout": 1.0}, "dropout of 1.0"),
        ({"aux_classes": 1}, "1 auxiliary clusters"),
        ({"aux_classes": 8, "aux_decoders": 0}, "0 auxiliary decoders"),
    ],
)
def test_a_wrong_config_is_refused(wrong: dict[str, object], message: str) -> None:
    values = {"bands": 2, "classes": 3, "stem_width": 4, "widths": (4,), "stride": 2, **wrong}
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**values)  # type: ignore[arg-type]
