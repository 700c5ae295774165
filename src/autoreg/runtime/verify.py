"""What two engines are compared on, and the picture of where they differ."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from autoreg.raster.palette import class_colours
from autoreg.raster.picture import BLANK, Picture, paint, stretch
from autoreg.raster.reader import RasterReader
from autoreg.raster.tiling import round_up
from autoreg.raster.window import Window
from autoreg.runtime.engine import Images
from autoreg.runtime.images import to_image
from autoreg.runtime.parity import Tile, WorstTile
from autoreg.runtime.segment import check_fit, scene_reader
from autoreg.spec import ModelSpec

TILE_PX = 512
"""Most pixels of a side of a tile."""

_PROBABILITIES = 2**22
"""Most probabilities of a tile that are in memory at once; there are a few arrays of them."""
_GAP_PX = 8
_DIFFERENT = (214, 0, 0)


def sample_tiles(samples: Images, spec: ModelSpec) -> Iterator[Tile]:
    """The sample crops of a checkpoint (N, bands, height, width), whose pixels without data hold the mean and count, too.

    For a model that takes uint8 they are rounded, which changes those pixels alone.
    """
    for number, sample in enumerate(samples, 1):
        image = np.rint(sample).clip(0, 255).astype(np.uint8) if spec.takes_uint8 else sample
        yield Tile(f"sample crop {number}", image, np.ones(sample.shape[1:], np.bool_))


def raster_tiles(
    paths: Sequence[str | Path], reference: ModelSpec, candidate: ModelSpec, *, most_px: int = TILE_PX
) -> Iterator[Tile]:
    """Cut rasters into tiles for two models; pixels without data hold the fill of the first.

    They have no halos: both models are shown the same, so it does not matter what it is, as long as it looks real.

    Args:
        paths: of the rasters.
        reference: that the rasters have to fit.
        candidate: comparable with it.
        most_px: of a side of a tile.

    Raises:
        RasterError: a raster cannot be read, or does not have the bands or the type; before the first tile.
    """
    for path in paths:
        with RasterReader(path, bands=len(reference.bands)) as raster:
            check_fit(str(path), raster, reference)
    side_px = _tile_px(reference, candidate, most_px)
    for path in paths:
        with RasterReader(path, bands=len(reference.bands)) as raster:
            yield from _cut(raster, reference, side_px, math.lcm(reference.stride, candidate.stride))


def _cut(raster: RasterReader, spec: ModelSpec, side_px: int, stride: int) -> Iterator[Tile]:
    read = scene_reader(spec, raster.read, raster.height, raster.width)
    for inside in Window(0, 0, raster.height, raster.width).cut(side_px, side_px):
        if raster.is_empty(inside):
            continue
        pixels, valid = read(Window(*inside[:2], *(round_up(size, stride) for size in inside[2:])))
        valid = valid.copy()
        valid[inside.height :] = valid[:, inside.width :] = False  # what was repeated beyond the edges
        image = to_image(pixels, valid, spec)
        yield Tile(f"{raster.path}, row {inside.row}, column {inside.col}", image, valid)


def _tile_px(reference: ModelSpec, candidate: ModelSpec, most_px: int) -> int:
    """Side of the tiles, a multiple of both strides: what fits in memory, or the crop that an attending one has learned."""
    stride = math.lcm(reference.stride, candidate.stride)
    crops = [spec.crop_px for spec in (reference, candidate) if spec.receptive_field_px is None]
    side_px = min(most_px, math.isqrt(_PROBABILITIES // reference.clusters), *crops)
    return max(side_px // stride, 1) * stride


def draw_difference(worst: WorstTile, bands: Sequence[str], clusters: int) -> Picture:
    """Four panels side by side: the image, the labels of both, and on the image in grey, in red, where they differ.

    Args:
        worst: from ``compare_engines``.
        bands: names of those of the image.
        clusters: how many labels there are.

    Returns:
        uint8 (3, height, 4 * width and gaps); pixels without data are blank.
    """
    image, valid, colours = worst.tile.image, worst.tile.valid, class_colours(clusters)
    shown = stretch(image[None], bands, valid[None])[0]
    maps = [np.where(valid, paint(labels, colours), BLANK).astype(np.uint8) for labels in (worst.reference, worst.candidate)]
    grey = np.broadcast_to(shown.mean(axis=0).astype(np.uint8) // 2 + BLANK // 2, shown.shape).copy()
    grey[:, worst.differing] = np.asarray(_DIFFERENT, np.uint8)[:, None]
    gap = np.full((3, image.shape[1], _GAP_PX), BLANK, np.uint8)
    return np.concatenate([shown, gap, maps[0], gap, maps[1], gap, grey], axis=2)
