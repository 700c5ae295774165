"""The exported graph written in other ways, against the graph as the exporter makes it: time, and labels that differ.

One tile at a time on one thread, as ``autoreg segment`` runs them on each core; the ways take turns.
"""

import importlib.metadata
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from autoreg.demo import make_scene, write_scene
from autoreg.export.onnx import convert_network
from autoreg.export.strip import strip
from autoreg.network.checkpoint import load_checkpoint
from autoreg.optional import require
from autoreg.runtime.engine import Prediction
from autoreg.runtime.probabilities import probabilities
from autoreg.train import TrainConfig, train_network
from record import record

STRIDES = {"tiny": 2, "small": 4}
NETWORKS = (("tiny", 6), ("tiny", 27), ("small", 6), ("small", 27))
"""Size and number of clusters."""
SIDE = 576
"""Of a tile: a core of 512 px and its halos."""
TILES = 6
ROUNDS = 9

Run = Callable[[NDArray[np.float32]], NDArray[np.uint8]]


def keep(_model: onnx.ModelProto, _stride: int) -> None:
    """As it is: ten nodes compute the size of the upsampled logits from their shape."""


def upsample_by_constant(model: onnx.ModelProto, stride: int) -> None:
    """The factor is in the file."""
    factor = _constant(model, "factor", np.array([1, 1, stride, stride], np.float32))
    _new_tail(model, [_resize("logits", factor, "full"), *_label("full", axis=1)])


def fold_deviation(model: onnx.ModelProto, _stride: int) -> None:
    """The division by the deviation goes into the weights of the first convolution, which pads with 0 before and after."""
    nodes = model.graph.node
    divide, conv = (next(node for node in nodes if node.op_type == kind) for kind in ("Div", "Conv"))
    constants = {item.name: item for item in model.graph.initializer}
    std = numpy_helper.to_array(constants[divide.input[1]]).astype(np.float64).reshape(1, -1, 1, 1)
    weights = constants[conv.input[1]]
    folded = (numpy_helper.to_array(weights) / std).astype(np.float32)
    weights.CopyFrom(numpy_helper.from_array(folded, weights.name))
    conv.input[0] = divide.input[0]
    nodes.remove(divide)


def upsample_twice(model: onnx.ModelProto, stride: int) -> None:
    """Down the columns, then along the rows."""
    down = _constant(model, "down", np.array([1, 1, stride, 1], np.float32))
    across = _constant(model, "across", np.array([1, 1, 1, stride], np.float32))
    _new_tail(model, [_resize("logits", down, "tall"), _resize("tall", across, "full"), *_label("full", axis=1)])


def clusters_last(model: onnx.ModelProto, stride: int) -> None:
    """The logits of a pixel lie side by side: (N, H, W, K)."""
    factor = _constant(model, "factor", np.array([1, stride, stride, 1], np.float32))
    turned = helper.make_node("Transpose", ["logits"], ["last"], perm=[0, 2, 3, 1])
    _new_tail(model, [turned, _resize("last", factor, "full"), *_label("full", axis=3)])


def convolve_phases(model: onnx.ModelProto, stride: int) -> None:
    """A convolution and labels in uint8 for each place in a cell, then cells to pixels. TensorRT has no uint8 inside."""
    classes = model.graph.output[1].type.tensor_type.shape.dim[1].dim_value
    weights = []
    for place in range(stride):
        offset = (place + 0.5) / stride - 0.5
        near = np.zeros(3)
        near[1] = 1 - abs(offset)
        near[0 if offset < 0 else 2] = abs(offset)
        weights.append(near)
    pads = _constant(model, "pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    nodes, names = [helper.make_node("Pad", ["logits", pads], ["padded"], mode="edge")], []
    for row in range(stride):
        for col in range(stride):
            name = f"phase{row}{col}"
            kernel = np.broadcast_to(np.outer(weights[row], weights[col]), (classes, 1, 3, 3)).astype(np.float32)
            kernel_name = _constant(model, f"{name}.weight", kernel.copy())
            nodes.append(helper.make_node("Conv", ["padded", kernel_name], [name], group=classes, kernel_shape=[3, 3]))
            nodes.append(helper.make_node("ArgMax", [name], [f"{name}.index"], axis=1, keepdims=1))
            nodes.append(helper.make_node("Cast", [f"{name}.index"], [f"{name}.label"], to=onnx.TensorProto.UINT8))
            names.append(f"{name}.label")
    nodes.append(helper.make_node("Concat", names, ["cells"], axis=1))
    nodes.append(helper.make_node("DepthToSpace", ["cells"], ["pixels"], blocksize=stride))
    nodes.append(helper.make_node("Squeeze", ["pixels", _constant(model, "one", np.array([1], np.int64))], ["labels"]))
    _new_tail(model, nodes)


WAYS: dict[str, Callable[[onnx.ModelProto, int], None]] = {
    "plain": keep,
    "upsample_by_constant": upsample_by_constant,
    "fold_deviation": fold_deviation,
    "upsample_twice": upsample_twice,
    "clusters_last": clusters_last,
    "convolve_phases": convolve_phases,
}


def _constant(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _resize(source: str, factor: str, target: str) -> onnx.NodeProto:
    half_pixel = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return helper.make_node("Resize", [source, "", factor], [target], **half_pixel)


def _label(source: str, axis: int) -> list[onnx.NodeProto]:
    index = helper.make_node("ArgMax", [source], ["index"], axis=axis, keepdims=0)
    return [index, helper.make_node("Cast", ["index"], ["labels"], to=onnx.TensorProto.UINT8)]


def _new_tail(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Put ``nodes`` in the place of all that follows the logits."""
    old = list(model.graph.node)
    last = next(index for index, node in enumerate(old) if "logits" in node.output)
    del model.graph.node[last + 1 :]
    model.graph.node.extend(nodes)
    used = {name for node in model.graph.node for name in node.input}
    constants = [item for item in model.graph.initializer if item.name in used]
    copies = [onnx.TensorProto.FromString(item.SerializeToString()) for item in constants]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)


def main() -> None:
    """Train each network briefly; its speed does not depend on it."""
    image, _ = make_scene(7, 2 * SIDE, TILES // 2 * SIDE)
    tiles = [
        np.ascontiguousarray(image[None, :, row : row + SIDE, col : col + SIDE], np.float32)
        for row in range(0, image.shape[1], SIDE)
        for col in range(0, image.shape[2], SIDE)
    ]
    result: dict[str, Any] = {
        "load_before": os.getloadavg()[0],
        "tile_px": SIDE,
        "rounds": ROUNDS,
        "tiles_compared": len(tiles),
        "openvino": importlib.metadata.version("openvino"),
    }
    with tempfile.TemporaryDirectory() as folder:
        result["networks"] = {
            f"{size}, {classes} clusters": compare(make_graph(size, classes, Path(folder)), tiles, Path(folder))
            for size, classes in NETWORKS
        }
    record("graph", result)


def make_graph(size: str, classes: int, folder: Path) -> tuple[onnx.ModelProto, int]:
    """The graph of a network as the exporter makes it, and the network's stride."""
    scene, path = folder / "train.tif", folder / f"{size}{classes}.pt"
    write_scene(0, 512, 512, scene)
    config = TrainConfig(
        classes=classes, size=size, stride=STRIDES[size], steps=30, crop_px=64, merge=False, overclustering=0, device="cpu"
    )
    train_network([scene], path, config)
    checkpoint = load_checkpoint(path)
    return convert_network(strip(checkpoint.build_network()), checkpoint), checkpoint.network.stride


def compare(graph: tuple[onnx.ModelProto, int], tiles: list[NDArray[np.float32]], folder: Path) -> dict[str, Any]:
    """Each way of writing a graph, in ONNX Runtime and in OpenVINO."""
    plain, stride = graph
    models = {}
    for name, rewrite in WAYS.items():
        models[name] = onnx.ModelProto.FromString(plain.SerializeToString())
        rewrite(models[name], stride)
        onnx.checker.check_model(models[name], full_check=True)
    found: dict[str, Any] = {"nodes": {name: len(model.graph.node) for name, model in models.items()}}
    found["share_of_operators_percent"] = profile(models["plain"], tiles[0], folder)
    session = _session(models["plain"])
    reference = [Prediction(*session.run(["labels", "logits"], {"image": tile})) for tile in tiles]
    for library, load in (("onnxruntime", in_onnxruntime), ("openvino", in_openvino)):
        ways = {name: load(model) for name, model in models.items()}
        if library == "onnxruntime":
            ways["plain, logits fetched too"] = in_onnxruntime(models["plain"], ["labels", "logits"])
        taken = time_in_turn(ways, tiles[0])
        found[library] = {
            name: {
                "ms": round(1e3 * seconds, 2),
                # Of times of one round, as the speed of a machine that others use changes from round to round.
                "of_plain": round(statistics.median(a / b for a, b in zip(rounds, taken["plain"], strict=True)), 3),
                **count_differing([way(tile) for tile in tiles], reference, stride),
            }
            for name, way in ways.items()
            for rounds in [taken[name]]
            for seconds in [statistics.median(rounds)]
        }
    return found


def count_differing(found: list[NDArray[np.uint8]], reference: list[Prediction], stride: int) -> dict[str, int | float]:
    """Labels that are other ones, and how far apart the two greatest probabilities are there at most: 0 at a tie."""
    differing, margin = 0, 0.0
    for labels, expected in zip(found, reference, strict=True):
        wrong = labels != expected.labels
        if wrong.any():
            second, first = np.sort(probabilities(expected.logits, stride).transpose(1, 0, 2, 3)[:, wrong], axis=0)[-2:]
            differing, margin = differing + int(wrong.sum()), max(margin, float((first - second).max()))
    return {"differing": differing, "margin_where_differing": margin}


def time_in_turn(ways: dict[str, Run], tile: NDArray[np.float32]) -> dict[str, list[float]]:
    """Seconds of each way, round by round; the first does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way(tile)
            taken[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in taken.items()}


def _session(model: onnx.ModelProto, **settings: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def in_onnxruntime(model: onnx.ModelProto, outputs: list[str] | None = None) -> Run:
    """Labels by ONNX Runtime."""
    session, names = _session(model), outputs or ["labels"]
    return lambda tile: np.asarray(session.run(names, {"image": tile})[0])


def in_openvino(model: onnx.ModelProto) -> Run:
    """Labels by OpenVINO, in float32."""
    core = require("openvino").Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled: Any = core.compile_model(core.read_model(model.SerializeToString(), b""), "CPU", settings)
    return lambda tile: np.asarray(compiled({"image": tile})["labels"])


def profile(model: onnx.ModelProto, tile: NDArray[np.float32], folder: Path) -> dict[str, float]:
    """Share of the time of each kind of operator, percent, by ONNX Runtime's profiler."""
    session = _session(model, enable_profiling=True, profile_file_prefix=str(folder / "profile"))
    for _ in range(ROUNDS):
        session.run(["labels"], {"image": tile})
    spent: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {name: round(100 * time_ / spent.total(), 1) for name, time_ in spent.most_common(9)}


if __name__ == "__main__":
    main()
