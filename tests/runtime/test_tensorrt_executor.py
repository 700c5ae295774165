"""The executor of TensorRT on stand-ins for the library and the driver: it owes what every engine owes, and some more.

The stand-in computes what the model says, on the memory that the executor gives it, so answers are compared with those of
ONNX Runtime. What a driver does with the same code is in ``test_cuda.py``.
"""

import functools
import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from autoreg.errors import EngineError
from autoreg.runtime.engine import Engine
from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine
from autoreg.runtime.engines.tensorrt.compilation import BuildOptions, configure, make_builder
from autoreg.runtime.engines.tensorrt.executor import TensorRtEngine
from autoreg.runtime.engines.tensorrt.library import Library
from autoreg.runtime.model_file import read_spec
from conftest import Models
from fake_cuda import Code, FakeCuda, driver
from fake_tensorrt import Tensor, common_names, compute_with_onnx_runtime, installed, make_engine

contract: Any = importlib.import_module("test_engine_contract")
# What every engine owes its callers is collected here, too, with the fixtures of this module.
test_any_size_on_the_stride_and_any_batch = contract.test_any_size_on_the_stride_and_any_batch
test_as_many_threads_as_there_are_lanes_may_call_it_and_more = (
    contract.test_as_many_threads_as_there_are_lanes_may_call_it_and_more
)
test_images_of_a_batch_do_not_influence_each_other = contract.test_images_of_a_batch_do_not_influence_each_other
test_images_that_are_a_view_of_others = contract.test_images_that_are_a_view_of_others
test_images_that_do_not_fit_are_refused = contract.test_images_that_do_not_fit_are_refused
test_labels_are_the_argmax_of_the_upsampled_logits = contract.test_labels_are_the_argmax_of_the_upsampled_logits
test_same_input_same_output = contract.test_same_input_same_output
images: Callable[..., NDArray[np.float32]] = contract.images
BANDS, CLUSTERS, STRIDE = contract.BANDS, contract.CLUSTERS, contract.STRIDE

TILE, BATCH = (64, 96), 2
LARGE = (256, 256)
"""A tile as large as the largest image of the contract."""

Image = NDArray[Any]


class Named(NamedTuple):
    """As much of a device as the contract asks for."""

    name: str


class Bench(NamedTuple):
    """What an engine is tried on.

    Attributes:
        cuda: the driver.
        library: TensorRT.
        model: bytes of the model.
        seen: how many computations TensorRT was asked for.
        before: called by a stream before each computation.
    """

    cuda: FakeCuda
    library: Library
    model: bytes
    seen: list[dict[str, Tensor]]
    before: list[Callable[[], object]]

    def load(
        self,
        tile_shape: tuple[int, int] = TILE,
        *,
        lanes: int = 1,
        uint8_input: bool = False,
        model: bytes | None = None,
        **said: Any,
    ) -> TensorRtEngine:
        spec = read_spec(self.model, "model")
        plan, described = make_engine(model or self.model, spec, tile_shape, BATCH, uint8_input=uint8_input, **said)
        return TensorRtEngine(plan, described, self.library, lanes=lanes)

    def expected(self, image: Image) -> Image:
        """What ONNX Runtime says."""
        return _reference(self.model).label(image.astype(np.float32))


@functools.cache
def _reference(model: bytes) -> Engine:
    return OnnxRuntimeEngine(model, "model", threads=1)


@pytest.fixture(scope="module")
def path(models: Models) -> Path:
    return models(BANDS, "uint8")


@pytest.fixture
def careless(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """One that does not mind what is left on it."""
    cuda = FakeCuda()
    seen: list[dict[str, Tensor]] = []
    before: list[Callable[[], object]] = []
    cuda.install(monkeypatch)
    by_model = compute_with_onnx_runtime(cuda)

    def call_before() -> None:
        for call in before:
            call()

    def compute(model: bytes, tensors: dict[str, Tensor], stream: int) -> None:
        seen.append(tensors)
        cuda.give(stream, call_before)
        by_model(model, tensors, stream)

    with installed(compute) as library:
        yield Bench(cuda, library, path.read_bytes(), seen, before)


@pytest.fixture
def bench(careless: Bench) -> Iterator[Bench]:
    yield careless
    careless.cuda.check()


@pytest.fixture(params=[False, True], ids=["float32", "uint8"])
def device(request: pytest.FixtureRequest, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Named:
    """Lets the tests of the contract load engines that take float32 or uint8."""

    def load(_path: Path, *, device: str, threads: int, lanes: int = 1) -> Engine:  # noqa: ARG001
        return bench.load(LARGE, lanes=lanes, uint8_input=request.param)

    monkeypatch.setattr(contract, "load_engine", load)
    return Named("tensorrt")


@pytest.fixture
def engine(device: Named, path: Path) -> Iterator[Engine]:
    loaded: TensorRtEngine = contract.load_engine(path, device=device.name, threads=1)
    yield loaded
    loaded.close()


def test_it_says_what_it_is(bench: Bench) -> None:
    engine = bench.load(lanes=3)
    assert (engine.tile_shape, engine.batch_size, engine.lanes) == (TILE, BATCH, 3)
    assert engine.device == "TensorRT 10.13.3.9 on Stand-in"
    assert (engine.spec.stride, engine.spec.clusters) == (STRIDE, CLUSTERS)


def test_the_stand_in_has_only_what_all_versions_have(bench: Bench) -> None:
    classes = {name: kind for name, kind in vars(bench.library.trt).items() if not name.startswith("_")}
    for name, kind in classes.items():
        assert {attribute for attribute in dir(kind) if not attribute.startswith("_")} <= common_names(name)
    assert classes.keys() >= {"Runtime", "ICudaEngine", "IExecutionContext"}


@pytest.mark.parametrize("uint8_input", [False, True])
def test_tiles_are_one_graph_after_the_first(bench: Bench, uint8_input: bool) -> None:
    engine = bench.load(uint8_input=uint8_input)
    for seed in range(5):
        tiles = images(BATCH + seed, *TILE)[seed:]
        np.testing.assert_array_equal(engine.label(tiles), bench.expected(tiles))
        labels, logits = engine.predict(tiles)
        np.testing.assert_array_equal(labels, bench.expected(tiles))
        np.testing.assert_allclose(logits, _reference(bench.model).predict(tiles).logits, atol=1e-5)
    assert len(bench.seen) == 2  # in the first call, and when it was recorded
    assert bench.cuda.calls["cuGraphLaunch"] == 9


def test_short_batches_are_tiles_too(bench: Bench) -> None:
    engine = bench.load()
    for count in (2, 1, 5, 1):
        tiles = images(count, *TILE)
        np.testing.assert_array_equal(engine.label(tiles), bench.expected(tiles))
        last, added = bench.seen[-1]["image"].array()
        assert np.array_equal(last, added) == (count != 2)  # filled up with what is there
    assert len(bench.seen) == 2
    assert {tensors["image"].shape for tensors in bench.seen} == {(BATCH, BANDS, *TILE)}


def test_other_shapes_run_step_by_step_and_do_not_spoil_the_graph(bench: Bench) -> None:
    engine = bench.load()
    larger = TILE[0] + STRIDE, TILE[1] + STRIDE
    for shape in [TILE, TILE, (STRIDE, STRIDE), (32, 96), (32, 96), larger, (64, 32), TILE, TILE, TILE, (68, 96), TILE]:
        for count in (BATCH, 1):
            image = images(count, *shape)
            np.testing.assert_array_equal(engine.label(image), bench.expected(image))
    graphs = bench.cuda.calls["cuGraphInstantiate"]
    assert graphs == 3  # tiles came three times, after something else
    assert bench.cuda.calls["cuGraphLaunch"] == 3 + 5 + 1


@pytest.mark.parametrize("shape", [(TILE[0] + 2 * STRIDE, TILE[1]), (TILE[0], TILE[1] + 2 * STRIDE)])
def test_images_larger_than_it_was_built_for_are_refused(bench: Bench, shape: tuple[int, int]) -> None:
    with pytest.raises(EngineError, match=rf"{shape[0]} x {shape[1]} px .* 64 x 96 px, at most 68 x 100 px; cut the raster"):
        bench.load().label(images(1, *shape))


def test_only_what_is_asked_for_is_copied(bench: Bench) -> None:
    pixels = BATCH * TILE[0] * TILE[1]
    for uint8_input, size in ((True, 1), (False, 4)):
        engine = bench.load(uint8_input=uint8_input)
        bench.cuda.copied.clear()
        engine.label(images(BATCH, *TILE))
        assert bench.cuda.copied == {"up": size * BANDS * pixels, "down": pixels}
        engine.predict(images(BATCH, *TILE))
        assert bench.cuda.copied["down"] == 2 * pixels + 4 * CLUSTERS * pixels // STRIDE**2


@pytest.mark.parametrize("uint8_input", [False, True])
def test_images_of_uint8_and_of_float32_get_the_same_answer(bench: Bench, uint8_input: bool) -> None:
    engine = bench.load(uint8_input=uint8_input)
    for shape in (TILE, (32, 32)):
        image = images(2, *shape)
        np.testing.assert_array_equal(engine.label(image.astype(np.uint8)), bench.expected(image))
        np.testing.assert_array_equal(engine.label(image), bench.expected(image))


@pytest.mark.parametrize("value", [0.5, -1, 256, np.nan, np.inf])
def test_other_values_than_those_of_uint8(bench: Bench, value: float) -> None:
    spoilt = images(2, *TILE)
    spoilt[1, 0, 3, 4] = value
    with pytest.raises(EngineError, match=r"float32 with values other than 0, 1 \.\. 255"):
        bench.load(uint8_input=True).label(spoilt)
    labels = bench.load(uint8_input=False).label(spoilt)
    np.testing.assert_array_equal(labels[0], bench.expected(spoilt[:1])[0])


def test_it_takes_the_memory_that_it_says(bench: Bench) -> None:
    for lanes in (1, 3):
        engine = bench.load(lanes=lanes)
        assert bench.cuda.used() <= engine.device_bytes < bench.cuda.used() + 1000
        engine.predict(images(3, *TILE))
        assert bench.cuda.used() <= engine.device_bytes
        engine.close()
        del engine
        assert bench.cuda.used() == 0


def test_more_memory_than_there_is_is_known_before_it_is_taken(bench: Bench) -> None:
    with pytest.raises(EngineError, match=r"needs 300\.\d MiB of Stand-in .* 100\.\d for each of 3 lanes, and 256\.0 are"):
        bench.load(lanes=3, scratch_bytes=100 * 2**20)
    assert bench.cuda.calls["cuStreamCreate"] == 0
    assert bench.load(lanes=2, scratch_bytes=100 * 2**20).lanes == 2


def test_memory_that_somebody_else_takes_meanwhile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cuMemGetInfo", lambda: (Code.CUDA_SUCCESS, 2**40, 2**40))
    sentence = (
        r"could not make a context of 100\.0 MiB to run in: .*OutOfMemory.*; the \d+\.\d MiB of memory that are free on "
        r"Stand-in do not suffice: build the engine for smaller tiles or batches, or end what else takes memory$"
    )
    with pytest.raises(EngineError, match=sentence):
        bench.load(lanes=3, scratch_bytes=100 * 2**20)


def test_weights_that_there_is_no_memory_for(bench: Bench) -> None:
    bench.cuda.fail = {"cuMemAlloc": Code.CUDA_ERROR_OUT_OF_MEMORY}
    sentence = (
        r"TensorRT [\d.]+ could not load the engine of 0\.\d MiB: .*out of memory.*; the 256\.0 MiB of memory that are free "
        r"on Stand-in do not suffice: build the engine for smaller"
    )
    with pytest.raises(EngineError, match=sentence):
        bench.load()


def test_memory_that_lacked_before_is_not_what_an_engine_lacks(bench: Bench) -> None:
    """TensorRT also says so of ways to compute that it gives up while it builds."""
    plan, described = make_engine(bench.model, read_spec(bench.model, "model"), TILE, BATCH)
    bench.library.logger.log(bench.library.trt.ILogger.ERROR, "Error Code 2: OutOfMemory")
    with pytest.raises(EngineError, match="magicTag mismatch: it is no engine; build the engine again"):
        TensorRtEngine(plan[1:], described, bench.library)


def test_buffers_that_there_is_no_memory_for(bench: Bench) -> None:
    bench.cuda.fail = {"cuMemHostAlloc": Code.CUDA_ERROR_OUT_OF_MEMORY}
    with pytest.raises(EngineError, match=r"CUDA_ERROR_OUT_OF_MEMORY \(out of memory\); build the engine for smaller tiles"):
        bench.load()


def test_an_engine_is_built_for_the_stream_of_a_lane_alone(bench: Bench) -> None:
    """Streams that TensorRT adds by itself take memory for each lane, and the lanes keep the GPU busy already."""
    library = bench.library
    for tf32 in (False, True):
        config = configure(make_builder(library), BuildOptions(tf32=tf32), library)
        assert config.max_aux_streams == 0
        assert config.get_flag(library.trt.BuilderFlag.TF32) == tf32


@pytest.mark.parametrize("facts", [{"image": "UINT8"}, {"image": "FLOAT", "clusters": CLUSTERS + 1}])
def test_an_engine_that_is_not_what_is_said_of_it(bench: Bench, facts: dict[str, Any]) -> None:
    with pytest.raises(
        EngineError, match=r"image of UINT8, .* expected image of FLOAT|logits of shape .*5, 16, 24\), expected"
    ):
        bench.load(**facts).label(images(2, *TILE))


def test_bytes_that_are_no_engine(bench: Bench) -> None:
    plan, described = make_engine(bench.model, read_spec(bench.model, "model"), TILE, BATCH)
    with pytest.raises(EngineError, match=r"magicTag mismatch: it is no engine; build the engine again with .* --overwrite"):
        TensorRtEngine(plan[1:], described, bench.library)


def test_a_shape_that_tensorrt_does_not_take(bench: Bench) -> None:
    tile = (BATCH, BANDS, *TILE)
    engine = bench.load(profiles=[[tile, tile, tile], [tile, tile, tile]])
    with pytest.raises(EngineError, match=r"could not take images of shape \(1, 2, 32, 32\): .*Static dimension mismatch"):
        engine.label(images(1, 32, 32))
    np.testing.assert_array_equal(engine.label(images(2, *TILE)), bench.expected(images(2, *TILE)))


def test_a_profile_that_is_not_there(bench: Bench) -> None:
    """TensorRT's bindings raise an error of theirs there, and nowhere else."""
    tile = (BATCH, BANDS, *TILE)
    engine = bench.load(profiles=[[tile, tile, tile]])
    with pytest.raises(EngineError, match=r"could not switch to profile 1: .*there is no profile 1; build the engine again"):
        engine.label(images(1, 32, 32))
    np.testing.assert_array_equal(engine.label(images(2, *TILE)), bench.expected(images(2, *TILE)))


def test_tensorrt_rtx_has_the_kernels_of_a_shape_before_they_are_recorded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, model = FakeCuda(), path.read_bytes()
    cuda.install(monkeypatch)
    with installed(compute_with_onnx_runtime(cuda), "tensorrt_rtx") as library:
        engine = TensorRtEngine(*make_engine(model, read_spec(model, "model"), TILE, BATCH), library)
        for _ in range(3):
            np.testing.assert_array_equal(engine.label(images(2, *TILE)), _reference(model).label(images(2, *TILE)))
        assert cuda.calls["cuGraphLaunch"] == 2
        engine.close()
        del engine
        cuda.check()


def test_an_engine_that_cannot_be_a_graph_runs_step_by_step(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    engine = bench.load(recordable=False)
    with caplog.at_level(logging.WARNING, "autoreg"):
        for _ in range(4):
            np.testing.assert_array_equal(engine.label(images(2, *TILE)), bench.expected(images(2, *TILE)))
    (record,) = caplog.records
    assert "runs step by step" in record.getMessage()
    assert "a layer allocates memory" in record.getMessage()
    assert bench.cuda.calls["cuGraphLaunch"] == 0


def test_two_calls_compute_at_once(bench: Bench) -> None:
    """Each computation waits for another one to be under way: with one after the other, that would not be."""
    engine = bench.load(lanes=2)
    barrier = threading.Barrier(2, timeout=30)
    bench.before.append(barrier.wait)
    tiles = [images(2, *TILE) + index for index in range(2)] * 4
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(engine.label, tiles))
    bench.before.clear()
    for tile, answer in zip(tiles, answers, strict=True):
        np.testing.assert_array_equal(answer, bench.expected(tile))


def test_more_calls_than_lanes_wait(bench: Bench) -> None:
    engine = bench.load(lanes=2)
    under_way: list[None] = []
    most: list[int] = []

    def count() -> None:
        under_way.append(None)
        most.append(len(under_way))
        threading.Event().wait(0.01)
        under_way.pop()

    bench.before.append(count)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(engine.label, [images(2, *TILE)] * 12))
    assert max(most) == 2


_INTERRUPTED = [
    *((name, times) for name in ("cuEventRecord", "cuEventSynchronize", "cuGraphLaunch") for times in (1, 2, 3)),
    *((name, times) for name in ("cuMemcpyHtoDAsync", "cuStreamIsCapturing", "cuMemcpyDtoHAsync") for times in (1, 2)),
    *((name, 1) for name in ("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuCtxPopCurrent")),
]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("function", "times"), _INTERRUPTED)
def test_ctrl_c_leaves_an_engine_that_works(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, function: str, times: int, done: bool
) -> None:
    """Ctrl-C before or after a function of the driver, called for the first, second or third time."""
    engine, original = bench.load(), getattr(driver, function)
    calls: list[None] = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) != times:
            return original(*arguments)
        if done:
            original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, function, interrupted)
    answered = 0
    for offset in range(6):
        tile = images(2, *TILE) + offset
        with suppress(KeyboardInterrupt):
            np.testing.assert_array_equal(engine.label(tile), bench.expected(tile))
            answered += 1
    assert answered == 5
    engine.close()
    # What CUDA has made and Python never got to know is lost.
    lost = {kind: found for kind, found in (("graph", bench.cuda._graphs), ("launchable", bench.cuda._launchable)) if found}
    assert not lost or (done and function in ("cuStreamEndCapture", "cuGraphInstantiate"))
    for found in lost.values():
        found.popitem()


def _live(bench: Bench) -> None:
    engine = bench.load()
    for _ in range(3):
        engine.label(images(2, *TILE))
    engine.close()


_FATAL = [
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent",
    "cuCtxPopCurrent",
    "cuMemGetInfo",
    "cuMemAlloc",
    "cuMemHostAlloc",
    "cuStreamCreate",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuGraphLaunch",
]
_LOGGED = [
    "cuStreamBeginCapture",
    "cuStreamEndCapture",
    "cuGraphInstantiate",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemFree",
    "cuMemFreeHost",
    "cuEventDestroy",
    "cuStreamDestroy",
    "cuDevicePrimaryCtxRelease",
]


def test_each_function_of_the_driver_is_tried(careless: Bench) -> None:
    _live(careless)
    assert careless.cuda.calls.keys() == {*_FATAL, *_LOGGED, "cuStreamIsCapturing"}  # the last is called by TensorRT


@pytest.mark.parametrize("function", _FATAL)
def test_a_function_of_the_driver_that_fails_is_named(careless: Bench, function: str) -> None:
    careless.cuda.fail = {function: Code.CUDA_ERROR_UNKNOWN}
    expected = rf"CUDA's {function} failed with CUDA_ERROR_UNKNOWN \(unknown\); look at what nvidia-smi says"
    if function == "cuMemAlloc":  # TensorRT's own comes first
        expected = "OutOfMemory"
    with pytest.raises(EngineError, match=expected):
        _live(careless)
    careless.cuda.check()


@pytest.mark.parametrize("function", _LOGGED)
def test_a_failure_that_stops_nothing_is_logged(careless: Bench, caplog: pytest.LogCaptureFixture, function: str) -> None:
    careless.cuda.fail = {function: Code.CUDA_ERROR_UNKNOWN}
    with caplog.at_level(logging.WARNING, "autoreg"):
        _live(careless)
    assert f"CUDA's {function} failed with CUDA_ERROR_UNKNOWN (unknown)" in caplog.text


def test_a_kernel_that_fails(careless: Bench) -> None:
    engine = careless.load(lanes=2)
    engine.label(images(2, *TILE))
    careless.before.append(lambda: np.zeros(0)[1])
    for _ in range(3):  # CUDA does nothing more in this process
        with pytest.raises(EngineError, match="CUDA_ERROR_LAUNCH_FAILED"):
            engine.label(images(2, *TILE))
    engine.close()


def test_an_engine_that_is_closed_takes_no_more_calls(bench: Bench) -> None:
    engine = bench.load(lanes=2)
    inside, go_on = threading.Event(), threading.Event()
    bench.before.extend([inside.set, lambda: go_on.wait(30)])
    with ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(engine.label, images(2, *TILE)) for _ in range(2)]
        assert inside.wait(30)
        closing = [pool.submit(engine.close) for _ in range(2)]
        assert not any(future.done() for future in closing)
        go_on.set()
        for future in under_way:
            with suppress(EngineError):  # one of them may have begun too late
                np.testing.assert_array_equal(future.result(), bench.expected(images(2, *TILE)))
        for closed in closing:
            closed.result()
    assert bench.cuda.leaks() == {}
    engine.close()
    with pytest.raises(EngineError, match="the engine has been closed; load it again"):
        engine.label(images(2, *TILE))


def test_calls_that_wait_are_told_that_it_is_closed(bench: Bench) -> None:
    engine = bench.load(lanes=1)
    inside, go_on = threading.Event(), threading.Event()
    bench.before.extend([inside.set, lambda: go_on.wait(30)])
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(engine.label, images(2, *TILE))
        assert inside.wait(30)
        second, closing = pool.submit(engine.label, images(2, *TILE)), pool.submit(engine.close)
        with pytest.raises(EngineError, match="closed"):
            second.result(30)
        go_on.set()
        np.testing.assert_array_equal(first.result(), bench.expected(images(2, *TILE)))
        closing.result()


def test_an_engine_that_nobody_holds_is_freed(bench: Bench) -> None:
    engine = bench.load(lanes=2)
    engine.label(images(2, *TILE))
    del engine
    assert bench.cuda.leaks() == {}  # at once: nothing of it is in a circle


def test_the_gpu_is_the_one_that_was_asked_for_and_only_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(gpus=("First", "Second"))
    cuda.install(monkeypatch)
    with installed(compute_with_onnx_runtime(cuda)) as library:
        plan, described = make_engine(path.read_bytes(), read_spec(path.read_bytes(), "model"), TILE, BATCH)
        engine = TensorRtEngine(plan, described, library, gpu=1)
        assert engine.device.endswith(" on Second")
        engine.label(images(2, *TILE))
        assert cuda._stack() == []
        with pytest.raises(EngineError, match="there is no GPU 2: the NVIDIA driver shows 2"):
            TensorRtEngine(plan, described, library, gpu=2)
