"""The device ``cuda`` where there is none: the CPU computes, and all else is what a GPU is asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from autoreg import Engine, TilingOptions, load_engine, segment_array
from autoreg.errors import EngineError
from autoreg.runtime import devices, several
from autoreg.runtime.engines import onnxruntime as engine_module
from conftest import RANGES, Models, noise

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Pretending(onnxruntime.InferenceSession):  # type: ignore[misc]  # the library has no types
    """A session on the CPU that was asked for on a GPU."""

    asked: list[Any]

    def __init__(self, content: bytes, options: Any, *, providers: list[Any], enable_fallback: int) -> None:
        on_gpu = providers != [CPU]
        if on_gpu:
            self.asked.append(providers[0])
        super().__init__(content, options, providers=[CPU], enable_fallback=enable_fallback)
        self._shown = [CUDA, CPU] if on_gpu else [CPU]

    def get_providers(self) -> list[str]:
        return self._shown


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, tuple[int, ...], type]]:
    """Two GPUs appear; returns what memory is reserved: on which device, its number, the shape, and the type."""
    reserve, seen = onnxruntime.OrtValue.ortvalue_from_shape_and_type, []

    def on_cpu(shape: tuple[int, ...], kind: type, device: str, number: int) -> Any:
        seen.append((device, number, shape, kind))
        return reserve(shape, kind, "cpu", 0)

    for module in (devices, several, engine_module):
        monkeypatch.setattr(module, "find_gpus", lambda: ("NVIDIA H100", "NVIDIA H100"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Pretending)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", on_cpu)
    monkeypatch.setattr(Pretending, "asked", [], raising=False)
    return seen


@pytest.fixture
def plain(models: Models) -> Engine:
    return load_engine(models(2, "uint8"), device="cpu", threads=1)


def test_both_gpus_label_an_image_of_bytes(
    models: Models, plain: Engine, reserved: list[tuple[str, int, tuple[int, ...], type]]
) -> None:
    engine = load_engine(models(2, "uint8"), device="cuda", lanes=4)
    assert engine.device == f"ONNX Runtime {onnxruntime.__version__} on NVIDIA H100 x 2"
    assert engine.lanes == 4
    assert [(name, options["device_id"], options["use_tf32"]) for name, options in Pretending.asked] == [
        (CUDA, "0", "0"),
        (CUDA, "1", "0"),
    ]
    image, options = noise(2, 300, 420), TilingOptions(96)
    np.testing.assert_array_equal(
        segment_array(engine, image, options=options), segment_array(plain, image, options=options)
    )
    assert {(device, number, kind) for device, number, _, kind in reserved} == {
        ("cuda", 0, np.uint8),
        ("cuda", 1, np.uint8),
    }, "images and labels of bytes, and no logits that nobody asks for"
    assert len(reserved) <= 2 * 4, "an image and labels in each lane, and no more"


def test_other_imagery_is_copied_as_float32(models: Models, reserved: list[tuple[str, int, tuple[int, ...], type]]) -> None:
    path: Path = models(2, "float32")
    scale, offset = RANGES["float32"]
    images = noise(2, 64, 96)[None] * np.float32(scale) + np.float32(offset)
    found, expected = (load_engine(path, device=device, threads=1).predict(images) for device in ("cuda", "cpu"))
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert [(shape, kind) for _, _, shape, kind in reserved] == [
        ((1, 2, 64, 96), np.float32),
        ((1, 64, 96), np.uint8),
        ((1, 4, 16, 24), np.float32),
    ]


@pytest.mark.usefixtures("reserved")
def test_float32_images_of_bytes_are_taken_and_others_are_refused(models: Models, plain: Engine) -> None:
    engine = load_engine(models(2, "uint8"), device="cuda")
    images = noise(2, 64, 96)[None].astype(np.float32)
    np.testing.assert_array_equal(engine.predict(images).logits, plain.predict(images).logits)
    with pytest.raises(EngineError, match=r"values other than 0, 1 \.\. 255"):
        engine.label(images + np.float32(0.5))
