"""Whether a device says what it should on this machine, and how fast: what nobody can know of a GPU without one.

Each model is loaded, or built, anew; its labels are compared with those of ONNX Runtime on the processor, tiles with one
pass, and a raster is segmented from file to map for some seconds.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from autoreg.errors import ConfigError
from autoreg.optional import require
from autoreg.runtime.devices import TENSORRT, choose_device, count_lanes
from autoreg.runtime.engine import Engine, load_engine
from autoreg.runtime.measure.gpu_meter import GpuMeter
from autoreg.runtime.measure.growth import Growth
from autoreg.runtime.measure.machine import Machine, describe_machine
from autoreg.runtime.measure.turns import Runner
from autoreg.runtime.model_file import read_model, read_spec
from autoreg.runtime.parity import LEAST_AGREEMENT, NOISE_AGREEMENT, Parity, compare_engines
from autoreg.runtime.sample_tiles import make_noise, read_tiles
from autoreg.runtime.segment import segment_raster
from autoreg.runtime.verify import raster_tiles
from autoreg.runtime.verify_tiling import TilingCheck, default_max_px, default_tiles_px, verify_tiling
from autoreg.spec import ModelSpec

_REFERENCE = "cpu"
_ROUNDING = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-1, "int8": 1e-1}
"""Of a logit, by precision: kernels for tiles of another size may sum in another order, so where two logits are closer than
this times the largest, either label is right."""
_WHOLE_PX = 1024
"""Most pixels of a side of the whole pass that tiles are compared with."""
_NOISE_PX = 2048
_MOST_REPEATS = 8
_GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}
_COMPARED_TILES = 16
_ALONE_TILES = 8
_ALONE_SHARE = 0.25

Progress = Callable[[str], None]
"""Called with what is done next, in words."""


@dataclass(frozen=True)
class Tested:
    """What was found of one model.

    Attributes:
        model: its file.
        precision: of the model.
        engine: which library ran it, and on what, in words.
        load_seconds: to load it; with TensorRT, to build its engine, too.
        parity: with ONNX Runtime on the processor.
        tiling: tiles against one pass, on the same engine.
        untested: why no tile was compared with one pass; None if some were.
        engine_mpx_s: million pixels per second of the engine alone, halos included, on tiles in memory, in all its lanes.
        segment_mpx_s: the same from file to map, halos not counted, so that it is less.
        busy: share of the time, 0..1, in which the GPU computed meanwhile; None without one.
        gpu_bytes: by how much its memory in use grew, from before the model was loaded to the peak; None without one.
        memory_bytes: likewise, of the process; None on a system that cannot tell.
        problems: what is not as it should be, a sentence each.
    """

    model: str
    precision: str
    engine: str
    load_seconds: float
    parity: Parity
    tiling: tuple[TilingCheck, ...]
    untested: str | None
    engine_mpx_s: float
    segment_mpx_s: float
    busy: float | None
    gpu_bytes: int | None
    memory_bytes: int | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Selftest:
    """What ``run_selftest`` found.

    Attributes:
        machine: that it was found on.
        device: its name for ``load_engine``.
        sources: the rasters; none if they were noise.
        models: what was found of each.
    """

    machine: Machine
    device: str
    sources: tuple[str, ...]
    models: tuple[Tested, ...]

    @property
    def passed(self) -> bool:
        """Whether all that was tested is as it should be."""
        return not any(tested.problems for tested in self.models)

    def to_json(self) -> dict[str, Any]:
        """The attributes by name, as JSON has them."""
        return dataclasses.asdict(self) | {"passed": self.passed}


def run_selftest(
    models: Sequence[Path],
    device: str,
    *,
    rasters: Sequence[str] = (),
    seconds: float = 10.0,
    progress: Progress | None = None,
) -> Selftest:
    """Test a device with some models, best one of each precision; no file is left behind.

    Args:
        models: ``.onnx`` files.
        device: its name, see ``load_engine``.
        rasters: to test on; if none, noise with the statistics of the models.
        seconds: how long to segment with each model.
        progress: called with what is done next.

    Raises:
        ConfigError: there is no model, or no device of this name.
        ModelError: a file is no model.
        RasterError: a raster cannot be read or does not fit a model.
        EngineError: the device is not there, or failed.
        MissingDependencyError: its library, or ONNX Runtime, is not installed.
    """
    if not models:
        raise ConfigError("there is no model to test with; give one, such as model.onnx")
    name = choose_device(device).name
    specs = [read_spec(read_model(model), str(model)) for model in models]
    tested = []
    for model, spec in zip(models, specs, strict=True):
        with tempfile.TemporaryDirectory(prefix="autoreg-") as folder:
            noise = Path(folder) / "noise.tif"
            if not rasters:
                write_noise(noise, spec)
            shown, report = list(rasters) or [str(noise)], progress or (lambda _text: None)
            tested.append(_test(model, spec, name, shown, seconds, report, on_noise=not rasters))
    return Selftest(describe_machine(), name, tuple(rasters), tuple(tested))


def _test(
    model: Path, spec: ModelSpec, device: str, rasters: list[str], seconds: float, progress: Progress, *, on_noise: bool
) -> Tested:
    with tempfile.TemporaryDirectory(prefix="autoreg-") as name, GpuMeter() as whole, Growth() as growth:
        folder = Path(name)
        progress(f"{model}: loading")
        start = time.perf_counter()
        engine = _load(model, device, folder)
        load_seconds = time.perf_counter() - start
        progress(f"{model}: comparing with ONNX Runtime on the CPU")
        reference = load_engine(model, device=_REFERENCE)
        tiles = raster_tiles(rasters, reference.spec, engine.spec)
        parity = compare_engines(reference, engine, islice(tiles, _COMPARED_TILES)).parity
        progress(f"{model}: comparing tiles with one pass")
        side = whole_px(spec, device)
        tiling = tuple(_check_tiling(engine, rasters[0], side))
        progress(f"{model}: measuring")
        alone = _measure_alone(engine, rasters, _ALONE_SHARE * seconds)
        if on_noise:
            rasters = [str(repeat_noise(Path(rasters[0]), spec, alone * 1e6 * seconds / 2))]
        with GpuMeter() as meter:
            segmented = _measure_segment(engine, rasters, folder, seconds)
    return Tested(
        model=str(model),
        precision=spec.precision,
        engine=engine.device,
        load_seconds=load_seconds,
        parity=parity,
        tiling=tiling,
        untested=why_untested(spec, tiling, side),
        engine_mpx_s=alone,
        segment_mpx_s=segmented,
        busy=meter.busy,
        gpu_bytes=whole.grown_bytes,
        memory_bytes=growth.bytes,
        problems=tuple(find_problems(spec.precision, parity, tiling, on_noise=on_noise)),
    )


def find_problems(precision: str, parity: Parity, tiling: Sequence[TilingCheck], *, on_noise: bool = False) -> Iterator[str]:
    """What is not as it should be, a sentence each."""
    least = (NOISE_AGREEMENT if on_noise else LEAST_AGREEMENT)[precision]
    if not parity.reaches(least):
        yield f"{parity}, expected at least {100 * least:.1f} % to be those of ONNX Runtime on the CPU"
    for check in tiling:
        margin = _ROUNDING[precision] * check.largest_logit
        if check.differing_nodata or (check.failed and not check.max_margin <= margin):
            yield (
                f"tiles of {check.tile_px} px, batches of {check.batch_size}: {check.differing} of {check.labels} labels "
                f"are not those of one pass, by up to {check.max_margin:.1e} of a logit, expected at most {margin:.1e}"
            )


def why_untested(spec: ModelSpec, tiling: Sequence[TilingCheck], side: int) -> str | None:
    """Why no tile was compared with one pass over ``side`` pixels a side, as the end of a sentence; None if some were."""
    if not tiling:
        field = spec.receptive_field_px
        reason = "the model looks at its whole tile" if field is None else f"a label depends on {field} x {field} px"
        return f"{reason}, so no tile is small enough to cut one pass, which has at most {side} x {side} px"
    if not any(check.labels or check.differing for check in tiling):
        return "there is no data where they were compared; give another raster first"
    if all(check.tiles <= check.pieces for check in tiling):
        return "the raster is no larger than a tile, so nothing was cut; give a larger one first"
    return None


def _load(model: Path, device: str, folder: Path) -> Engine:
    """The engine that ``segment`` would run; of TensorRT it is built in ``folder``."""
    lanes = count_lanes(choose_device(device))
    if device != TENSORRT:
        return load_engine(model, device=device, lanes=lanes)
    from autoreg.runtime.engines.tensorrt import build_engine

    target = folder / "model.engine"
    build_engine(model, target)
    return load_engine(target, device=device, lanes=lanes)


def _tile_px(spec: ModelSpec) -> int:
    """Side of the tiles that ``segment`` takes."""
    return default_tiles_px(spec, _WHOLE_PX**2)[0]


def whole_px(spec: ModelSpec, device: str) -> int:
    """Side of the whole pass: what there is memory for, or, with TensorRT, a tile, as its engine takes nothing larger."""
    return _tile_px(spec) if device == TENSORRT else min(_WHOLE_PX, math.isqrt(default_max_px(spec)))


def _check_tiling(engine: Engine, raster: str, side: int) -> Iterator[TilingCheck]:
    limit = side**2
    sides = tuple(tile_px for tile_px in default_tiles_px(engine.spec, limit) if 5 * tile_px // 4 <= side)
    if sides:
        yield from verify_tiling(engine, raster, tiles_px=sides, max_px=limit, max_side_px=side)


def _measure_alone(engine: Engine, rasters: list[str], seconds: float) -> float:
    side = _tile_px(engine.spec)
    tiles = read_tiles(rasters, engine.spec, tile_px=side, count=_ALONE_TILES)
    with Runner(engine, tiles.images, 1) as runner:
        runner.label()
        calls = max(int(seconds / (engine.lanes * runner.seconds_per_tile(1))), 1)
        return side**2 / 1e6 / runner.seconds_per_tile(calls)


def _measure_segment(engine: Engine, rasters: list[str], folder: Path, seconds: float) -> float:
    pixels, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for raster in rasters:
            done = segment_raster(engine, raster, folder / "map.tif", overwrite=True)
            pixels += done.pixels
    return pixels / 1e6 / (time.perf_counter() - start)


def write_noise(path: Path, spec: ModelSpec) -> None:
    """A raster with the mean and the deviation of the model's bands, by the tile, so that memory does not grow with it."""
    rasterio = require("rasterio")
    limits = (-np.inf, np.inf) if spec.dtype == "float32" else (np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max)
    profile = {"driver": "GTiff", "height": _NOISE_PX, "width": _NOISE_PX, "count": len(spec.bands), "dtype": spec.dtype}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)}
    with rasterio.open(path, "w", tiled=True, blockxsize=512, blockysize=512, **profile, **place) as dataset:
        tile = make_noise(spec, tile_px=_WHOLE_PX, count=1).images[0].clip(*limits)
        pixels = (tile if spec.dtype == "float32" else tile.round()).astype(spec.dtype)
        for row in range(0, _NOISE_PX, _WHOLE_PX):
            for col in range(0, _NOISE_PX, _WHOLE_PX):
                window = rasterio.windows.Window(col, row, _WHOLE_PX, _WHOLE_PX)
                dataset.write(np.roll(pixels, (row // 7, col // 11), (1, 2)), window=window)


def repeat_noise(path: Path, spec: ModelSpec, pixels: float) -> Path:
    """A raster beside ``path``, of ``write_noise``, that repeats it up to about ``pixels`` and takes no space on the disk.

    To open, hash and close small rasters would else be half of what is measured on a GPU.
    """
    times = min(max(round(math.sqrt(pixels) / _NOISE_PX), 1), _MOST_REPEATS)
    size = f'xSize="{_NOISE_PX}" ySize="{_NOISE_PX}"'
    bands = "".join(
        f'<VRTRasterBand dataType="{_GDAL_TYPES[spec.dtype]}" band="{band}">'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{path.name}</SourceFilename><SourceBand>{band}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{col}" yOff="{row}" {size}/></SimpleSource>'
            for row in range(0, times * _NOISE_PX, _NOISE_PX)
            for col in range(0, times * _NOISE_PX, _NOISE_PX)
        )
        + "</VRTRasterBand>"
        for band in range(1, len(spec.bands) + 1)
    )
    place = "<SRS>EPSG:32633</SRS><GeoTransform>5e5, 1, 0, 5e6, 0, -1</GeoTransform>"
    target, side = path.with_suffix(".vrt"), times * _NOISE_PX
    target.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{place}{bands}</VRTDataset>\n', encoding="utf-8"
    )
    return target
