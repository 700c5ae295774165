"""How many operations a model needs, from the shapes that ONNX Runtime's profiler notes while it runs the graph as it is."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from autoreg.errors import EngineError
from autoreg.runtime.devices import import_library

_FATAL_ONLY = 4


def count_flops(model: Path, shape: tuple[int, int, int, int]) -> int:
    """Operations of a model's convolutions and matrix products for one input; a multiply-add counts as two.

    The graph is run once, without the optimisations that replace its nodes by others, and its real shapes are counted: those
    of attention depend on the input. What surrounds the products (biases, activations, resizing, softmax) is not counted.

    Args:
        model: the ``.onnx`` file, which an engine has loaded before.
        shape: of the input: (batch, bands, height, width).

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineError: the graph cannot be run so.
    """
    runtime = import_library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # it prints what it raises, too
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.add_session_config_entry("session.disable_prepacking", "1")  # of weights that are packed, no shape is noted
    with TemporaryDirectory(prefix="autoreg-flops-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            session.run(["labels"], {"image": np.zeros(shape, np.float32)})
            events = json.loads(Path(session.end_profiling()).read_bytes())
        except Exception as error:  # the library's exceptions share no base but this one
            reason = " ".join(str(error).split())
            raise EngineError(f"the operations of {model} for input of shape {shape} cannot be counted: {reason}") from error
    return sum(map(_flops_of_event, events))


def _flops_of_event(event: dict[str, Any]) -> int:
    arguments = event.get("args", {})
    if event.get("cat") != "Node" or "output_type_shape" not in arguments:
        return 0
    inputs, outputs = (
        [next(iter(tensor.values())) for tensor in arguments[side]] for side in ("input_type_shape", "output_type_shape")
    )
    return _flops(arguments["op_name"], inputs, outputs[0]) if outputs else 0


def _flops(operator: str, inputs: Sequence[list[int]], output: list[int]) -> int:
    """Operations of one node, by the shapes of what goes in and comes out."""
    if operator == "Conv":  # weights: (outputs, inputs of a group, *kernel)
        return 2 * math.prod(output) * math.prod(inputs[1][1:])
    if operator == "ConvTranspose":  # weights: (inputs, outputs of a group, *kernel)
        return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if operator == "MatMul":
        return 2 * math.prod(output) * inputs[0][-1]
    if operator == "Gemm":  # the first factor may be transposed: what it has besides the rows of the output is summed over
        return 2 * math.prod(output) * (math.prod(inputs[0]) // max(output[0], 1))
    return 0
