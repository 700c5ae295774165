"""Blend what an engine said about overlapping tiles into labels, and measure how much depends on the tiling."""

from collections.abc import Mapping
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
        logits: (K, H / stride, W / stride).
        valid: (H, W), True where a pixel is data.
    """

    labels: Labels
    logits: Logits
    valid: NDArray[np.bool_]


def blend(core: Window, answers: Mapping[Window, Answer], stride: int, labels_of: NDArray[np.uint8]) -> tuple[Labels, float]:
    """Label ``core`` from the tiles that cover it.

    A pixel's label is that of the most probable cluster of the weighted mean of the covering tiles' probabilities; where all
    tiles name clusters of one class, it is that class. Its dependence on the tiling is the weighted share of those tiles,
    0..1, whose own label is another one: how probably one of them alone, drawn by its weight, would have changed the label.
    Where one tile is alone, as in the raster's corners, that is 0.

    Args:
        core: the pixels to label.
        answers: by the tile's place; every pixel of ``core`` is covered.
        stride: pixels per cell of the logits.
        labels_of: label of each cluster, (256,).

    Returns:
        (core.height, core.width) labels, 255 where a pixel is no data; and the dependence, summed over the pixels with data.
    """
    labels = np.empty((core.height, core.width), np.uint8)
    dependence = 0.0
    for cell, tiles in cells(core, answers):
        valid = answers[tiles[0]].valid[cell.within(tiles[0]).slices]
        own = labels_of.take([answers[tile].labels[cell.within(tile).slices] for tile in tiles])
        label = own[0]
        # Where all tiles agree, so does their mean, and its rounding must not have a say.
        disputed = (own != label).any(axis=0) & valid
        if disputed.any():
            weight = np.stack([weights(tile, cell) for tile in tiles])
            label = np.where(disputed, labels_of.take(_most_probable(cell, tiles, weight, answers, stride)), label)
            share = (weight * (own != label)).sum(axis=0) / weight.sum(axis=0)
            dependence += float(share.sum(where=disputed, dtype=np.float64))
        labels[cell.within(core).slices] = np.where(valid, label, np.uint8(NODATA_LABEL))
    return labels, dependence


def _most_probable(
    cell: Window, tiles: list[Window], weight: NDArray[np.float32], answers: Mapping[Window, Answer], stride: int
) -> Labels:
    """The most probable cluster of the weighted mean. (tiles, h, w) weights to (h, w)."""
    total = np.zeros((len(answers[tiles[0]].logits), cell.height, cell.width), np.float32)
    for tile, tile_weight in zip(tiles, weight, strict=True):
        total += tile_weight * _probabilities_within(cell.within(tile), answers[tile].logits, stride)
    return np.asarray(total.argmax(axis=0), np.uint8)


def _probabilities_within(part: Window, logits: Logits, stride: int) -> NDArray[np.float32]:
    """Probabilities of a part of a tile, (K, part.height, part.width): the upsampling looks only one cell around."""
    top, left = max(part.row // stride - 1, 0), max(part.col // stride - 1, 0)
    bottom, right = (-(-end // stride) + 1 for end in (part.bottom, part.right))
    around = probabilities(logits[None, :, top:bottom, left:right], stride)[0]
    inside = Window(part.row - top * stride, part.col - left * stride, part.height, part.width)
    return np.asarray(around[:, *inside.slices], np.float32)
