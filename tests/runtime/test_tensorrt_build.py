"""Engines that TensorRT-RTX really builds, which needs no GPU; none of them is run."""

import dataclasses
import hashlib
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoreg.calibration.layers import find_layers
from autoreg.calibration.quantize import quantize_model
from autoreg.errors import ConfigError, EngineError, ModelError, OutputError
from autoreg.export import export_onnx
from autoreg.export.precision import to_fp16
from autoreg.runtime.devices import find_gpus
from autoreg.runtime.engines.tensorrt.build import build_engine
from autoreg.runtime.engines.tensorrt.compilation import (
    BuildOptions,
    compile_model,
    configure,
    make_builder,
    profile_shapes,
    serialise,
)
from autoreg.runtime.engines.tensorrt.engine_file import load_plan, read_engine_file
from autoreg.runtime.engines.tensorrt.library import Library, find_library
from autoreg.runtime.model_file import graph_digest, read_spec
from autoreg.runtime.zero_point import to_unsigned
from autoreg.spec import METADATA_KEY, ModelSpec
from autoreg.train import load_config, train_network
from conftest import Models
from fake_machine import copy_model  # noqa: F401  # a fixture
from variants import SETTINGS, VARIANTS

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt_rtx is not installed")

GPUS = ("8.6", "8.9", "12.0")
"""Compute capabilities of GeForce GPUs of three generations."""
SMALL = BuildOptions(tile_px=128, compute_capabilities=GPUS)


def build(model: Path, options: BuildOptions = SMALL, **others: Any) -> Path:
    """Build an engine beside the model."""
    engine = model.with_suffix(".engine")
    build_engine(model, engine, options, flavour="tensorrt_rtx", **others)
    return engine


def to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """All layers in INT8; what their ranges are does not matter to who builds."""
    layers = find_layers(model.graph)
    return quantize_model(model, layers, {name: 8.0 for layer in layers for name in layer.activations})


def save(model: onnx.ModelProto, path: Path, precision: str) -> Path:
    spec = dataclasses.replace(ModelSpec.from_json(model.metadata_props[0].value), precision=precision)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.save(model, path)
    return path


@pytest.fixture
def quantised(model: Path) -> Path:
    return save(to_int8(onnx.load(model)), model, "int8")


@pytest.fixture
def nothing_is_left(model: Path) -> Iterator[None]:
    yield
    assert [item.name for item in model.parent.iterdir()] == [model.name]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_builds_in_every_precision(name: str, scenes: list[Path], tmp_path: Path) -> None:
    single = tmp_path / "fp32.onnx"
    config = load_config(None, SETTINGS | {"steps": 1} | VARIANTS[name])
    train_network(scenes, tmp_path / "c.pt", config)
    export_onnx(tmp_path / "c.pt", single)
    files = {
        "fp32": single,
        "fp16": save(to_fp16(onnx.load(single)), tmp_path / "fp16.onnx", "fp16"),
        "int8": save(to_int8(onnx.load(single)), tmp_path / "int8.onnx", "int8"),
    }
    # No small tile: one has no core where the network sees far.
    options = dataclasses.replace(SMALL, tile_px=None, batch_size=2)
    for precision, path in files.items():
        engine = build(path, options)
        described = read_engine_file(engine)
        assert described.spec == read_spec(path.read_bytes(), precision)
        assert described.spec.precision == precision
        assert described.compute_capabilities == GPUS
        assert described.uint8_input == (config.normalisation == "global")
        assert load_plan(engine, described)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_imagery_goes_in_as_float32(models: Models, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models(3, dtype).read_bytes())
    assert not read_engine_file(build(path)).uint8_input


@pytest.mark.parametrize("capability", ["7.5", "8.0", "12.1"])
def test_it_builds_for_each_gpu_that_it_knows(model: Path, capability: str) -> None:
    engine = build(model, dataclasses.replace(SMALL, compute_capabilities=(capability, capability)))
    assert read_engine_file(engine).compute_capabilities == (capability,)


def test_the_engine_says_what_it_is_and_was_made_of(model: Path) -> None:
    options = BuildOptions(130, 4, ("8.9",), tf32=True, level=1, workspace_bytes=2**28)
    engine = build(model, options)
    described, content = read_engine_file(engine), model.read_bytes()
    assert (described.flavour, described.version) == ("tensorrt_rtx", find_library("tensorrt_rtx").version)
    assert (described.tile_shape, described.batch_size, described.tf32) == ((128, 128), 4, True)
    assert (described.model, described.parity) == ("model.onnx", None)
    assert described.model_digest == hashlib.sha256(content).hexdigest()
    assert described.graph_digest == graph_digest(content)
    assert described.engine_digest == hashlib.sha256(engine.read_bytes()).hexdigest()


def test_the_options_reach_the_library() -> None:
    library = find_library("tensorrt_rtx")
    trt, builder = library.trt, make_builder(library)
    for options, expected in (
        (SMALL, (False, 3, ["SM86", "SM89", "SM120"])),
        (BuildOptions(compute_capabilities=("7.5",), tf32=True, level=5, workspace_bytes=2**28), (True, 5, ["SM75"])),
    ):
        config = configure(builder, options, library)
        kinds = [config.get_compute_capability(index).name for index in range(config.num_compute_capabilities)]
        assert (config.get_flag(trt.BuilderFlag.TF32), config.builder_optimization_level, kinds) == expected
        assert config.max_aux_streams == 0
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 2**28


def test_a_timing_cache_is_read_and_written(model: Path, tmp_path: Path) -> None:
    """By the calls that TensorRT needs; to TensorRT-RTX they mean nothing, and it warns of that."""
    library, cache = find_library("tensorrt_rtx"), tmp_path / "a.cache"
    content = model.read_bytes()
    spec = read_spec(content, "model")
    options = dataclasses.replace(SMALL, timing_cache=cache)
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match="no-ops"):
            compile_model(content, "model", spec, options, library)
        assert cache.stat().st_size > 0
    with pytest.raises(EngineError, match=r"timing cache .* cannot be read: Is a directory; name another file"):
        compile_model(content, "model", spec, dataclasses.replace(SMALL, timing_cache=tmp_path), library)


def test_the_tile_is_that_of_segment_unless_another_is_asked_for(models: Models) -> None:
    spec = read_spec(models(2, "uint8").read_bytes(), "model")
    field = spec.receptive_field_px
    assert field
    halo = -(-(field // 2) // spec.stride) * spec.stride
    (exact, *_), (least, best, most) = profile_shapes(spec, BuildOptions(batch_size=3))
    assert exact == best == (3, 2, 512 + 2 * halo, 512 + 2 * halo)
    assert least == (1, 2, spec.stride, spec.stride)
    assert most == (3, 2, 512 + 2 * halo + spec.stride, 512 + 2 * halo + spec.stride)
    attending = dataclasses.replace(spec, receptive_field_px=None, crop_px=64)
    assert profile_shapes(attending, BuildOptions())[0][0] == (1, 2, 64, 64)


def test_progress_never_goes_back_and_ends(model: Path) -> None:
    seen: list[tuple[int, int]] = []
    build(model, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    assert seen[-1] == (100, 100)


def test_an_engine_is_not_replaced_unless_it_may_be(model: Path) -> None:
    engine = build(model)
    content = engine.read_bytes()
    with pytest.raises(OutputError, match=r"model\.engine exists; use --overwrite"):
        build(model)
    assert engine.read_bytes() == content


@pytest.mark.usefixtures("nothing_is_left")
def test_ctrl_c_leaves_nothing(model: Path) -> None:
    after: list[int] = []

    def interrupt(done: int, _total: int) -> None:
        if after or done > 0:
            after.append(done)
        if len(after) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(model, progress=interrupt)
    assert after
    assert after[-1] < 100
    read_engine_file(build(model))  # the library goes on
    for path in (model.with_suffix(".engine"), model.with_suffix(".engine.json")):
        path.unlink()


def signed_as_unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.load_model_from_string(to_unsigned(model.SerializeToString()))


def with_quantised_bias(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    convolution = next(node for node in graph.node if node.op_type == "Conv" and len(node.input) == 3)
    bias = next(item for item in graph.initializer if item.name == convolution.input[2])
    shape = numpy_helper.to_array(bias).shape
    for name, values in (
        ("numbers", np.ones(shape, np.int32)),
        ("scales", np.ones(shape, np.float32)),
        ("zeros", np.zeros(shape, np.int32)),
    ):
        graph.initializer.append(numpy_helper.from_array(values, name))
    graph.node.insert(0, helper.make_node("DequantizeLinear", ["numbers", "scales", "zeros"], ["bias"], axis=0))
    convolution.input[2] = "bias"
    return model


def with_mixed_types(model: onnx.ModelProto) -> onnx.ModelProto:
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    for item in model.graph.initializer:
        if item.name in convolution.input[1:]:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name))
            assert item.data_type == TensorProto.FLOAT16
    return model


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize(
    ("change", "quote"),
    [
        (signed_as_unsigned, "Non-zero zero point is not supported"),
        (with_quantised_bias, "DequantizeLinear"),
    ],
)
def test_int8_in_a_form_that_the_library_does_not_take_is_an_error_that_quotes_it(
    quantised: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto], quote: str
) -> None:
    onnx.save(change(onnx.load(quantised)), quantised)
    with pytest.raises(EngineError) as caught:
        build(quantised)
    assert f"{find_library('tensorrt_rtx')} does not take {quantised}: " in str(caught.value)
    assert quote in str(caught.value)
    assert str(caught.value).endswith("; export it again")


@pytest.mark.usefixtures("nothing_is_left")
def test_mixed_types_are_an_error_that_quotes_the_library(model: Path) -> None:
    onnx.save(with_mixed_types(onnx.load(model)), model)
    with pytest.raises(EngineError, match=r"does not take .*model\.onnx: .*must be of same type"):
        build(model)


def test_a_network_without_a_profile_is_an_error_that_quotes_the_library(model: Path) -> None:
    library = find_library("tensorrt_rtx")
    trt, builder = library.trt, make_builder(library)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    assert parser.parse(model.read_bytes())
    with pytest.raises(EngineError, match=r"TensorRT-RTX [\d.]+ does not build an engine of a\.onnx: .*profile"):
        serialise(builder, network, configure(builder, SMALL, library), "a.onnx", library)


@pytest.mark.usefixtures("nothing_is_left")
def test_what_is_no_model_of_autoreg_never_reaches_the_library(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise AssertionError("it was compiled")

    monkeypatch.setattr("autoreg.runtime.engines.tensorrt.build.compile_model", fail)
    content = onnx.load(model)
    weights = content.graph.initializer[0]
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    for spoilt, reason in (
        (b"hello", "is not an ONNX model"),
        (content.SerializeToString(), "keeps weights in another file"),
    ):
        model.write_bytes(spoilt)
        with pytest.raises(ModelError, match=reason):
            build(model)


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"compute_capabilities": ("9.0",)},
            r"builds for the compute capabilities 7\.5, .* and not for '9\.0'; .*tensorrt$",
        ),
        ({"compute_capabilities": ("8.6", "eight")}, "and not for 'eight'"),
        ({"timing_cache": Path("a.cache")}, "it keeps no timing cache; leave it out"),
        ({"tile_px": 8}, "a tile of 8 px leaves no core"),
    ],
)
def test_what_it_cannot_do_is_said_before_the_work(model: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(model, dataclasses.replace(SMALL, **options))


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU here")
@pytest.mark.usefixtures("nothing_is_left")
def test_without_a_gpu_one_has_to_be_named(model: Path) -> None:
    with pytest.raises(
        EngineError, match=r"no GPU here to build for; say for which ones with --compute-capability, of 7\.5"
    ):
        build(model, BuildOptions())


def test_a_library_is_loaded_once_and_names_itself() -> None:
    library: Library = find_library("tensorrt_rtx")
    assert find_library("tensorrt_rtx") is library
    assert str(library) == f"TensorRT-RTX {library.trt.__version__}"
    assert library.take_errors() == "it gives no reason"
    library.logger.log(library.trt.ILogger.ERROR, "a\nb")
    library.logger.log(library.trt.ILogger.WARNING, "c")
    assert (library.take_errors(), library.take_errors()) == ("a b", "it gives no reason")
