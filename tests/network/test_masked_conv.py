import itertools

import pytest
import torch
from torch.nn import functional

from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.orderings import MASKINGS, ORDERINGS, RASTER_ORDERINGS, Masking, Ordering, by_group


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2)])
def test_it_is_the_whole_kernel_times_its_mask_on_the_padded_image(kernel_size: int, stride: int, masking: Masking) -> None:
    """Whatever taps and zeros are left out of the computation."""
    torch.manual_seed(0)
    conv = MaskedConv2d(2, 3, kernel_size, stride=stride, masking=masking).double()
    image = torch.randn(2, 2, 6, 8, dtype=torch.float64, requires_grad=True)
    for ordering in ORDERINGS:
        left, right, top, bottom = ordering.padding(kernel_size, masking)
        row, col = ordering.anchor(stride)
        padded = functional.pad(image, (left - col, right, top - row, bottom))
        expected = functional.conv2d(padded, conv.weight * ordering.kernel_mask(kernel_size, masking), conv.bias, stride)
        result = conv(image, ordering)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
        inputs = (image, conv.weight)
        gradients = [torch.autograd.grad(each.square().sum(), inputs) for each in (result, expected)]
        for fast, plain in zip(*gradients, strict=True):
            torch.testing.assert_close(fast, plain, rtol=0, atol=1e-11)


@pytest.mark.parametrize("masking", ["relaxed", "standard"])
def test_rows_and_columns_of_masked_taps_are_not_computed(masking: Masking) -> None:
    for ordering in RASTER_ORDERINGS:
        rows, cols, _ = MaskedConv2d(1, 1, 3, masking=masking)._windows[ordering]
        assert (rows.stop - rows.start) * (cols.stop - cols.start) == 6


def test_groups_are_looked_at_under_their_orderings_and_neighbours_together() -> None:
    calls: list[tuple[int, Ordering | None]] = []

    def look(x: torch.Tensor, ordering: Ordering | None) -> torch.Tensor:
        calls.append((len(x), ordering))
        return x + 0

    first, second = RASTER_ORDERINGS[:2]
    batch = torch.arange(12.0)
    for orderings, expected in (
        (None, [(12, None)]),
        (first, [(12, first)]),
        ([first] * 3, [(12, first)]),
        ([first, second, second, None], [(3, first), (6, second), (3, None)]),
    ):
        calls.clear()
        assert torch.equal(by_group(look, orderings, batch), batch)
        assert calls == expected


def test_a_batch_of_groups_is_each_group_alone() -> None:
    torch.manual_seed(0)
    conv = MaskedConv2d(2, 3, 3).double()
    batch = torch.randn(8, 2, 5, 7, dtype=torch.float64)
    for orderings in itertools.islice(itertools.permutations([None, *ORDERINGS], 4), 0, None, 997):
        apart = torch.cat([conv(part, ordering) for part, ordering in zip(batch.chunk(4), orderings, strict=True)])
        assert torch.equal(conv(batch, orderings), apart)
