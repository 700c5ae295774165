"""Autoregressive representation learning (paper, section 3.2, eqs. 7 and 14): InfoNCE between the features of two views."""

import itertools
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from autoreg.train.precision import full_precision

_SCORES_AT_ONCE = 2**22


class Critic(nn.Module):
    """One of the two separable critics (Table 6): residual, 1 x 1, to twice the channels, batch norm at the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 2 * channels, 1)
        self.second = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.skip = nn.Conv2d(channels, 2 * channels, 1)
        self.norm = nn.BatchNorm2d(2 * channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 2C, h, w)."""
        inner = functional.relu(self.second(functional.relu(self.first(features))))
        return cast(Tensor, self.norm(inner + self.skip(features)))


@full_precision
def info_nce(
    phi_y: Tensor, phi_z: Tensor, anchors: Tensor, negatives: Tensor, *, displacement: int, scale: float | None = None
) -> Tensor:
    """A lower bound of the mutual information between two views, in nats, at most log(1 + number of negatives).

    The mean over anchors l and displacements u of ``f(l, l+u) - log((e^f(l, l+u) + sum of e^f over the negatives) / N)``,
    which eq. 14 maximises, with ``f(l, m) = scale * phi_y(l) . phi_z(m)``. Positives are in the same image, up to
    ``displacement`` cells away, as far as they lie inside it; negatives are in the *other* images only. Scores are computed
    in chunks that the backward pass computes again, so memory does not grow with their number.

    Args:
        phi_y: what the first critic makes of the first view, (N, D, h, w), N at least 2.
        phi_z: what the second critic makes of the second view, same shape.
        anchors: cells of the first view to compare, int64 (N, S), row * w + col.
        negatives: cells of the second view, likewise.
        displacement: the largest one, in cells, along rows and along columns.
        scale: of the scores; 1 / sqrt(D) if None, which keeps them in range after the critics' batch norm. The paper has 1.
    """
    images, channels, height, width = phi_y.shape
    scale = 1 / math.sqrt(channels) if scale is None else scale
    phi_y, phi_z = phi_y.flatten(2).mT * scale, phi_z.flatten(2).mT
    here = _pick(phi_y, anchors).flatten(0, 1)
    others = _pick(phi_z, negatives).flatten(0, 1)
    owner = torch.arange(images, device=phi_y.device)
    owner_here, owner_others = owner.repeat_interleave(anchors.shape[1]), owner.repeat_interleave(negatives.shape[1])
    rows = max(1, _SCORES_AT_ONCE // len(others))
    denominator = torch.cat(
        [
            cast(Tensor, checkpoint(_log_sum_others, part, others, part_owner, owner_others, use_reentrant=False))
            for part, part_owner in zip(torch.split(here, rows), torch.split(owner_here, rows), strict=True)
        ]
    ).reshape(anchors.shape)

    count = 1 + (images - 1) * negatives.shape[1]
    row, col = anchors // width, anchors % width
    total, terms = phi_y.new_zeros(()), anchors.new_zeros(())
    for down, right in itertools.product(range(-displacement, displacement + 1), repeat=2):
        there_row, there_col = row + down, col + right
        inside = (there_row >= 0) & (there_row < height) & (there_col >= 0) & (there_col < width)
        cell = (there_row * width + there_col).where(inside, 0)
        score = (here.reshape(*anchors.shape, -1) * _pick(phi_z, cell)).sum(dim=-1)
        bound = score - torch.logaddexp(score, denominator) + math.log(count)
        total = total + bound[inside].sum()
        terms = terms + inside.sum()
    return total / terms


def _pick(features: Tensor, cells: Tensor) -> Tensor:
    """(N, h * w, D) at cells (N, S): (N, S, D)."""
    return features.gather(1, cells[..., None].expand(-1, -1, features.shape[-1]))


def _log_sum_others(here: Tensor, others: Tensor, owner_here: Tensor, owner_others: Tensor) -> Tensor:
    """For each anchor the log of the sum of e^score over the cells of the other images."""
    scores = here @ others.T
    return scores.masked_fill(owner_here[:, None] == owner_others[None, :], -torch.inf).logsumexp(dim=1)
