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

import numpy as np
import torch
from torch import Tensor, nn

from autoreg.network.network import Network
from autoreg.network.orderings import Ordering
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
    predict: Callable[[Tensor, Ordering | None], Tensor], batch: Tensor, orderings: Choice, axis: int
) -> Tensor:
    """Predict each image under one of ``orderings``.

    With m orderings per view, the images are dealt out to an m x m grid of groups. A group's place along ``axis`` chooses
    its ordering, so with axis 0 for the one view and axis 1 for the other every pair of orderings occurs equally often.

    Args:
        predict: from some images (n, ...) and an ordering to one prediction per image (n, ...).
        batch: (N, ...), N a multiple of m^2.
        orderings: m of them.
        axis: 0 or 1.

    Returns:
        (N, ...), in the order of ``batch``.
    """
    side = len(orderings)
    if len(set(orderings)) == 1:
        return predict(batch, orderings[0])
    grid = batch.reshape(side, side, -1, *batch.shape[1:])
    parts = [predict(group.flatten(0, 1), ordering) for group, ordering in zip(grid.unbind(axis), orderings, strict=True)]
    return torch.stack([part.reshape(side, -1, *part.shape[1:]) for part in parts], dim=axis).flatten(0, 2)


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

    Where both views look at the same pixels, the part of the network without masks runs once for both.

    Args:
        network: in training mode, normally.
        images: raw pixels of the first view, float32 (N, bands, H, W).
        first: orderings of the first view.
        second: orderings of the second view, in the frame of ``images``.
        second_images: raw pixels of the second view, before ``transform``; those of the first if None.
        transform: turns the second view before the network sees it; its features are turned back.
    """

    def look_turned(encoded: Tensor, ordering: Ordering | None) -> Tensor:
        carried = transform.carry(ordering) if ordering is not None else None
        return transform.invert(network.features(encoded, carried))

    encoded = network.encode(images)
    same = second_images is None and transform == IDENTITY
    turned = encoded if same else network.encode(transform.apply(images if second_images is None else second_images))
    return predict_crossed(network.features, encoded, first, 0), predict_crossed(look_turned, turned, second, 1)


@torch.no_grad()
def calibrate_network(network: Network, images: Tensor, orderings: Sequence[Ordering]) -> None:
    """Fit a network's first weights to ``images``, without labels.

    The decoders are scaled and shifted so that each logit has mean 0 and deviation 1 over pixels and orderings. Without it
    most seeds start dead: the blocks of Table 7 add non-negative branches without a norm, so at first one cluster takes
    nearly every pixel and the gradient of the mutual information vanishes. The statistics of the batch norms become those
    of ``images``, so that the network is the same in training and in evaluation from the start.

    Args:
        network: in training mode.
        images: raw pixels, float32 (N, bands, H, W).
        orderings: that it will be trained under; without ordering if there are none.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    encoded = network.encode(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    features = torch.cat([network.features(encoded, ordering) for ordering in orderings or (None,)])
    for decoder in (network.decoder, network.auxiliary):
        if decoder is None or decoder.bias is None:
            continue
        logits = decoder(features)
        mean, std = logits.mean(dim=(0, 2, 3)), logits.std(dim=(0, 2, 3)).clamp_min(1e-12)
        decoder.weight.div_(std[:, None, None, None])
        decoder.bias.sub_(mean).div_(std)
