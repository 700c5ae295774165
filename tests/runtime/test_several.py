"""Several engines as one: two of the CPU stand for two GPUs."""

import dataclasses
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autoreg import Engine, TilingOptions, load_engine, segment_raster
from autoreg.errors import EngineError
from autoreg.runtime import devices, several
from autoreg.runtime.devices import DEVICES, count_lanes
from autoreg.runtime.engine import Images, Labels, Prediction
from autoreg.runtime.several import SeveralEngines, load_on_gpus
from autoreg.spec import ModelSpec
from conftest import Models, noise, save_raster


@dataclasses.dataclass
class Watched:
    """An engine that counts its calls, and fails at one of them if it is told to."""

    engine: Engine
    lanes: int = 1
    device: str = "a GPU"
    fails_at: int | None = None
    calls: int = 0
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def spec(self) -> ModelSpec:
        return self.engine.spec

    @property
    def model_digest(self) -> str:
        return self.engine.model_digest

    def label(self, images: Images) -> Labels:
        return self.predict(images).labels

    def predict(self, images: Images) -> Prediction:
        with self.lock:
            self.calls += 1
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            failed = self.calls == self.fails_at
        try:
            if failed:
                raise EngineError("the GPU has fallen off the bus")
            return self.engine.predict(images)
        finally:
            with self.lock:
                self.under_way -= 1


@pytest.fixture(scope="module")
def path(models: Models) -> Path:
    return models(2, "uint8")


@pytest.fixture(scope="module")
def plain(path: Path) -> Engine:
    return load_engine(path, device="cpu", threads=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_raster(tmp_path / "a.tif", noise(2, 300, 420), tiled=True, blockxsize=128, blockysize=128)


def images(seed: int) -> NDArray[np.uint8]:
    return noise(2, 64, 96, seed)[None]


def test_it_is_one_engine_with_the_lanes_of_all(plain: Engine) -> None:
    engine = SeveralEngines([Watched(plain, 2), Watched(plain, 1), Watched(plain, 2, "another GPU")])
    assert (engine.spec, engine.model_digest, engine.lanes) == (plain.spec, plain.model_digest, 5)
    assert engine.device == "a GPU x 2, another GPU"
    assert SeveralEngines([Watched(plain)]).device == "a GPU"
    for found, expected in zip(engine.predict(images(0)), plain.predict(images(0)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_call_goes_to_an_idle_lane_and_more_calls_wait(plain: Engine) -> None:
    ones = [Watched(plain, 2), Watched(plain, 1)]
    engine = SeveralEngines(ones)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda seed: engine.label(images(seed)), range(30)))
    for seed, labels in enumerate(found):
        np.testing.assert_array_equal(labels, plain.label(images(seed)))
    assert sum(one.calls for one in ones) == 30
    assert min(one.calls for one in ones) > 0
    assert all(one.most_under_way <= one.lanes for one in ones)


def test_a_raster_gets_the_same_bytes_from_two_engines_and_both_work(plain: Engine, source: Path, tmp_path: Path) -> None:
    ones = [Watched(plain), Watched(plain)]
    options = TilingOptions(96)
    for name, engine in (("one", Watched(plain, 1, "a GPU x 2")), ("two", SeveralEngines(ones))):
        segment_raster(engine, source, tmp_path / f"{name}.tif", options=options)
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()
    assert min(one.calls for one in ones) > 1


def test_one_that_fails_fails_the_raster_and_nothing_hangs(plain: Engine, source: Path, tmp_path: Path) -> None:
    engine = SeveralEngines([Watched(plain), Watched(plain, fails_at=3)])
    with pytest.raises(EngineError, match="the GPU has fallen off the bus"):
        segment_raster(engine, source, tmp_path / "map.tif", options=TilingOptions(96))
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(engine.label, map(images, range(8))))) == 8


def test_engines_of_different_models_are_refused(plain: Engine, models: Models) -> None:
    other = load_engine(models(3, "uint8"), device="cpu")
    with pytest.raises(EngineError, match=f"runs the model {other.model_digest[:12]} and .* expected one model"):
        SeveralEngines([plain, other])


def put_gpus(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for module in (devices, several):
        monkeypatch.setattr(module, "find_gpus", lambda: names)


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [(1, [(0, 1)]), (2, [(0, 1), (1, 1)]), (5, [(0, 2), (1, 2), (2, 1)]), (6, [(0, 2), (1, 2), (2, 2)])],
)
def test_lanes_are_spread_over_the_gpus(
    monkeypatch: pytest.MonkeyPatch, plain: Engine, lanes: int, expected: list[tuple[int, int]]
) -> None:
    put_gpus(monkeypatch, "H100", "H100", "H100")
    asked: list[tuple[int, int]] = []

    def load(gpu: int, share: int) -> Engine:
        asked.append((gpu, share))
        return Watched(plain, share)

    assert load_on_gpus(load, lanes).lanes == lanes
    assert asked == expected


def test_gpus_that_may_round_otherwise_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, plain: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    put_gpus(monkeypatch, "H100", "T4", "H100")
    gpu = next(device for device in DEVICES if device.name == "cuda")
    assert count_lanes(gpu) == 4
    with caplog.at_level(logging.WARNING, "autoreg"):
        engine = load_on_gpus(lambda number, share: Watched(plain, share, f"GPU {number}"), 4)
    assert engine.device == "GPU 0, GPU 2"
    assert "1 of 3 GPUs are no H100 as the first is" in caplog.text
