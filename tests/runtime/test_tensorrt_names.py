"""Which names of TensorRT our source uses: those alone that all versions have, by the record of what each one has.

``tensorrt_names.json`` was read from the libraries themselves, TensorRT 10.13, 10.16, 11.0 and 11.4, and TensorRT-RTX 1.7:
the members of the classes that matter here.
"""

import ast
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoreg.runtime.engines.tensorrt

FOLDER = Path(autoreg.runtime.engines.tensorrt.__file__).parent
NAMES: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
RTX = "rtx-1.7.1.116"
OBJECTS = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
}
"""Class of what a variable of a name holds, in the files that call the library."""
OTHERS = ("build.py", "engine_file.py", "load.py")
"""Files that do not call it, in which an engine is the path of one."""
GUARDED = {
    ("ComputeCapability", "__members__"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
}
"""Of TensorRT-RTX alone, asked only where that is the library."""
UNRECORDED = {"DynamicShapesKernelSpecializationStrategy", "IProgressMonitor", "__name__", "__version__"}
"""What every module has; and what came with ``IBuilderConfig.progress_monitor`` and with what is guarded."""


def owner(node: ast.expr) -> str | None:
    """``trt`` or the class of the object that a name is asked of."""
    if isinstance(node, ast.Call):  # of a class: what it makes
        kind = owner(node.func.value) if isinstance(node.func, ast.Attribute) else None
        return node.func.attr if isinstance(node.func, ast.Attribute) and kind == "trt" else None
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id == "trt":
            return node.attr
        if node.value.id == "self":
            return OBJECTS.get(node.attr.removeprefix("_"))
        if node.value.id == "library" and node.attr == "trt":
            return "trt"
    if isinstance(node, ast.Name):
        return "trt" if node.id == "trt" else OBJECTS.get(node.id)
    if isinstance(node, ast.Attribute) and node.attr != "trt" and owner(node.value) == "trt":
        return node.attr
    return None


def used() -> Iterator[tuple[str, str, str]]:
    """File, class and member of each name; the class is ``trt`` for what is in the module itself."""
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            kind = owner(node.value)
            if kind is not None and (path.name not in OTHERS or kind not in OBJECTS.values()):
                yield path.name, kind, node.attr


def is_common(kind: str, member: str) -> bool:
    return all(member in (names if kind == "trt" else names.get(kind, ())) for names in NAMES.values())


def test_every_name_is_one_of_all_versions_or_guarded() -> None:
    found = set(used())
    assert {kind for _, kind, _ in found} >= {*OBJECTS.values(), "BuilderFlag", "ILogger", "trt"} - {"INetworkDefinition"}
    for name, kind, member in found:
        if (kind, member) in GUARDED or (kind == "trt" and member in UNRECORDED) or kind in UNRECORDED:
            continue
        if member == "ComputeCapability" or member == "__init__":
            continue
        assert is_common(kind, member), f"{name}: {kind}.{member} is not in all versions"


def test_what_is_guarded_is_of_tensorrt_rtx_alone_and_used() -> None:
    found = {(kind, member) for _, kind, member in used()}
    for kind, member in GUARDED:
        assert (kind, member) in found
        assert kind in NAMES[RTX]
        assert not any(member in names.get(kind, ()) for version, names in NAMES.items() if version != RTX)


def test_a_name_that_one_version_lacks_would_be_found() -> None:
    assert not is_common("BuilderFlag", "FP16")
    assert not is_common("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")
    assert not is_common("ICudaEngine", "device_memory_size")
    assert not is_common("trt", "ComputeCapability")
    assert is_common("trt", "Builder")
    tree = ast.parse("trt.BuilderFlag.FP16; self._engine.a; library.trt.Builder; config.b; other.c", mode="exec")
    owners = [
        owner(node.value.value) for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Attribute)
    ]
    assert owners == ["BuilderFlag", "ICudaEngine", "trt", "IBuilderConfig", None]


@pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt_rtx is not installed")
def test_every_name_is_in_the_library_that_is_installed() -> None:
    trt = importlib.import_module("tensorrt_rtx")
    for _, kind, member in used():
        assert hasattr(trt if kind == "trt" else getattr(trt, kind), member), (kind, member)
