import itertools

import pytest
import torch
from torch import Tensor

from autoreg.network.attention import MaskedAttention, attend
from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.orderings import ORDERINGS, Ordering

every_ordering = pytest.mark.parametrize("ordering", ORDERINGS, ids=str)


def dense(query: Tensor, key: Tensor, value: Tensor, ordering: Ordering | None, height: int, width: int) -> Tensor:
    """Attention with the whole mask of eq. 2, minus infinity where it is 0."""
    scores: Tensor = query @ key.mT / query.shape[-1] ** 0.5
    if ordering:
        rank = ordering.rank(height, width).flatten()
        scores = scores.masked_fill(rank[None, :] > rank[:, None], -torch.inf)
    return scores.softmax(dim=-1) @ value


@pytest.mark.parametrize("ordering", [None, *ORDERINGS], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (1, 9), (6, 6)])
def test_it_equals_attention_with_a_dense_mask(ordering: Ordering | None, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 2, shape[0] * shape[1], 8, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.randn(2, shape[0] * shape[1], 8, generator=generator, dtype=torch.float64)
    results, gradients = [], []
    for form in (attend, dense):
        result = form(tokens[0], tokens[1], tokens[2], ordering, *shape)
        results.append(result)
        gradients.append(torch.autograd.grad((result * weights).sum(), tokens)[0])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@every_ordering
def test_a_pixel_attends_to_itself_and_its_past_alone(ordering: Ordering) -> None:
    torch.manual_seed(0)
    block = MaskedAttention(4).double()
    image = torch.randn(1, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    result = block(image, ordering)
    assert result.shape == image.shape
    rank = ordering.rank(4, 5)
    for row, col in itertools.product(range(4), range(5)):
        (gradient,) = torch.autograd.grad(result[0, :, row, col].sum(), image, retain_graph=True)
        assert torch.equal(gradient[0].abs().sum(dim=0) > 0, rank <= rank[row, col])


@every_ordering
def test_t3_convolution_attention_convolution_sees_exactly_what_is_allowed(ordering: Ordering) -> None:
    torch.manual_seed(1)
    height, width = 6, 7
    first, second = MaskedConv2d(1, 4, 3).double(), MaskedConv2d(4, 1, 3).double()
    attention = MaskedAttention(4).double()
    for parameter in (*first.parameters(), *second.parameters(), *attention.parameters()):
        torch.nn.init.uniform_(parameter, 0.1, 1.0)
    image = torch.rand(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    result = second(attention(first(image, ordering), ordering), ordering)
    rank = ordering.rank(height, width)
    for row, col in itertools.product(range(height), range(width)):
        (gradient,) = torch.autograd.grad(result[0, 0, row, col], image, retain_graph=True)
        assert torch.equal(gradient[0, 0] != 0, rank <= rank[row, col]), (row, col)


def test_without_ordering_everyone_sees_everyone() -> None:
    block = MaskedAttention(4)
    image = torch.randn(1, 4, 3, 3, requires_grad=True)
    block(image, None)[0, :, 0, 0].sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().sum(dim=1) > 0).all()
