"""Masked convolutions: one set of weights, many scan orders (paper, section 3.1 and Fig. 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoreg.network.orderings import ORDERINGS, Masking, Ordering, Orderings, by_group


class MaskedConv2d(nn.Conv2d):
    """A convolution whose output at a pixel depends only on pixels that the given ordering visits no later.

    Under an ordering, the taps that would look into the future are multiplied by zero, so their gradient is zero too; the
    shifted kind first moves the kernel towards the past, so that few taps are lost. Without an ordering it is a plain
    centred convolution with the same weights: that is the one that gets deployed.

    Under Adam a tap that is masked in one step still moves by the momentum of earlier steps; the paper's remark that masked
    weights stay unchanged holds for plain SGD.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, masking: Masking = "shifted"
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
        self.masking = masking
        for ordering in ORDERINGS:
            mask = ordering.kernel_mask(kernel_size, masking).to(self.weight.dtype)
            self.register_buffer(f"mask_{ordering}", mask, persistent=False)
        self._windows = {ordering: self._window(ordering) for ordering in ORDERINGS}

    def forward(self, x: Tensor, orderings: Orderings = None) -> Tensor:
        """Convolve (N, C, H, W) to (N, C', H / stride, W / stride); H and W are multiples of the stride."""
        return by_group(self._look, orderings, x)

    def _look(self, x: Tensor, ordering: Ordering | None) -> Tensor:
        if ordering is None:
            return super().forward(x)
        rows, cols, (left, right, top, bottom) = self._windows[ordering]
        weight = (self.weight * self.get_buffer(f"mask_{ordering}"))[:, :, rows, cols]
        # Zeros that opposite sides share are left to the convolution: they are not copied and get no gradient.
        across, down = max(min(left, right), 0), max(min(top, bottom), 0)
        padded = functional.pad(x, (left - across, right - across, top - down, bottom - down))
        return functional.conv2d(padded, weight, self.bias, self.stride, (down, across))

    def _window(self, ordering: Ordering) -> tuple[slice, slice, tuple[int, int, int, int]]:
        """Rows and columns of the kernel that have a tap in use, and the padding that goes with them."""
        size = self.kernel_size[0]
        with torch.device("cpu"):  # where a network is built on the meta device, the mask's values are needed all the same
            mask = ordering.kernel_mask(size, self.masking)
        rows, cols = (_span(mask.any(dim=dim)) for dim in (1, 0))
        left, right, top, bottom = ordering.padding(size, self.masking)
        row, col = ordering.anchor(self.stride[0])
        return (
            rows,
            cols,
            (left - col - cols.start, right - (size - cols.stop), top - row - rows.start, bottom - (size - rows.stop)),
        )


def _span(used: Tensor) -> slice:
    """From the first to the last that is in use; all if none is, as with the standard masking of a single tap."""
    places = used.nonzero().flatten().tolist() or range(len(used))
    return slice(places[0], places[-1] + 1)
