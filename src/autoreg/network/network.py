"""The segmentation network of the paper, F = h . g_ar . d (section 3.3, Tables 1a, 4, 5 and 7)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoreg.errors import ConfigError
from autoreg.network.attention import MaskedAttention
from autoreg.network.blocks import DenseSift, MaskedStem, Stem, masked_block, resnet18, unmasked_block
from autoreg.network.config import NetworkConfig
from autoreg.network.orderings import Orderings


class Network(nn.Module):
    """F(x; o): raw pixels to K logits per feature cell, under an ordering or, for deployment, without one.

    Raw pixel values go in: the first operation is the normalisation (buffers ``mean`` and ``std``, one value per band). Then
    come the ``extractor`` (h, no masks), ``masked`` (g_ar: layers that take the ordering), an ``embedding`` where
    representations are learned, and the ``decoder`` (d), which has auxiliary ones beside it in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig, extractor: nn.Module | None = None) -> None:
        """A network with random weights.

        Args:
            config: its layers.
            extractor: the user's own h, for ``config.extractor`` "custom": any module from normalised pixels
                (N, bands, H, W) to a feature map (N, stem_width, H / stride, W / stride); see ``measure_extractor``.

        Raises:
            ConfigError: ``extractor`` is missing, or given and not wanted.
        """
        super().__init__()
        if (extractor is None) == (config.extractor == "custom"):
            raise ConfigError(
                "this network was built on a backbone of its own: give the same one again"
                if extractor is None
                else f"a backbone was given, but the network has the extractor {config.extractor}"
            )
        self.config = config
        self.register_buffer("mean", torch.zeros(config.bands))
        self.register_buffer("std", torch.ones(config.bands))
        self.extractor, self.masked = _encoder(config)
        width = (config.stem_width, *config.widths)[-1]
        self.embedding = nn.Conv2d(width, config.embedding, 1) if config.embedding else nn.Identity()
        self.decoder = nn.Conv2d(config.feature_width, config.classes, 1)
        self.auxiliary = nn.ModuleList(
            nn.Conv2d(config.feature_width, config.aux_classes, 1)
            for _ in range(config.aux_decoders if config.aux_classes else 0)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))
        if extractor is not None:
            self.extractor.insert(0, extractor)  # it keeps its weights

    @property
    def aux_decoders(self) -> list[nn.Conv2d]:
        """The decoders that help the training."""
        return [cast(nn.Conv2d, decoder) for decoder in self.auxiliary]

    def encode(self, image: Tensor) -> Tensor:
        """h: the part without masks, the same for every ordering. Raw (N, bands, H, W) to (N, C, h, w)."""
        normalised = (image - self.mean[:, None, None]) / self.std[:, None, None]
        return cast(Tensor, self.extractor(normalised))

    def features(self, encoded: Tensor, orderings: Orderings) -> Tensor:
        """g_ar: what ``encode`` gave, to (N, feature_width, h, w)."""
        for layer in self.masked:
            encoded = layer(encoded, orderings)
        return cast(Tensor, self.embedding(encoded))

    def forward(self, image: Tensor, orderings: Orderings = None) -> Tensor:
        """Raw (N, bands, H, W), H and W multiples of the stride, to logits (N, K, H / stride, W / stride)."""
        return cast(Tensor, self.decoder(self.features(self.encode(image), orderings)))

    @property
    def receptive_field_px(self) -> int | None:
        """Side of the square of pixels that one label depends on when the network runs without ordering (odd).

        Walks the layers: a kernel of size k on a map with ``step`` px per cell reaches (k - 1) / 2 * step further. The
        bilinear upsampling at the end reaches one cell further, from as far as half a cell into the current one. None if
        it is the whole image, as with attention, or not known, as with a user's backbone.
        """
        if self.config.attention or self.config.extractor == "custom":
            return None
        radius, step = 0, 1
        for layer in self.modules():
            if isinstance(layer, DenseSift):
                radius, step = layer.receptive_field_radius_px, layer.STRIDE
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                kernel, stride, dilation = (_first(size) for size in (layer.kernel_size, layer.stride, layer.dilation))
                radius += kernel // 2 * dilation * step
                step *= stride
        return 2 * (radius + step + step // 2 - 1) + 1 if step > 1 else 2 * radius + 1


def upsample(logits: Tensor, stride: int) -> Tensor:
    """Logits (N, K, h, w) to the pixels of the image, (N, K, h * stride, w * stride), bilinearly (Table 5)."""
    if stride == 1:
        return logits
    size = (logits.shape[-2] * stride, logits.shape[-1] * stride)
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def label_pixels(logits: Tensor, stride: int) -> Tensor:
    """The most probable cluster of each pixel, uint8: logits (N, K, h, w) to (N, h * stride, w * stride)."""
    return upsample(logits, stride).argmax(dim=1).to(torch.uint8)


def valid_cells(valid: Tensor, stride: int) -> Tensor:
    """Which cells hold data only: bool (N, H, W) to (N, H / stride, W / stride)."""
    return functional.max_pool2d((~valid).float(), stride) == 0


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Have ``modules`` in evaluation mode within the block, and afterwards as they were."""
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, before in zip(modules, training, strict=True):
            module.train(before)


@torch.no_grad()
def measure_extractor(extractor: nn.Module, bands: int) -> tuple[int, int]:
    """Channels and stride of a user's backbone, found by running it on an empty image.

    Args:
        extractor: from (N, bands, H, W) to a feature map (N, C, H / stride, W / stride).
        bands: of the image.

    Raises:
        ConfigError: it fails, or does not give a feature map.
    """
    side = 224  # what most backbones were made for; a multiple of their strides
    try:
        with evaluating(extractor):
            features: Any = extractor(torch.zeros(1, bands, side, side))
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"the backbone failed on an image of {bands} bands and {side} x {side} px: {error}") from error
    if not isinstance(features, Tensor) or features.ndim != 4 or features.shape[2] != features.shape[3]:
        raise ConfigError(f"the backbone gives {_describe(features)}, expected a feature map (N, channels, rows, cols)")
    stride = side / features.shape[2]
    if not stride.is_integer() or not 1 <= stride <= 64 or math.log2(stride) % 1:
        raise ConfigError(f"the backbone makes {features.shape[2]} of {side} px, expected a stride of 1, 2, 4, ... 64")
    return features.shape[1], int(stride)


def _encoder(config: NetworkConfig) -> tuple[nn.Sequential, nn.ModuleList]:
    """The layers of h, and those of g_ar, which take an ordering."""
    extractor, masked = nn.Sequential(), nn.ModuleList()
    if config.extractor == "identity":
        masked.append(MaskedStem(config.bands, config.stem_width, config.stride, config.kernel_size, config.masking))
    elif config.extractor == "sift":
        extractor.append(DenseSift())
    elif config.extractor in ("stem", "resnet18"):
        extractor.append(Stem(config.bands, config.stem_width, config.stride))
    if config.extractor == "resnet18":
        extractor.append(resnet18(config.stem_width, config.widths))
        return extractor, masked
    for index, (before, after) in enumerate(pairwise((config.stem_width, *config.widths))):
        if index < config.unmasked:
            extractor.append(unmasked_block(before, after, dropout=config.dropout))
            continue
        masked.append(
            masked_block(before, after, kernel_size=config.kernel_size, masking=config.masking, dropout=config.dropout)
        )
        if config.attention and index == config.unmasked:
            masked.append(MaskedAttention(after))
    return extractor, masked


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def _describe(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
