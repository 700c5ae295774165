"""Model files that are damaged or made to do harm: refused in one sentence, without a crash, a hang or a heap of memory."""

import faulthandler
import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autoreg import load_engine
from autoreg.errors import AutoregError, EngineError, ModelError
from autoreg.runtime.model_file import read_spec
from autoreg.spec import METADATA_KEY
from conftest import Models
from forks import FORKS
from mutations import mutate

PROCESSES = 2
SECONDS_EACH = 60
MEMORY_LIMIT_KIB = 2**20
MUTATIONS = {"cpu": 300, "openvino": 100}
ABSURD = (0, -1, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))

Change = Callable[[ModelProto], object]


@pytest.fixture(scope="module")
def path(models: Models) -> Path:
    return models(2, "uint8")


def first_weights(model: ModelProto) -> TensorProto:
    weights: TensorProto = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    return weights


def set_dims(model: ModelProto, *dims: int) -> None:
    weights = first_weights(model)
    del weights.dims[:]
    weights.dims.extend(dims)


def keep_outside(tensor: TensorProto, location: str) -> None:
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)


def add_constant(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["bomb"], value=tensor))


def outside_constant(model: ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "bomb")
    keep_outside(tensor, "../secret")
    add_constant(model, tensor)


def ask_for(model: ModelProto, sides: TensorProto, operator: str = "ConstantOfShape") -> None:
    sides.name = "sides"
    model.graph.initializer.append(sides)
    inputs = ["sides"] if operator == "ConstantOfShape" else ["image", "sides"]
    model.graph.node.insert(0, helper.make_node(operator, inputs, ["bomb"]))


def first_node(model: ModelProto, operator: str) -> NodeProto:
    node: NodeProto = next(node for node in model.graph.node if node.op_type == operator)
    return node


def in_a_circle(model: ModelProto) -> None:
    node = first_node(model, "Relu")
    node.input[0] = node.output[0]


def set_attribute(node: NodeProto, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.ints[0] = value


def sparse(model: ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "values")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40]))


def loop(model: ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.insert(0, helper.make_node("Loop", ["", ""], [], body=body))


def function(model: ModelProto) -> None:
    model.functions.add(name="bomb", domain="bombs")


def declare_side(model: ModelProto, side: int) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = side


def rename(values: onnx.ValueInfoProto, name: str) -> None:
    values.name = name


def set_spec(model: ModelProto, text: str) -> None:
    model.metadata_props[0].value = text


def second_spec(model: ModelProto) -> None:
    model.metadata_props.add(key=METADATA_KEY, value=model.metadata_props[0].value)


def numbers(*values: int) -> TensorProto:
    """Not as raw bytes, but as numbers."""
    return helper.make_tensor("sides", TensorProto.INT64, [len(values)], values)


def raw(*values: float) -> TensorProto:
    return numpy_helper.from_array(np.array(values), "sides")


HOSTILE: dict[str, tuple[Change, str]] = {
    "weights elsewhere": (lambda model: keep_outside(first_weights(model), "weights.bin"), "keeps weights in another file"),
    "weights above its folder": (
        lambda model: keep_outside(first_weights(model), "../../../etc/passwd"),
        "keeps weights in another file",
    ),
    "weights in memory": (
        lambda model: keep_outside(first_weights(model), "*/_ORT_MEM_ADDR_/*"),
        "keeps weights in another file",
    ),
    "constant elsewhere": (outside_constant, "keeps weights in another file"),
    "a terabyte of weights": (
        lambda model: set_dims(model, 2**20, 2**18),
        "of 1048576 x 262144, but holds [0-9]+ bytes for them",
    ),
    "more weights than numbers": (lambda model: set_dims(model, 2**62, 2**62, 16), "declares weights .* but holds"),
    "weights of a negative size": (lambda model: set_dims(model, -5, 7), "of -5 x 7, but holds"),
    "weights of many axes": (lambda model: set_dims(model, *[1] * 5000), "declares weights .* of 1 x 1"),
    "sparse weights": (sparse, "has sparse weights"),
    "a loop": (loop, r"has a graph inside of a node \(a loop or branch\)"),
    "a function": (function, "defines functions of its own"),
    "an absurd axis": (lambda model: declare_side(model, 2**40), "declares 'image' with an axis of 1099511627776 values"),
    "a negative axis": (lambda model: declare_side(model, -3), "declares 'image' with an axis of"),
    "an absurd constant": (
        lambda model: ask_for(model, numbers(2**16, 2**16)),
        "asks for 4.29e.09 values at once in a node Con",
    ),
    "the same, raw": (lambda model: ask_for(model, raw(2**16, 2**16)), "asks for 4.29e.09 values at once"),
    "an absurd tile": (lambda model: ask_for(model, raw(1, 1, 2**20, 2**20), "Tile"), "asks for 1.1e.12 values .* Tile"),
    "absurd padding": (lambda model: ask_for(model, numbers(*[0] * 6, 2**30, 2**30), "Pad"), "asks for .* in a node Pad"),
    "an unknown operator": (
        lambda model: setattr(first_node(model, "Relu"), "op_type", "Bomb"),
        r"is not an ONNX model that ONNX Runtime [0-9.]+ can load \(.*Bomb.*\); export it again",
    ),
    "a circle": (in_a_circle, "has a node 'Relu' that takes '.*', which no node before it gives"),
    "a node without inputs": (
        lambda model: first_node(model, "Conv").ClearField("input"),
        "has a node Conv of 0 inputs, expected at least 2",
    ),
    "absurd dilations": (
        lambda model: set_attribute(first_node(model, "Conv"), "dilations", 2**31),
        "has an attribute of 2147483648 in a node 'Conv'",
    ),
    "an operator of two lines": (
        lambda model: setattr(first_node(model, "Relu"), "op_type", "Bo\nmb"),
        r"is not an ONNX model that ONNX Runtime [0-9.]+ can load \(.*Bo mb.*\); export it again",
    ),
    "another input": (lambda model: rename(model.graph.input[0], "pixels"), r"has inputs \['pixels'\] and outputs"),
    "two inputs": (lambda model: model.graph.input.append(model.graph.input[0]), r"has inputs \['image', 'image'\]"),
    "no outputs": (lambda model: model.graph.ClearField("output"), r"and outputs \[\], expected"),
    "outputs of other types": (
        lambda model: setattr(model.graph.output[0].type.tensor_type, "elem_type", TensorProto.INT64),
        r"types \(1, 7, 1\), expected float32, uint8 and float32",
    ),
    "no graph": (lambda model: model.ClearField("graph"), "is not an ONNX model: it has 0 graphs"),
    "a spec that is no JSON": (lambda model: set_spec(model, "{" * 100_000), "spec is not valid"),
    "a spec of another version": (lambda model: set_spec(model, '{"version": 99}'), "it has version 99"),
    "an endless spec": (lambda model: set_spec(model, " " * 2**23), "has an entry of more than 4194304 bytes"),
    "two specs": (second_spec, "has 2 entries autoreg.spec"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_models_are_refused_in_a_sentence(
    name: str, path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, sentence = HOSTILE[name]
    model = onnx.load(path)
    change(model)
    target = tmp_path / "hostile.onnx"
    target.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=sentence) as refused:
        load_engine(target, device="cpu")
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 600
    assert capfd.readouterr() == ("", "")


def test_a_model_that_is_cut_off_is_refused_wherever_it_is(path: Path) -> None:
    content = path.read_bytes()
    for end in (*range(40), *range(40, len(content), len(content) // 200), len(content) - 1):
        with pytest.raises(ModelError, match=r"a\.onnx (is not an ONNX model|has no autoreg\.spec)"):
            read_spec(content[:end], "a.onnx")


def test_a_file_of_many_small_messages_is_refused_soon() -> None:
    spec = message(14, message(1, METADATA_KEY.encode()) + message(2, b"{}"))
    with pytest.raises(ModelError, match="has more than 1048576 fields"):
        read_spec(message(7, message(1, b"") * 2**21) + spec, "a.onnx")
    minus_one = b"\xff" * 9 + b"\x01"
    with pytest.raises(ModelError, match="declares weights '' of -1 x -1"):
        read_spec(message(7, message(5, message(1, minus_one * 10**6))) + spec, "a.onnx")


def test_what_readers_of_protobuf_could_take_in_two_ways_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for addition in (
        b"\x3a\x00",  # a second graph: readers merge it into the first
        b"\xba\x80\x80\x80\x80\x80\x80\x80\x80\x00\x00",  # the tag of the graph in more bytes than 32 bits take
        b"\xbb\x3e",  # a group
        b"\x00\x00",  # a field 0
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a length of 70 bits
        b"\x08" + b"\x80" * 100 + b"\x00",  # a number that does not end
    ):
        with pytest.raises(ModelError, match=r"a\.onnx is not an ONNX model.*; export it again"):
            read_spec(content + addition, "a.onnx")


def message(number: int, content: bytes) -> bytes:
    """A field of a message."""
    size, length = [], len(content)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content


def test_a_model_with_the_spec_of_another_makes_no_map(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"stride": 4', '"stride": 2')
    onnx.save(model, tmp_path / "lying.onnx")
    engine = load_engine(tmp_path / "lying.onnx", device="cpu")
    with pytest.raises(EngineError, match=r"logits of shape \(1, 4, 8, 8\) .* expected \(1, 4, 16, 16\).*; export it again"):
        engine.predict(np.zeros((1, 2, 32, 32), np.float32))


def test_what_is_no_file_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "large.onnx").touch()
    os.truncate(tmp_path / "large.onnx", 2**31 + 1)
    for name, sentence in (
        ("pipe.onnx", "there is no model"),
        ("", "there is no model"),
        ("large.onnx", "larger than the 2147483648 bytes that an ONNX file can have"),
    ):
        with pytest.raises(ModelError, match=sentence):
            load_engine(tmp_path / name)


@pytest.mark.parametrize("device", MUTATIONS)
def test_mutations_of_a_model_do_no_harm(device: str, path: Path, tmp_path: Path) -> None:
    if device == "openvino":
        pytest.importorskip("openvino")
    seeds = range(MUTATIONS[device])
    running = [
        FORKS.Process(target=look_at_mutations, args=(device, path, tmp_path / f"{number}", seeds[number::PROCESSES]))
        for number in range(PROCESSES)
    ]
    for process in running:
        process.start()
    for number, process in enumerate(running):
        process.join()
        said = (tmp_path / f"{number}" / "said.txt").read_text()
        assert process.exitcode == 0, said[-4000:]  # the last line tells which mutation it was
        *seen, peak_kib = said.splitlines()
        assert len(seen) == len(seeds[number::PROCESSES])
        assert int(peak_kib) < MEMORY_LIMIT_KIB


def look_at_mutations(device: str, path: Path, folder: Path, seeds: range) -> None:
    """Load and run mutations of a model, and print the number of each before; at last, the most memory taken, in KiB."""
    folder.mkdir()
    with (folder / "said.txt").open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    warnings.simplefilter("error")
    original, target = path.read_bytes(), folder / "mutation.onnx"
    for seed in seeds:
        rng = np.random.default_rng(seed)
        target.write_bytes(mutate_somewhere(original, rng) if seed % 2 else mutate_graph(original, rng))
        print(seed, flush=True)  # noqa: T201
        faulthandler.dump_traceback_later(SECONDS_EACH, exit=True, file=2)
        try:
            load_engine(target, device=device, threads=1).predict(np.zeros((1, 2, 32, 32), np.float32))
        except AutoregError as error:
            sentence = str(error)
        else:
            sentence = ""
        assert len(sentence.splitlines()) <= 1, sentence
        assert len(sentence) < 1000, sentence
        faulthandler.cancel_dump_traceback_later()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # noqa: T201


def mutate_somewhere(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage as to any file, but half of it outside of the weights, which are most of the bytes."""
    if rng.integers(2):
        return mutate(content, rng)
    rest = np.ones(len(content), np.bool_)
    for tensor in onnx.load_model_from_string(content).graph.initializer:
        start = content.find(tensor.raw_data)
        rest[start : start + len(tensor.raw_data)] = len(tensor.raw_data) < 100
    data: NDArray[np.uint8] = np.frombuffer(content, np.uint8).copy()
    places = rng.choice(np.flatnonzero(rest), rng.integers(1, 4))
    data[places] = rng.integers(0, 256, len(places))
    return data.tobytes()


def mutate_graph(content: bytes, rng: np.random.Generator) -> bytes:
    """A graph that is well encoded and makes no sense."""
    model = onnx.load_model_from_string(content)
    for _ in range(rng.integers(1, 4)):
        MUTATORS[rng.integers(len(MUTATORS))](model.graph, rng)
    mutated: bytes = model.SerializeToString()
    return mutated


def any_node(graph: GraphProto, rng: np.random.Generator) -> NodeProto:
    node: NodeProto = graph.node[rng.integers(len(graph.node))]
    return node


def change_operator(graph: GraphProto, rng: np.random.Generator) -> None:
    any_node(graph, rng).op_type = any_node(graph, rng).op_type


def change_inputs(graph: GraphProto, rng: np.random.Generator) -> None:
    one, other = any_node(graph, rng), any_node(graph, rng)
    if one.input and other.input:
        one.input[rng.integers(len(one.input))] = other.input[rng.integers(len(other.input))]


def change_attribute(graph: GraphProto, rng: np.random.Generator) -> None:
    chosen: list[AttributeProto] = [attribute for node in graph.node for attribute in node.attribute]
    attribute = chosen[rng.integers(len(chosen))]
    absurd = ABSURD[rng.integers(len(ABSURD))]
    if attribute.ints:
        attribute.ints[rng.integers(len(attribute.ints))] = absurd
    elif attribute.type == AttributeProto.INT:
        attribute.i = absurd
    else:
        attribute.s = b"absurd"


def change_constant(graph: GraphProto, rng: np.random.Generator) -> None:
    chosen = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT64 and tensor.raw_data]
    if chosen:
        tensor = chosen[rng.integers(len(chosen))]
        values = numpy_helper.to_array(tensor).copy().ravel()
        values[rng.integers(len(values))] = ABSURD[rng.integers(len(ABSURD))]
        tensor.raw_data = values.tobytes()


def change_dims(graph: GraphProto, rng: np.random.Generator) -> None:
    tensor = graph.initializer[rng.integers(len(graph.initializer))]
    if tensor.dims:
        tensor.dims[rng.integers(len(tensor.dims))] = ABSURD[rng.integers(len(ABSURD))]


def change_type(graph: GraphProto, rng: np.random.Generator) -> None:
    graph.initializer[rng.integers(len(graph.initializer))].data_type = int(rng.integers(0, 30))


def drop_node(graph: GraphProto, rng: np.random.Generator) -> None:
    del graph.node[rng.integers(len(graph.node))]


def turn_axes(graph: GraphProto, rng: np.random.Generator) -> None:
    tensor = graph.initializer[rng.integers(len(graph.initializer))]
    dims = list(tensor.dims)[::-1]
    del tensor.dims[:]
    tensor.dims.extend(dims)


MUTATORS = (
    change_operator,
    change_inputs,
    change_attribute,
    change_attribute,
    change_constant,
    change_dims,
    change_type,
    drop_node,
    turn_axes,
)
