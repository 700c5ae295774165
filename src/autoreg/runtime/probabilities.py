"""Probabilities, computed only where someone asks for them: the softmax of the upsampled logits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.runtime.engine import Logits


def probabilities(logits: Logits, stride: int) -> NDArray[np.floating[Any]]:
    """Class probabilities per pixel.

    Args:
        logits: (N, K, h, w).
        stride: pixels per cell.

    Returns:
        (N, K, h * stride, w * stride), in the type of ``logits``, summing to 1 over K.
    """
    full = _upsample(_upsample(logits, stride, axis=2), stride, axis=3)
    full -= full.max(axis=1, keepdims=True)
    np.exp(full, out=full)
    full /= full.sum(axis=1, keepdims=True)
    return full


def _upsample(values: Logits, stride: int, axis: int) -> Logits:
    """Linear upsampling along one axis, cell centres half a cell from the border (align_corners=False in torch)."""
    cells = values.shape[axis]
    position = np.clip((np.arange(cells * stride) + 0.5) / stride - 0.5, 0, cells - 1)
    low = position.astype(np.intp)
    high = np.minimum(low + 1, cells - 1)
    shape = [1] * values.ndim
    shape[axis] = -1
    weight = (position - low).astype(np.float32).reshape(shape)
    return np.asarray(values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight)
