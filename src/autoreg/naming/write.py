"""Write a legend into a model: its spec changes, and nothing else."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from autoreg.errors import ConfigError
from autoreg.optional import require
from autoreg.output import atomic_output
from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine
from autoreg.spec import METADATA_KEY, MapClass, ModelSpec, cluster_problem, legend_problem


def write_classes(model: Path, output: Path, classes: Sequence[MapClass], *, overwrite: bool = False) -> ModelSpec:
    """Write a model with other classes. Its graph and weights are copied, so what was proven of them holds.

    Args:
        model: from ``autoreg export``; names that it already has are replaced.
        output: the model to write, ``.onnx``; may be ``model`` itself.
        classes: legend of its maps, each cluster of the model in one class.
        overwrite: replace an existing file.

    Returns:
        The spec of the written model.

    Raises:
        ConfigError: the classes are no legend, or a cluster is in none of them, or in two, or the model does not have it.
        ModelError: ``model`` is not one.
        OutputError: ``output`` exists or cannot be written.
    """
    onnx = require("onnx")
    spec = OnnxRuntimeEngine.from_file(model).spec
    if problem := legend_problem(classes) or cluster_problem(classes, spec.clusters):
        raise ConfigError(f"the classes do not fit {model}: {problem}")
    spec = dataclasses.replace(spec, classes=tuple(sorted(classes, key=lambda item: item.label)))
    content = onnx.load_model_from_string(model.read_bytes())
    for entry in content.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = spec.to_json()
    with atomic_output(output, overwrite=overwrite) as temporary:
        temporary.write_bytes(content.SerializeToString())
    return spec
