"""The autoregressive clustering loss (paper, section 3.2, eq. 12): mutual information between two views' predictions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MutualInformation:
    """What one joint distribution of clusters says, in nats; scalar tensors in float64 that carry the gradient.

    Attributes:
        value: I(y; z), between 0 and log K.
        entropy_y: H(y), how evenly the first view uses the clusters, at most log K.
        entropy_z: H(z), likewise for the second view.
    """

    value: Tensor
    entropy_y: Tensor
    entropy_z: Tensor

    def objective(self, entropy_weight: float) -> Tensor:
        """What training maximises: the mutual information with both marginal entropies weighted (IIC's lambda).

        1 is the paper's eq. 12; more draws the clusters towards even use, out of optima that leave some of them empty.
        """
        return self.value + (entropy_weight - 1) * (self.entropy_y + self.entropy_z)


def _box_sum(probs: Tensor, radius: int) -> Tensor:
    """Sum of ``probs`` (..., H, W) over the (2 radius + 1)^2 square around each pixel, zero outside.

    Two products with banded 0/1 matrices: on a CPU the fastest of the exact forms.
    """

    def band(size: int) -> Tensor:
        index = torch.arange(size, device=probs.device)
        return ((index[:, None] - index[None, :]).abs() <= radius).to(probs.dtype)

    return band(probs.shape[-2]) @ probs @ band(probs.shape[-1])


def joint_distribution(probs_y: Tensor, probs_z: Tensor, displacement_px: int) -> Tensor:
    """How often cluster a at a pixel meets cluster b within ``displacement_px`` of it, over all images: float64 (K, K).

    This is the sum over displacements u in [-T, T]^2 of sum_l y_l z_{l+u}^T, eq. 12 before its normalisation. Because the
    sum over u is linear in z, it equals one product of y with the box-filtered z: O(K^2 N H W), whatever T is.

    Args:
        probs_y: probabilities of the first view, (N, K, H, W).
        probs_z: probabilities of the second view, same shape. A pixel to leave out is all zeros in both.
        displacement_px: T; the paper's "10 displacements" (Table 8) is T = 10.
    """
    spread = _box_sum(probs_z, displacement_px)
    # One K x K product per image in the input's type, their sum in float64: the MI is a small difference of large terms.
    return torch.einsum("nkhw,nlhw->nkl", probs_y, spread).double().sum(0)


def mutual_information(joint: Tensor) -> MutualInformation:
    """Mutual information of a joint distribution: non-negative weights (K, K) of any positive sum, computed in float64."""
    joint = joint.double()
    joint = joint / joint.sum().clamp_min(torch.finfo(torch.float64).tiny)
    entropy_y, entropy_z, entropy_joint = (_entropy(p) for p in (joint.sum(1), joint.sum(0), joint))
    return MutualInformation(entropy_y + entropy_z - entropy_joint, entropy_y, entropy_z)


def _entropy(distribution: Tensor) -> Tensor:
    positive = distribution.clamp_min(torch.finfo(torch.float64).tiny)  # 0 log 0 = 0, with gradient zero
    return -(positive * positive.log()).sum()
