"""Sessions with memory of their own, here that of the CPU; on a GPU, the same code runs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from autoreg.runtime.bound_session import BoundSession
from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine
from autoreg.runtime.idle import Idle
from autoreg.runtime.model_file import read_spec
from autoreg.runtime.uint8_input import to_uint8_input
from conftest import Models, noise

Start = Callable[[], BoundSession]


class Counting:
    """A session that counts the bindings that it is asked for."""

    def __init__(self, session: Any) -> None:
        self.session, self.bindings = session, 0

    def io_binding(self) -> Any:
        self.bindings += 1
        return self.session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self.session.run_with_iobinding(binding)


@pytest.fixture(scope="module")
def path(models: Models) -> Path:
    return models(2, "uint8")


@pytest.fixture(scope="module")
def counting(path: Path) -> Counting:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = to_uint8_input(path.read_bytes())
    return Counting(onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]))


@pytest.fixture
def start(path: Path, counting: Counting) -> Start:
    spec = read_spec(path.read_bytes(), "a model")
    return lambda: BoundSession(counting, spec, device="cpu")


@pytest.fixture(scope="module")
def plain(path: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine.from_file(path, threads=1)


def tiles() -> list[NDArray[np.uint8]]:
    """Of three shapes, in turns."""
    shapes = [(1, 64, 96), (1, 64, 96), (2, 64, 96), (1, 32, 40)] * 6
    return [
        np.stack([noise(2, height, width, seed=place + index) for index in range(count)])
        for place, (count, height, width) in enumerate(shapes)
    ]


def test_answers_are_those_of_a_plain_session_whatever_was_asked_before(start: Start, plain: OnnxRuntimeEngine) -> None:
    session = start()
    kept = []
    for images in tiles():
        expected = plain.predict(images)
        (labels,) = session.run(["labels"], {"image": images})
        both = session.run(["labels", "logits"], {"image": images})
        kept += [(labels, expected.labels), (both[0], expected.labels), (both[1], expected.logits)]
    for found, wanted in kept:  # no call wrote over the answers of an earlier one
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("threads", [3, 6])
def test_sessions_that_are_one_do_not_mix_their_memory(start: Start, plain: OnnxRuntimeEngine, threads: int) -> None:
    idle = Idle([start() for _ in range(3)])

    def label(images: NDArray[np.uint8]) -> Any:
        with idle.take() as session:
            return session.run(["labels"], {"image": images})[0]

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(label, tiles()))
    for images, labels in zip(tiles(), found, strict=True):
        np.testing.assert_array_equal(labels, plain.label(images))


def test_memory_is_reserved_once_for_each_shape_in_a_row(start: Start, counting: Counting) -> None:
    session, images = start(), tiles()
    counting.bindings = 0
    for _ in range(3):
        session.run(["labels"], {"image": images[0]})
    assert counting.bindings == 1
    for index in (2, 2, 0, 0):
        session.run(["labels"], {"image": images[index]})
    assert counting.bindings == 3


def test_images_that_lie_otherwise_in_memory(start: Start, plain: OnnxRuntimeEngine) -> None:
    images = tiles()[0]
    (labels,) = start().run(["labels"], {"image": images[..., ::-1]})
    np.testing.assert_array_equal(labels, plain.label(images[..., ::-1].copy()))


def test_a_call_that_fails_spoils_nothing_for_the_next(start: Start, plain: OnnxRuntimeEngine) -> None:
    session, images = start(), tiles()[0]
    for wrong in (images[:, :1], images.astype(np.float32)):
        with pytest.raises(Exception, match=r"image|type"):
            session.run(["labels"], {"image": wrong})
    np.testing.assert_array_equal(session.run(["labels"], {"image": images})[0], plain.label(images))
