"""CUDA: on a stand-in, and on a GPU where there is one, by the same tests.

On a machine with a GPU that has numpy, pytest and cuda-bindings, and need not have more:
``PYTHONPATH=src:tests python3 -m pytest --noconftest -m gpu tests/runtime/test_cuda.py``
"""

import gc
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoreg.errors import EngineError, MissingDependencyError
from autoreg.runtime.devices import find_gpus
from autoreg.runtime.engines.tensorrt import cuda
from autoreg.runtime.engines.tensorrt.cuda import Gpu, Stream, call
from autoreg.runtime.engines.tensorrt.executor import TensorRtEngine
from autoreg.runtime.engines.tensorrt.library import Library
from autoreg.spec import MapClass, ModelSpec
from fake_cuda import FakeCuda
from fake_tensorrt import Compute, Tensor, copy_first_band, installed, make_engine

driver: Any = importlib.import_module("cuda.bindings.driver")
MIB = 2**20
BANDS, STRIDE, CLUSTERS = 2, 4, 5
TILE, BATCH = (64, 96), 2
SPEC = ModelSpec(
    bands=("red", "green"),
    dtype="uint8",
    classes=tuple(MapClass(label, f"class {label}", "#000000", (label,)) for label in range(CLUSTERS)),
    stride=STRIDE,
    receptive_field_px=9,
    crop_px=32,
    mean=(100.0, 100.0),
    std=(50.0, 50.0),
    precision="fp32",
    checkpoint_digest="0" * 64,
    agreement=1.0,
    autoreg_version="0",
)


@pytest.fixture(params=["stand-in", pytest.param("GPU", marks=pytest.mark.gpu)])
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether CUDA is the real one; the stand-in is asked in the end what was left on it."""
    if request.param == "GPU":
        if not find_gpus():
            pytest.skip("no GPU here")
        yield True
        return
    fake = FakeCuda()
    fake.install(monkeypatch)
    yield False
    fake.check()


@pytest.fixture
def gpu(real: bool) -> Iterator[Gpu]:  # noqa: ARG001  # it is what CUDA is
    gpu = Gpu(0)
    with gpu.current():
        yield gpu
    gpu.close()


def pinned(gpu: Gpu, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = gpu.allocate_pinned(values.size)
    array[:] = values
    return array


def random(size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def test_there_and_back(gpu: Gpu) -> None:
    stream, memory = Stream(gpu), gpu.allocate(MIB)
    source, target = pinned(gpu, random(MIB)), pinned(gpu, np.zeros(MIB, np.uint8))
    stream.upload(source, memory)
    stream.download(memory, target)
    stream.wait()
    np.testing.assert_array_equal(target, random(MIB))


def test_a_stream_keeps_the_order(gpu: Gpu) -> None:
    stream, memory = Stream(gpu), gpu.allocate(MIB)
    sources = [pinned(gpu, random(MIB, seed)) for seed in range(5)]
    targets = [pinned(gpu, np.zeros(MIB, np.uint8)) for _ in sources]
    for source, target in zip(sources, targets, strict=True):
        stream.upload(source, memory)
        stream.download(memory, target)
    stream.wait()
    for source, target in zip(sources, targets, strict=True):
        np.testing.assert_array_equal(target, source)


def test_a_graph_is_done_when_it_is_launched_with_what_is_there_then(gpu: Gpu) -> None:
    stream, memory = Stream(gpu), gpu.allocate(MIB)
    source, target = pinned(gpu, random(MIB)), pinned(gpu, np.zeros(MIB, np.uint8))

    def enqueue() -> None:
        stream.upload(source, memory)
        stream.download(memory, target)

    graph = stream.record(enqueue)
    stream.wait()
    assert not target.any()
    for seed in (1, 2, 3):
        source[:] = random(MIB, seed)
        stream.launch(graph)
        stream.wait()
        np.testing.assert_array_equal(target, random(MIB, seed))
    graph.close()


def test_a_recording_that_fails_leaves_a_stream_that_works(gpu: Gpu) -> None:
    stream, memory = Stream(gpu), gpu.allocate(MIB)
    source, target = pinned(gpu, random(MIB)), pinned(gpu, np.zeros(MIB, np.uint8))

    def interrupted() -> None:
        stream.upload(source, memory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.record(interrupted)
    with pytest.raises(EngineError, match=r"cuMemAlloc failed with CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED \("):
        stream.record(lambda: call("cuMemAlloc", MIB))
    with pytest.raises(EngineError, match="cuEventSynchronize failed with CUDA_ERROR_CAPTURED_EVENT"):
        stream.record(stream.wait)
    graph = stream.record(lambda: stream.upload(source, memory))
    stream.launch(graph)
    stream.download(memory, target)
    stream.wait()
    np.testing.assert_array_equal(target, source)
    graph.close()


def test_more_memory_than_there_is(gpu: Gpu) -> None:
    with pytest.raises(EngineError, match=r"CUDA's cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY \(out of memory\)"):
        gpu.allocate(gpu.free_bytes() + 2**40)
    test_there_and_back(gpu)


def keep_busy(stream: Stream, memory: int, size: int, times: int) -> None:
    for _ in range(times):
        call("cuMemsetD8Async", memory, 0, size, driver.CUstream(stream.handle))


def test_a_stream_does_not_wait_for_another(gpu: Gpu, real: bool) -> None:
    size = 2**30 if real else MIB
    long, large = Stream(gpu), gpu.allocate(size)
    short, memory, source, target = Stream(gpu), gpu.allocate(MIB), pinned(gpu, random(MIB)), pinned(gpu, random(MIB, 1))
    keep_busy(long, large, size, 200)
    short.upload(source, memory)
    short.download(memory, target)
    short.wait()
    np.testing.assert_array_equal(target, source)
    with pytest.raises(EngineError, match="CUDA_ERROR_NOT_READY"):
        call("cuStreamQuery", driver.CUstream(long.handle))
    long.wait()
    call("cuStreamQuery", driver.CUstream(long.handle))


@pytest.mark.gpu
def test_other_threads_go_on_while_one_waits() -> None:
    if not find_gpus():
        pytest.skip("no GPU here")
    gpu, size = Gpu(0), 2**30
    with gpu.current():
        stream, memory = Stream(gpu), gpu.allocate(size)
        moments: list[float] = []
        stop = threading.Event()

        def note() -> None:
            while not stop.wait(0.001):
                moments.append(time.perf_counter())

        keep_busy(stream, memory, size, 500)
        thread = threading.Thread(target=note)
        thread.start()
        start = time.perf_counter()
        stream.wait()
        end = time.perf_counter()
        stop.set()
        thread.join()
    gpu.close()
    assert end - start > 0.02
    assert np.diff([start, *(moment for moment in moments if moment < end), end]).max() < (end - start) / 2


def test_memory_is_given_back(real: bool) -> None:
    first = Gpu(0)
    with first.current():
        before = first.free_bytes()
        second = Gpu(0)
        with second.current():
            second.allocate(100 * MIB)
            assert first.free_bytes() <= before - 100 * MIB
        second.close()
        second.close()
        assert first.free_bytes() >= before - (16 * MIB if real else 0)
    first.close()


@pytest.mark.usefixtures("real")
def test_a_thread_uses_the_gpu_only_meanwhile() -> None:
    gpu = Gpu(0)

    def contexts() -> list[bool]:
        """Whether the thread has a context: before, while and after it uses the GPU."""
        found = [bool(int(call("cuCtxGetCurrent")))]
        with suppress(ZeroDivisionError), gpu.current():
            found.append(bool(int(call("cuCtxGetCurrent"))))
            raise ZeroDivisionError
        return [*found, bool(int(call("cuCtxGetCurrent")))]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(contexts).result() == [False, True, False]
    gpu.close()


def test_a_gpu_that_is_not_there(real: bool) -> None:  # noqa: ARG001
    with pytest.raises(EngineError, match=r"there is no GPU 99: the NVIDIA driver shows \d"):
        Gpu(99)


def test_bindings_that_are_not_installed(real: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    cuda._driver.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'autoreg\[tensorrt\]'"):
        Gpu(0)


def load(library: Library, *, lanes: int = 2, **said: Any) -> TensorRtEngine:
    """An engine whose labels are the first band of images."""
    plan, described = make_engine(bytes(1000), SPEC, TILE, BATCH, uint8_input=True, **said)
    return TensorRtEngine(plan, described, library, lanes=lanes)


def images(count: int, height: int = TILE[0], width: int = TILE[1], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, CLUSTERS, (count, BANDS, height, width), np.uint8)


@pytest.fixture
def launches(real: bool, monkeypatch: pytest.MonkeyPatch) -> list[None]:  # noqa: ARG001
    """As many entries as graphs were launched."""
    found: list[None] = []
    launch: Callable[..., Any] = driver.cuGraphLaunch

    def counted(*arguments: Any) -> Any:
        found.append(None)
        return launch(*arguments)

    monkeypatch.setattr(driver, "cuGraphLaunch", counted)
    return found


def test_an_engine_answers_step_by_step_and_as_a_graph(launches: list[None]) -> None:
    with installed(copy_first_band) as library:
        engine = load(library)
        for seed in range(6):
            seen = images(BATCH, seed=seed)
            np.testing.assert_array_equal(engine.label(seen), seen[:, 0])
            labels, logits = engine.predict(seen)
            np.testing.assert_array_equal(labels, seen[:, 0])
            assert logits.shape == (BATCH, CLUSTERS, TILE[0] // STRIDE, TILE[1] // STRIDE)
            assert not logits.any()
        assert len(launches) == 2 * 6 - 1
        engine.close()


def test_an_engine_answers_in_other_shapes_between_tiles(launches: list[None]) -> None:
    shapes = [(2, *TILE), (1, *TILE), (5, *TILE), (1, 4, 4), (2, 32, 96), (3, 32, 96), (2, 68, 100), (1, *TILE), (1, *TILE)]
    with installed(copy_first_band) as library:
        engine = load(library, lanes=1)
        for seed, shape in enumerate(shapes):
            seen = images(*shape, seed=seed)
            np.testing.assert_array_equal(engine.label(seen), seen[:, 0])
        assert len(launches) == 4 + 1  # a batch, three batches; one of the two at the end
        engine.close()


@pytest.mark.parametrize("threads", [2, 7])
def test_an_engine_answers_several_threads(real: bool, threads: int) -> None:  # noqa: ARG001
    shapes = [(2, *TILE), (1, *TILE), (3, *TILE), (2, 32, 96)]
    many = [images(*shapes[seed // 10 % 4], seed=seed) for seed in range(80)]
    with installed(copy_first_band) as library:
        engine = load(library)
        with ThreadPoolExecutor(threads) as pool:
            for seen, labels in zip(many, pool.map(engine.label, many), strict=True):
                np.testing.assert_array_equal(labels, seen[:, 0])
        engine.close()


def together(barrier: threading.Barrier) -> Compute:
    """Like ``copy_first_band``, for as many calls at once as the barrier waits for."""

    def compute(model: bytes, tensors: dict[str, Tensor], stream: int) -> None:
        barrier.wait()
        copy_first_band(model, tensors, stream)

    return compute


def test_two_lanes_are_two_calls_at_once(real: bool) -> None:  # noqa: ARG001
    many = [images(BATCH, seed=seed) for seed in range(2)]
    with installed(together(threading.Barrier(2, timeout=30))) as library:
        engine = load(library)
        with ThreadPoolExecutor(2) as pool:
            for seen, labels in zip(many, pool.map(engine.label, many), strict=True):
                np.testing.assert_array_equal(labels, seen[:, 0])
        engine.close()


@pytest.mark.parametrize("close", [TensorRtEngine.close, lambda _engine: None], ids=["closed", "dropped"])
def test_an_engine_takes_the_memory_that_it_says_and_gives_it_back(
    real: bool, close: Callable[[TensorRtEngine], None]
) -> None:
    outer = Gpu(0)
    with installed(copy_first_band) as library, outer.current():
        load(library).label(images(1))  # what CUDA takes once is taken
        gc.collect()
        before = outer.free_bytes()
        engine = load(library, scratch_bytes=64 * MIB)
        taken = before - outer.free_bytes()
        slack = 16 * MIB if real else 1000  # CUDA takes it in larger pieces, and keeps some for small ones
        assert taken == pytest.approx(engine.device_bytes, abs=slack)
        engine.label(images(1))
        engine.label(images(1))
        close(engine)
        del engine
        gc.collect()
        assert outer.free_bytes() >= before - (16 * MIB if real else 0)
    outer.close()


def test_an_engine_that_is_too_large_is_refused_before_it_takes_memory(real: bool) -> None:  # noqa: ARG001
    plan, described = make_engine(bytes(1000), SPEC, (32768, 32768), 64, uint8_input=True)
    outer = Gpu(0)
    with installed(copy_first_band) as library, outer.current():
        before = outer.free_bytes()
        with pytest.raises(
            EngineError, match=r"the engine needs \d+\.\d MiB of .* for each of 2 lanes, and \d+\.\d are free"
        ):
            TensorRtEngine(plan, described, library)
        gc.collect()
        assert outer.free_bytes() >= before - 16 * MIB
    outer.close()
