"""What ``bench`` measures: each model on each device, by batch size and calls at once, on tiles that all of them take."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoreg.errors import ConfigError
from autoreg.raster.blending import Blending
from autoreg.raster.tiling import Tiling
from autoreg.runtime.devices import TENSORRT, Device, choose_device, count_lanes
from autoreg.runtime.engines.tensorrt import EngineFile
from autoreg.runtime.segment import TilingOptions
from autoreg.spec import ModelSpec

_MOST_ROWS = 64
_MOST_VALUES = 2**27
"""Most values in one call of all lanes: 512 MiB, or 32 tiles of 1024 px with 4 bands."""
_LARGE_PX = 2**20
"""Side of a raster that no tile covers."""


@dataclass(frozen=True)
class Case:
    """What a row measures.

    Attributes:
        model: its file.
        spec: of the model.
        device: that runs it.
        batch_size: tiles per call.
        lanes: calls at once.
    """

    model: Path
    spec: ModelSpec
    device: Device
    batch_size: int
    lanes: int

    def core_px(self, tile_px: int) -> int:
        """Side of what each tile adds to the map of a large raster."""
        plan = _plan(self.spec, tile_px)
        return plan.step_px if isinstance(plan, Blending) else plan.core_px


def check_alike(models: Sequence[Path], specs: Sequence[ModelSpec]) -> None:
    """Make sure that all models can be shown the same tiles.

    Raises:
        ConfigError: they take other bands or another type of pixels than the first.
    """
    for model, spec in zip(models, specs, strict=True):
        if (spec.bands, spec.dtype) != (specs[0].bands, specs[0].dtype):
            raise ConfigError(
                f"{model} takes {spec.dtype} pixels of {', '.join(spec.bands)}, but {models[0]}, the first model, takes "
                f"{specs[0].dtype} pixels of {', '.join(specs[0].bands)}; measure them one by one"
            )


def choose_tile_px(specs: Sequence[ModelSpec], tile_px: int | None, engines: Mapping[Path, EngineFile]) -> int:
    """Side of a tile that every model can be run on; engines are measured on those that they were built for.

    Args:
        specs: of the models.
        tile_px: the side that was asked for; rounded up to the models' strides. If None, that of ``segment`` for the model
            that needs the largest.
        engines: those of the models that are built already.

    Raises:
        ConfigError: a tile leaves no core, or an engine was built for others.
    """
    built = [max(described.tile_shape) for described in engines.values()]
    tile_px = built[0] if tile_px is None and built else tile_px
    wanted = max(_plan(spec, None).tile_shape[0] for spec in specs) if tile_px is None else tile_px
    stride = math.lcm(*(spec.stride for spec in specs))
    side = -(-wanted // stride) * stride
    for spec in specs:
        _plan(spec, side)  # raises where a tile leaves no core
    for path, expected in zip(engines, built, strict=True):
        if side != expected:
            raise ConfigError(
                f"{path} was built for tiles of {expected} px, and those to measure on have {side} px; measure it alone, or "
                f"build it again with --tile-px {side}"
            )
    return side


def plan_cases(
    models: Sequence[Path],
    specs: Sequence[ModelSpec],
    devices: Sequence[Device],
    batch_sizes: Sequence[int],
    tile_px: int,
    engines: Mapping[Path, EngineFile],
) -> list[Case]:
    """All rows.

    Args:
        models: the files.
        specs: theirs.
        devices: to run on; engines that are built run where they were built for.
        batch_sizes: tiles per call; an engine's is its own.
        tile_px: side of the tiles.
        engines: those of the models that are built already.

    Raises:
        ConfigError: more than 64 rows, or more than 2^27 values in one call of all lanes.
    """
    cases = [
        Case(model, spec, device, batch_size, lanes)
        for model, spec in zip(models, specs, strict=True)
        for device, batch_size in (
            [(choose_device(TENSORRT), engines[model].batch_size)]
            if model in engines
            else itertools.product(devices, dict.fromkeys(batch_sizes))
        )
        for lanes in sorted({1, count_lanes(device)})
    ]
    if len(cases) > _MOST_ROWS:
        raise ConfigError(
            f"this would measure {len(cases)} rows, expected at most {_MOST_ROWS}; give fewer models or batch sizes"
        )
    tiles, bands = max(case.batch_size * case.lanes for case in cases), len(specs[0].bands)
    if tiles * bands * tile_px**2 > _MOST_VALUES:
        raise ConfigError(
            f"{tiles} tiles at once, of {bands} bands and {tile_px} px, are {tiles * bands * tile_px**2} values, "
            f"expected at most {_MOST_VALUES}; give a smaller --tile-px or --batch-size"
        )
    return cases


def _plan(spec: ModelSpec, tile_px: int | None) -> Tiling | Blending:
    return TilingOptions(tile_px).plan(spec, _LARGE_PX, _LARGE_PX)
