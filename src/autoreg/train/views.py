"""Two views of a batch: its predictions under two sets of orderings, crossed so that the ordering itself tells nothing.

The paper draws one pair of orderings for the whole batch. A network can tell the ordering (from the missing tap, or the
padded side), so with a symmetrised joint distribution it can earn up to log 2 nats by answering one cluster to the one
ordering and another to the other, and learn nothing about the image. Here a step draws four different orderings and
*crosses* them, as in a factorial experiment: two for the first view, two for the second, and each of the four pairs gets
the same number of images. For predictions that depend on the ordering alone the joint distribution then is the product of
its marginals, whatever they are, and the mutual information is exactly zero. And since each ordering meets two others in
one joint distribution, a cluster must mean the same under all of them.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from autoreg.network.network import Network, upsample
from autoreg.network.orderings import RASTER_ORDERINGS, Ordering

CROSSED = 2
"""Orderings per view; a batch is a multiple of its square."""


def draw_orderings(rng: np.random.Generator) -> tuple[list[Ordering], list[Ordering]]:
    """Orderings of the first and of the second view: ``CROSSED`` each, all different."""
    chosen = [RASTER_ORDERINGS[index] for index in rng.permutation(len(RASTER_ORDERINGS))[: 2 * CROSSED]]
    return chosen[:CROSSED], chosen[CROSSED:]


def predict_crossed(
    predict: Callable[[Tensor, Ordering], Tensor], batch: Tensor, first: list[Ordering], second: list[Ordering]
) -> tuple[Tensor, Tensor]:
    """Predict each image once under an ordering of ``first`` and once under one of ``second``, every pair equally often.

    Args:
        predict: from some images (n, ...) and an ordering to one prediction per image (n, ...).
        batch: (N, ...), N a multiple of ``len(first) * len(second)``.
        first: orderings of the first view.
        second: orderings of the second view.

    Returns:
        The two views' predictions, (N, ...) each, in the order of ``batch``.
    """
    grid = batch.reshape(len(first), len(second), -1, *batch.shape[1:])  # image group (i, j) sees first[i] and second[j]
    view_y = torch.cat([predict(grid[i].flatten(0, 1), ordering) for i, ordering in enumerate(first)])
    columns = [predict(grid[:, j].flatten(0, 1), ordering) for j, ordering in enumerate(second)]
    view_z = torch.stack([column.reshape(len(first), -1, *column.shape[1:]) for column in columns], dim=1).flatten(0, 2)
    return view_y, view_z


def predict_views(network: Network, images: Tensor, first: list[Ordering], second: list[Ordering]) -> tuple[Tensor, Tensor]:
    """Probabilities of two views, (N, K, H, W) each. The part of the network without masks runs once for both.

    Args:
        network: in training mode, normally.
        images: raw pixels, float32 (N, bands, H, W).
        first: orderings of the first view.
        second: orderings of the second view.
    """

    def predict(encoded: Tensor, ordering: Ordering) -> Tensor:
        return upsample(network.decode(encoded, ordering), network.config.stride).softmax(dim=1)

    return predict_crossed(predict, network.encode(images), first, second)


@torch.no_grad()
def calibrate_decoder(network: Network, images: Tensor) -> None:
    """Scale and shift the decoder so that on ``images`` each logit has mean 0 and deviation 1 over pixels and orderings.

    Without it most seeds start dead: the blocks of Table 7 add non-negative branches without a norm, so at first one
    cluster takes nearly every pixel and the gradient of the mutual information vanishes. No label is involved.
    """
    encoded = network.encode(images)
    logits = torch.cat([network.decode(encoded, ordering) for ordering in RASTER_ORDERINGS])
    mean, std = logits.mean(dim=(0, 2, 3)), logits.std(dim=(0, 2, 3)).clamp_min(1e-12)
    network.decoder.weight.div_(std[:, None, None, None])
    if network.decoder.bias is not None:
        network.decoder.bias.sub_(mean).div_(std)
