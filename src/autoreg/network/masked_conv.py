"""The shifted masked convolution: one set of weights, many scan orders (paper, section 3.1 and Fig. 3)."""

from torch import Tensor, nn
from torch.nn import functional

from autoreg.network.orderings import RASTER_ORDERINGS, Ordering


class MaskedConv2d(nn.Conv2d):
    """A convolution whose output at a pixel depends only on pixels that the given ordering visits no later.

    Under an ordering, the kernel is shifted towards the past and the taps that would still look into the future are
    multiplied by zero, so their gradient is zero too. Without an ordering it is a plain centred convolution with the same
    weights: that is the one that gets deployed.

    Under Adam a tap that is masked in one step still moves by the momentum of earlier steps; the paper's remark that masked
    weights stay unchanged holds for plain SGD.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        for ordering in RASTER_ORDERINGS:
            mask = ordering.kernel_mask(kernel_size).to(self.weight.dtype)
            self.register_buffer(f"mask_{ordering}", mask, persistent=False)

    def forward(self, x: Tensor, ordering: Ordering | None = None) -> Tensor:
        """Convolve (N, C, H, W) to (N, C', H, W)."""
        if ordering is None:
            return super().forward(x)
        padded = functional.pad(x, ordering.padding(self.kernel_size[0]))
        mask = self.get_buffer(f"mask_{ordering}")
        return functional.conv2d(padded, self.weight * mask, self.bias)
