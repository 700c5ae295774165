"""The AC loss as a box filter against the 441-tap convolution that it equals, forward and backward, in one run."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from autoreg.train.losses import joint_distribution, mutual_information
from record import record

BATCH, CLASSES, SIDE, DISPLACEMENT_PX = 8, 6, 200, 10


def joint_by_convolution(probs_y: Tensor, probs_z: Tensor, displacement_px: int) -> Tensor:
    """The sum over displacements as one convolution of z with y as its kernel, as public implementations write it."""
    lags = functional.conv2d(probs_z.transpose(0, 1), probs_y.transpose(0, 1), padding=displacement_px)
    return lags.double().sum(dim=(2, 3)).T


def measure(joint: Callable[[Tensor, Tensor, int], Tensor], runs: int) -> tuple[float, float, Tensor]:
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


if __name__ == "__main__":
    box_s, box_value, box_gradient = measure(joint_distribution, 7)
    conv_s, conv_value, conv_gradient = measure(joint_by_convolution, 3)
    record(
        "loss",
        {
            "shape": {"batch": BATCH, "classes": CLASSES, "side_px": SIDE, "displacement_px": DISPLACEMENT_PX},
            "box_s": round(box_s, 4),
            "convolution_s": round(conv_s, 4),
            "ratio": round(conv_s / box_s, 1),
            "value_difference_nats": abs(box_value - conv_value),
            "gradient_relative_difference": ((box_gradient - conv_gradient).norm() / box_gradient.norm()).item(),
        },
    )
