"""Features that clusters are fitted to after a training."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from autoreg.network.network import Network, valid_cells
from autoreg.train.data import Batch

_CROPS, _CELLS = 512, 2**15
"""What is fitted to: so many crops, because crops that follow each other are from few places, and so many of their cells."""

_AT_ONCE = 32
"""Crops of a part: what is computed of a batch may be many times its size."""


def unmasked_features(networks: Sequence[Network], batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Each network's features of a batch without ordering, (N, C, h, w), and which cells hold data only, bool (N, h, w)."""
    first = networks[0]
    images, valid = (torch.from_numpy(of_all).to(first.mean.device) for of_all in batch)
    return [network.features(network.encode(images), None) for network in networks], valid_cells(valid, first.config.stride)


def fitting_batches(batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
    """The first of ``batches``, in parts, and how many cells of each to fit to; all together give some ten thousands."""
    crops = 0
    for batch in batches:
        for start in range(0, len(batch.images), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            part = Batch(batch.images[some], batch.valid[some])
            yield part, max(_CELLS * len(part.images) // _CROPS, 1)
        crops += len(batch.images)
        if crops >= _CROPS:
            return
