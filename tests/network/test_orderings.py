import itertools

import pytest
import torch
from torch import Tensor

import naive
from autoreg.errors import ConfigError
from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.orderings import (
    MASKINGS,
    ORDERINGS,
    RASTER_ORDERINGS,
    ZIGZAG_ORDERINGS,
    Masking,
    Ordering,
    find_orderings,
    scan,
)

SHAPES = [(6, 7), (9, 4), (1, 5)]
every_ordering = pytest.mark.parametrize("ordering", ORDERINGS, ids=str)
every_raster = pytest.mark.parametrize("ordering", RASTER_ORDERINGS, ids=str)


def reach(ordering: Ordering, shape: tuple[int, int], kernel_size: int, layers: int, masking: Masking = "shifted") -> Tensor:
    """Which pixels each pixel's output depends on: bool (pixel, seen row, seen col), by pushing one pixel at a time through
    a stack of masked convolutions with positive weights."""
    pixels = shape[0] * shape[1]
    signal = torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *shape)
    conv = MaskedConv2d(1, 1, kernel_size, masking=masking).double()
    torch.nn.init.constant_(conv.weight, 1.0)
    torch.nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(layers):
            signal = conv(signal, ordering)
    return (signal.reshape(pixels, pixels) > 0).T.reshape(pixels, *shape)


def test_there_are_sixteen_different_orderings() -> None:
    scans = {tuple(naive.scan(ordering, 4, 4)) for ordering in ORDERINGS}
    assert len(scans) == len(ORDERINGS) == 16
    assert len(RASTER_ORDERINGS) == len(ZIGZAG_ORDERINGS) == 8


def test_orderings_are_found_by_group_name_and_number() -> None:
    assert find_orderings(["raster", "zigzag"]) == ORDERINGS
    assert find_orderings(["o1", "row-down-right", "o9"]) == (RASTER_ORDERINGS[0], ZIGZAG_ORDERINGS[0])
    assert find_orderings(str(ordering) for ordering in ORDERINGS) == ORDERINGS
    assert find_orderings([]) == ()
    with pytest.raises(ConfigError, match="there is no ordering 'spiral', expected raster, zigzag, o1 to o16, or a name"):
        find_orderings(["spiral"])


@every_ordering
def test_a_twin_visits_the_same_lines_in_the_same_sequence(ordering: Ordering) -> None:
    def lines(scan: list[tuple[int, int]]) -> list[set[tuple[int, int]]]:
        lengths = [1, 2, 3, 4, 3, 2, 1] if ordering.kind == "zigzag" else [4] * 4
        ends = list(itertools.accumulate(lengths, initial=0))
        return [set(scan[start:end]) for start, end in itertools.pairwise(ends)]

    first, second = naive.scan(ordering, 4, 4), naive.scan(ordering.twin, 4, 4)
    assert first != second
    assert lines(first) == lines(second)
    assert ordering.twin.twin == ordering


@every_ordering
def test_scan_and_rank_are_inverse(ordering: Ordering) -> None:
    visited, rank = scan(ordering, 3, 5, torch.device("cpu"))
    assert [(index // 5, index % 5) for index in visited.tolist()] == naive.scan(ordering, 3, 5)
    assert torch.equal(visited[rank], torch.arange(15))


@every_ordering
@pytest.mark.parametrize("shape", SHAPES)
def test_rank_is_when_the_scan_visits_a_pixel(ordering: Ordering, shape: tuple[int, int]) -> None:
    rank = ordering.rank(*shape)
    for position, (row, col) in enumerate(naive.scan(ordering, *shape)):
        assert rank[row, col] == position


@every_ordering
def test_reverse_visits_the_pixels_from_the_last_to_the_first(ordering: Ordering) -> None:
    assert naive.scan(ordering.reverse, 3, 5) == naive.scan(ordering, 3, 5)[::-1]


@every_raster
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_half_a_row_of_the_kernel_is_masked(ordering: Ordering, kernel_size: int) -> None:
    assert (~ordering.kernel_mask(kernel_size)).sum() == kernel_size // 2


@every_ordering
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_the_other_maskings_hide_half_of_the_kernel(ordering: Ordering, kernel_size: int) -> None:
    hidden = {masking: int((~ordering.kernel_mask(kernel_size, masking)).sum()) for masking in MASKINGS}
    assert hidden["relaxed"] == kernel_size**2 // 2
    assert hidden["standard"] == hidden["relaxed"] + 1


def test_with_kernels_of_three_a_raster_scan_and_its_zigzag_share_their_masks() -> None:
    for raster, zigzag in zip(RASTER_ORDERINGS, ZIGZAG_ORDERINGS, strict=True):
        assert torch.equal(raster.kernel_mask(3), zigzag.kernel_mask(3))
        assert (~zigzag.kernel_mask(5)).sum() == 3


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
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_t1_the_other_maskings_keep_the_order_too(ordering: Ordering, kernel_size: int) -> None:
    rank = ordering.rank(6, 7).flatten()
    for layers in (1, 3):
        relaxed, standard = (
            reach(ordering, (6, 7), kernel_size, layers, masking).flatten(1) for masking in ("relaxed", "standard")
        )
        assert not (relaxed & (rank[None, :] > rank[:, None])).any()
        assert relaxed.diagonal().all()
        assert not (standard & (rank[None, :] >= rank[:, None])).any()


def test_t4_the_orderings_together_see_more_than_the_unmasked_network() -> None:
    centre = 10 * 21 + 10
    fields = torch.stack([reach(ordering, (21, 21), 3, 5)[centre] for ordering in RASTER_ORDERINGS])
    assert fields.flatten(1).sum(dim=1).tolist() == [106] * 8
    union = fields.any(dim=0)
    assert union.sum() == 341
    assert union[5:16, 5:16].all()  # what five unmasked convolutions see


@every_ordering
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_strided_convolution_keeps_the_order_of_the_blocks(ordering: Ordering, kernel_size: int) -> None:
    height, width, stride = 8, 6, 2
    conv = MaskedConv2d(1, 1, kernel_size, stride=stride).double()
    torch.nn.init.constant_(conv.weight, 1.0)
    image = torch.zeros(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    cells = conv(image, ordering)
    assert cells.shape == (1, 1, height // stride, width // stride)
    rank, cell_rank = ordering.rank(height, width), ordering.rank(height // stride, width // stride)
    for row, col in itertools.product(range(height // stride), range(width // stride)):
        (gradient,) = torch.autograd.grad(cells[0, 0, row, col], image, retain_graph=True)
        seen = gradient[0, 0] > 0
        block = rank[row * stride : (row + 1) * stride, col * stride : (col + 1) * stride]
        assert not (seen & (rank > block.min())).any()
        blocks = torch.nn.functional.max_pool2d(seen[None, None].double(), stride)[0, 0] > 0
        assert not (blocks & (cell_rank > cell_rank[row, col])).any()
        assert blocks[row, col]


@every_raster
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_t2_the_receptive_field_has_its_closed_form(
    ordering: Ordering, shape: tuple[int, int], kernel_size: int, layers: int
) -> None:
    radius = kernel_size // 2
    seen = reach(ordering, shape, kernel_size, layers).numpy()
    pixels = list(itertools.product(range(shape[0]), range(shape[1])))
    for index, pixel in enumerate(pixels):
        here = naive.canonical(ordering, *shape, pixel)
        for other in pixels:
            there = naive.canonical(ordering, *shape, other)
            down, right = there[0] - here[0], there[1] - here[1]
            expected = -2 * radius * layers <= down <= 0 and -radius * layers <= right <= radius * min(layers, -down)
            assert seen[index][other] == expected, (pixel, other)


@every_raster
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
