"""The AC loss as box filter and by FFT against the 441-tap convolutions that they equal, forward and backward."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from autoreg.train.losses import joint_distribution, joint_per_displacement, mutual_information
from record import record

Joint = Callable[[Tensor, Tensor, int], Tensor]

BATCH, CLASSES, SIDE, DISPLACEMENT_PX = 8, 6, 200, 10


def separate_by_convolution(probs_y: Tensor, probs_z: Tensor, displacement_px: int) -> Tensor:
    """The joint distribution of each displacement, as one convolution of z with y as its kernel, as public code has it."""
    lags = functional.conv2d(probs_z.transpose(0, 1), probs_y.transpose(0, 1), padding=displacement_px)
    return lags.flatten(2).permute(2, 1, 0).double()


def collapsed_by_convolution(probs_y: Tensor, probs_z: Tensor, displacement_px: int) -> Tensor:
    """Their sum."""
    return separate_by_convolution(probs_y, probs_z, displacement_px).sum(0)


def measure(joint: Joint, runs: int) -> tuple[float, float, Tensor]:
    """Median seconds, value in nats, and gradient."""
    logits = torch.randn(2, BATCH, CLASSES, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    times = []
    for _ in range(runs + 1):
        logits.grad = None
        start = time.perf_counter()
        first, second = logits.softmax(dim=2)
        value = mutual_information(joint(first, second, DISPLACEMENT_PX)).value
        value.backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - start)
    assert logits.grad is not None
    return statistics.median(times[1:]), value.item(), logits.grad


def compare(fast: Joint, convolution: Joint) -> dict[str, float]:
    """A fast form against the convolution that it equals."""
    fast_s, fast_value, fast_gradient = measure(fast, 7)
    conv_s, conv_value, conv_gradient = measure(convolution, 3)
    return {
        "fast_s": round(fast_s, 4),
        "convolution_s": round(conv_s, 4),
        "ratio": round(conv_s / fast_s, 1),
        "value_difference_nats": abs(fast_value - conv_value),
        "gradient_relative_difference": ((fast_gradient - conv_gradient).norm() / fast_gradient.norm()).item(),
    }


if __name__ == "__main__":
    record(
        "loss",
        {
            "shape": {"batch": BATCH, "classes": CLASSES, "side_px": SIDE, "displacement_px": DISPLACEMENT_PX},
            "collapsed": compare(joint_distribution, collapsed_by_convolution),
            "separate": compare(joint_per_displacement, separate_by_convolution),
        },
    )
