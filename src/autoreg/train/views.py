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
from autoreg.train.transforms import IDENTITY, Dihedral

CROSSED = 2
"""Orderings per view; a batch is a multiple of its square."""


def draw_orderings(rng: np.random.Generator) -> tuple[list[Ordering], list[Ordering]]:
    """Orderings of the first and of the second view: ``CROSSED`` each, all different."""
    chosen = [RASTER_ORDERINGS[index] for index in rng.permutation(len(RASTER_ORDERINGS))[: 2 * CROSSED]]
    return chosen[:CROSSED], chosen[CROSSED:]


def predict_crossed(
    predict: Callable[[Tensor, Ordering], Tensor], batch: Tensor, orderings: list[Ordering], axis: int
) -> Tensor:
    """Predict each image under one of ``orderings``.

    The images are dealt out to a ``CROSSED`` x ``CROSSED`` grid of groups. A group's place along ``axis`` chooses its
    ordering, so with axis 0 for the one view and axis 1 for the other every pair of orderings occurs equally often.

    Args:
        predict: from some images (n, ...) and an ordering to one prediction per image (n, ...).
        batch: (N, ...), N a multiple of ``CROSSED ** 2``.
        orderings: ``CROSSED`` of them.
        axis: 0 or 1.

    Returns:
        (N, ...), in the order of ``batch``.
    """
    grid = batch.reshape(CROSSED, CROSSED, -1, *batch.shape[1:])
    parts = [predict(group.flatten(0, 1), ordering) for group, ordering in zip(grid.unbind(axis), orderings, strict=True)]
    return torch.stack([part.reshape(CROSSED, -1, *part.shape[1:]) for part in parts], dim=axis).flatten(0, 2)


def predict_views(
    network: Network,
    images: Tensor,
    first: list[Ordering],
    second: list[Ordering],
    *,
    second_images: Tensor | None = None,
    transform: Dihedral = IDENTITY,
) -> tuple[Tensor, Tensor]:
    """Probabilities of two views, (N, K, H, W) each, pixel on pixel.

    Where both views look at the same pixels, the part of the network without masks runs once for both.

    Args:
        network: in training mode, normally.
        images: raw pixels of the first view, float32 (N, bands, H, W).
        first: orderings of the first view.
        second: orderings of the second view, in the frame of ``images``.
        second_images: raw pixels of the second view, before ``transform``; those of the first if None.
        transform: turns the second view before the network sees it; its predictions are turned back.
    """

    def predict(encoded: Tensor, ordering: Ordering) -> Tensor:
        return upsample(network.decode(encoded, ordering), network.config.stride).softmax(dim=1)

    def predict_turned(encoded: Tensor, ordering: Ordering) -> Tensor:
        return transform.invert(predict(encoded, transform.carry(ordering)))

    encoded = network.encode(images)
    same = second_images is None and transform == IDENTITY
    turned = encoded if same else network.encode(transform.apply(images if second_images is None else second_images))
    return predict_crossed(predict, encoded, first, 0), predict_crossed(predict_turned, turned, second, 1)


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
