"""From a model file to an engine: compiled for the GPU that is to run it, and compared with the model if it is here."""

import dataclasses
import hashlib
from pathlib import Path

from autoreg import __version__
from autoreg.errors import ConfigError, EngineError, ModelError, OutputError, ParityError
from autoreg.output import check_output
from autoreg.runtime.devices import find_compute_capabilities, find_gpus, import_library
from autoreg.runtime.engine import ENGINE_SUFFIX, load_engine
from autoreg.runtime.engines.tensorrt.compilation import BuildOptions, Progress, compile_model, known_capabilities
from autoreg.runtime.engines.tensorrt.engine_file import EngineFile, sidecar_path, write_engine
from autoreg.runtime.engines.tensorrt.executor import TensorRtEngine
from autoreg.runtime.engines.tensorrt.library import TENSORRT, Library, find_library
from autoreg.runtime.model_file import graph_digest, read_model, read_spec
from autoreg.runtime.parity import NOISE_AGREEMENT, Tile, compare_engines
from autoreg.runtime.sample_tiles import make_noise
from autoreg.runtime.uint8_input import to_uint8_input

_COMPARED_TILES = 4


def build_engine(
    model: Path,
    output: Path,
    options: BuildOptions | None = None,
    *,
    flavour: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EngineFile:
    """Build an engine, and describe it in a file beside it.

    Where a GPU is that can run it, its labels on noise are compared with those of ONNX Runtime on the CPU; if too few are
    equal, nothing is written.

    Args:
        model: the ``.onnx`` file.
        output: the engine to write, ``.engine``.
        options: how to build it.
        flavour: module of the library, ``tensorrt`` or ``tensorrt_rtx``; if None, the first of them that is installed.
        overwrite: replace ``output``.
        progress: called now and then, in another thread.

    Raises:
        ModelError: the file is no model, such as one that is an engine already.
        OutputError: ``output`` exists, cannot be written, or is no name of an engine.
        ConfigError: an option is none of this library, or a tile leaves no core between its halos.
        MissingDependencyError: a library is not installed.
        EngineError: there is no GPU and none was named, or the library does not build the engine.
        ParityError: the engine does not say what the model says.
    """
    if model.suffix == ENGINE_SUFFIX:
        raise ModelError(
            f"{model} is an engine already, and engines are built from models; give the ONNX file that it was built from, "
            f"such as {model.with_suffix('.onnx')}"
        )
    if output.suffix != ENGINE_SUFFIX:
        raise OutputError(f"{output} is no name of an engine, expected one that ends in {ENGINE_SUFFIX}; change it")
    content = read_model(model)
    spec = read_spec(content, str(model))
    library = find_library(flavour)
    options = _settle(options or BuildOptions(), library)
    tile_shape = options.tile_shape(spec)
    for path in (output, sidecar_path(output)):
        check_output(path, overwrite=overwrite)
    if options.timing_cache is not None:
        check_output(options.timing_cache, overwrite=True)
    provable = _runs_here(options.compute_capabilities)
    if provable:
        import_library("onnxruntime")  # rather now than after minutes
    compiled = to_uint8_input(content) if spec.takes_uint8 else content
    plan = compile_model(compiled, str(model), spec, options, library, progress)
    described = EngineFile(
        flavour=library.flavour.module,
        version=library.version,
        compute_capabilities=options.compute_capabilities,
        gpu=find_gpus()[0] if library.flavour is TENSORRT else None,
        tile_shape=tile_shape,
        batch_size=options.batch_size,
        uint8_input=spec.takes_uint8,
        tf32=options.tf32,
        model=model.name,
        model_digest=hashlib.sha256(content).hexdigest(),
        graph_digest=graph_digest(content),
        engine_digest=hashlib.sha256(plan).hexdigest(),
        spec=spec,
        parity=None,
        lane_bytes=None,
        autoreg_version=__version__,
    )
    if provable:
        described = _prove(model, plan, described, library)
    write_engine(output, plan, described, overwrite=overwrite)
    return described


def _settle(options: BuildOptions, library: Library) -> BuildOptions:
    """The options with the GPUs to build for, once it is known that this library can do all that they ask for."""
    asked, here = options.compute_capabilities, find_compute_capabilities()[:1]
    if library.flavour is TENSORRT:
        if asked:
            raise ConfigError(
                f"{library} builds for the GPU of this machine alone, and {', '.join(asked)} was asked for; leave out "
                f"--compute-capability, or use --library tensorrt_rtx"
            )
        if not here:
            raise EngineError(
                f"{library} builds on the GPU that is to run the engine, and there is none here; build it there, or use "
                f"--library tensorrt_rtx with --compute-capability"
            )
        return dataclasses.replace(options, compute_capabilities=here)
    if options.timing_cache is not None:
        raise ConfigError(f"{library} measures nothing when it builds, so it keeps no timing cache; leave it out")
    known, chosen = known_capabilities(library), asked or here
    if not chosen:
        raise EngineError(
            f"there is no GPU here to build for; say for which ones with --compute-capability, of {', '.join(known)}"
        )
    for capability in chosen:
        if capability not in known:
            raise ConfigError(
                f"{library} builds for the compute capabilities {', '.join(known)}, and not for {capability[:20]!r}; "
                f"for other GPUs use --library tensorrt"
            )
    return dataclasses.replace(options, compute_capabilities=tuple(dict.fromkeys(chosen)))


def _runs_here(capabilities: tuple[str, ...]) -> bool:
    """Whether the first GPU here, if there is one, is of those."""
    return any(here in capabilities for here in find_compute_capabilities()[:1])


def _prove(model: Path, plan: bytes, described: EngineFile, library: Library) -> EngineFile:
    """Load an engine, and complete what is said of it: the memory of a lane, and the parity with ONNX Runtime on the CPU.

    The library may have chosen a way to compute that is wrong.

    Raises:
        EngineError: the engine cannot be loaded, as where there is not enough memory.
        ParityError: too few labels are equal, or a probability is NaN.
    """
    reference, spec = load_engine(model, device="cpu"), described.spec
    engine = TensorRtEngine(plan, described, library, lanes=1)
    try:
        noise = make_noise(spec, tile_px=max(described.tile_shape), count=_COMPARED_TILES)
        pairs = zip(noise.images, noise.valid, strict=True)
        tiles = [Tile(f"noise {number}", image, valid) for number, (image, valid) in enumerate(pairs, 1)]
        parity = compare_engines(reference, engine, tiles).parity
    finally:
        engine.close()
    least = NOISE_AGREEMENT[spec.precision]
    if not parity.reaches(least):
        raise ParityError(
            f"the engine that {library} built of {model} does not say what ONNX Runtime says on the CPU: {parity}; expected "
            f"at least {100 * least:.4g} % equal; build it with another --level, or with another version of the library"
        )
    return dataclasses.replace(described, parity=parity, lane_bytes=engine.lane_bytes)
