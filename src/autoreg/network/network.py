"""The segmentation network F2 of the paper: stem h, autoregressive blocks g_ar, decoder d (Tables 1a, 4, 5 and 7)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoreg.errors import ConfigError
from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.orderings import Ordering
from autoreg.spec import NODATA_LABEL


@dataclass(frozen=True)
class NetworkConfig:
    """What determines a network's layers.

    Attributes:
        bands: number of input bands.
        classes: number of clusters K, 2 to 255.
        stem_width: channels of the stem.
        widths: output channels of each autoregressive block; never fewer than the block's input has.
        stride: pixels per cell of the feature map, 2 or 4.
        kernel_size: of the masked convolutions, odd.
    """

    bands: int
    classes: int
    stem_width: int
    widths: tuple[int, ...]
    stride: int
    kernel_size: int = 3

    def __post_init__(self) -> None:
        if self.bands < 1:
            raise ConfigError(f"a network of {self.bands} bands was asked for, expected at least 1")
        if not 2 <= self.classes <= NODATA_LABEL:
            raise ConfigError(f"{self.classes} clusters were asked for, expected 2 to {NODATA_LABEL}")
        if self.stride not in (2, 4):
            raise ConfigError(f"a stride of {self.stride} was asked for, expected 2 or 4")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(f"a kernel of {self.kernel_size} px was asked for, expected an odd size")
        widths = (self.stem_width, *self.widths)
        if not self.widths or min(widths) < 1 or list(widths) != sorted(widths):
            raise ConfigError(f"the widths {widths} must be positive and never shrink from block to block")


PRESETS: dict[str, tuple[int, tuple[int, ...], int]] = {
    "tiny": (32, (32, 32, 32), 2),
    "small": (64, (64, 64, 64, 64, 64), 4),
    "base": (64, (128, 256, 256, 256, 256), 4),
    "paper": (64, (128, 256, 512, 1024, 2048), 2),
}
"""Stem width, block widths and stride by size. ``paper`` reads Table 7 literally: every block doubles the channels
(53 million parameters, 531 GMAC for 200 x 200 px; needs a large GPU). ``base`` caps the doubling at 256."""


def network_config(size: str, *, bands: int, classes: int) -> NetworkConfig:
    """The preset ``size`` (a key of ``PRESETS``) for rasters of ``bands`` bands and ``classes`` clusters."""
    stem_width, widths, stride = PRESETS[size]
    return NetworkConfig(bands, classes, stem_width, widths, stride)


class Stem(nn.Module):
    """h: convolution, batch norm, ReLU, max-pool (Table 4). Not masked: it looks 2 (stride 2) or 3 px (stride 4) around."""

    def __init__(self, bands: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bands, width, 3, stride=stride // 2, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, bands, H, W) to (N, width, H / stride, W / stride)."""
        return cast(Tensor, self.pool(functional.relu(self.norm(self.conv(x)))))


class ResidualBlock(nn.Module):
    """Three residual sub-blocks, the first with the masked 3 x 3 convolution, the others 1 x 1 (Table 7).

    No batch norm: statistics over positions would show a pixel its future.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.grow = out_channels - in_channels
        self.look: nn.Module = MaskedConv2d(in_channels, out_channels, kernel_size)
        self.mix = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 1) for _ in range(5))

    def forward(self, x: Tensor, ordering: Ordering | None) -> Tensor:
        """(N, in_channels, h, w) to (N, out_channels, h, w)."""
        skip = functional.pad(x, (0, 0, 0, 0, 0, self.grow)) if self.grow else x
        x = functional.relu(self.mix[0](functional.relu(self.look(x, ordering)))) + skip
        for first, second in ((self.mix[1], self.mix[2]), (self.mix[3], self.mix[4])):
            x = functional.relu(second(functional.relu(first(x)))) + x
        return x


class Network(nn.Module):
    """F(x; o): raw pixels to K logits per feature cell, under an ordering or, for deployment, without one.

    Raw pixel values go in: the first operation is the normalisation (buffers ``mean`` and ``std``, one value per band).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.bands))
        self.register_buffer("std", torch.ones(config.bands))
        self.stem = Stem(config.bands, config.stem_width, config.stride)
        widths = (config.stem_width, *config.widths)
        self.blocks = nn.ModuleList(
            ResidualBlock(width_in, width_out, config.kernel_size) for width_in, width_out in pairwise(widths)
        )
        self.decoder = nn.Conv2d(widths[-1], config.classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))

    def encode(self, image: Tensor) -> Tensor:
        """h: the part without masks, the same for every ordering. Raw (N, bands, H, W) to (N, stem_width, h, w)."""
        normalised = (image - self.mean[:, None, None]) / self.std[:, None, None]
        return cast(Tensor, self.stem(normalised))

    def features(self, encoded: Tensor, ordering: Ordering | None) -> Tensor:
        """g_ar: what ``encode`` gave, to (N, widths[-1], h, w)."""
        for block in self.blocks:
            encoded = block(encoded, ordering)
        return encoded

    def decode(self, encoded: Tensor, ordering: Ordering | None) -> Tensor:
        """g_ar and d: what ``encode`` gave, to logits (N, K, h, w)."""
        return cast(Tensor, self.decoder(self.features(encoded, ordering)))

    def forward(self, image: Tensor, ordering: Ordering | None = None) -> Tensor:
        """Raw (N, bands, H, W), H and W multiples of the stride, to logits (N, K, H / stride, W / stride)."""
        return self.decode(self.encode(image), ordering)

    @property
    def receptive_field_px(self) -> int:
        """Side of the square of pixels that one label depends on when the network runs without ordering (odd).

        Walks the layers: a kernel of size k on a map with ``step`` px per cell reaches (k - 1) / 2 * step further. The
        bilinear upsampling at the end reaches one cell further, from as far as half a cell into the current one.
        """
        radius, step = 0, 1
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                kernel, stride = (_first(layer.kernel_size), _first(layer.stride))
                radius += kernel // 2 * step
                step *= stride
        return 2 * (radius + step + step // 2 - 1) + 1


def upsample(logits: Tensor, stride: int) -> Tensor:
    """Logits (N, K, h, w) to the pixels of the image, (N, K, h * stride, w * stride), bilinearly (Table 5)."""
    size = (logits.shape[-2] * stride, logits.shape[-1] * stride)
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
