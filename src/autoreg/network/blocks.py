"""The parts that networks are made of: stems and residual blocks (paper, Tables 4 and 7)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.orderings import Masking, Ordering


class NormalisedConv(nn.Module):
    """A convolution and its batch norm. Not for g_ar: in training, statistics over positions show a pixel its future."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2 * dilation
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, dilation=dilation)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return cast(Tensor, self.norm(self.conv(x)))


class Stem(nn.Module):
    """Convolution, batch norm, ReLU, max-pool (Table 4). Not masked: it looks 2 (stride 2) or 3 px (stride 4) around."""

    def __init__(self, bands: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = NormalisedConv(bands, width, 3, stride=stride // 2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, bands, H, W) to (N, width, H / stride, W / stride)."""
        return cast(Tensor, self.pool(functional.relu(self.conv(x))))


class MaskedStem(nn.Module):
    """What F1 has instead of a stem: masked convolutions straight on the pixels, the later ones strided.

    No pooling and no batch norm: both would let the future in. A cell is computed at the pixel of its block that the scan
    visits first, so that blocks keep the order of the pixels.
    """

    def __init__(self, bands: int, width: int, stride: int, kernel_size: int, masking: Masking) -> None:
        super().__init__()
        self.look = nn.ModuleList([MaskedConv2d(bands, width, kernel_size, masking=masking)])
        while stride > 1:
            self.look.append(MaskedConv2d(width, width, kernel_size, stride=2, masking=masking))
            stride //= 2

    def forward(self, x: Tensor, ordering: Ordering | None) -> Tensor:
        """(N, bands, H, W) to (N, width, H / stride, W / stride)."""
        for look in self.look:
            x = functional.relu(look(x, ordering))
        return x


class ResidualBlock(nn.Module):
    """Three residual parts, the first with a 3 x 3 convolution, the others 1 x 1 (Table 7)."""

    def __init__(self, look: nn.Module, mix: list[nn.Module], grow: int, dropout: float) -> None:
        """A block of these layers.

        Args:
            look: the convolution that looks around.
            mix: five 1 x 1 convolutions.
            grow: channels that the block adds; the skip connection has zeros there.
            dropout: probability, after the first activation of each part.
        """
        super().__init__()
        self.look = look
        self.mix = nn.ModuleList(mix)
        self.grow = grow
        self.drop: nn.Module = nn.Dropout(dropout)

    def forward(self, x: Tensor, *ordering: Ordering | None) -> Tensor:
        """(N, in_channels, h, w) to (N, in_channels + grow, h, w); a masked block also takes the ordering."""
        skip = functional.pad(x, (0, 0, 0, 0, 0, self.grow)) if self.grow else x
        x = functional.relu(self.mix[0](self.drop(functional.relu(self.look(x, *ordering))))) + skip
        for first, second in ((self.mix[1], self.mix[2]), (self.mix[3], self.mix[4])):
            x = functional.relu(second(self.drop(functional.relu(first(x))))) + x
        return x


def masked_block(
    in_channels: int, out_channels: int, *, kernel_size: int, masking: Masking, dropout: float
) -> ResidualBlock:
    """A block of g_ar: the 3 x 3 convolution is masked, the others need no mask, and there is no batch norm."""
    look = MaskedConv2d(in_channels, out_channels, kernel_size, masking=masking)
    mix: list[nn.Module] = [nn.Conv2d(out_channels, out_channels, 1) for _ in range(5)]
    return ResidualBlock(look, mix, out_channels - in_channels, dropout)


def unmasked_block(in_channels: int, out_channels: int, *, dropout: float) -> ResidualBlock:
    """A block of h: no masks, and batch norm after each convolution."""
    mix: list[nn.Module] = [NormalisedConv(out_channels, out_channels, 1) for _ in range(5)]
    return ResidualBlock(NormalisedConv(in_channels, out_channels, 3), mix, out_channels - in_channels, dropout)


class BasicBlock(nn.Module):
    """The block of ResNet-18: two 3 x 3 convolutions and a skip connection, projected where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.first = NormalisedConv(in_channels, out_channels, 3, dilation=dilation)
        self.second = NormalisedConv(out_channels, out_channels, 3, dilation=dilation)
        self.skip = nn.Identity() if in_channels == out_channels else NormalisedConv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, out_channels, h, w)."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.skip(x))


def resnet18(stem_width: int, widths: tuple[int, ...]) -> nn.Sequential:
    """The four stages of ResNet-18 (F5); instead of striding, the later ones dilate by 2, 4 and 8."""
    blocks: list[nn.Module] = []
    for stage, width in enumerate(widths):
        before = stem_width if stage == 0 else widths[stage - 1]
        blocks += [BasicBlock(before, width, 2**stage), BasicBlock(width, width, 2**stage)]
    return nn.Sequential(*blocks)


class DenseSift(nn.Module):
    """SIFT descriptors on a grid of every second pixel (Lowe, 2004): 4 x 4 cells of 4 px with 8 orientations each.

    A gradient counts for an orientation by the ninth power of the cosine between them, the smooth form that dense SIFT
    usually has. Descriptors are divided by their length, clipped at 0.2 and divided again. Works on the mean of the bands.
    """

    STRIDE, CELL, CELLS, ORIENTATIONS = 2, 4, 4, 8

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(self.ORIENTATIONS) * (2 * torch.pi / self.ORIENTATIONS)
        gradient = torch.zeros(2, 1, 3, 3)
        gradient[0, 0, 1, 0], gradient[0, 0, 1, 2] = -1, 1
        gradient[1, 0, 0, 1], gradient[1, 0, 2, 1] = -1, 1
        self.register_buffer("gradient", gradient, persistent=False)
        self.register_buffer("directions", torch.stack([angles.cos(), angles.sin()], 1)[..., None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, bands, H, W) to (N, 128, H / 2, W / 2)."""
        slope = functional.conv2d(x.mean(dim=1, keepdim=True), self.get_buffer("gradient"), padding=1)
        size = (slope * slope).sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
        strength = size * functional.relu(functional.conv2d(slope / size, self.get_buffer("directions"))).pow(9)
        cells = functional.avg_pool2d(strength, self.CELL, stride=1)
        # A descriptor's patch of 16 px lies around its grid point; its cells begin every 4 px.
        reach = self.CELL * self.CELLS // 2
        cells = functional.pad(cells, (reach, reach - 1, reach, reach - 1))
        height, width = x.shape[-2:]
        parts = [
            cells[:, :, row : row + height : self.STRIDE, col : col + width : self.STRIDE]
            for row in range(0, self.CELL * self.CELLS, self.CELL)
            for col in range(0, self.CELL * self.CELLS, self.CELL)
        ]
        descriptor = functional.normalize(torch.cat(parts, dim=1), dim=1, eps=1e-6)
        return functional.normalize(descriptor.clamp_max(0.2), dim=1, eps=1e-6)

    @property
    def receptive_field_radius_px(self) -> int:
        """How far a descriptor looks: its patch, and one pixel more for the gradients at its edge."""
        return self.CELL * self.CELLS // 2 + 1
