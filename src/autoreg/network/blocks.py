"""The parts that networks are made of: stems and residual blocks (paper, Tables 4 and 7)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from autoreg.network.masked_conv import MaskedConv2d
from autoreg.network.orderings import Masking, Orderings


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

    def forward(self, x: Tensor, orderings: Orderings) -> Tensor:
        """(N, bands, H, W) to (N, width, H / stride, W / stride)."""
        for look in self.look:
            x = functional.relu(look(x, orderings))
        return x


class Block(nn.Module):
    """What is made of parts that can be computed again.

    Attributes:
        checkpointing: keep only the input of each part for the backward pass, which then computes the part again.
    """

    checkpointing = False

    def run(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """What ``part`` gives for ``inputs``."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return part(*inputs)
        contexts = (nullcontext(), self._again())
        return cast(Tensor, checkpoint(part, *inputs, use_reentrant=False, context_fn=lambda: contexts))

    @contextmanager
    def _again(self) -> Iterator[None]:
        """A batch that is seen again does not count again in the statistics of the batch norms."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, (momentum, batches) in zip(norms, before, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, batches


def finish(looked: Tensor, skip: Tensor, mix: nn.Module, drop: nn.Module) -> Tensor:
    """The end of a residual part: what its first convolution gave, and what its skip connection brings, to its output."""
    return functional.relu(mix(drop(functional.relu(looked)))) + skip


class ResidualBlock(Block):
    """Three residual parts, the first with a 3 x 3 convolution, the others 1 x 1 (Table 7).

    Attributes:
        finish: the function ``finish``, or the same compiled.
    """

    finish: Callable[[Tensor, Tensor, nn.Module, nn.Module], Tensor] = staticmethod(finish)

    def __init__(self, look: nn.Module, mix: list[nn.Module], dropout: float) -> None:
        """A block of these layers.

        Args:
            look: the convolution that looks around; what it adds to the channels, the skip connection has zeros for.
            mix: five 1 x 1 convolutions.
            dropout: probability, after the first activation of each part.
        """
        super().__init__()
        self.look = look
        self.mix = nn.ModuleList(mix)
        self.drop: nn.Module = nn.Dropout(dropout)

    def forward(self, x: Tensor, *orderings: Orderings) -> Tensor:
        """(N, in_channels, h, w) to (N, out_channels, h, w); a masked block also takes the orderings."""
        x = self.run(self._part, self.look, self.mix[0], x, *orderings)
        x = self.run(self._part, self.mix[1], self.mix[2], x)
        return self.run(self._part, self.mix[3], self.mix[4], x)

    def _part(self, look: nn.Module, mix: nn.Module, x: Tensor, *orderings: Orderings) -> Tensor:
        looked = look(x, *orderings)
        grow = looked.shape[1] - x.shape[1]
        skip = functional.pad(x, (0, 0, 0, 0, 0, grow)) if grow else x
        # What is compiled is so for training steps: without gradients it would be compiled once more.
        return (self.finish if torch.is_grad_enabled() else finish)(looked, skip, mix, self.drop)


def masked_block(
    in_channels: int, out_channels: int, *, kernel_size: int, masking: Masking, dropout: float
) -> ResidualBlock:
    """A block of g_ar: the 3 x 3 convolution is masked, the others need no mask, and there is no batch norm."""
    look = MaskedConv2d(in_channels, out_channels, kernel_size, masking=masking)
    mix: list[nn.Module] = [nn.Conv2d(out_channels, out_channels, 1) for _ in range(5)]
    return ResidualBlock(look, mix, dropout)


def unmasked_block(in_channels: int, out_channels: int, *, dropout: float) -> ResidualBlock:
    """A block of h: no masks, and batch norm after each convolution."""
    mix: list[nn.Module] = [NormalisedConv(out_channels, out_channels, 1) for _ in range(5)]
    return ResidualBlock(NormalisedConv(in_channels, out_channels, 3), mix, dropout)


class BasicBlock(Block):
    """The block of ResNet-18: two 3 x 3 convolutions and a skip connection, projected where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.first = NormalisedConv(in_channels, out_channels, 3, dilation=dilation)
        self.second = NormalisedConv(out_channels, out_channels, 3, dilation=dilation)
        self.skip = nn.Identity() if in_channels == out_channels else NormalisedConv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, out_channels, h, w)."""
        return self.run(self._whole, x)

    def _whole(self, x: Tensor) -> Tensor:
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
