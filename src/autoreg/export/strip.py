"""Strip a trained network of everything that only training needs."""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.network import Network, ResidualBlock, upsample


class DeployedNetwork(nn.Module):
    """The network as it runs on a device: raw pixels in, labels and logits out, no ordering, no masks."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segment raw pixels.

        Args:
            image: float32 (N, bands, H, W), H and W multiples of the stride.

        Returns:
            Labels, uint8 (N, H, W), and logits, float32 (N, K, H / stride, W / stride).
        """
        logits = self.network(image)
        labels = upsample(logits, self.network.config.stride).argmax(dim=1)
        return labels.to(torch.uint8), logits


def strip(network: Network) -> DeployedNetwork:
    """A copy of ``network`` that computes ``network(x, None)`` in evaluation mode with plain layers only.

    Masked convolutions become plain ones with the same weights, batch norms are folded into the convolutions before them.
    """
    stripped = copy.deepcopy(network).eval()
    stripped.stem.conv = fuse_conv_bn_eval(stripped.stem.conv, cast(nn.BatchNorm2d, stripped.stem.norm))
    stripped.stem.norm = nn.Identity()
    for block in cast(Iterable[ResidualBlock], stripped.blocks):
        block.look = _WithoutOrdering(_plain(cast(MaskedConv2d, block.look)))
    return DeployedNetwork(stripped).eval()


class _WithoutOrdering(nn.Module):
    """A layer that is called like a masked convolution and knows no orderings."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, ordering: None) -> Tensor:
        if ordering is not None:
            raise TypeError("a stripped network has no orderings")
        return cast(Tensor, self.layer(x))


def _plain(masked: MaskedConv2d) -> nn.Conv2d:
    size = masked.kernel_size[0]
    plain = nn.Conv2d(masked.in_channels, masked.out_channels, size, padding=size // 2).to(masked.weight)
    plain.load_state_dict(masked.state_dict())
    return plain
