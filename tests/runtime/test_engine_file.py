"""The file beside an engine: what is written is read again, and an engine that it does not describe is never loaded."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoreg.errors import EngineError, OutputError
from autoreg.runtime.engines.tensorrt.engine_file import (
    EngineFile,
    load_plan,
    read_engine_file,
    sidecar_path,
    write_engine,
)
from autoreg.runtime.model_file import read_spec
from autoreg.runtime.parity import Parity
from conftest import Models
from fake_tensorrt import make_engine


@pytest.fixture(scope="module")
def built(models: Models) -> tuple[bytes, EngineFile]:
    model = models(2, "uint8").read_bytes()
    return make_engine(model, read_spec(model, "model"), (64, 64), 2, uint8_input=True)


@pytest.fixture
def engine(built: tuple[bytes, EngineFile], tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    write_engine(path, *built, overwrite=False)
    return path


def change(engine: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    path = sidecar_path(engine)
    values = json.loads(path.read_text())
    alter(values)
    path.write_text(json.dumps(values))


def test_what_is_written_is_read(built: tuple[bytes, EngineFile], tmp_path: Path) -> None:
    plan, described = built
    path = tmp_path / "a.b.engine"
    parity = Parity(0.999, None, (1.0, None, 0.5, 0.9), 1e-3, 1e-5, 4096, 0)
    measured = dataclasses.replace(
        described, parity=parity, lane_bytes=2**33, compute_capabilities=("8.6", "12.0"), tf32=True
    )
    for one in (described, measured):
        write_engine(path, plan, one, overwrite=True)
        assert read_engine_file(path) == one
        assert load_plan(path, one) == plan
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.b.engine", "a.b.engine.json"]


def test_neither_file_is_replaced_unless_it_may_be(built: tuple[bytes, EngineFile], engine: Path) -> None:
    for missing in (engine, sidecar_path(engine)):
        content = missing.read_bytes()
        missing.unlink()
        with pytest.raises(OutputError, match="exists; use --overwrite"):
            write_engine(engine, *built, overwrite=False)
        assert not missing.exists()
        missing.write_bytes(content)


@pytest.mark.parametrize("place", [0, -1])
def test_an_engine_that_was_changed_is_not_loaded(engine: Path, place: int) -> None:
    content = bytearray(engine.read_bytes())
    content[place] ^= 1
    engine.write_bytes(content)
    with pytest.raises(EngineError, match=r"model\.engine is not the engine that model\.engine\.json describes .* is code"):
        load_plan(engine, read_engine_file(engine))


def test_when_a_process_is_killed_between_the_two_files_the_new_engine_is_not_taken_for_the_old(
    built: tuple[bytes, EngineFile], engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, order = Path.replace, []

    def note(path: Path, target: Path) -> Path:
        order.append(Path(target).name)
        if len(order) == 2:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", note)
    other = b"another " + built[0]
    with pytest.raises(KeyboardInterrupt):
        write_engine(engine, other, dataclasses.replace(built[1], batch_size=3), overwrite=True)
    assert order == ["model.engine", "model.engine.json"]
    assert engine.read_bytes() == other
    with pytest.raises(EngineError, match="is not the engine that"):
        load_plan(engine, read_engine_file(engine))


def test_an_engine_without_a_description_is_not_loaded(engine: Path) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(
        EngineError, match=r"model\.engine\.json, which says what model\.engine is, cannot be read .* autoreg build"
    ):
        read_engine_file(engine)
    with pytest.raises(EngineError, match=r"there is no engine .*none\.engine; make one with autoreg build"):
        read_engine_file(engine.with_name("none.engine"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"flavour": "tensorrt_lean"}, "its library is 'tensorrt_lean', expected one of tensorrt, tensorrt_rtx"),
        ({"compute_capabilities": []}, "expected some such as 8.6"),
        ({"compute_capabilities": ["sm_86"]}, "expected some such as 8.6"),
        ({"gpu": ""}, "its GPU is '', expected a name"),
        ({"gpu": "a\nb"}, "expected a name"),
        ({"tile_shape": [64]}, "its tiles are (64,), expected two multiples of 4"),
        ({"tile_shape": [64, 66]}, "expected two multiples of 4"),
        ({"tile_shape": [64, -64]}, "expected two multiples of 4"),
        ({"tile_shape": [64, 10**30]}, "expected two multiples of 4"),
        ({"batch_size": 0}, "its batch is 0"),
        ({"batch_size": True}, "True is not of type int"),
        ({"uint8_input": 1}, "1 is not of type bool"),
        ({"model": "../model.onnx"}, "its model is '../model.onnx', expected the name of a file beside it"),
        ({"model": "/etc/passwd"}, "expected the name of a file"),
        ({"model": ".."}, "expected the name of a file"),
        ({"model": ""}, "expected the name of a file"),
        ({"model": "a\n.onnx"}, "expected the name of a file"),
        ({"engine_digest": "0" * 63}, "one of its digests is no SHA-256"),
        ({"parity": {"agreement": 1.0}}, "'clear_agreement'"),
        ({"spec": {"version": 2}}, "'bands'"),
        ({"lane_bytes": 0}, "a lane of it takes 0 bytes, expected 1 or more"),
        ({"lane_bytes": 1.5}, "1.5 is not of type int"),
        ({"layout": 1}, "it has layout 1, and this autoreg reads 2"),
    ],
)
def test_a_description_that_was_not_written_by_autoreg_is_refused(engine: Path, values: dict[str, Any], reason: str) -> None:
    change(engine, lambda found: found.update(values))
    with pytest.raises(EngineError) as caught:
        read_engine_file(engine)
    assert f"{sidecar_path(engine)} is not what autoreg build writes (" in str(caught.value)
    assert reason in str(caught.value)


def test_an_engine_of_bytes_is_one_of_a_model_that_takes_them(engine: Path) -> None:
    change(engine, lambda found: found["spec"].update(dtype="uint16"))
    with pytest.raises(EngineError, match="it takes bytes, and its model does not"):
        read_engine_file(engine)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{", b"\xff", b"[" * 10**5, b'{"layout": 2}', b'{"layout": 1e400}', b" " * (8 * 2**20 + 1)],
)
def test_what_is_no_description_is_refused(engine: Path, content: bytes) -> None:
    sidecar_path(engine).write_bytes(content)
    with pytest.raises(EngineError, match="autoreg build"):
        read_engine_file(engine)
