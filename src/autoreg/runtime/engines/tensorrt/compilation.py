"""From the bytes of a model to those of an engine: one way for all versions of the two libraries.

The network is strongly typed: what computes in which precision is what the model says, and nothing else.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoreg.errors import ConfigError, EngineError
from autoreg.output import atomic_output
from autoreg.runtime.devices import in_a_line
from autoreg.runtime.engines.tensorrt.engine_file import MOST_BATCH, MOST_PX
from autoreg.runtime.engines.tensorrt.library import MOST_LETTERS, RTX, Library
from autoreg.runtime.segment import TilingOptions
from autoreg.spec import ModelSpec

_LARGE_PX = 2**20
"""Side of a raster that no tile covers."""
_MOST_LEVEL = 5

Progress = Callable[[int, int], None]
"""Called with how much is done, and how much there is to do."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine. The precision is none of it: that is the model's.

    Attributes:
        tile_px: side of the tiles that the engine is made for, halo included; if None, that of ``segment``.
        batch_size: how many of them it takes at once.
        compute_capabilities: of the GPUs to build for, such as 8.6, which only TensorRT-RTX can choose; if none, that of the
            first GPU here.
        tf32: let the GPU round float32 to 10 bits where it multiplies: faster, and no longer what the model says.
        level: how long to look for what is fastest, 0 .. 5; if None, as the library does by itself.
        workspace_bytes: most memory of the GPU that a layer may use besides its input and output; if None, all of it.
        timing_cache: file that keeps how fast TensorRT found what it tried, so that the next build takes less time.
    """

    tile_px: int | None = None
    batch_size: int = 1
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False
    level: int | None = None
    workspace_bytes: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MOST_BATCH:
            raise ConfigError(f"the batch size is {self.batch_size}, expected 1 to {MOST_BATCH}")
        if self.level is not None and not 0 <= self.level <= _MOST_LEVEL:
            raise ConfigError(f"the level is {self.level}, expected 0 to {_MOST_LEVEL}")

    def tile_shape(self, spec: ModelSpec) -> tuple[int, int]:
        """Height and width of the tiles that large rasters are cut into for a model.

        Raises:
            ConfigError: a tile leaves no core between its halos, or is larger than any engine's.
        """
        shape = TilingOptions(self.tile_px).plan(spec, _LARGE_PX, _LARGE_PX).tile_shape
        if max(shape) > MOST_PX:
            raise ConfigError(
                f"the tiles have {shape[0]} x {shape[1]} px, expected at most {MOST_PX} a side; use smaller ones"
            )
        return shape


def compile_model(
    model: bytes, name: str, spec: ModelSpec, options: BuildOptions, library: Library, progress: Progress | None = None
) -> bytes:
    """The bytes of an engine. Ctrl-C stops the library, which does not look for it.

    Args:
        model: the bytes of an ``.onnx`` file, which has been looked at: the library believes what it declares.
        name: of the model in error messages.
        spec: of the model.
        options: how to build it.
        library: that builds it.
        progress: called now and then, in another thread.

    Raises:
        ConfigError: the library does not build for a GPU of ``options.compute_capabilities``, or keeps no timing cache.
        EngineError: the library does not build the engine, or not with this timing cache.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(_compile, model, name, spec, options, library, _Phases(progress, stopped))
        try:
            plan = built.result()
        except KeyboardInterrupt:
            stopped.set()
            raise
    if progress:
        progress(100, 100)  # the library itself stops counting before
    return plan


def _compile(model: bytes, name: str, spec: ModelSpec, options: BuildOptions, library: Library, phases: "_Phases") -> bytes:
    trt = library.trt
    library.take_errors()  # of something before
    builder = make_builder(library)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(model):
        raise EngineError(f"{library} does not take {name}: {_parser_errors(parser)}; export it again")
    config = configure(builder, options, library)
    for least, best, most in profile_shapes(spec, options):
        profile = builder.create_optimization_profile()
        profile.set_shape("image", least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{library} takes no images of {least} to {most}: {library.take_errors()}; use smaller tiles")
    config.progress_monitor = _make_monitor(trt, phases)
    plan = serialise(builder, network, config, name, library)
    if options.timing_cache is not None:
        with atomic_output(options.timing_cache, overwrite=True) as temporary:
            cache = config.get_timing_cache()
            temporary.write_bytes(bytes(cache.serialize()))
    return plan


def profile_shapes(spec: ModelSpec, options: BuildOptions) -> list[tuple[tuple[int, ...], ...]]:
    """Least, best and most of the shapes of images, by profile: tiles alone first, then all that exact tiling may ask for.

    A raster that is smaller than a tile is never padded, and tiles of a part of a raster that begins off the stride grid
    have a stride more.
    """
    (height, width), batch, bands, stride = options.tile_shape(spec), options.batch_size, len(spec.bands), spec.stride
    tile = (batch, bands, height, width)
    return [(tile, tile, tile), ((1, bands, stride, stride), tile, (batch, bands, height + stride, width + stride))]


def serialise(builder: Any, network: Any, config: Any, name: str, library: Library) -> bytes:
    """What the library makes of a network.

    Raises:
        EngineError: nothing; the message says why, in the library's words.
    """
    library.take_errors()  # of something before: without a driver, it complains of that, and builds all the same
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f"{library} does not build an engine of {name}: {library.take_errors()}; export the model again, or try a "
            f"smaller tile or batch"
        )
    return bytes(plan)


def make_builder(library: Library) -> Any:
    """The library's builder, its first object that may need a GPU.

    Raises:
        EngineError: the library does not find what it needs.
    """
    try:
        return library.trt.Builder(library.logger)
    except Exception as error:  # its bindings raise TypeError, for one, where the GPU cannot be used
        raise EngineError(
            f"{library} cannot begin to build: {library.take_errors()}; look at what nvidia-smi says of the GPU and driver"
        ) from error


def _parser_errors(parser: Any) -> str:
    """What the parser says, and of which nodes."""
    said = []
    for index in range(parser.num_errors):
        parser_error = parser.get_error(index)
        said.append(f"{parser_error.desc()} ({parser_error.node_operator()} {parser_error.node_name()!r})")
    return in_a_line("; ".join(said), MOST_LETTERS)


def configure(builder: Any, options: BuildOptions, library: Library) -> Any:
    """How to build, as the library wants to be told; the profiles and the progress are still missing.

    Raises:
        EngineError: it does not take the timing cache.
    """
    trt, config = library.trt, builder.create_builder_config()
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    config.max_aux_streams = 0  # the lanes have streams of their own, and keep the GPU busy
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if library.flavour is RTX:
        _set_capabilities(config, options.compute_capabilities, library)
    if options.timing_cache is not None:
        _set_timing_cache(config, options.timing_cache, library)
    return config


def known_capabilities(library: Library) -> dict[str, Any]:
    """What TensorRT-RTX can build for, such as 8.6, and what it calls them."""
    members = library.trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members if name.startswith("SM")}


def _set_capabilities(config: Any, capabilities: tuple[str, ...], library: Library) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(known_capabilities(library)[capability], index):
            raise EngineError(f"{library} does not build for {capability}: {library.take_errors()}; leave it out")


def _set_timing_cache(config: Any, path: Path, library: Library) -> None:
    """Let the library use what it has measured before."""
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise EngineError(f"the timing cache {path} cannot be read: {error.strerror}; name another file") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):  # False: only what this very GPU has measured
        raise EngineError(
            f"{library} does not take the timing cache {path}: {library.take_errors()}; remove it, or name another file"
        )


class _Phases:
    """How far a build is. It has phases, which have steps, in which there are phases again."""

    def __init__(self, progress: Progress | None, stopped: threading.Event) -> None:
        self._progress, self._stopped = progress, stopped
        self._lock = threading.Lock()  # phases may be at work side by side
        self._known: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done
        self._percent = 0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._known[name] = (parent, steps, 0)

    def step(self, name: str, step: int) -> bool:
        """Count a step; says whether to go on."""
        with self._lock:
            if name in self._known:
                parent, steps, _ = self._known[name]
                self._known[name] = (parent, steps, step + 1)
            self._percent = max(self._percent, int(100 * self._share(None)))  # it never goes back
            if self._progress:
                self._progress(self._percent, 100)
        return not self._stopped.is_set()

    def finish(self, name: str) -> None:
        with self._lock:
            self._known.pop(name, None)

    def _share(self, parent: str | None) -> float:
        """Of the phases within ``parent``, that of the one that is furthest, 0 .. 1."""
        shares = [
            min((done + self._share(name)) / max(steps, 1), 1.0)
            for name, (above, steps, done) in self._known.items()
            if above == parent != name
        ]
        return max(shares, default=0.0)


def _make_monitor(trt: Any, phases: _Phases) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class that is known once the library is
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
