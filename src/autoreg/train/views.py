"""Two views of a batch: its features under two sets of orderings, crossed so that the ordering itself tells nothing.

The paper draws one pair of orderings for the whole batch. A network can tell the ordering (from the missing tap, or the
padded side), so with a symmetrised joint distribution it can earn up to log 2 nats by answering one cluster to the one
ordering and another to the other, and learn nothing about the image. Here a step draws two orderings for the first view and
two for the second and *crosses* them, as in a factorial experiment: each of the four pairs gets the same number of images.
For predictions that depend on the ordering alone the joint distribution then is the product of its marginals, whatever they
are, and the mutual information is exactly zero. And since each ordering meets two others in one joint distribution, a
cluster must mean the same under all of them.
"""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from autoreg.network.network import Network
from autoreg.network.orderings import Ordering
from autoreg.train.distributed import average_over_ranks
from autoreg.train.transforms import IDENTITY, Dihedral

CROSSED = 2
"""Orderings per view where they are crossed; a batch then is a multiple of its square."""

Choice = list[Ordering | None]


def draw_orderings(
    orderings: Sequence[Ordering], sampling: str, rng: np.random.Generator, *, crossed: bool = True
) -> tuple[Choice, Choice]:
    """Orderings of the first and of the second view: ``CROSSED`` each, or one each as in the paper (Table 1d).

    Args:
        orderings: to choose from; none for views without ordering.
        sampling: ``random`` draws with replacement. ``no_rep`` gives the second view no ordering of the first one's, and
            repeats none as far as there are enough. ``hard`` gives it the exact reverses; crossed, the first view gets an
            ordering and its twin, so that each of the four pairs shares at most the current line.
        rng: of the choice.
        crossed: two orderings per view.
    """
    count = CROSSED if crossed else 1
    if not orderings:
        return [None] * count, [None] * count

    def take(indices: Sequence[int]) -> Choice:
        return [orderings[indices[place % len(indices)]] for place in range(count)]

    if sampling == "random":
        return take(rng.integers(len(orderings), size=count).tolist()), take(
            rng.integers(len(orderings), size=count).tolist()
        )
    order = rng.permutation(len(orderings)).tolist()
    if sampling == "no_rep":
        half = min(count, (len(order) + 1) // 2)
        return take(order[:half]), take(order[half : half + count])
    drawn = orderings[order[0]]
    partner = drawn.twin if drawn.twin in orderings and drawn.twin.reverse in orderings else drawn
    first = [drawn, partner][:count]
    return list(first), [ordering.reverse for ordering in first]


def predict_crossed(
    predict: Callable[[Tensor, Choice], Tensor], batch_y: Tensor, batch_z: Tensor, first: Choice, second: Choice
) -> tuple[Tensor, Tensor]:
    """Predict each image of the first view under one of ``first`` and each of the second under one of ``second``.

    With m orderings per view, the images are dealt out to an m x m grid of groups. A group's row in it chooses the ordering
    of the first view and its column that of the second, so that every pair of orderings occurs equally often.

    Args:
        predict: from images (2N, ...), in 2m equal groups, and the orderings of these, to one prediction per image.
        batch_y: the first view, (N, ...), N a multiple of m^2.
        batch_z: the second view, likewise.
        first: m orderings.
        second: m orderings.

    Returns:
        The predictions of the two views, (N, ...) each, in the order of the images.
    """
    view_y, view_z = predict(torch.cat([batch_y, _swap(batch_z, len(second))]), [*first, *second]).chunk(2)
    return view_y, _swap(view_z, len(second))


def _swap(batch: Tensor, side: int) -> Tensor:
    """Images that lie row by row of the grid of groups, column by column; or back."""
    if side == 1:
        return batch
    return batch.reshape(side, side, -1, *batch.shape[1:]).transpose(0, 1).flatten(0, 2)


def view_features(
    network: Network,
    images: Tensor,
    first: Choice,
    second: Choice,
    *,
    second_images: Tensor | None = None,
    transform: Dihedral = IDENTITY,
) -> tuple[Tensor, Tensor]:
    """Features of two views, (N, feature_width, h, w) each, cell on cell.

    Both views go through g_ar together. Where they look at the same pixels, h, the part of the network without masks, runs
    once for both.

    Args:
        network: in training mode, normally.
        images: raw pixels of the first view, float32 (N, bands, H, W); square if ``transform`` turns them.
        first: orderings of the first view.
        second: orderings of the second view, in the frame of ``images``.
        second_images: raw pixels of the second view, before ``transform``; those of the first if None.
        transform: turns the second view before the network sees it; its features are turned back.
    """
    encoded = network.encode(images)
    same = second_images is None and transform == IDENTITY
    turned = encoded if same else network.encode(transform.apply(images if second_images is None else second_images))
    carried = [transform.carry(ordering) if ordering else None for ordering in second]
    view_y, view_z = predict_crossed(network.features, encoded, turned, first, carried)
    return view_y, transform.invert(view_z)


@torch.no_grad()
def calibrate_network(network: Network, images: Tensor, orderings: Sequence[Ordering]) -> None:
    """Fit a network's first weights to ``images``, without labels.

    The decoders are scaled and shifted so that each logit has mean 0 and deviation 1 over pixels and orderings. Without it
    most seeds start dead: the blocks of Table 7 add non-negative branches without a norm, so at first one cluster takes
    nearly every pixel and the gradient of the mutual information vanishes. The statistics of the batch norms become those
    of ``images``, so that the network is the same in training and in evaluation from the start.

    Args:
        network: in training mode.
        images: raw pixels, float32 (N, bands, H, W); those of all ranks count.
        orderings: that it will be trained under; without ordering if there are none.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    encoded = network.encode(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    decoders = [network.decoder, *network.aux_decoders]
    # Not all features at once: those of eight orderings may need more memory than a training step.
    each = (network.features(encoded, ordering) for ordering in orderings or (None,))
    parts = [[decoder(features) for decoder in decoders] for features in each]
    for decoder, logits in zip(decoders, map(torch.cat, zip(*parts, strict=True)), strict=True):
        mean = average_over_ranks(logits.mean(dim=(0, 2, 3)))
        variance = average_over_ranks((logits - mean[:, None, None]).square().mean(dim=(0, 2, 3)))
        std = variance.sqrt().clamp_min(1e-12)
        decoder.weight.div_(std[:, None, None, None])
        cast(Tensor, decoder.bias).sub_(mean).div_(std)
