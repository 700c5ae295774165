import math

import pytest
import torch

import naive
from autoreg.train import infonce
from autoreg.train.infonce import Critic, info_nce


def cells(images: int, count: int, of: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(of, generator=generator)[:count] for _ in range(images)])


@pytest.mark.parametrize("displacement", [0, 1, 2])
@pytest.mark.parametrize("chunk", [3, 2**22])
def test_it_equals_its_definition_whatever_the_chunks(
    displacement: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infonce, "_SCORES_AT_ONCE", chunk)
    phi = torch.randn(2, 3, 6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    anchors, negatives = cells(3, 7, 12, 1), cells(3, 12, 12, 2)
    value = info_nce(phi[0], phi[1], anchors, negatives, displacement=displacement)
    expected = naive.info_nce(phi[0], phi[1], anchors, negatives, displacement, 1 / math.sqrt(6))
    assert abs(value.item() - expected.item()) < 1e-13
    gradients = [torch.autograd.grad(result, phi)[0] for result in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-15)


def test_it_is_bounded_by_the_number_of_pairs_and_nothing_for_constants() -> None:
    anchors = cells(4, 16, 16, 0)
    constant = torch.ones(4, 8, 4, 4, dtype=torch.float64)
    assert info_nce(constant, constant, anchors, anchors, displacement=1).item() == pytest.approx(0)
    # Each image its own direction: a positive is always told from the negatives.
    own = 50 * torch.eye(4, dtype=torch.float64)[:, :, None, None].expand(4, 4, 4, 4)
    assert info_nce(own, own, anchors, anchors, displacement=1).item() == pytest.approx(math.log(1 + 3 * 16))


def test_the_critic_has_the_layers_of_table_6() -> None:
    critic = Critic(5)
    assert critic(torch.randn(2, 5, 3, 4)).shape == (2, 10, 3, 4)
    assert sum(parameter.numel() for parameter in critic.parameters()) == (5 * 10 + 10) * 2 + 10 * 10 + 10 + 20
