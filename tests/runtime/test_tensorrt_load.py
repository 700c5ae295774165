"""Which engine runs a model: what was built is compared with the model, and what does not fit is built anew, or refused.

On stand-ins for the library and the GPU; that the library really builds is in ``test_tensorrt_build.py``.
"""

import dataclasses
import logging
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import autoreg.runtime.engines.tensorrt.build as building
from autoreg.errors import ConfigError, EngineError, MissingDependencyError, ModelError, OutputError, ParityError
from autoreg.naming.write import write_classes
from autoreg.runtime.engine import load_engine
from autoreg.runtime.engines.tensorrt import BuildOptions, TensorRtEngine, build_engine, load_tensorrt, read_engine_file
from autoreg.runtime.engines.tensorrt.engine_file import sidecar_path, write_engine
from autoreg.runtime.engines.tensorrt.library import TENSORRT, Library, find_library
from autoreg.runtime.parity import Parity
from autoreg.spec import METADATA_KEY, MapClass, ModelSpec
from conftest import noise
from fake_cuda import Code, driver
from fake_machine import CAPABILITY, Machine, copy_model, make_machine  # noqa: F401  # fixtures
from fake_tensorrt import VERSION

TILE = BuildOptions(tile_px=128)


@pytest.fixture
def engine(machine: Machine, model: Path) -> Path:
    path = model.with_suffix(".engine")
    build_engine(model, path, dataclasses.replace(TILE, batch_size=2, tf32=True))
    machine.built.clear()
    return path


def describe(engine: Path, **values: Any) -> None:
    """Let an engine say something else of itself."""
    known = read_engine_file(engine)
    write_engine(engine, engine.read_bytes(), dataclasses.replace(known, **values), overwrite=True)


def labels_are_those_of_the_model(path: Path, model: Path) -> bool:
    tiles = np.stack([noise(2, 128, 128, seed=index) for index in range(3)])
    return bool(np.mean(load_tensorrt(path).label(tiles) == load_engine(model, device="cpu").label(tiles)) >= 0.999)


def test_what_was_built_is_compared_with_the_model(machine: Machine, model: Path) -> None:
    engine = model.with_suffix(".engine")
    described = build_engine(model, engine, TILE)
    assert machine.built == [dataclasses.replace(TILE, compute_capabilities=(CAPABILITY,))]
    assert described == read_engine_file(engine)
    assert (described.flavour, described.version, described.compute_capabilities) == ("tensorrt", VERSION, (CAPABILITY,))
    assert isinstance(described.parity, Parity)
    assert described.parity.agreement >= 0.999
    assert described.parity.pixels == 4 * 128**2


@pytest.mark.usefixtures("machine")
def test_what_each_lane_takes_is_said_of_what_was_built(model: Path) -> None:
    engine = model.with_suffix(".engine")
    described, loaded = build_engine(model, engine, TILE), load_tensorrt(engine, lanes=2)
    assert isinstance(loaded, TensorRtEngine)
    assert described.lane_bytes == loaded.lane_bytes
    assert loaded.device_bytes == engine.stat().st_size + 2 * loaded.lane_bytes


def test_one_that_there_is_no_memory_for_is_not_built_again(
    machine: Machine, model: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = engine.read_bytes()
    monkeypatch.setattr(driver, "cuMemAlloc", lambda _size: (Code.CUDA_ERROR_OUT_OF_MEMORY, None))
    for path in (model, engine):
        with pytest.raises(
            EngineError, match=r"free on Stand-in do not suffice: build the engine for smaller tiles or batches"
        ):
            load_tensorrt(path)
    assert (machine.built, engine.read_bytes()) == ([], before)
    with pytest.raises(EngineError, match="do not suffice"):
        build_engine(model, engine, TILE, overwrite=True)
    assert engine.read_bytes() == before


@pytest.mark.parametrize("existing", [False, True])
def test_an_engine_that_says_something_else_is_not_written(machine: Machine, model: Path, existing: bool) -> None:
    engine = model.with_suffix(".engine")
    if existing:
        build_engine(model, engine, TILE)
    before = {path: path.read_bytes() for path in model.parent.iterdir()}
    machine.wrong = True
    sentence = (
        r"engine that TensorRT 10\.13\.3\.9 built of .*model\.onnx does not say what ONNX Runtime says on the CPU: .* labels"
    )
    with pytest.raises(ParityError, match=sentence):
        build_engine(model, engine, TILE, overwrite=True)
    assert {path: path.read_bytes() for path in model.parent.iterdir()} == before


def test_what_fits_is_loaded_as_it_is(machine: Machine, model: Path, engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (model, engine):
        for options in ({}, {"tile_px": 128}, {"tile_px": 130, "batch_size": 2}):
            loaded = load_tensorrt(path, rebuild=False, **options)
            assert loaded.device == f"TensorRT {VERSION} on Stand-in with TF32"
        assert labels_are_those_of_the_model(path, model)
    assert (machine.built, caplog.messages) == ([], [])


def test_one_that_is_not_there_is_built(machine: Machine, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineError, match=r"model\.engine is not there; build it with autoreg build --overwrite"):
        load_tensorrt(model, rebuild=False)
    load_tensorrt(model, batch_size=3)
    (options,) = machine.built
    assert (options.tile_px, options.batch_size) == (None, 3)
    (message,) = caplog.messages
    assert message == f"{model.with_suffix('.engine')} is not there, so it is built from {model}, which takes a while"
    with pytest.raises(EngineError, match=r"there is no engine .*other\.engine; make one with autoreg build"):
        load_tensorrt(model.with_name("other.engine"))


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"version": "10.9.0.34"}, "was built by TensorRT 10.9.0.34, and 10.13.3.9 is installed here"),
        (
            {"compute_capabilities": ("8.6", "8.9")},
            "was built for GPUs of compute capability 8.6, 8.9, and the one here has 9.0",
        ),
        ({"gpu": "NVIDIA L40S"}, "was built on NVIDIA L40S, and the GPU here is Stand-in"),
        ({"flavour": "tensorrt_rtx", "version": "0.1"}, "was built by"),
    ],
)
@pytest.mark.parametrize("named", ["model", "engine"])
def test_one_of_another_machine_is_built_anew_as_it_was(
    machine: Machine,
    model: Path,
    engine: Path,
    said: dict[str, Any],
    problem: str,
    named: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if said.get("flavour"):
        hide_rtx(monkeypatch)
    describe(engine, **said)
    path = model if named == "model" else engine
    with pytest.raises(EngineError, match=problem):
        load_tensorrt(path, rebuild=False)
    assert labels_are_those_of_the_model(path, model)
    assert machine.built == [BuildOptions(128, 2, (CAPABILITY,), tf32=True)]
    assert len(caplog.messages) == 1
    assert problem in caplog.messages[0]
    found = read_engine_file(engine)
    assert (found.flavour, found.version, found.compute_capabilities) == ("tensorrt", VERSION, (CAPABILITY,))
    assert found.gpu == machine.gpu


def hide_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str | None = None) -> Library:
        if name == "tensorrt_rtx":
            raise MissingDependencyError("tensorrt_rtx is not installed")
        return find_library(name)

    monkeypatch.setattr("autoreg.runtime.engines.tensorrt.load.find_library", find)


def test_one_for_other_tiles_is_built_anew(machine: Machine, model: Path, engine: Path) -> None:
    with pytest.raises(EngineError, match="was built for 2 x 128 x 128 px, and 2 x 64 x 64 px are wanted"):
        load_tensorrt(model, tile_px=64, rebuild=False)
    load_tensorrt(model, tile_px=64)
    load_tensorrt(engine, batch_size=5)
    assert [(options.tile_px, options.batch_size) for options in machine.built] == [(64, 2), (64, 5)]


def test_names_of_classes_change_nothing_of_an_engine_and_another_model_does(
    machine: Machine, model: Path, engine: Path
) -> None:
    classes = [MapClass(7, "all", "#00ff00", (0, 1, 2, 3))]
    write_classes(model, model, classes, overwrite=True)
    loaded = load_tensorrt(model, rebuild=False)
    assert loaded.spec.classes == tuple(classes)
    assert loaded.model_digest == load_engine(model, device="cpu").model_digest
    assert read_engine_file(engine).spec.classes != tuple(classes)

    content = bytearray(model.read_bytes())
    place = content.index(np.float32(loaded.spec.mean[0]).tobytes())
    content[place] ^= 1
    model.write_bytes(content)
    with pytest.raises(EngineError, match="was built from another model"):
        load_tensorrt(model, rebuild=False)
    load_tensorrt(model)
    assert [(options.tile_px, options.tf32) for options in machine.built] == [(None, False)]


def test_tiles_that_the_model_before_would_not_take(machine: Machine, model: Path, engine: Path) -> None:
    describe(engine, spec=dataclasses.replace(read_engine_file(engine).spec, receptive_field_px=99), graph_digest="0" * 64)
    load_tensorrt(model, tile_px=64)
    assert [options.tile_px for options in machine.built] == [64]


@pytest.mark.usefixtures("engine")
def test_a_model_of_the_same_graph_that_takes_other_images(machine: Machine, model: Path) -> None:
    content = onnx.load(model)
    (entry,) = (item for item in content.metadata_props if item.key == METADATA_KEY)
    entry.value = dataclasses.replace(ModelSpec.from_json(entry.value), normalisation="scene").to_json()
    onnx.save(content, model)
    with pytest.raises(EngineError, match="was built from another model"):
        load_tensorrt(model, rebuild=False)
    assert machine.built == []


def test_an_engine_alone_runs_and_is_not_built_anew_from_nothing(machine: Machine, model: Path, engine: Path) -> None:
    content = model.read_bytes()
    model.unlink()
    load_tensorrt(engine)
    describe(engine, version="10.9.0.34")
    with pytest.raises(
        EngineError, match=r"was built by .*, and .*model\.onnx, to build it from again, is not there; put it"
    ):
        load_tensorrt(engine)
    describe(engine, graph_digest="0" * 64)
    model.write_bytes(content)
    with pytest.raises(
        EngineError, match=r"and .*model\.onnx is not the model that it was built from; run .*model\.onnx instead"
    ):
        load_tensorrt(engine)
    assert machine.built == []


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_what_nobody_can_tell_is_an_engine_of_ours_is_neither_loaded_nor_replaced(
    machine: Machine, model: Path, engine: Path, spoil: Any
) -> None:
    spoil(sidecar_path(engine))
    content = engine.read_bytes()
    for path in (model, engine):
        with pytest.raises(EngineError, match=r"model\.engine\.json"):
            load_tensorrt(path)
    assert engine.read_bytes() == content
    assert machine.built == []


def test_an_engine_that_was_exchanged_never_reaches_the_library(model: Path, engine: Path) -> None:
    engine.write_bytes(b"another")
    for path in (model, engine):
        with pytest.raises(EngineError, match="is not the engine that"):
            load_tensorrt(path)


def test_the_device_runs_engines_and_no_other_one_does(model: Path, engine: Path) -> None:
    for path, device in ((model, "tensorrt"), (engine, "tensorrt"), (engine, "auto")):
        assert load_engine(path, device=device, lanes=2).device == f"TensorRT {VERSION} on Stand-in with TF32"
    for device in ("cpu", "cuda", "openvino"):
        with pytest.raises(ConfigError, match=f"is an engine of TensorRT, and the device {device} was asked for"):
            load_engine(engine, device=device)
    with pytest.raises(ModelError, match="there is no model"):
        load_engine(model.with_name("none.onnx"), device="tensorrt")


@pytest.mark.usefixtures("machine")
def test_the_library_of_data_centres_builds_for_the_gpu_that_is_here(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = model.with_suffix(".engine")
    with pytest.raises(ConfigError, match=r"builds for the GPU of this machine alone, and 8\.6 was asked for; leave out"):
        build_engine(model, engine, BuildOptions(compute_capabilities=("8.6",)))
    monkeypatch.setattr(building, "find_compute_capabilities", lambda: ())
    with pytest.raises(
        EngineError, match="builds on the GPU that is to run the engine, and there is none here; build it there"
    ):
        build_engine(model, engine)
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_tiles_that_no_engine_may_have_are_refused_before_the_work(machine: Machine, model: Path) -> None:
    with pytest.raises(ConfigError, match=r"the tiles have 65540 x 65540 px, expected at most 65536 a side"):
        build_engine(model, model.with_suffix(".engine"), BuildOptions(tile_px=65540))
    assert machine.built == []


@pytest.mark.usefixtures("machine")
def test_an_engine_has_a_name_by_which_it_is_known(model: Path) -> None:
    with pytest.raises(OutputError, match=r"model\.plan is no name of an engine, expected one that ends in \.engine"):
        build_engine(model, model.with_suffix(".plan"), TILE)
    with pytest.raises(OutputError, match=r"model\.onnx is no name of an engine"):
        build_engine(model, model, TILE, overwrite=True)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"batch_size": 65537}, "batch size is 65537, expected 1 to 65536"),
        ({"level": 6}, "level is 6"),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        BuildOptions(**values)


@pytest.mark.usefixtures("machine")
def test_debugging_shows_what_the_library_says(caplog: pytest.LogCaptureFixture) -> None:
    library = find_library("tensorrt")
    with caplog.at_level(logging.DEBUG, logger="autoreg"):
        library.logger.log(library.trt.ILogger.INFO, "hello")
    assert caplog.messages == ["tensorrt: hello"]


def test_calls_that_fail_at_once_share_what_the_library_says() -> None:
    class Contended(deque[str]):
        def __len__(self) -> int:
            """As it was before another thread took one."""
            return super().__len__() + 1

    library = Library(TENSORRT, None, VERSION, None, Contended(["first", "second"]))
    assert library.take_errors() == "first; second"


def test_what_is_no_library_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no library 'tensorrt_lean', expected one of tensorrt, tensorrt_rtx"):
        find_library("tensorrt_lean")
