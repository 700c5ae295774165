"""The autoregressive clustering loss (paper, section 3.2, eq. 12): mutual information between two views' predictions."""

from dataclasses import dataclass
from functools import reduce

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from autoreg.train.precision import full_precision

_NEGLIGIBLE = 1e-30
_MOST_PRODUCTS = 2**26
"""Most values in the joint distributions of single images that are in memory at once: 256 MiB, and twice that in float64."""


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


def widen_logits(logits: Tensor) -> Tensor:
    """Logits to take probabilities of: in float32 at least, whatever the network computes in.

    Their gradients below 1e-30 become zero. Saturated probabilities have such gradients, which move no weight, but with
    numbers below 1e-38 a processor's convolutions take up to several times as long.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.requires_grad:
        logits.register_hook(lambda gradient: gradient.where(gradient.abs() >= _NEGLIGIBLE, 0.0))  # type: ignore[no-untyped-call]
    return logits


def _box_sum(probs: Tensor, radius: int) -> Tensor:
    """Sum of ``probs`` (..., H, W) over the (2 radius + 1)^2 square around each pixel, zero outside.

    Two products with banded 0/1 matrices: on a CPU the fastest of the exact forms.
    """

    def band(size: int) -> Tensor:
        index = torch.arange(size, device=probs.device)
        return ((index[:, None] - index[None, :]).abs() <= radius).to(probs.dtype)

    return band(probs.shape[-2]) @ probs @ band(probs.shape[-1])


@full_precision
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
    at_once = max(_MOST_PRODUCTS // probs_y.shape[1] ** 2, 1)
    # One K x K product per image in the input's type, their sum in float64: the MI is a small difference of large terms.
    parts = (
        torch.einsum("nkhw,nlhw->nkl", of_y, of_z).double().sum(0)
        for of_y, of_z in zip(torch.split(probs_y, at_once), torch.split(spread, at_once), strict=True)
    )
    return reduce(torch.add, parts)


@full_precision
def joint_per_displacement(probs_y: Tensor, probs_z: Tensor, displacement_px: int) -> Tensor:
    """How often cluster a at a pixel meets cluster b at each displacement from it: float64 ((2T + 1)^2, K, K).

    The terms whose sum is ``joint_distribution``, one for each u in [-T, T]^2, row by row. A cross-correlation, computed by
    FFT with the sum over the images taken in the frequency domain: K^2 inverse transforms, however many images there are.
    These are products with the few rows of the inverse Fourier matrices that belong to displacements up to T.

    Args:
        probs_y: probabilities of the first view, (N, K, H, W).
        probs_z: probabilities of the second view, same shape. A pixel to leave out is all zeros in both.
        displacement_px: T.
    """
    # The zeros that a lag of up to T runs into. In float64: what is kept are small differences of large sums.
    size = [next_fast_len(extent + displacement_px, real=True) for extent in probs_y.shape[-2:]]
    spectrum_y, spectrum_z = (torch.fft.rfft2(probs.double(), s=size) for probs in (probs_y, probs_z))
    spectrum = torch.einsum("nkhw,nlhw->klhw", spectrum_y.conj(), spectrum_z)
    rows, cols = (_inverse_transform(extent, displacement_px, probs_y.device) for extent in size)
    # The spectrum of real numbers is symmetric, and its second half left out: its other frequencies count twice.
    half = spectrum.shape[-1]
    cols = cols[:, :half] * torch.tensor([1.0 if 2 * place % size[1] == 0 else 2.0 for place in range(half)]).to(cols)
    shifted = torch.einsum("uh,klhw->kluw", rows, spectrum)
    lags = torch.einsum("kluw,vw->uvkl", shifted.real, cols.real) - torch.einsum("kluw,vw->uvkl", shifted.imag, cols.imag)
    return lags.flatten(0, 1).clamp_min(0)


def _inverse_transform(size: int, displacement: int, device: torch.device) -> Tensor:
    """Rows -``displacement`` to ``displacement`` of the inverse Fourier matrix: complex128 (2 displacement + 1, size)."""
    place = torch.arange(-displacement, displacement + 1, dtype=torch.float64, device=device)
    frequency = torch.arange(size, dtype=torch.float64, device=device)
    angle = 2 * torch.pi / size * (place[:, None] * frequency % size)
    return torch.polar(torch.full_like(angle, 1 / size), angle)


@full_precision
def mutual_information(joint: Tensor) -> MutualInformation:
    """Mutual information of a joint distribution: non-negative weights (K, K) of any positive sum, computed in float64.

    Of several, (U, K, K), it is the mean, and so are the entropies.
    """
    joint = joint.double()
    joint = joint / joint.sum(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    entropy_y, entropy_z = _entropy(joint.sum(-1)), _entropy(joint.sum(-2))
    return MutualInformation(entropy_y + entropy_z - _entropy(joint.flatten(-2)), entropy_y, entropy_z)


def _entropy(distribution: Tensor) -> Tensor:
    """Entropy over the last axis, its mean over the others."""
    positive = distribution.clamp_min(torch.finfo(torch.float64).tiny)  # 0 log 0 = 0, with gradient zero
    return -(positive * positive.log()).sum(-1).mean()
