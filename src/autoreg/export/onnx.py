"""Write a model: strip, convert to ONNX, prove parity, write."""

import copy
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import torch
from torch import Tensor, nn

from autoreg import __version__
from autoreg.errors import ConfigError, ModelError
from autoreg.export.precision import FP16_LIMIT, find_largest_activation, to_fp16
from autoreg.export.strip import DeployedNetwork, strip
from autoreg.network.backbone import load_backbone
from autoreg.network.checkpoint import Checkpoint, check_fitted, digest_file, load_checkpoint
from autoreg.network.network import Network, label_pixels
from autoreg.output import atomic_output, check_output
from autoreg.raster.palette import unnamed_classes
from autoreg.runtime.engine import Prediction
from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine
from autoreg.runtime.parity import PARITY_KEY, Parity, compare, require_parity
from autoreg.spec import METADATA_KEY, ModelSpec

OPSET = 20
"""The last one before ``Attention``, which not every engine takes in float32; ONNX's own evaluator needs 19 or more."""

_EXAMPLE_CELLS = 8
_PARITY_CROPS = 4
_PRODUCER = "autoreg"
_LARGE_SHARE = 0.25
_log = logging.getLogger("autoreg")


@dataclass(frozen=True)
class Exported:
    """What ``export_onnx`` wrote.

    Attributes:
        spec: of the model.
        parity: against PyTorch, on crops of the training rasters.
        bytes: size of the file.
    """

    spec: ModelSpec
    parity: Parity
    bytes: int


def export_onnx(
    checkpoint_path: Path,
    output: Path,
    *,
    precision: str = "fp32",
    extractor: nn.Module | None = None,
    backbone: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a checkpoint to an ONNX model with dynamic batch, height and width.

    The model takes ``image``, float32 (N, bands, H, W), raw pixels, H and W multiples of the stride, and gives ``labels``,
    uint8 (N, H, W), and ``logits``, float32 (N, K, H / stride, W / stride). It is checked by ``onnx.checker``, and compared
    with PyTorch on crops of the training rasters by running it in ONNX Runtime, before the file appears.

    Args:
        checkpoint_path: from ``autoreg train``.
        output: the model to write, ``.onnx``.
        precision: ``fp32``, ``fp16`` or ``bf16``; what it computes in. Inputs and outputs are float32 in all. A model of
            ``bf16`` is stored in float32, as engines compute in bfloat16 of their own accord, or not at all.
        extractor: the user's own backbone, where the checkpoint was trained with one.
        backbone: or its name, ``package.module:function``; the checkpoint's own word for it is not trusted.
        overwrite: replace an existing file.

    Raises:
        CheckpointError: no such file, or not a checkpoint, or one from the midst of a training that finds its clusters last.
        ConfigError: ``extractor`` is missing, or given and not wanted.
        ParityError: the model does not say what PyTorch says; nothing is written.
        OutputError: ``output`` exists or cannot be written.
    """
    if precision not in ("fp32", "fp16", "bf16"):
        raise ConfigError(f"precision is {precision!r}, expected fp32, fp16 or bf16; for int8 use autoreg calibrate")
    check_output(output, overwrite=overwrite)
    checkpoint = load_checkpoint(checkpoint_path)
    check_fitted(checkpoint, checkpoint_path)
    network = checkpoint.build_network(extractor or load_backbone(backbone, checkpoint.network.bands))
    deployed = strip(network)
    model = convert_network(deployed, checkpoint)
    if precision == "fp16":
        _warn_of_large_activations(deployed, checkpoint.samples)
        model = to_fp16(model)
    spec = _spec(checkpoint, network, precision, digest_file(checkpoint_path))
    onnx.checker.check_model(_with_spec(model, spec), full_check=True)
    parity = _prove(network, _with_spec(model, spec).SerializeToString(), checkpoint.samples[:_PARITY_CROPS], spec)
    spec = dataclasses.replace(spec, agreement=parity.agreement)
    content = _with_spec(model, spec, parity).SerializeToString()
    with atomic_output(output, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)
    return Exported(spec, parity, len(content))


def convert_network(deployed: DeployedNetwork, checkpoint: Checkpoint) -> onnx.ModelProto:
    """The float32 ONNX model of a stripped network, as the exporter makes it, but for names."""
    stride = checkpoint.network.stride
    side = _EXAMPLE_CELLS * stride
    # Two images of unequal sides: from a batch of one, or a square, the exporter would conclude that it is always so.
    example = torch.zeros(2, checkpoint.network.bands, side, 2 * side)
    batch, rows, cols = (torch.export.Dim(name, min=1) for name in ("batch", "rows", "cols"))
    height, width = (stride * cells if stride > 1 else cells for cells in (rows, cols))
    with _quiet():
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["labels", "logits"],
            dynamic_shapes=({0: batch, 2: height, 3: width},),
            verbose=False,
        )
    model = cast(torch.onnx.ONNXProgram, program).model_proto
    _name_axes(model)
    # The exporter notes for each node where in the sources it came from, with the paths of this machine.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.producer_name, model.producer_version = _PRODUCER, __version__
    model.graph.name = _PRODUCER
    return model


def _warn_of_large_activations(deployed: DeployedNetwork, samples: Tensor) -> None:
    """Parity is proven on the sample crops alone: other imagery may exceed what they come near to."""
    layer, largest = find_largest_activation(deployed, samples)
    if largest > _LARGE_SHARE * FP16_LIMIT:
        _log.warning(
            "the activations of layer %s reach %.4g on the sample crops, and float16 ends at %.0f: on other imagery they "
            "may overflow, so compare on some with autoreg verify --tiles, or export without --fp16",
            layer,
            largest,
            FP16_LIMIT,
        )


def _name_axes(model: onnx.ModelProto) -> None:
    """Name the dynamic axes, and make sure that they are dynamic."""
    (image,), (labels, logits) = model.graph.input, model.graph.output
    for value, axes in (
        (image, {0: "batch", 2: "height", 3: "width"}),
        (labels, {0: "batch", 1: "height", 2: "width"}),
        (logits, {0: "batch", 2: "rows", 3: "cols"}),
    ):
        for axis, name in axes.items():
            dimension = value.type.tensor_type.shape.dim[axis]
            if dimension.WhichOneof("value") == "dim_value":
                raise ModelError(
                    f"axis {axis} of {value.name} was exported as {dimension.dim_value}, expected a dynamic one"
                )
            dimension.dim_param = name
    del model.graph.value_info[:]  # they still speak of the old names


def _spec(checkpoint: Checkpoint, network: Network, precision: str, digest: str) -> ModelSpec:
    return ModelSpec(
        bands=checkpoint.bands,
        dtype=checkpoint.dtype,
        classes=unnamed_classes(network.config.classes),
        stride=network.config.stride,
        receptive_field_px=network.receptive_field_px,
        crop_px=checkpoint.samples.shape[-1],
        mean=tuple(network.mean.tolist()),
        std=tuple(network.std.tolist()),
        precision=precision,
        checkpoint_digest=digest,
        agreement=0.0,  # until parity has been measured
        autoreg_version=__version__,
        normalisation=checkpoint.normalisation,
    )


def _with_spec(model: onnx.ModelProto, spec: ModelSpec, parity: Parity | None = None) -> onnx.ModelProto:
    """The model, carrying ``spec``, and what was proven of it if that is known, and no other metadata."""
    onnx.helper.set_model_props(model, {METADATA_KEY: spec.to_json()} | ({PARITY_KEY: parity.to_json()} if parity else {}))
    return model


def _prove(network: Network, content: bytes, samples: Tensor, spec: ModelSpec) -> Parity:
    """Compare the model with the network that was trained, masks and all, on real crops.

    The network computes in float64, so that the difference is the model's error and not PyTorch's.
    """
    engine = OnnxRuntimeEngine(content, "the exported model")
    exact = _predict(copy.deepcopy(network).double(), samples.double())
    rounding = compare(exact, _predict(network, samples), spec.stride).max_probability_difference
    parity = compare(exact, engine.predict(samples.numpy()), spec.stride)
    if spec.precision == "bf16":  # ONNX Runtime computes in float32; what others will say is known from PyTorch
        require_parity(parity, "fp32", rounding=rounding)
        parity = compare(exact, _predict_in_bf16(network, samples), spec.stride)
    require_parity(parity, spec.precision, rounding=rounding)
    return parity


@torch.no_grad()
def _predict(network: Network, images: Tensor) -> Prediction:
    labels, logits = DeployedNetwork(network)(images)
    return Prediction(labels.numpy(), logits.numpy())


@torch.no_grad()
def _predict_in_bf16(network: Network, images: Tensor) -> Prediction:
    """As engines do it: the layers in bfloat16, the normalisation and what follows the logits in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    logits = logits.float()
    return Prediction(label_pixels(logits, network.config.stride).numpy(), logits.numpy())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress from stdout, and its advice to its own developers from stderr."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
