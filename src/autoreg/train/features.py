"""Features that clusters are fitted to after a training."""

import torch
from torch import Tensor

from autoreg.network.network import Network, valid_cells
from autoreg.train.data import Batch


def unmasked_features(network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """Features of a batch without ordering, (N, C, h, w), and which of its cells hold data only, bool (N, h, w)."""
    device = network.mean.device
    features = network.features(network.encode(torch.from_numpy(batch.images).to(device)), None)
    return features, valid_cells(torch.from_numpy(batch.valid).to(device), network.config.stride)
