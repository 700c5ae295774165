"""Strip a trained network of everything that only training needs."""

import copy
from typing import cast

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from autoreg.network.blocks import NormalisedConv, ResidualBlock
from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.network import Network, label_pixels


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
        return label_pixels(logits, self.network.config.stride), logits


def strip(network: Network) -> DeployedNetwork:
    """A copy of ``network`` that computes ``network(x, None)`` in evaluation mode with plain layers only.

    Masked convolutions become plain ones with the same weights, batch norms are folded into the convolutions before them,
    dropout and the auxiliary decoders go.
    """
    stripped = copy.deepcopy(network).eval()
    stripped.auxiliary = nn.ModuleList()
    for module in list(stripped.modules()):
        if isinstance(module, NormalisedConv):
            module.conv = fuse_conv_bn_eval(module.conv, cast(nn.BatchNorm2d, module.norm))
            module.norm = nn.Identity()
        if isinstance(module, ResidualBlock):
            module.drop = nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, MaskedConv2d):
                setattr(module, name, _WithoutOrdering(child))
    return DeployedNetwork(stripped).eval()


class _WithoutOrdering(nn.Module):
    """A layer that is called like a masked convolution and knows no orderings."""

    def __init__(self, masked: MaskedConv2d) -> None:
        super().__init__()
        size, stride = masked.kernel_size[0], masked.stride[0]
        self.layer = nn.Conv2d(masked.in_channels, masked.out_channels, size, stride, padding=size // 2).to(masked.weight)
        self.layer.load_state_dict(masked.state_dict())

    def forward(self, x: Tensor, ordering: None) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        if ordering is not None:
            raise TypeError("a stripped network has no orderings")
        return cast(Tensor, self.layer(x))
