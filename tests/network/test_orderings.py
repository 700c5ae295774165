import itertools

import pytest
import torch
from torch import Tensor

import naive
from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.orderings import RASTER_ORDERINGS, Ordering

SHAPES = [(6, 7), (9, 4), (1, 5)]
every_ordering = pytest.mark.parametrize("ordering", RASTER_ORDERINGS, ids=str)


def reach(ordering: Ordering, shape: tuple[int, int], kernel_size: int, layers: int) -> Tensor:
    """Which pixels each pixel's output depends on: bool (pixel, seen row, seen col), by pushing one pixel at a time through
    a stack of masked convolutions with positive weights."""
    pixels = shape[0] * shape[1]
    signal = torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *shape)
    for _ in range(layers):
        conv = MaskedConv2d(1, 1, kernel_size).double()
        torch.nn.init.constant_(conv.weight, 1.0)
        torch.nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            signal = conv(signal, ordering)
    return (signal.reshape(pixels, pixels) > 0).T.reshape(pixels, *shape)


def test_there_are_eight_different_orderings() -> None:
    scans = {tuple(naive.scan(ordering, 4, 4)) for ordering in RASTER_ORDERINGS}
    assert len(scans) == len(RASTER_ORDERINGS) == 8


@every_ordering
@pytest.mark.parametrize("shape", SHAPES)
def test_rank_is_when_the_scan_visits_a_pixel(ordering: Ordering, shape: tuple[int, int]) -> None:
    rank = ordering.rank(*shape)
    for position, (row, col) in enumerate(naive.scan(ordering, *shape)):
        assert rank[row, col] == position


@every_ordering
def test_reverse_visits_the_pixels_from_the_last_to_the_first(ordering: Ordering) -> None:
    assert naive.scan(ordering.reverse, 3, 5) == naive.scan(ordering, 3, 5)[::-1]


@every_ordering
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_half_a_row_of_the_kernel_is_masked(ordering: Ordering, kernel_size: int) -> None:
    assert (~ordering.kernel_mask(kernel_size)).sum() == kernel_size // 2


def test_kernels_of_five_have_eight_different_masks() -> None:
    assert len({tuple(ordering.kernel_mask(5).flatten().tolist()) for ordering in RASTER_ORDERINGS}) == 8


@every_ordering
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("layers", [1, 2, 3, 8])
def test_t1_a_pixel_sees_itself_and_no_pixel_that_comes_later(
    ordering: Ordering, shape: tuple[int, int], kernel_size: int, layers: int
) -> None:
    seen = reach(ordering, shape, kernel_size, layers).flatten(1)
    rank = ordering.rank(*shape).flatten()
    assert not (seen & (rank[None, :] > rank[:, None])).any()
    assert seen.diagonal().all()


@every_ordering
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_t2_the_receptive_field_has_its_closed_form(
    ordering: Ordering, shape: tuple[int, int], kernel_size: int, layers: int
) -> None:
    radius = kernel_size // 2
    seen = reach(ordering, shape, kernel_size, layers)
    pixels = list(itertools.product(range(shape[0]), range(shape[1])))
    for index, pixel in enumerate(pixels):
        here = naive.canonical(ordering, *shape, pixel)
        for other in pixels:
            there = naive.canonical(ordering, *shape, other)
            down, right = there[0] - here[0], there[1] - here[1]
            expected = -2 * radius * layers <= down <= 0 and -radius * layers <= right <= radius * min(layers, -down)
            assert seen[index][other] == expected, (pixel, other)


@every_ordering
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_t5_every_ordering_is_the_first_one_turned_and_flipped(ordering: Ordering, kernel_size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(1, 2, 5, 8, generator=generator, dtype=torch.float64)
    conv = MaskedConv2d(2, 3, kernel_size).double()
    turned = MaskedConv2d(2, 3, kernel_size).double()
    turned.load_state_dict({"weight": to_first(conv.weight.detach(), ordering), "bias": conv.bias})
    expected = from_first(turned(to_first(image, ordering), RASTER_ORDERINGS[0]), ordering)
    torch.testing.assert_close(conv(image, ordering), expected, rtol=0, atol=1e-12)


def to_first(x: Tensor, ordering: Ordering) -> Tensor:
    """Turn the frame so that ``ordering`` becomes row by row, down and right."""
    flips = [axis for axis, forward in ((-2, ordering.down), (-1, ordering.right)) if not forward]
    x = x.flip(flips) if flips else x
    return x if ordering.axis == "row" else x.transpose(-2, -1)


def from_first(x: Tensor, ordering: Ordering) -> Tensor:
    x = x if ordering.axis == "row" else x.transpose(-2, -1)
    flips = [axis for axis, forward in ((-2, ordering.down), (-1, ordering.right)) if not forward]
    return x.flip(flips) if flips else x


@every_ordering
def test_masked_taps_get_no_gradient(ordering: Ordering) -> None:
    conv = MaskedConv2d(2, 2, 5)
    conv(torch.randn(1, 2, 6, 6), ordering).square().sum().backward()
    assert conv.weight.grad is not None
    used = (conv.weight.grad != 0).all(dim=0).all(dim=0)
    assert torch.equal(used, ordering.kernel_mask(5))
