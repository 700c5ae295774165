"""What determines a network's layers: the parts of F = h . g_ar . d (paper, section 3.3), their widths and options."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from autoreg.errors import ConfigError
from autoreg.network.orderings import MASKINGS, Masking
from autoreg.spec import NODATA_LABEL

EXTRACTORS = ("stem", "identity", "resnet18", "pixels", "sift", "custom")
"""What comes before the residual blocks; see ``NetworkConfig.extractor``."""

# What a file may claim; far more than anyone trains.
_MOST_BANDS, _MOST_BLOCKS, _MOST_CHANNELS, _LARGEST_KERNEL, _MOST_DECODERS = 4096, 256, 2**16, 63, 16


@dataclass(frozen=True)
class NetworkConfig:
    """What determines a network's layers.

    Attributes:
        bands: number of input bands.
        classes: number of clusters K, 2 to 255.
        stem_width: channels that come out of the extractor.
        widths: output channels of each residual block; never fewer than the block's input has.
        stride: pixels per cell of the feature map.
        unmasked: how many of the blocks come first, belong to h, and have batch norm instead of masks.
        extractor: ``stem`` (Table 4); ``identity``: two or more masked convolutions straight on the pixels (F1);
            ``resnet18`` (F5), then ``widths`` are those of its stages; ``pixels`` and ``sift``: no layers that learn;
            ``custom``: a module of the user's.
        kernel_size: of the masked convolutions, odd.
        masking: ``shifted``, ``relaxed`` or ``standard`` (Fig. 3).
        attention: an attention block after the first masked block; then a label depends on the whole image.
        dropout: probability, after the first activation of each part of a residual block (Table 1f).
        embedding: channels of the output for representation learning, on which the decoder then works; 0 for none.
        aux_classes: clusters of each auxiliary decoder, which helps the training and is not deployed; 0: there is none.
        aux_decoders: how many of them there are, if any.
    """

    bands: int
    classes: int
    stem_width: int
    widths: tuple[int, ...]
    stride: int
    unmasked: int = 0
    extractor: str = "stem"
    kernel_size: int = 3
    masking: Masking = "shifted"
    attention: bool = False
    dropout: float = 0.0
    embedding: int = 0
    aux_classes: int = 0
    aux_decoders: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.bands <= _MOST_BANDS:
            raise ConfigError(f"a network of {self.bands} bands was asked for, expected 1 to {_MOST_BANDS}")
        if not 2 <= self.classes <= NODATA_LABEL:
            raise ConfigError(f"{self.classes} clusters were asked for, expected 2 to {NODATA_LABEL}")
        if self.extractor not in EXTRACTORS:
            raise ConfigError(f"the extractor is {self.extractor!r}, expected one of {', '.join(EXTRACTORS)}")
        learned = self.extractor in ("stem", "identity", "resnet18")
        if (learned and self.stride not in (2, 4)) or not 1 <= self.stride <= 64:
            raise ConfigError(f"a stride of {self.stride} was asked for, expected 2 or 4")
        if not 1 <= self.kernel_size <= _LARGEST_KERNEL or self.kernel_size % 2 == 0:
            raise ConfigError(
                f"a kernel of {self.kernel_size} px was asked for, expected an odd size up to {_LARGEST_KERNEL}"
            )
        if self.masking not in MASKINGS:
            raise ConfigError(f"the masking is {self.masking!r}, expected one of {', '.join(MASKINGS)}")
        widths = (self.stem_width, *self.widths)
        if (learned and not self.widths) or min(widths) < 1 or list(widths) != sorted(widths):
            raise ConfigError(f"the widths {widths} must be positive and never shrink from block to block")
        if len(widths) > _MOST_BLOCKS or max(*widths, self.embedding) > _MOST_CHANNELS:
            raise ConfigError(
                f"{len(self.widths)} blocks of up to {max(widths)} channels and an embedding of {self.embedding} were asked "
                f"for, expected less than {_MOST_BLOCKS} and at most {_MOST_CHANNELS}"
            )
        if not 0 <= self.unmasked <= len(self.widths) or (self.extractor == "identity" and self.unmasked):
            raise ConfigError(f"{self.unmasked} of {len(self.widths)} blocks were asked for without masks")
        if self.attention and not self.masked:
            raise ConfigError("attention was asked for, but it follows the first masked block, and this network has none")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"a dropout of {self.dropout} was asked for, expected 0 to less than 1")
        if self.embedding < 0 or (self.aux_classes != 0 and not 2 <= self.aux_classes <= 4096):
            raise ConfigError(
                f"an embedding of {self.embedding} channels and {self.aux_classes} auxiliary clusters were asked for, "
                f"expected 0 or more, and 0 or 2 to 4096"
            )
        if not 1 <= self.aux_decoders <= _MOST_DECODERS:
            raise ConfigError(f"{self.aux_decoders} auxiliary decoders were asked for, expected 1 to {_MOST_DECODERS}")

    @property
    def masked(self) -> int:
        """How many of the blocks have masks: those of g_ar."""
        return 0 if self.extractor == "resnet18" else len(self.widths) - self.unmasked

    @property
    def feature_width(self) -> int:
        """Channels that the decoder sees."""
        return self.embedding or (self.stem_width, *self.widths)[-1]


class Size(NamedTuple):
    """How large a network is.

    Attributes:
        stem_width: channels of the stem.
        blocks: residual blocks in all.
        growth: ``double``: each block doubles the channels (Table 7 read literally); ``constant``.
        max_width: where doubling ends.
        stride: pixels per cell.
    """

    stem_width: int
    blocks: int
    growth: Literal["double", "constant"]
    max_width: int
    stride: int

    def widths(self, blocks: int) -> tuple[int, ...]:
        """Output channels of each of ``blocks`` blocks."""
        if self.growth == "constant":
            return (self.stem_width,) * blocks
        return tuple(min(self.stem_width * 2**index, max(self.max_width, self.stem_width)) for index in range(1, blocks + 1))


SIZES: dict[str, Size] = {
    "tiny": Size(32, 3, "constant", 32, 4),
    "small": Size(64, 5, "constant", 64, 4),
    "base": Size(64, 5, "double", 256, 4),
    "paper": Size(64, 5, "double", 2048, 2),
}
"""``paper`` reads Table 7 literally: every block doubles the channels (53 million parameters, 531 GMAC for 200 x 200 px;
needs a large GPU). ``base`` caps the doubling at 256."""

VARIANTS: dict[str, tuple[str, float]] = {
    "F1": ("identity", 0),
    "F2": ("stem", 0),
    "F3": ("stem", 0.2),
    "F4": ("stem", 1),
    "F5": ("resnet18", 1),
    "pixels": ("pixels", 0),
    "sift": ("sift", 0),
}
"""Table 1a: what h begins with, and the share of the residual blocks that belong to h (1 of 5 in F3). The last two have no
layers that learn; clusters of raw pixels and of dense SIFT descriptors are made with them."""


def network_config(
    variant: str, size: Size, *, bands: int, classes: int, custom: bool = False, **options: Any
) -> NetworkConfig:
    """The layers of a network.

    Args:
        variant: a key of ``VARIANTS``.
        size: how large it is.
        bands: number of input bands.
        classes: number of clusters.
        custom: a module of the user's stands in the place of the stem; ``size`` has its width and stride.
        options: further fields of ``NetworkConfig``.

    Raises:
        ConfigError: the parts do not go together.
    """
    extractor, share = VARIANTS[variant]
    if custom and extractor != "stem":
        raise ConfigError(f"a backbone stands in the place of the stem, but network {variant} has none; use F2, F3 or F4")
    if extractor == "pixels":
        return NetworkConfig(bands, classes, bands, (), 1, extractor=extractor, **options)
    if extractor == "sift":
        return NetworkConfig(bands, classes, 128, (), 2, extractor=extractor, **options)
    # The first of ResNet's four stages keeps the stem's width.
    widths = (size.stem_width, *size.widths(3)) if extractor == "resnet18" else size.widths(size.blocks)
    unmasked = math.ceil(len(widths) * share)
    kind = "custom" if custom else extractor
    return NetworkConfig(bands, classes, size.stem_width, widths, size.stride, unmasked, kind, **options)
