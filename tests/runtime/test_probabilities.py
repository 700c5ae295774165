import numpy as np
import pytest
import torch

from autoreg.network.network import upsample
from autoreg.runtime.probabilities import probabilities


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
def test_equal_to_torch(stride: int, shape: tuple[int, int]) -> None:
    logits = 3 * torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(0))
    expected = upsample(logits, stride).softmax(dim=1)
    np.testing.assert_allclose(probabilities(logits.numpy(), stride), expected.numpy(), atol=1e-6)
