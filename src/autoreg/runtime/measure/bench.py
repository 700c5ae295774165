"""How fast models are on the engines of this machine, what they agree in, and which is the fastest that can be trusted."""

import dataclasses
import hashlib
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import EngineError, MissingDependencyError
from autoreg.runtime.devices import DEVICES, TENSORRT, Device, check_device, choose_device
from autoreg.runtime.engine import ENGINE_SUFFIX, Labels, load_engine
from autoreg.runtime.engines.tensorrt import BuildOptions, build_engine, read_engine_file
from autoreg.runtime.measure.cases import Case, check_alike, choose_tile_px, plan_cases
from autoreg.runtime.measure.fastest import remember_fastest
from autoreg.runtime.measure.flops import count_flops
from autoreg.runtime.measure.growth import Growth
from autoreg.runtime.measure.machine import Machine, describe_machine
from autoreg.runtime.measure.sgemm import Sgemm, SgemmMeter
from autoreg.runtime.measure.turns import ROUNDS, Runner, measure_in_turns
from autoreg.runtime.model_file import read_model, read_spec
from autoreg.runtime.sample_tiles import Tiles, make_noise, read_tiles
from autoreg.spec import ModelSpec

_TILES, _TILES_PX = 8, 2**24
"""So many tiles, or of large ones fewer, that have so many pixels."""
_REFERENCE_DEVICE = "cpu"
_CLEARLY = 1.05
"""So many times as fast as what ``auto`` takes anyway has another device to be: less is noise, and would change with it."""

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


@dataclass(frozen=True)
class Row:
    """A model on an engine, with so many tiles a call and so many calls at once.

    Attributes:
        model: its file.
        model_digest: SHA-256 of the file, hexadecimal.
        precision: of the model.
        device: its name for ``load_engine``.
        engine: which library runs the model, and on what, in words.
        batch_size: tiles per call.
        lanes: calls at once.
        core_px: side of what a tile writes of a large raster: the tile without its halos, or the step between two tiles
            where they are blended.
        ms_per_tile: milliseconds, the median over the rounds.
        mpx_per_s: million pixels of core per second.
        gflop_per_tile: thousand million operations of convolutions and matrix products, a multiply-add counted as two; None
            if they cannot be counted.
        gflop_per_s: the same per second.
        sgemm_share: of what numpy reaches on float32 matrices, which int8, for one, may exceed; None on a GPU.
        agreement: share of labels, 0..1, that are those of the reference; None without rasters to look at.
        memory_bytes: by how much the resident memory of the process grew at the peak, until all lanes had run; None where
            the system cannot tell.
        fastest: whether it has the most pixels of core per second of all that keep the agreement.
    """

    model: str
    model_digest: str
    precision: str
    device: str
    engine: str
    batch_size: int
    lanes: int
    core_px: int
    ms_per_tile: float
    mpx_per_s: float
    gflop_per_tile: float | None
    gflop_per_s: float | None
    sgemm_share: float | None
    agreement: float | None
    memory_bytes: int | None
    fastest: bool = False


@dataclass(frozen=True)
class Bench:
    """What ``bench_models`` measured.

    Attributes:
        machine: that it was measured on.
        sgemm: how fast it multiplies matrices.
        tile_px: side of the tiles.
        tiles: how many different ones were shown to each engine.
        sources: the rasters that they are from; none if they are noise.
        reference: what the agreement is with, in words; None if the tiles are noise.
        min_agreement: least agreement of the fastest row.
        rounds: how often each row was measured, all in turn.
        rows: what was measured.
    """

    machine: Machine
    sgemm: Sgemm
    tile_px: int
    tiles: int
    sources: tuple[str, ...]
    reference: str | None
    min_agreement: float
    rounds: int
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """The attributes by name, as JSON has them."""
        return dataclasses.asdict(self)


def bench_models(
    models: Sequence[Path],
    *,
    rasters: Sequence[str] = (),
    tile_px: int | None = None,
    batch_sizes: Sequence[int] = (1,),
    devices: Sequence[str] = (),
    seconds: float = 10.0,
    min_agreement: float = 0.99,
    progress: Progress | None = None,
) -> Bench:
    """Measure models on each device with each batch size, one call at a time and as many at once as ``segment`` makes.

    Each row runs once in every round, so that what else the machine does falls on all of them alike. All rows are in memory
    together. Where all devices that are there have been measured, the fastest of each model that keeps the agreement is
    remembered for this machine (``fastest_devices``): then ``load_engine`` takes it if nothing else is asked for.

    Args:
        models: the files; the agreement is with the first, as ONNX Runtime runs it on the processor if it is there. Engines
            are measured as they were built; for a model on the device ``tensorrt``, some are built, and none is kept.
        rasters: to take the tiles from; if none, they are noise, no agreement is known, and no row is marked.
        tile_px: side of the tiles, halo included; rounded up to the models' strides. If None, that of ``segment`` for the
            model that needs the largest.
        batch_sizes: tiles per call.
        devices: their names, see ``load_engine``; if none, all that are there.
        seconds: how long to measure, besides loading and the first calls; longer if the models are too slow for that.
        min_agreement: least share of labels, 0..1, that have to be those of the reference.
        progress: called with the steps done and the steps in all, after each row has been loaded and after each round.

    Raises:
        ModelError: a file is no model.
        ConfigError: the models take different input, a tile leaves no core, or all this is more than 64 rows or 2^27 values
            at once.
        RasterError: a raster cannot be read or does not fit the models, or there is no data.
        EngineError: a device is not there, or an engine failed.
        MissingDependencyError: the library of a device is not installed.
    """
    models = list(dict.fromkeys(models))
    engines = {model: read_engine_file(model) for model in models if model.suffix == ENGINE_SUFFIX}
    specs = [engines[model].spec if model in engines else read_spec(read_model(model), str(model)) for model in models]
    check_alike(models, specs)
    there = find_devices()
    measured = [choose_device(name) for name in dict.fromkeys(devices)] or there
    if not measured:
        measured = [choose_device(_REFERENCE_DEVICE)]  # raises, and says what to install
    tile_px = choose_tile_px(specs, tile_px, engines)
    cases = plan_cases(models, specs, measured, batch_sizes, tile_px, engines)
    shown = _Shown(rasters, tile_px, max(case.batch_size * case.lanes for case in cases))
    preferred = TENSORRT if models[0] in engines else _REFERENCE_DEVICE
    exact = next((device for device in there if device.name == preferred), measured[0])
    reference = _Reference(models[0], exact, shown.to(specs[0])) if rasters else None
    meter = SgemmMeter()

    def report(done: int) -> None:
        if progress:
            progress(done, len(cases) + ROUNDS)

    def end_round(rounds: int) -> None:
        meter.measure()
        report(len(cases) + rounds)

    with ExitStack() as stack:
        started: list[_Started] = []
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="autoreg-")))
        for case in cases:
            started.append(_start(case, shown.to(case.spec), reference, folder, stack))
            report(len(started))
        taken = measure_in_turns([one.runner for one in started], seconds, end_round)
        report(len(cases) + ROUNDS)
    gflops = {
        model: None if model in engines else _count_gflop(model, spec, tile_px)
        for model, spec in zip(models, specs, strict=True)
    }
    rows = [
        one.row(statistics.median(times), tile_px, gflops[one.case.model], meter.result())
        for one, times in zip(started, taken, strict=True)
    ]
    found = fastest_devices([row for row in rows if Path(row.model) not in engines], min_agreement)
    if found and set(there) <= set(measured):
        remember_fastest(found)
    return Bench(
        machine=describe_machine(),
        sgemm=meter.result(),
        tile_px=tile_px,
        tiles=shown.distinct,
        sources=tuple(rasters),
        reference=None if reference is None else reference.name,
        min_agreement=min_agreement,
        rounds=len(taken[0]),
        rows=tuple(mark_fastest(rows, min_agreement)),
    )


def find_devices() -> list[Device]:
    """The devices that are there."""
    found = []
    for device in DEVICES:
        with suppress(EngineError, MissingDependencyError):
            check_device(device)
            found.append(device)
    return found


def mark_fastest(rows: Sequence[Row], min_agreement: float) -> list[Row]:
    """Mark the row with the most pixels of core per second, of those whose agreement is at least ``min_agreement``."""
    best = _fastest(rows, min_agreement)
    return [dataclasses.replace(row, fastest=row is best) for row in rows]


def fastest_devices(rows: Sequence[Row], min_agreement: float) -> dict[str, str]:
    """By model digest, the device of the fastest row that keeps the agreement, for ``auto``.

    What ``auto`` would take anyway, of the devices that were measured, stays unless another one is 5 % faster.
    """
    measured = {row.device for row in rows}
    usual = next((device.name for device in DEVICES if device.automatic and device.name in measured), None)
    found = {}
    for digest in dict.fromkeys(row.model_digest for row in rows):
        best = _fastest([row for row in rows if row.model_digest == digest], min_agreement, usual)
        if best is not None:
            found[digest] = best.device
    return found


def _fastest(rows: Sequence[Row], min_agreement: float, usual: str | None = None) -> Row | None:
    kept = [row for row in rows if row.agreement is not None and row.agreement >= min_agreement]
    return max(kept, key=lambda row: row.mpx_per_s * (_CLEARLY if row.device == usual else 1), default=None)


class _Shown:
    """The tiles that the engines see: the same places for all models, in the pixels that each expects.

    Attributes:
        distinct: how many different ones there are, once they have been read.
    """

    def __init__(self, rasters: Sequence[str], tile_px: int, least: int) -> None:
        """Prepare at least ``least`` tiles, some of them more than once."""
        self._rasters, self._tile_px, self._least = rasters, tile_px, least
        self._known: dict[Any, Tiles] = {}
        self._wanted = min(max(_TILES_PX // tile_px**2, 1), _TILES)
        self.distinct = self._wanted

    def to(self, spec: ModelSpec) -> Tiles:
        """Tiles for a model; what is ``valid`` is said of each once."""
        key = spec.normalisation, spec.mean, spec.std
        if key not in self._known:
            found = (
                read_tiles(self._rasters, spec, tile_px=self._tile_px, count=self._wanted)
                if self._rasters
                else make_noise(spec, tile_px=self._tile_px, count=self._wanted)
            )
            self.distinct = len(found.images)
            repeated = np.resize(np.arange(self.distinct), max(self.distinct, self._least))
            self._known[key] = Tiles(found.images[repeated], found.valid)
        return self._known[key]


class _Reference:
    """The labels that all others are compared with."""

    def __init__(self, model: Path, device: Device, tiles: Tiles) -> None:
        engine = load_engine(model, device=device.name)
        self.name = f"{model} ({engine.spec.precision}) on {engine.device}"
        self._spec, self._valid = engine.spec, tiles.valid
        with Runner(engine, tiles.images[: len(self._valid)], 1) as runner:
            self._clusters = runner.label()

    def agreement(self, spec: ModelSpec, clusters: Labels) -> float:
        """Share of the labels of another model, 0..1, that are equal where there is data.

        Two models of one checkpoint of which one has other names are compared by their clusters.
        """
        named_apart = spec.classes != self._spec.classes and spec.checkpoint_digest == self._spec.checkpoint_digest
        tables: list[NDArray[np.uint8]] = [
            np.arange(one.clusters, dtype=np.uint8) if named_apart else np.asarray(one.cluster_labels, np.uint8)
            for one in (self._spec, spec)
        ]
        mine, other = (
            table[found[: len(self._valid)]] for table, found in zip(tables, (self._clusters, clusters), strict=True)
        )
        return float(np.mean(mine[self._valid] == other[self._valid]))


@dataclass(frozen=True)
class _Started:
    """An engine that has seen all tiles once."""

    case: Case
    runner: Runner
    agreement: float | None
    memory_bytes: int | None

    def row(self, seconds_per_tile: float, tile_px: int, gflop: float | None, sgemm: Sgemm) -> Row:
        """What was measured of it."""
        engine, core_px = self.runner.engine, self.case.core_px(tile_px)
        gflop_per_s = None if gflop is None else gflop / seconds_per_tile
        share = None if gflop_per_s is None or self.case.device.gpu else gflop_per_s / sgemm.gflop_per_s
        return Row(
            model=str(self.case.model),
            model_digest=engine.model_digest,
            precision=engine.spec.precision,
            device=self.case.device.name,
            engine=engine.device,
            batch_size=self.case.batch_size,
            lanes=engine.lanes,
            core_px=core_px,
            ms_per_tile=1e3 * seconds_per_tile,
            mpx_per_s=core_px**2 / 1e6 / seconds_per_tile,
            gflop_per_tile=gflop,
            gflop_per_s=gflop_per_s,
            sgemm_share=share,
            agreement=self.agreement,
            memory_bytes=self.memory_bytes,
        )


def _start(case: Case, tiles: Tiles, reference: _Reference | None, folder: Path, stack: ExitStack) -> _Started:
    path = case.model
    if case.device.name == TENSORRT and path.suffix != ENGINE_SUFFIX:
        path = _build(case, tiles.images.shape[-1], folder)
    with Growth() as growth:
        engine = load_engine(path, device=case.device.name, lanes=case.lanes, rebuild=False)
        runner = stack.enter_context(Runner(engine, tiles.images, case.batch_size))
        clusters = runner.label()
    agreement = None if reference is None else reference.agreement(case.spec, clusters)
    return _Started(case, runner, agreement, growth.bytes)


def _build(case: Case, tile_px: int, folder: Path) -> Path:
    """An engine of TensorRT: the one that a user keeps beside the model stays what it is."""
    digest = hashlib.sha256(read_model(case.model)).hexdigest()
    path = folder / f"{digest}.{case.batch_size}{ENGINE_SUFFIX}"
    if not path.exists():
        build_engine(case.model, path, BuildOptions(tile_px, case.batch_size))
    return path


def _count_gflop(model: Path, spec: ModelSpec, tile_px: int) -> float | None:
    """Of one tile; None where ONNX Runtime, which counts them, is not installed."""
    try:
        return count_flops(model, (1, len(spec.bands), tile_px, tile_px)) / 1e9
    except MissingDependencyError:
        return None
