"""Batch norms whose statistics are those of the images of all processes that train together."""

from typing import cast

import torch
from torch import Tensor, nn

from autoreg.train.distributed import average_over_ranks, rank_count


class SharedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm over the images of all ranks, on any device (``torch.nn.SyncBatchNorm`` knows GPUs only)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        if not self.training or rank_count() == 1:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        # The mean square in float64, because the variance is the small difference of large numbers.
        mean, square = mean.double(), var.double() + mean.double() ** 2
        mean, square = average_over_ranks(torch.stack([mean, square]))
        var = square - mean**2
        self._remember(mean.detach(), var.detach(), x.numel() // x.shape[1] * rank_count())
        scale = (var + self.eps).rsqrt().to(wide)
        if self.affine:
            scale = scale * self.weight
        centred = (wide - mean.to(wide)[:, None, None]) * scale[:, None, None]
        return cast(Tensor, centred + self.bias[:, None, None] if self.affine else centred).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics, as ``torch.nn.BatchNorm2d`` does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var), momentum)


def share_norms(module: nn.Module) -> None:
    """Turn every ``BatchNorm2d`` within ``module`` into a ``SharedBatchNorm2d`` with the same parameters and buffers."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            shared.__dict__ |= child.__dict__
            setattr(module, name, shared)
        else:
            share_norms(child)
