"""What a Triton server reads, parsed with its own schema and held against what the model really takes and gives."""

import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from autoreg.calibration.layers import find_layers
from autoreg.calibration.quantize import quantize_model
from autoreg.errors import ConfigError, EngineError, ModelError, OutputError
from autoreg.export import export_onnx, write_repository
from autoreg.export.triton import write_config
from autoreg.naming.write import write_classes
from autoreg.raster.tiling import plan_tiles
from autoreg.runtime.engine import load_engine
from autoreg.runtime.engines.tensorrt.engine_file import EngineFile, write_engine
from autoreg.runtime.model_file import graph_digest, read_spec
from autoreg.spec import MapClass, ModelSpec
from conftest import Models, save_random_checkpoint
from fake_tensorrt import VERSION, make_engine
from forks import autoreg
from served import CLASSES, read_config
from test_cli import refused

TYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.UINT8: "TYPE_UINT8"}


def describe(value: onnx.ValueInfoProto) -> tuple[str, str, list[int]]:
    """Name, type and shape of an input or output of a model, as Triton writes them."""
    tensor = value.type.tensor_type
    return value.name, TYPES[tensor.elem_type], [axis.dim_value or -1 for axis in tensor.shape.dim]


def check_tensors(config: ModelConfig, path: Path) -> None:
    """Triton puts the batch before all dims, and compares what that makes with the model."""
    graph = onnx.load(path).graph
    for declared, real in ((config.input, graph.input), (config.output, graph.output)):
        shapes = [(item.name, DataType.Name(item.data_type), [-1, *item.dims]) for item in declared]
        assert shapes == [describe(value) for value in real]


@pytest.fixture(scope="module")
def variants(models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each precision, and of imagery of 8 and 16 bits."""
    folder, single = tmp_path_factory.mktemp("variants"), models(3, "uint8")
    export_onnx(single.with_suffix(".pt"), folder / "half.onnx", precision="fp16")
    floats = onnx.load(single)
    layers = find_layers(floats.graph)
    quantised = quantize_model(floats, layers, {name: 8.0 for layer in layers for name in layer.activations})
    onnx.save(quantised, folder / "int8.onnx")
    return {"uint8": single, "uint16": models(4, "uint16"), "fp16": folder / "half.onnx", "int8": folder / "int8.onnx"}


@pytest.mark.parametrize("variant", ["uint8", "uint16", "fp16", "int8"])
def test_the_config_says_what_the_model_takes_and_gives(variants: dict[str, Path], tmp_path: Path, variant: str) -> None:
    path = variants[variant]
    served = write_repository(path, tmp_path / "repository")
    assert served.folder == tmp_path / "repository" / path.stem
    assert (served.folder / "1" / "model.onnx").read_bytes() == path.read_bytes()
    config = read_config(served.folder)
    check_tensors(config, path)
    assert (config.name, config.platform, config.max_batch_size) == (path.stem, "onnxruntime_onnx", 8)
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus), list(group.profile)) == (ModelInstanceGroup.KIND_GPU, 1, [], [])
    assert [item.label_filename for item in config.output] == ["labels.txt", ""]


def test_a_client_can_ask_the_server_for_the_spec_and_the_tiling(models: Models, tmp_path: Path) -> None:
    path = models(3, "uint8")
    parameters = read_config(write_repository(path, tmp_path).folder).parameters
    spec = load_engine(path).spec
    assert ModelSpec.from_json(parameters["autoreg.spec"].string_value) == spec
    assert parameters["autoreg.model_digest"].string_value == hashlib.sha256(path.read_bytes()).hexdigest()
    assert spec.receptive_field_px
    # What autoreg segment would take for a large raster.
    plan = plan_tiles(5000, 5000, tile_px=None, receptive_field_px=spec.receptive_field_px, stride=spec.stride)
    assert json.loads(parameters["autoreg.tile_shape"].string_value) == list(plan.tile_shape)
    assert json.loads(parameters["autoreg.halo_px"].string_value) == plan.halo_px


def test_a_model_that_looks_at_its_whole_tile_has_no_halo(models: Models, tmp_path: Path) -> None:
    served = write_repository(models(3, "uint8"), tmp_path)
    spec = dataclasses.replace(served.spec, receptive_field_px=None, crop_px=96)
    config = text_format.Parse(write_config(dataclasses.replace(served, spec=spec)), ModelConfig())
    assert config.parameters["autoreg.halo_px"].string_value == "null"
    assert config.parameters["autoreg.tile_shape"].string_value == "[96, 96]"


def test_names_of_any_letters_survive(models: Models, tmp_path: Path) -> None:
    path = tmp_path / "named.onnx"
    names = ('the "wet" one', "back\\slash \\n", "Wiese, Ähre {}[]", "森林 🌲")
    classes = [MapClass(7 * index, name, f"#0000{index:02x}", (3 - index,)) for index, name in enumerate(names)]
    write_classes(models(3, "uint8"), path, classes)
    folder = write_repository(path, tmp_path / "repository").folder
    spec = ModelSpec.from_json(read_config(folder).parameters["autoreg.spec"].string_value)
    assert [item.name for item in spec.classes] == list(names)
    # A line for each cluster that the graph answers.
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(reversed(names))


def test_a_class_of_several_clusters_names_each_of_them(models: Models, tmp_path: Path) -> None:
    path = tmp_path / "named.onnx"
    write_classes(models(3, "uint8"), path, CLASSES)
    folder = write_repository(path, tmp_path).folder
    assert (folder / "labels.txt").read_text() == "wood\nelse\nelse\nwood\n"


@pytest.mark.parametrize("name", ["a b", 'a"b', "ä", ".hidden", ".", "-x", "a%2Fb", "a\nb"])
def test_a_name_that_cannot_be_part_of_a_url_is_refused(models: Models, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(models(3, "uint8").read_bytes())
    with pytest.raises(ConfigError, match="a server cannot call a model"):
        write_repository(path, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_what_is_there_stays_unless_it_is_to_be_replaced(models: Models, tmp_path: Path) -> None:
    source, repository = tmp_path / "m.onnx", tmp_path / "repository"
    source.write_bytes(models(3, "uint8").read_bytes())
    folder = write_repository(source, repository).folder
    source.write_bytes(models(4, "uint16").read_bytes())
    with pytest.raises(OutputError, match=r"repository/m exists; use --overwrite"):
        write_repository(source, repository)
    assert read_config(folder).input[0].dims[0] == 3
    write_repository(source, repository, overwrite=True)
    check_tensors(read_config(folder), source)
    assert (folder / "1" / "model.onnx").read_bytes() == source.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "repository"}
    assert {path.name for path in repository.iterdir()} == {"m"}


@pytest.mark.parametrize("place", ["photo.jpg", "2/model.onnx", "1/model.onnx.data"])
def test_files_of_somebody_else_are_never_removed(models: Models, tmp_path: Path, place: str) -> None:
    source = models(3, "uint8")
    folder = write_repository(source, tmp_path).folder
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text("precious")
    with pytest.raises(OutputError, match=f"autoreg did not write .*{place}"):
        write_repository(source, tmp_path, overwrite=True)
    assert (folder / place).read_text() == "precious"


def test_a_full_disk_leaves_the_earlier_model_and_nothing_else(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, repository = models(3, "uint8"), tmp_path / "repository"
    folder = write_repository(source, repository).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="was not written: No space left on device"):
        write_repository(source, repository, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(errno.EIO, "Input/output error"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_model_that_cannot_be_moved_to_its_place_leaves_the_earlier_one(
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    source, repository = models(3, "uint8"), tmp_path / "repository"
    folder = write_repository(source, repository).folder
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(raised):
        write_repository(source, repository, overwrite=True)
    assert (folder / "1" / "model.onnx").read_bytes() == source.read_bytes()
    assert list(tmp_path.iterdir()) == [repository]


def test_what_is_no_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("no model")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        write_repository(tmp_path / "m.onnx", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_repository_that_is_a_file_is_said(models: Models, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="was not written"):
        write_repository(models(3, "uint8"), tmp_path / "file")


def save_engine(path: Path, model: Path, **changes: Any) -> EngineFile:
    """An engine as autoreg build leaves it; what is in it does not matter here."""
    content = model.read_bytes()
    spec = read_spec(content, model.name)
    plan, described = make_engine(content, spec, (96, 128), 4, uint8_input=spec.takes_uint8)
    described = dataclasses.replace(described, **{"model": model.name, "graph_digest": graph_digest(content)} | changes)
    write_engine(path, plan, described, overwrite=False)
    return described


@pytest.mark.parametrize(("dtype", "pixels"), [("uint8", "TYPE_UINT8"), ("uint16", "TYPE_FP32")])
def test_an_engine_is_served_with_its_tile_and_its_batch(models: Models, tmp_path: Path, dtype: str, pixels: str) -> None:
    engine = tmp_path / "m.engine"
    described = save_engine(engine, models(3, dtype))
    folder = write_repository(engine, tmp_path / "repository").folder
    assert (folder / "1" / "model.plan").read_bytes() == engine.read_bytes()
    config = read_config(folder)
    shapes = [(item.name, DataType.Name(item.data_type), list(item.dims)) for item in (*config.input, *config.output)]
    assert shapes == [
        ("image", pixels, [3, 96, 128]),
        ("labels", "TYPE_UINT8", [96, 128]),
        ("logits", "TYPE_FP32", [4, 96 // described.spec.stride, 128 // described.spec.stride]),
    ]
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 4)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    # A full batch fits the first profile, a smaller one only the second.
    assert list(config.instance_group[0].profile) == ["0", "1"]
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    assert parameters["autoreg.tensorrt_version"] == VERSION
    assert json.loads(parameters["autoreg.compute_capabilities"]) == list(described.compute_capabilities)
    assert json.loads(parameters["autoreg.tile_shape"]) == [96, 128]
    assert parameters["autoreg.model_digest"] == described.model_digest


def test_an_engine_for_single_tiles_has_nothing_to_batch(models: Models, tmp_path: Path) -> None:
    save_engine(tmp_path / "m.engine", models(3, "uint8"), batch_size=1)
    config = read_config(write_repository(tmp_path / "m.engine", tmp_path).folder)
    assert config.max_batch_size == 1  # not 0: then dims would have to hold the axis of the batch
    assert not config.HasField("dynamic_batching")
    assert list(config.instance_group[0].profile) == ["0"]


def test_an_engine_has_the_names_that_its_model_has_got_since(models: Models, tmp_path: Path) -> None:
    source, model = models(3, "uint8"), tmp_path / "3uint8.onnx"
    save_engine(tmp_path / "m.engine", source)
    classes = [MapClass(index, f"class {index}", f"#00000{index}", (3 - index,)) for index in range(4)]
    write_classes(source, model, classes)
    folder = write_repository(tmp_path / "m.engine", tmp_path).folder
    assert (folder / "labels.txt").read_text() == "class 3\nclass 2\nclass 1\nclass 0\n"
    assert read_config(folder).parameters["autoreg.model_digest"].string_value == load_engine(model).model_digest
    # Another model under this name says nothing of the engine.
    model.write_bytes(models(4, "uint16").read_bytes())
    folder = write_repository(tmp_path / "m.engine", tmp_path, overwrite=True).folder
    spec = ModelSpec.from_json(read_config(folder).parameters["autoreg.spec"].string_value)
    assert spec == load_engine(source).spec


def test_engines_that_a_server_must_not_or_cannot_run_are_refused(models: Models, tmp_path: Path) -> None:
    save_engine(tmp_path / "rtx.engine", models(3, "uint8"), flavour="tensorrt_rtx", version="1.7.1.116")
    with pytest.raises(
        ConfigError, match=r"built with tensorrt_rtx, and Triton runs engines of tensorrt alone; .* 3uint8\.onnx"
    ):
        write_repository(tmp_path / "rtx.engine", tmp_path)
    save_engine(tmp_path / "changed.engine", models(3, "uint8"))
    (tmp_path / "changed.engine").write_bytes(b"another plan")
    with pytest.raises(EngineError, match="an engine is code, so it is not loaded"):
        write_repository(tmp_path / "changed.engine", tmp_path)
    (tmp_path / "bare.engine").write_bytes(b"a plan")
    with pytest.raises(EngineError, match=r"bare\.engine\.json"):
        write_repository(tmp_path / "bare.engine", tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_command_exports_a_checkpoint_first(tmp_path: Path) -> None:
    checkpoint = save_random_checkpoint(tmp_path / "c.pt", stride=2)
    done = autoreg("export", checkpoint, "--for", "triton", "repository", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("model.onnx: fp32, ")
    assert said[1] == "repository/model: fp32, onnxruntime_onnx, tiles of any size, at most 8 at once"
    assert said[2] == "next: tritonserver --model-repository repository"
    folder = tmp_path / "repository" / "model"
    check_tensors(read_config(folder), tmp_path / "model.onnx")
    # Refused before the work begins.
    again = autoreg("export", checkpoint, "-o", "model.onnx", "--for", "triton", "repository", cwd=tmp_path)
    refused(again, "repository/model exists; use --overwrite")
    assert (
        autoreg("export", checkpoint, "--fp16", "--for", "triton", "repository", "--overwrite", cwd=tmp_path).returncode == 0
    )
    assert '\\"precision\\": \\"fp16\\"' in (folder / "config.pbtxt").read_text()


def test_the_command_says_what_an_engine_needs(models: Models, tmp_path: Path) -> None:
    save_engine(tmp_path / "m.engine", models(3, "uint8"))
    done = autoreg("export", "m.engine", "--for", "triton", "repository", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "repository/m: fp32, tensorrt_plan, tiles of 96 x 128 px, at most 4 at once" in done.stdout
    assert f"needs: TensorRT {VERSION} in the server" in done.stdout


def test_the_command_takes_a_model_as_it_is(models: Models, tmp_path: Path) -> None:
    model = models(3, "uint8")
    done = autoreg("export", model, "--for", "triton", tmp_path / "new" / "repository")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "repository" / model.stem / "config.pbtxt").is_file()
    for words, message in (
        ([], "is exported already, expected a checkpoint, or --for triton DIR"),
        (["--for", "triton", tmp_path, "--fp16"], "--fp16 is for checkpoints"),
        (["--for", "triton", tmp_path, "-o", "x.onnx"], "--output is for checkpoints"),
    ):
        answer = autoreg("export", model, *words)
        assert answer.returncode == 2
        assert message in answer.stderr
    assert autoreg("export", model, "--for", "kubernetes", tmp_path).returncode == 2
