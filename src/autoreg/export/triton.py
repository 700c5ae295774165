"""A model repository of Triton Inference Server: a model or a TensorRT engine, and what a server and its clients must know.

Neither torch nor the ``onnx`` package is needed, so a machine that only deploys can write it. A repository is a folder of
models, each a folder::

    <repository>/<name>/config.pbtxt     inputs, outputs, batching, instances, and the spec as a parameter
    <repository>/<name>/labels.txt       names of the clusters, one a line
    <repository>/<name>/1/model.onnx     the model as it is, or model.plan, the engine
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from autoreg.errors import ConfigError, OutputError
from autoreg.raster.tiling import CORE_PX, round_up
from autoreg.runtime.engine import ENGINE_SUFFIX
from autoreg.runtime.engines.tensorrt.engine_file import load_plan, read_engine_file
from autoreg.runtime.model_file import graph_digest, read_model, read_spec
from autoreg.spec import METADATA_KEY, ModelSpec

_BATCH_SIZE = 8
"""Most tiles that a server puts through an ONNX model at once. An engine has a number of its own."""
_QUEUE_MICROSECONDS = 1000
"""How long a tile may wait for others: little beside what a tile takes, and time for the next requests to arrive."""
_ANY = (-1, -1)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONFIG, _LABELS, _VERSION = "config.pbtxt", "labels.txt", "1"


@dataclass(frozen=True)
class Served:
    """What a server gets.

    Attributes:
        folder: of the model, in the repository.
        spec: of the model.
        platform: what Triton calls the library that runs it.
        content: the bytes of the model or engine.
        file_name: what Triton expects these to be called.
        tile_shape: height and width of the tiles; None if the model takes any multiples of its stride.
        batch_size: most tiles at once.
        uint8_input: whether pixels are uint8; else they are float32.
        profiles: the engine's optimisation profiles that a server may use; those of lower number are preferred.
        parameters: what clients may ask the server for, by name, besides what every model has.
    """

    folder: Path
    spec: ModelSpec
    platform: str
    content: bytes
    file_name: str
    tile_shape: tuple[int, int] | None
    batch_size: int
    uint8_input: bool
    profiles: tuple[str, ...]
    parameters: dict[str, str]


def find_place(source: Path, repository: Path, *, overwrite: bool = False) -> Path:
    """The folder that a model or engine gets in a repository, after a look at whether it may.

    Args:
        source: the file; its name without the suffix is the model's name on the server.
        repository: a folder; need not be there.
        overwrite: whether the model's folder may be there; one with files of somebody else may not.

    Raises:
        ConfigError: the name cannot be part of a URL.
        OutputError: the folder is there.
    """
    if not _NAME.fullmatch(source.stem):
        raise ConfigError(
            f"a server cannot call a model {source.stem[:40]!r}, expected letters, digits, '.', '_' and '-', "
            f"as the name is a part of URLs; rename {source}"
        )
    folder = repository / source.stem
    if not folder.exists():
        return folder
    if not overwrite:
        raise OutputError(f"{folder} exists; use --overwrite to replace it, or give another folder with --for")
    ours = {Path(_CONFIG), Path(_LABELS), Path(_VERSION, "model.onnx"), Path(_VERSION, "model.plan")}
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        if not path.is_dir() and path.relative_to(folder) not in ours:
            raise OutputError(f"{folder} is not replaced, as autoreg did not write {path}; move it, or use another folder")
    return folder


def write_repository(source: Path, repository: Path, *, overwrite: bool = False) -> Served:
    """Write a model or an engine into a model repository of Triton Inference Server.

    The model's folder appears whole or not at all. One that is replaced is away for the moment between two renames.

    Args:
        source: a model, ``.onnx``, or an engine, ``.engine``, from ``autoreg build``.
        repository: folder of the models of a server; made if it is not there.
        overwrite: replace the folder of a model of this name, if nobody else has put files there.

    Raises:
        ConfigError: the name of the file cannot be that of a model, or the engine is one of TensorRT-RTX.
        ModelError: ``source`` is not a model.
        EngineError: ``source`` is not an engine, or has been changed since it was built.
        OutputError: the folder is there or cannot be written.
    """
    folder = find_place(source, repository, overwrite=overwrite)
    served = _read_engine(source, folder) if source.suffix == ENGINE_SUFFIX else _read_model(source, folder)
    names = {cluster: item.name for item in served.spec.classes for cluster in item.clusters}
    labels = "".join(f"{names[cluster]}\n" for cluster in range(served.spec.clusters))
    files = {
        _CONFIG: write_config(served).encode(),
        _LABELS: labels.encode(),
        f"{_VERSION}/{served.file_name}": served.content,
    }
    _write_folder(folder, files)
    return served


def _read_model(source: Path, folder: Path) -> Served:
    content = read_model(source)
    return Served(
        folder=folder,
        spec=read_spec(content, str(source)),
        platform="onnxruntime_onnx",
        content=content,
        file_name="model.onnx",
        tile_shape=None,
        batch_size=_BATCH_SIZE,
        uint8_input=False,
        profiles=(),
        parameters={"autoreg.model_digest": hashlib.sha256(content).hexdigest()},
    )


def _read_engine(source: Path, folder: Path) -> Served:
    described = read_engine_file(source)
    if described.flavour != "tensorrt":
        raise ConfigError(
            f"{source} was built with {described.flavour}, and Triton runs engines of tensorrt alone; "
            f"build one with tensorrt, or serve {described.model}"
        )
    plan, spec, digest = load_plan(source, described), described.spec, described.model_digest
    model = source.with_name(described.model)
    if model.is_file() and graph_digest(content := read_model(model)) == described.graph_digest:
        # What classes are called may have changed since, and the engine holds.
        spec, digest = read_spec(content, str(model)), hashlib.sha256(content).hexdigest()
    return Served(
        folder=folder,
        spec=spec,
        platform="tensorrt_plan",
        content=plan,
        file_name="model.plan",
        tile_shape=described.tile_shape,
        batch_size=described.batch_size,
        uint8_input=described.uint8_input,
        # The first one takes full batches alone.
        profiles=("0", "1") if described.batch_size > 1 else ("0",),
        parameters={
            "autoreg.model_digest": digest,
            "autoreg.tensorrt_version": described.version,
            "autoreg.compute_capabilities": json.dumps(described.compute_capabilities),
        },
    )


def write_config(served: Served) -> str:
    """The text of ``config.pbtxt``: Triton's ModelConfig in the text format of protobuf.

    The axis of the batch is in no ``dims``: Triton puts it before them where ``max_batch_size`` is not 0.
    """
    spec = served.spec
    height, width = served.tile_shape or _ANY
    rows, cols = (side // spec.stride for side in served.tile_shape) if served.tile_shape else _ANY
    pixels = "TYPE_UINT8" if served.uint8_input else "TYPE_FP32"
    profiles = f" profile: {json.dumps(served.profiles)}" if served.profiles else ""
    parts = [
        f"name: {_quote(served.folder.name)}",
        f"platform: {_quote(served.platform)}",
        f"max_batch_size: {served.batch_size}",
        f'input [ {{ name: "image" data_type: {pixels} dims: [ {len(spec.bands)}, {height}, {width} ] }} ]',
        "output [",
        f'  {{ name: "labels" data_type: TYPE_UINT8 dims: [ {height}, {width} ] label_filename: {_quote(_LABELS)} }},',
        f'  {{ name: "logits" data_type: TYPE_FP32 dims: [ {spec.clusters}, {rows}, {cols} ] }}',
        "]",
        f"instance_group [ {{ kind: KIND_GPU count: 1{profiles} }} ]",
    ]
    if served.batch_size > 1:
        batching = f"preferred_batch_size: [ {served.batch_size} ] max_queue_delay_microseconds: {_QUEUE_MICROSECONDS}"
        parts.append(f"dynamic_batching {{ {batching} }}")
    for key, value in (_tiling(served) | {METADATA_KEY: spec.to_json()} | served.parameters).items():
        parts.append(f"parameters {{ key: {_quote(key)} value {{ string_value: {_quote(value)} }} }}")
    return "\n".join(parts) + "\n"


def _tiling(served: Served) -> dict[str, str]:
    """What a client cuts a raster by, as JSON: the tile that ``autoreg segment`` would take, and the halo in it, if any."""
    spec = served.spec
    if spec.receptive_field_px is None:
        halo_px, side = None, spec.crop_px
    else:
        halo_px = round_up(spec.receptive_field_px // 2, spec.stride)
        side = round_up(CORE_PX, spec.stride) + 2 * halo_px
    tile_shape = served.tile_shape or (side, side)
    return {"autoreg.tile_shape": json.dumps(tile_shape), "autoreg.halo_px": json.dumps(halo_px)}


def _quote(text: str) -> str:
    """A string of the text format, whose escapes are those of JSON, and more."""
    return json.dumps(text)


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files beside its place, then move it there; what was there is removed."""
    repository = folder.parent.resolve()
    try:
        repository.mkdir(parents=True, exist_ok=True)
        # Not in the repository: a server takes each folder there for a model.
        with TemporaryDirectory(prefix=f".{folder.name}.", suffix=".part", dir=repository.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            for name, content in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                with (new / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise OutputError(f"{folder} was not written: {error.strerror or error}") from error
