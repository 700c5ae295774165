"""Features that clusters are fitted to after a training."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from autoreg.network.network import Network, valid_cells
from autoreg.train.data import Batch

_CROPS, _CELLS = 512, 2**15
"""What is fitted to: so many crops, because crops that follow each other are from few places, and so many of their cells."""

_AT_ONCE, _VALUES_AT_ONCE = 32, 2**25
"""Crops of a part, and fewer where what is computed of them would have more values than that: 128 MiB in float32."""


def unmasked_features(networks: Sequence[Network], batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Each network's features of a batch without ordering, (N, C, h, w), and which cells hold data only, bool (N, h, w)."""
    first = networks[0]
    images, valid = (torch.from_numpy(of_all).to(first.mean.device) for of_all in batch)
    return [network.features(network.encode(images), None) for network in networks], valid_cells(valid, first.config.stride)


def fitting_batches(batches: Iterable[Batch], values_per_px: float) -> Iterator[tuple[Batch, int]]:
    """The first of ``batches``, in parts, and how many cells of each to fit to; all together give some ten thousands.

    Args:
        batches: of the training.
        values_per_px: what is computed of a part has so many values for each of its pixels; it decides how large parts are.
    """
    crops = 0
    for batch in batches:
        values_per_crop = values_per_px * math.prod(batch.valid.shape[1:])
        at_once = max(min(int(_VALUES_AT_ONCE / values_per_crop), _AT_ONCE), 1)
        for start in range(0, len(batch.images), at_once):
            some = slice(start, start + at_once)
            part = Batch(batch.images[some], batch.valid[some])
            yield part, max(_CELLS * len(part.images) // _CROPS, 1)
        crops += len(batch.images)
        if crops >= _CROPS:
            return
