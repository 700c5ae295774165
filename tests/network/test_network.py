import pytest
import torch

from autoreg.errors import ConfigError
from autoreg.network.network import PRESETS, Network, NetworkConfig, network_config, upsample
from autoreg.network.orderings import RASTER_ORDERINGS


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
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_receptive_field_is_exactly_what_the_gradient_reaches(stride: int, kernel_size: int) -> None:
    network = Network(NetworkConfig(2, 3, 4, (4, 6), stride, kernel_size)).double().eval()
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    radius, side = network.receptive_field_px // 2, 96
    reached = 0
    for offset in range(stride):
        image = torch.rand(1, 2, side, side, dtype=torch.float64, requires_grad=True)
        pixel = side // 2 + offset
        # Positive weights: no contribution cancels. Max-pool hides some, hence many images.
        images = image * (1 + torch.rand(16, 2, side, side))
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


def test_the_paper_preset_is_table_7() -> None:
    with torch.device("meta"):
        network = Network(network_config("paper", bands=4, classes=6))
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(53.1e6, rel=0.002)


@pytest.mark.parametrize("size", PRESETS)
def test_every_preset_builds(size: str) -> None:
    with torch.device("meta"):
        assert Network(network_config(size, bands=1, classes=2)).receptive_field_px % 2 == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 1}, "1 clusters .* expected 2 to 255"),
        ({"bands": 0}, "0 bands"),
        ({"stride": 3}, "stride of 3"),
        ({"kernel_size": 4}, "kernel of 4 px"),
        ({"widths": (8, 4)}, "never shrink"),
        ({"widths": ()}, "widths"),
    ],
)
def test_a_wrong_config_is_refused(wrong: dict[str, object], message: str) -> None:
    values = {"bands": 2, "classes": 3, "stem_width": 4, "widths": (4,), "stride": 2, **wrong}
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**values)  # type: ignore[arg-type]
