"""How large the values of an activation are: a histogram that grows tile by tile and never in memory."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 2048
"""As in TensorRT's own calibrators: 16 bins for each of the 128 magnitudes of an INT8 number."""

_CHUNK_VALUES = 2**20


@dataclass(frozen=True)
class Histogram:
    """Counts of absolute values, in bins of equal width from 0 to the largest.

    Attributes:
        maximum: the largest absolute value; 0 if there is nothing but zeros.
        counts: int64 (2048,).
    """

    maximum: float
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Count ``values``, of any shape; what is larger than ``maximum`` falls into the last bin."""
        flat = values.reshape(-1)
        scale = BINS / self.maximum if self.maximum > 0 else 0.0
        # In pieces, so that what is needed beside an activation is small beside it.
        for start in range(0, flat.size, _CHUNK_VALUES):
            scaled = np.abs(flat[start : start + _CHUNK_VALUES])
            scaled *= scale
            bins = scaled.astype(np.int32)
            np.minimum(bins, BINS - 1, out=bins)
            self.counts[:] += np.bincount(bins, minlength=BINS)
