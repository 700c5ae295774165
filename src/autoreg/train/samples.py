"""What a network makes of the sample crops of its checkpoint: for pictures, and for what was learned in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoreg.network.network import Network, evaluating, upsample
from autoreg.network.orderings import Ordering
from autoreg.spec import NODATA_LABEL


@dataclass(frozen=True)
class Examination:
    """What a network says of sample crops.

    Attributes:
        labels: of the network without ordering, uint8 (N, H, W); 255 where there is no data.
        confidence: probability of the label, float32 (N, H, W), 1/K to 1; 0 where there is no data.
        pixels: of each cluster, int64 (K,).
        means: mean raw pixel of each cluster, float64 (K, bands); NaN where it has none.
        agreement_between: share of the pixels, 0 to 1, that two different orderings give the same label, on average; None if
            there are not two, or the network has no masked layers.
        agreement_with_none: share that an ordering gives the label of the network without ordering; likewise.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    pixels: NDArray[np.int64]
    means: NDArray[np.float64]
    agreement_between: float | None
    agreement_with_none: float | None

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which pixels are data, (N, H, W)."""
        return np.asarray(self.labels != NODATA_LABEL)

    @property
    def mean_confidence(self) -> float:
        """Over the pixels that are data."""
        return float(self.confidence[self.valid].mean())


def examine(
    network: Network, samples: Tensor, orderings: Sequence[Ordering], decoder: nn.Conv2d | None = None
) -> Examination:
    """Run a network on sample crops, with and without orderings.

    Args:
        network: left as it was.
        samples: raw crops, float32 (N, bands, H, W), where pixels without data hold the network's mean.
        orderings: to compare.
        decoder: says the clusters; the network's own if None.
    """
    # A mean of many pixels is no pixel's own value, but for rasters that are flat.
    valid = (samples != network.mean.cpu()[:, None, None]).any(dim=1).numpy()
    valid = valid if valid.any() else np.ones_like(valid)
    decoder = decoder or network.decoder
    probs = [_predict(network, decoder, sample, None) for sample in samples]
    labels = np.stack([part.argmax(dim=0).to(torch.uint8).numpy() for part in probs])
    labels[~valid] = NODATA_LABEL
    confidence = np.stack([part.amax(dim=0).numpy() for part in probs]) * valid
    known = labels[valid]
    values = samples.numpy().transpose(1, 0, 2, 3)[:, valid].astype(np.float64)
    pixels = np.bincount(known, minlength=decoder.out_channels)
    sums = np.stack([np.bincount(known, band, minlength=decoder.out_channels) for band in values], axis=1)
    with np.errstate(invalid="ignore"):
        means = sums / pixels[:, None]
    between = with_none = None
    if len(orderings) > 1 and len(network.masked):
        ordered = np.stack([_label(network, decoder, samples, ordering)[valid] for ordering in orderings])
        between = float(np.mean([(one == other).mean() for one, other in combinations(ordered, 2)]))
        with_none = float((ordered == known).mean())
    return Examination(labels, confidence.astype(np.float32), pixels, means, between, with_none)


def _label(network: Network, decoder: nn.Module, samples: Tensor, ordering: Ordering) -> NDArray[np.uint8]:
    probs = (_predict(network, decoder, sample, ordering) for sample in samples)
    return np.stack([part.argmax(dim=0).to(torch.uint8).numpy() for part in probs])


@torch.no_grad()
def _predict(network: Network, decoder: nn.Module, sample: Tensor, ordering: Ordering | None) -> Tensor:
    """Probabilities of one crop, (K, H, W), on the CPU; one at a time, because a crop may be large."""
    with evaluating(network):
        logits = decoder(network.features(network.encode(sample[None].to(network.mean.device)), ordering))
    return upsample(logits, network.config.stride).softmax(dim=1)[0].cpu()
