"""Blend what an engine said about overlapping tiles into labels, and measure how much depends on the tiling."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.raster.blending import cells, weights
from autoreg.raster.window import Window
from autoreg.runtime.engine import Labels, Logits
from autoreg.runtime.probabilities import probabilities
from autoreg.spec import NODATA_LABEL


class Answer(NamedTuple):
    """What an engine says about one tile, and which of its pixels are data.

    Attributes:
        labels: (H, W), clusters 0 .. K-1.
        logits: (K, H / stride, W / stride); None if nobody asked for them.
        valid: (H, W), True where a pixel is data.
    """

    labels: Labels
    logits: Logits | None
    valid: NDArray[np.bool_]


class Blended(NamedTuple):
    """What the answers about overlapping tiles say together.

    Attributes:
        labels: (h, w), 255 where a pixel is no data.
        probabilities: (K, h, w), of the clusters; None if nobody asked for them.
        tiling_dependent: how many labels depend on the tiling.
    """

    labels: Labels
    probabilities: NDArray[np.float32] | None
    tiling_dependent: float


def blend(
    core: Window,
    answers: Mapping[Window, Answer | None],
    stride: int,
    labels_of: NDArray[np.uint8],
    *,
    with_probabilities: int | None = None,
) -> Blended:
    """Label ``core`` from the tiles that cover it.

    A pixel's label is that of the most probable cluster of the weighted mean of the covering tiles' probabilities; where all
    tiles name clusters of one class, it is that class. Its dependence on the tiling is the weighted share of those tiles,
    0..1, whose own label is another one: how probably one of them alone, drawn by its weight, would have changed the label.
    Where one tile is alone, as in the raster's corners, that is 0.

    Args:
        core: the pixels to label.
        answers: by the tile's place; every pixel of ``core`` is covered. None stands for a tile without data.
        stride: pixels per cell of the logits.
        labels_of: label of each cluster, (256,).
        with_probabilities: the number of clusters, if their probabilities are wanted, too.
    """
    labels = np.full((core.height, core.width), NODATA_LABEL, np.uint8)
    wanted = None if with_probabilities is None else np.zeros((with_probabilities, *labels.shape), np.float32)
    dependence = 0.0
    for cell, tiles in cells(core, answers):
        covering = [(tile, answer) for tile in tiles if (answer := answers[tile]) is not None]
        if len(covering) < len(tiles):
            continue  # one of the tiles has no data at all, so there is none here
        inside = cell.within(core).slices
        valid = covering[0][1].valid[cell.within(covering[0][0]).slices]
        own = labels_of.take([answer.labels[cell.within(tile).slices] for tile, answer in covering])
        label = own[0]
        # Where all tiles agree, so does their mean, and its rounding must not have a say.
        disputed = (own != label).any(axis=0) & valid
        if disputed.any() or wanted is not None:
            weight = np.stack([weights(tile, cell) for tile in tiles])
            mean = _mean(cell, covering, weight, stride)
            label = np.where(disputed, labels_of.take(mean.argmax(axis=0)), label)
            share = (weight * (own != label)).sum(axis=0) / weight.sum(axis=0)
            dependence += float(share.sum(where=disputed, dtype=np.float64))
            if wanted is not None:
                wanted[:, *inside] = mean
        labels[inside] = np.where(valid, label, np.uint8(NODATA_LABEL))
    return Blended(labels, wanted, dependence)


def _mean(
    cell: Window, covering: Sequence[tuple[Window, Answer]], weight: NDArray[np.float32], stride: int
) -> NDArray[np.float32]:
    """The weighted mean of the probabilities: (tiles, h, w) weights to (K, h, w)."""
    parts = (
        tile_weight * probabilities_within(cell.within(tile), answer.logits, stride)
        for (tile, answer), tile_weight in zip(covering, weight, strict=True)
        if answer.logits is not None
    )
    total = next(parts)
    for part in parts:
        total += part
    return np.asarray(total / weight.sum(axis=0), np.float32)


def probabilities_within(part: Window, logits: Logits, stride: int) -> NDArray[np.float32]:
    """Probabilities of a part of a tile, (K, part.height, part.width): the upsampling looks only one cell around."""
    top, left = max(part.row // stride - 1, 0), max(part.col // stride - 1, 0)
    bottom, right = (-(-end // stride) + 1 for end in (part.bottom, part.right))
    around = probabilities(logits[None, :, top:bottom, left:right], stride)[0]
    inside = Window(part.row - top * stride, part.col - left * stride, part.height, part.width)
    return np.asarray(around[:, *inside.slices], np.float32)
