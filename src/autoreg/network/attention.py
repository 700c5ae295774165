"""The attention block (paper, section 3.1, eq. 2): a pixel attends to itself and to all that the scan visited before."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoreg.network.orderings import Ordering, Orderings, by_group, scan


class MaskedAttention(nn.Module):
    """Attention under an ordering, concatenated with its input and merged by a 1 x 1 convolution.

    With the pixels sorted by their rank, the mask of eq. 2 is the lower triangle, which is causal attention: no mask of
    HW x HW is ever built, and memory grows with HW. Eq. 2 multiplies the scores by the mask, which would let the future in
    through the softmax (a zero score is not a zero weight); as everywhere else the mask is minus infinity before the
    softmax. One head; scores are scaled by 1 / sqrt(d), which eq. 2 leaves out; d is half the channels, at least 32, which
    the paper does not say.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(channels // 2, 32)
        self.query, self.key, self.value = (nn.Conv2d(channels, width, 1) for _ in range(3))
        self.project = nn.Conv2d(width, channels, 1)
        self.merge = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor, orderings: Orderings) -> Tensor:
        """(N, C, h, w) to (N, C, h, w)."""
        height, width = x.shape[-2:]

        def look(query: Tensor, key: Tensor, value: Tensor, ordering: Ordering | None) -> Tensor:
            return attend(query, key, value, ordering, height, width)

        query, key, value = (conv(x).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value))
        attended = by_group(look, orderings, query, key, value)
        # Not len(x): an exported model would be bound to that number of images.
        attended = attended.transpose(1, 2).reshape(x.shape[0], -1, height, width)
        return cast(Tensor, self.merge(torch.cat([self.project(attended), x], dim=1)))


def attend(query: Tensor, key: Tensor, value: Tensor, ordering: Ordering | None, height: int, width: int) -> Tensor:
    """Softmax attention of each pixel to the pixels that ``ordering`` visits no later, or to all pixels.

    Args:
        query: (N, height * width, d), the pixels row by row.
        key: likewise.
        value: likewise.
        ordering: who may see whom; everyone sees everyone if None.
        height: of the map.
        width: of the map.

    Returns:
        (N, height * width, d).
    """
    attention = functional.scaled_dot_product_attention
    if ordering is None:
        # With a head axis torch takes its memory-efficient kernels.
        return attention(query[:, None], key[:, None], value[:, None])[:, 0]
    visited, rank = scan(ordering, height, width, query.device)
    query, key, value = (tokens.index_select(1, visited)[:, None] for tokens in (query, key, value))
    return attention(query, key, value, is_causal=True)[:, 0].index_select(1, rank)
