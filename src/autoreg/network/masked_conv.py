"""Masked convolutions: one set of weights, many scan orders (paper, section 3.1 and Fig. 3)."""

from torch import Tensor, nn
from torch.nn import functional

from autoreg.network.orderings import ORDERINGS, Masking, Ordering


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

    def forward(self, x: Tensor, ordering: Ordering | None = None) -> Tensor:
        """Convolve (N, C, H, W) to (N, C', H / stride, W / stride); H and W are multiples of the stride."""
        if ordering is None:
            return super().forward(x)
        left, right, top, bottom = ordering.padding(self.kernel_size[0], self.masking)
        row, col = ordering.anchor(self.stride[0])
        padded = functional.pad(x, (left - col, right, top - row, bottom))
        mask = self.get_buffer(f"mask_{ordering}")
        return functional.conv2d(padded, self.weight * mask, self.bias, self.stride)
