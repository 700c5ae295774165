"""Which engine runs a model: the one beside it if it fits, else one that is built there."""

import dataclasses
import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from autoreg.errors import EngineError, MissingDependencyError
from autoreg.runtime.devices import find_compute_capabilities, find_gpus
from autoreg.runtime.engine import ENGINE_SUFFIX, Engine
from autoreg.runtime.engines.tensorrt.build import build_engine
from autoreg.runtime.engines.tensorrt.compilation import BuildOptions
from autoreg.runtime.engines.tensorrt.engine_file import EngineFile, load_plan, read_engine_file
from autoreg.runtime.engines.tensorrt.executor import TensorRtEngine
from autoreg.runtime.engines.tensorrt.library import find_library
from autoreg.runtime.model_file import graph_digest, read_model, read_spec
from autoreg.runtime.several import load_on_gpus
from autoreg.spec import ModelSpec

_log = logging.getLogger("autoreg")


def load_tensorrt(
    path: Path, *, lanes: int = 1, rebuild: bool = True, tile_px: int | None = None, batch_size: int | None = None
) -> Engine:
    """An engine for a model, on as many GPUs as there are lanes for.

    An engine that does not fit, because it was built for another GPU, by another version of the library, from another model
    or for other tiles, is built anew in its place, with a warning that says why. One that the GPU has no memory for is not:
    it would need as much again.

    Args:
        path: the engine, or the model that it is beside: ``model.engine`` is that of ``model.onnx``.
        lanes: as in ``load_engine``.
        rebuild: as in ``load_engine``.
        tile_px: as in ``load_engine``.
        batch_size: as in ``load_engine``.

    Raises:
        ModelError: the model is none.
        EngineError: the engine is not what was built, or does not fit, or cannot be built anew or run.
        MissingDependencyError: neither library is installed.
        ParityError: the engine was built anew, and does not say what the model says.
    """
    described = _ensure(path, rebuild=rebuild, tile_px=tile_px, batch_size=batch_size)
    library, plan = find_library(described.flavour), load_plan(engine_path(path), described)
    return load_on_gpus(lambda gpu, share: TensorRtEngine(plan, described, library, gpu=gpu, lanes=share), lanes=lanes)


def describe_engine(path: Path) -> EngineFile:
    """What the engine of a model is, or one that is named itself.

    Raises:
        EngineError: there is no engine, or nothing that says what it is.
    """
    return read_engine_file(engine_path(path))


def engine_path(path: Path) -> Path:
    """Where the engine of a model is: beside it."""
    return path.with_suffix(ENGINE_SUFFIX)


def _ensure(path: Path, *, rebuild: bool, tile_px: int | None, batch_size: int | None) -> EngineFile:
    """What the engine of ``path`` is, once there is one that fits."""
    engine = engine_path(path)
    known = read_engine_file(engine) if path == engine or engine.exists() else None
    content = None if path == engine else read_model(path)
    spec = None if content is None else read_spec(content, str(path))
    problem: str | None = "is not there" if known is None else _misfit(known, content, spec, tile_px, batch_size)
    if known is None or problem is not None:
        if not rebuild:
            raise EngineError(f"{engine} {problem}; build it with autoreg build --overwrite")
        model = path if known is None or path != engine else _find_source(engine, known, problem)
        _log.warning("%s %s, so it is built from %s, which takes a while", engine, problem, model)
        known = _rebuild(engine, model, known, tile_px, batch_size)
    if content is None or spec is None:
        return known
    # What classes are called may have changed since, and the engine holds.
    return dataclasses.replace(known, spec=spec, model_digest=hashlib.sha256(content).hexdigest())


def _misfit(
    known: EngineFile, content: bytes | None, spec: ModelSpec | None, tile_px: int | None, batch_size: int | None
) -> str | None:
    """Why an engine is not the one to run, as the end of a sentence; ``content`` and ``spec`` are those of a model."""
    try:
        library = find_library(known.flavour)
    except MissingDependencyError:
        return f"was built by {known.flavour}, which is not installed here"
    capabilities, here = ", ".join(known.compute_capabilities), find_compute_capabilities()[:1]
    if library.version != known.version:
        return f"was built by {library.flavour.title} {known.version}, and {library.version} is installed here"
    if not set(here) <= set(known.compute_capabilities):
        return f"was built for GPUs of compute capability {capabilities}, and the one here has {here[0]}"
    if known.gpu is not None and known.gpu not in find_gpus()[:1]:
        return f"was built on {known.gpu}, and the GPU here is {', '.join(find_gpus()[:1])}"
    if content is not None and spec is not None and not _is_of(known, content, spec):
        return "was built from another model"
    shape = known.tile_shape if tile_px is None else BuildOptions(tile_px).tile_shape(known.spec)
    batch = known.batch_size if batch_size is None else batch_size
    if (shape, batch) != (known.tile_shape, known.batch_size):
        return f"was built for {_describe(known.tile_shape, known.batch_size)}, and {_describe(shape, batch)} are wanted"
    return None


def _is_of(known: EngineFile, content: bytes, spec: ModelSpec) -> bool:
    """Whether an engine was built from the graph of a model, and takes the images that the spec promises."""
    same = (known.spec.stride, known.spec.takes_uint8) == (spec.stride, spec.takes_uint8)
    return same and graph_digest(content) == known.graph_digest


def _describe(shape: tuple[int, int], batch_size: int) -> str:
    return f"{batch_size} x {shape[0]} x {shape[1]} px"


def _find_source(engine: Path, known: EngineFile, problem: str | None) -> Path:
    """The model that an engine was built from.

    Raises:
        EngineError: it is not beside it.
    """
    model = engine.with_name(known.model)
    if not model.is_file():
        raise EngineError(f"{engine} {problem}, and {model}, to build it from again, is not there; put it there")
    if graph_digest(read_model(model)) != known.graph_digest:
        raise EngineError(f"{engine} {problem}, and {model} is not the model that it was built from; run {model} instead")
    return model


def _rebuild(engine: Path, model: Path, known: EngineFile | None, tile_px: int | None, batch_size: int | None) -> EngineFile:
    """Build an engine as the one was that it replaces, save what is asked for; that of another model says nothing."""
    flavour, tf32 = None, False
    if known is not None and known.graph_digest == graph_digest(read_model(model)):
        tile_px = max(known.tile_shape) if tile_px is None else tile_px
        batch_size = known.batch_size if batch_size is None else batch_size
        tf32 = known.tf32
        with suppress(MissingDependencyError):
            flavour = find_library(known.flavour).flavour.module
    options = BuildOptions(tile_px, batch_size or 1, tf32=tf32)
    return build_engine(model, engine, options, flavour=flavour, overwrite=True)
