"""Change the type that a model computes in. The type belongs to the file, never to whoever runs it."""

import warnings
from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from autoreg.export.strip import DeployedNetwork
from autoreg.optional import require

FP16_LIMIT = 65504.0
"""The largest number in float16."""

_NORMALISATION = {"Sub", "Div", "Mul", "Add"}


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 model that computes in float16; its inputs and outputs stay float32.

    The normalisation stays in float32, because 16-bit imagery exceeds the range of float16, and so do the upsampling and
    what follows it: in float16, logits of different clusters would become equal, and each pixel of them would be cast.
    """
    float16 = require("onnxconverter_common.float16")
    with warnings.catch_warnings():
        # It warns of every weight below the smallest float16, which becomes that number; parity judges the result.
        warnings.simplefilter("ignore", UserWarning)
        converted: Any = float16.convert_float_to_float16(
            model, keep_io_types=True, node_block_list=[*_normalisation_nodes(model.graph), *_label_nodes(model.graph)]
        )
    assert isinstance(converted, onnx.ModelProto)
    return converted


@torch.no_grad()
def find_largest_activation(deployed: DeployedNetwork, samples: Tensor) -> tuple[str, float]:
    """The layer with the largest absolute value that float16 would have to hold, and that value.

    What goes into a layer counts as well as what comes out, which covers sums and activation functions. The raw pixels do
    not, as they are normalised in float32; nor do the scores within attention, which are no layer's.

    Args:
        deployed: computes in float32; left as it was.
        samples: raw crops, float32 (N, bands, H, W).
    """
    largest: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def look(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen = [float(value.abs().max()) for value in (*inputs, output) if isinstance(value, Tensor)]
            largest[name] = max(largest.get(name, 0.0), *seen)

        return look

    layers = [(name, module) for name, module in deployed.network.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(watch(name)) for name, module in layers]
    try:
        for sample in samples:  # one at a time, because a crop may be large
            deployed(sample[None])
    finally:
        for hook in hooks:
            hook.remove()
    name = max(largest, key=largest.__getitem__)
    return name.removesuffix(".layer"), largest[name]


def _normalisation_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes between the input and the first layer."""
    names: list[str] = []
    value = graph.input[0].name
    while True:
        readers = [node for node in graph.node if value in node.input]
        if len(readers) != 1 or readers[0].op_type not in _NORMALISATION:
            return names
        names.append(readers[0].name)
        value = readers[0].output[0]


def _label_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that turn logits into labels."""
    names, values = [], {"logits"}
    for node in graph.node:  # each after those that it reads from
        if values & set(node.input):
            names.append(node.name)
            values |= set(node.output)
    return names
