"""Tiles that fit into a given amount of memory."""

import dataclasses

import numpy as np

from autoreg.errors import ConfigError
from autoreg.raster.cog import BLOCK_PX
from autoreg.raster.tiling import CORE_PX, round_up
from autoreg.raster.waiting import WAITING_BLOCKS
from autoreg.runtime.engine import Engine
from autoreg.runtime.images import to_image
from autoreg.runtime.measure.growth import peak_bytes
from autoreg.runtime.pipeline import Outputs
from autoreg.runtime.segment import TilingOptions

_MEASURED_PX = 256
"""Core of the tile that the engine is measured with: large enough for its growth to be seen, small enough for any limit."""
_MARGIN = 1.3
_WAITING_TILES = 8
"""Tiles that have been read, or answered, and wait; a further one for each lane."""
_PROBABILITY_BYTES = 5 * 4
"""Of a cluster and pixel: arrays of float32 between the logits and the maps."""
_REST_BYTES = 64 * 2**20
"""Libraries that are loaded later, and the like."""
_CACHE_SHARE = 0.2


def fit_memory(engine: Engine, limit_bytes: int, options: TilingOptions, outputs: Outputs | None = None) -> TilingOptions:
    """Choose tiles with which a process of this engine stays below ``limit_bytes``, on rasters of any size.

    One tile is run to see what the engine needs for a pixel.

    Args:
        engine: that runs the tiles, a batch in each lane.
        limit_bytes: most resident memory of the process.
        options: what has been chosen: the batch, and the side of the tiles unless it is None.
        outputs: which maps are to be made besides the labels.

    Raises:
        ConfigError: no tile is small enough.
    """
    spec, tile_px, outputs = engine.spec, options.tile_px, outputs or Outputs()
    halo_px = round_up((spec.receptive_field_px or 0) // 2, spec.stride)
    measured = _side(_MEASURED_PX, halo_px, spec.stride)
    if tile_px is not None:  # an engine may take no larger ones
        measured = min(measured, max(tile_px // spec.stride, 1) * spec.stride)
    per_pixel = options.batch_size * _bytes_per_pixel(engine, measured)
    if outputs.need_logits or spec.receptive_field_px is None:
        per_pixel += _PROBABILITY_BYTES * spec.clusters
    bands = 1 + outputs.confidence + outputs.probabilities * len(spec.classes)
    fixed = peak_bytes() + _REST_BYTES + bands * WAITING_BLOCKS * BLOCK_PX**2
    if tile_px is not None:
        sides = [tile_px]
    elif spec.receptive_field_px is None:
        sides = [spec.crop_px]  # another tile would give other labels
    else:
        sides = [_side(CORE_PX >> halvings, halo_px, spec.stride) for halvings in range(5)]
    cache_bytes = int(_CACHE_SHARE * limit_bytes)
    for side in sides:
        needed = fixed + cache_bytes + int(per_pixel * side**2)
        if needed <= limit_bytes:
            return dataclasses.replace(options, tile_px=side, cache_bytes=cache_bytes)
    least = (fixed + per_pixel * sides[-1] ** 2) / (1 - _CACHE_SHARE)
    raise ConfigError(
        f"a limit of {limit_bytes / 1e6:.0f} MB is too low for this model with tiles of {sides[-1]} px, expected at least "
        f"{least / 1e6:.0f} MB; raise it"
    )


def _side(core_px: int, halo_px: int, stride: int) -> int:
    return round_up(core_px, stride) + 2 * halo_px


def _bytes_per_pixel(engine: Engine, side: int) -> float:
    """Of all tiles that are in memory at once: those that the engine runs, and those that wait."""
    spec = engine.spec
    before = peak_bytes()
    pixels = np.zeros((len(spec.bands), side, side), spec.dtype)
    image = to_image(pixels, np.ones((side, side), np.bool_), spec)
    engine.predict(image[None])
    running = _MARGIN * (peak_bytes() - before) / side**2
    waiting = len(spec.bands) * (image.itemsize + pixels.itemsize) + 2
    logits = 4 * spec.clusters / spec.stride**2
    return engine.lanes * running + (_WAITING_TILES + engine.lanes) * (waiting + logits)
