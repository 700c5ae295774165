"""Verify on a raster that tiled labels are those of one pass over the whole, or measure by how much they differ.

The whole pass is written out here, without a plan, tiles or threads: what it is compared with shares only the engine and the
rescaling of the scene. It needs memory in proportion to the raster, so a large raster is verified on pieces. Each is treated
as a raster of its own: it ends where it ends, for the tiles as for the whole pass.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import ConfigError
from autoreg.raster.blending import Blending
from autoreg.raster.reader import RasterReader
from autoreg.raster.statistics import Read
from autoreg.raster.tiling import Tiling, round_up
from autoreg.raster.window import Window
from autoreg.runtime.engine import Engine, Images, Labels, Logits, Prediction
from autoreg.runtime.images import to_image
from autoreg.runtime.segment import TilingOptions, check_fit, scene_reader, segment_array
from autoreg.spec import NODATA_LABEL, ModelSpec

BATCH_SIZES = (1, 2)
"""Tiles per call of the engine that are tried with each tile size."""

# A whole pass in ONNX Runtime took 240 bytes/px for the size tiny, 70 for small and 260 for base: at most 1.1 GB for this.
_MAX_PX = 2**22
# Attention took 8 bytes for each pair of cells: 2 GB for this.
_MAX_ATTENDED_CELLS = 2**14

_PIECES = 3
"""Most pieces along each axis."""
_CORE_CELLS = 61
"""Core of an awkward tile: a prime number of cells, so that no size of a block or a raster is a multiple of it."""
_WHOLE_WORK = 4
"""How many times as many pixels as a whole pass the tiles of a whole raster may see; else pieces do."""
_CALL_PX = 1024
"""What a tile costs beside its pixels, in pixels."""
_POINTS = 2**14
"""Pixels whose logits are upsampled at once."""


@dataclass(frozen=True)
class TilingCheck:
    """How the labels of one way to cut a raster compare with those of one pass over the whole.

    Attributes:
        tile_px: side of the tile, halo included.
        batch_size: tiles per call of the engine.
        exact: whether the model's receptive field is finite, so that all labels must be equal.
        tiles: how many tiles the engine was to see; if there are no more than pieces, nothing was cut.
        pieces: how many pieces of the raster were each treated as a whole; 1 is the raster itself.
        checked: share of the raster's pixels, 0..1, that lie in one of the pieces.
        labels: how many labels of pixels with data were compared; where pieces overlap, each counts.
        differing: pixels whose two labels are not the same, whether they have data or not.
        differing_nodata: those of them where only one of the two is 255.
        max_margin: by how much the whole pass prefers its label to the tiled one: the greatest difference of their logits,
            over the differing pixels; 0 if there is none. Rounding leaves about 1e-6 of ``largest_logit`` for fp32.
        largest_logit: greatest absolute logit of the whole pass's label at the differing pixels; 0 if there is none.
    """

    tile_px: int
    batch_size: int
    exact: bool
    tiles: int
    pieces: int
    checked: float
    labels: int
    differing: int
    differing_nodata: int
    max_margin: float
    largest_logit: float

    @property
    def failed(self) -> bool:
        """Whether labels differ that must be equal."""
        return self.exact and self.differing > 0

    @property
    def differing_share(self) -> float:
        """Differing labels per label of a pixel with data."""
        return self.differing / max(self.labels, 1)


class _Difference(NamedTuple):
    """The last five numbers of a ``TilingCheck``, for one piece."""

    labels: int
    differing: int
    differing_nodata: int
    max_margin: float
    largest_logit: float


def verify_tiling(
    engine: Engine,
    source: str | Path,
    *,
    tiles_px: tuple[int, ...] = (),
    max_px: int | None = None,
    max_side_px: int | None = None,
) -> Iterator[TilingCheck]:
    """Compare the tiled labels of a raster with those of one pass, for some tile sizes and ``BATCH_SIZES``.

    For a model of normalisation ``scene``, the whole raster is measured, and its pieces are rescaled alike.

    Args:
        engine: from ``load_engine``.
        source: a raster that GDAL opens.
        tiles_px: sides of the tiles, halo included; if none, those of ``default_tiles_px``.
        max_px: most pixels of a whole pass; a larger raster is checked on at most 3 x 3 pieces, spread evenly from corner to
            corner. So is any raster whose tiles would see far more pixels than that, as very small ones do. If None,
            ``default_max_px``.
        max_side_px: likewise, most pixels of one of its sides, if the engine takes no larger images; any if None.

    Yields:
        For each tile size, one for each batch size.

    Raises:
        RasterError: ``source`` cannot be read, or does not have the model's bands or type.
        ConfigError: a tile leaves no core, or is so large that pieces of ``max_px`` would not be cut.
        EngineError: the engine failed.
    """
    spec = engine.spec
    max_px = default_max_px(spec) if max_px is None else max_px
    with RasterReader(source, bands=len(spec.bands)) as raster:
        height, width = raster.height, raster.width
        check_fit(str(raster.path), raster, spec)
        # All of them before any work, which a wrong tile size would end.
        pieces_of = {
            tile_px: plan_pieces(spec, height, width, tile_px=tile_px, max_px=max_px, max_side_px=max_side_px)
            for tile_px in tiles_px or default_tiles_px(spec, max_px)
        }
        read = scene_reader(spec, raster.read, height, width)
        for tile_px, pieces in pieces_of.items():
            yield from _check(_Rescaled(engine), read, pieces, tile_px, _covered(pieces) / (height * width))


def default_max_px(spec: ModelSpec) -> int:
    """Most pixels of a whole pass that networks up to the size base make in 2 GB; memory grows with a network's widths."""
    return _MAX_PX if spec.receptive_field_px is not None else min(_MAX_PX, _MAX_ATTENDED_CELLS * spec.stride**2)


def default_tiles_px(spec: ModelSpec, max_px: int) -> tuple[int, ...]:
    """Tile sizes that tell: the default, and awkward ones.

    The least is the smallest that leaves a core between its halos, or, as such tiles see each pixel hundreds of times, the
    smallest whose piece costs no more than a whole pass over ``max_px`` pixels.
    """
    plan, stride = TilingOptions().plan(spec, 1, 1), spec.stride
    if isinstance(plan, Blending):
        return plan.tile_px, round_up(plan.tile_px // 2 + 1, stride)
    halos_px = 2 * plan.halo_px

    def cost(core_px: int) -> float:
        tile_px = core_px + halos_px
        return (_least_piece_px(tile_px) / core_px) ** 2 * (tile_px**2 + _CALL_PX)

    least_px = next((core_px for core_px in range(stride, plan.core_px, stride) if cost(core_px) <= max_px), plan.core_px)
    cores_px = (plan.core_px, _CORE_CELLS * stride, least_px)
    return tuple(dict.fromkeys(halos_px + core_px for core_px in cores_px))


def plan_pieces(
    spec: ModelSpec, height: int, width: int, *, tile_px: int, max_px: int, max_side_px: int | None = None
) -> list[Window]:
    """The parts of a raster of ``height`` x ``width`` px to check: the whole if it is small, else pieces of one shape.

    There are at most 3 x 3 pieces, spread evenly; where there are more than one along an axis, the first begins and the last
    ends with the raster. Along an axis they overlap only where they cover all of it.

    Args:
        spec: of the model.
        height: of the raster, in pixels.
        width: of the raster, in pixels.
        tile_px: side of the tiles.
        max_px: most pixels of a piece.
        max_side_px: of a larger raster, pieces are checked, too, however few pixels it has.

    Raises:
        ConfigError: ``tile_px`` leaves no core, or a piece that its tiles cut would have more than ``max_px`` pixels.
    """
    plan = TilingOptions(tile_px).plan(spec, height, width)
    fits = height * width <= max_px and (max_side_px is None or max(height, width) <= max_side_px)
    if fits and _count_tiles(plan) * (math.prod(plan.tile_shape) + _CALL_PX) <= _WHOLE_WORK * max_px:
        return [Window(0, 0, height, width)]
    step_px = plan.core_px if isinstance(plan, Tiling) else plan.step_px
    side_px = max(step_px * math.isqrt(max_px // (tile_px**2 + _CALL_PX)), _least_piece_px(tile_px))
    rows, cols = min(side_px, height), min(side_px, width)
    if rows * cols > max_px:
        raise ConfigError(
            f"a tile of {tile_px} px would not cut pieces of at most {max_px} px in all; "
            f"use smaller tiles, or pieces of up to {rows * cols} px"
        )
    return [Window(row, col, rows, cols) for row in _starts(height, rows) for col in _starts(width, cols)]


def label_whole(engine: Engine, image: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[Labels, Logits]:
    """Label an image in one pass: its last row and column are repeated up to a multiple of the stride.

    Args:
        engine: its model's normalisation is ``global``.
        image: (bands, height, width), what goes into the model.
        valid: (height, width), True where a pixel is data.

    Returns:
        (height, width), labels of ``engine.spec.classes``, and 255 where ``valid`` is False; and the logits
        (K, cells down, cells across).
    """
    spec, (height, width) = engine.spec, valid.shape
    pixels = to_image(image, valid, spec)
    margins = [(0, round_up(size, spec.stride) - size) for size in (height, width)]
    clusters, logits = engine.predict(np.pad(pixels, [(0, 0), *margins], mode="edge")[None])
    labels = np.asarray(spec.cluster_labels, np.uint8)[clusters[0, :height, :width]]
    labels[~valid] = NODATA_LABEL
    return labels, logits[0]


@dataclass(frozen=True)
class _Rescaled:
    """An engine for images that have the scene's rescaling already: its model's normalisation is ``global``."""

    engine: Engine

    @property
    def spec(self) -> ModelSpec:
        spec = self.engine.spec
        # Rescaled pixels are no whole numbers.
        return spec if spec.normalisation == "global" else dataclasses.replace(spec, dtype="float32", normalisation="global")

    @property
    def model_digest(self) -> str:
        return self.engine.model_digest

    @property
    def device(self) -> str:
        return self.engine.device

    @property
    def lanes(self) -> int:
        return self.engine.lanes

    def label(self, images: Images) -> Labels:
        return self.engine.label(images)

    def predict(self, images: Images) -> Prediction:
        return self.engine.predict(images)


def _check(engine: Engine, read: Read, pieces: list[Window], tile_px: int, checked: float) -> Iterator[TilingCheck]:
    """Cut each piece into tiles of ``tile_px``, in batches of each size."""
    spec = engine.spec
    found: dict[int, list[_Difference]] = {batch_size: [] for batch_size in BATCH_SIZES}
    for piece in pieces:
        image, valid = read(piece)
        whole, logits = label_whole(engine, image, valid)
        for batch_size, differences in found.items():
            tiled = segment_array(engine, image, valid, options=TilingOptions(tile_px, batch_size))
            differences.append(_compare(whole, tiled, logits, spec))
    tiles = sum(_count_tiles(TilingOptions(tile_px).plan(spec, piece.height, piece.width)) for piece in pieces)
    exact = spec.receptive_field_px is not None
    for batch_size, differences in found.items():
        labels, differing, nodata, margins, logits_at = zip(*differences, strict=True)
        numbers = (sum(labels), sum(differing), sum(nodata), max(margins), max(logits_at))
        yield TilingCheck(tile_px, batch_size, exact, tiles, len(pieces), checked, *numbers)


def _compare(whole: Labels, tiled: Labels, logits: Logits, spec: ModelSpec) -> _Difference:
    """Compare labels (height, width); ``logits`` are those of the whole pass."""
    differing = whole != tiled
    nodata = (whole == NODATA_LABEL) != (tiled == NODATA_LABEL)
    rows, cols = np.nonzero(differing & ~nodata)
    max_margin, largest = 0.0, 0.0
    for start in range(0, len(rows), _POINTS):
        at = rows[start : start + _POINTS], cols[start : start + _POINTS]
        values = _logits_at(logits, spec.stride, *at)
        preferred, other = (_logits_of(labels[at], values, spec) for labels in (whole, tiled))
        max_margin = max(max_margin, float(np.abs(preferred - other).max()))
        largest = max(largest, float(np.abs(preferred).max()))
    counts = [int(np.count_nonzero(mask)) for mask in (whole != NODATA_LABEL, differing, nodata)]
    return _Difference(counts[0], counts[1], counts[2], max_margin, largest)


def _logits_at(logits: Logits, stride: int, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.float64]:
    """The logits (K, cells down, cells across), upsampled bilinearly as in the graph, at n pixels: (K, n)."""
    down, across = (
        np.clip((pixels + 0.5) / stride - 0.5, 0, cells - 1)
        for pixels, cells in zip((rows, cols), logits.shape[1:], strict=True)
    )
    top, left = down.astype(np.intp), across.astype(np.intp)
    bottom, right = np.minimum(top + 1, logits.shape[1] - 1), np.minimum(left + 1, logits.shape[2] - 1)
    upper = logits[:, top, left] * (1 - (across - left)) + logits[:, top, right] * (across - left)
    lower = logits[:, bottom, left] * (1 - (across - left)) + logits[:, bottom, right] * (across - left)
    return np.asarray(upper * (1 - (down - top)) + lower * (down - top), np.float64)


def _logits_of(labels: Labels, logits: NDArray[np.float64], spec: ModelSpec) -> NDArray[np.float64]:
    """The greatest logit (n,) among the clusters of each label (n,), from ``logits`` (K, n)."""
    stands_for = np.asarray(spec.cluster_labels)[:, None] == labels
    return np.asarray(np.where(stands_for, logits, -np.inf).max(axis=0))


def _count_tiles(plan: Tiling | Blending) -> int:
    # Some of those that overlap belong to several areas.
    return len(plan) if isinstance(plan, Tiling) else len({tile for area in plan for tile in area.tiles})


def _least_piece_px(tile_px: int) -> int:
    """Side of a piece that is larger than a tile by enough to be cut more than once."""
    return tile_px + max(tile_px // 4, 1)


def _starts(size: int, piece_px: int) -> list[int]:
    """Where pieces start along one axis of ``size`` pixels."""
    count = min(-(-size // piece_px), _PIECES)
    return [index * (size - piece_px) // max(count - 1, 1) for index in range(count)]


def _covered(pieces: list[Window]) -> int:
    """How many pixels lie in one of the pieces, which are a grid."""
    rows, cols = (sorted({piece[axis] for piece in pieces}) for axis in (0, 1))
    first = pieces[0]
    # Each counts up to where the next begins.
    down, across = (
        sum(min(side, following - start) for start, following in zip(starts, [*starts[1:], starts[-1] + side], strict=True))
        for starts, side in ((rows, first.height), (cols, first.width))
    )
    return down * across
