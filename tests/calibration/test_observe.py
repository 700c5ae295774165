import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from autoreg.calibration import observe as module
from autoreg.calibration.layers import find_layers
from autoreg.calibration.observe import observe
from autoreg.calibration.samples import Samples, choose_samples
from autoreg.errors import ModelError
from autoreg.runtime.engine import load_engine
from conftest import noise, save_raster

PEAK = """
import resource, sys
from pathlib import Path
import onnx
from autoreg.calibration.layers import find_layers
from autoreg.calibration.observe import observe
from autoreg.calibration.samples import choose_samples
from autoreg.runtime.engine import load_engine
model, raster = map(Path, sys.argv[1:])
content = onnx.load(model)
names = list(dict.fromkeys(name for layer in find_layers(content.graph) for name in layer.activations))
calibration, _ = choose_samples([raster], load_engine(model).spec, tiles=64, tile_px=64)
assert len(calibration) == 64
for count in (8, 64):
    observe(content, names, calibration.some(count))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def samples(model: Path, scenes: list[Path]) -> Samples:
    return choose_samples(scenes, load_engine(model).spec, tiles=6, tile_px=32)[0]


def names_of(content: onnx.ModelProto) -> list[str]:
    return list(dict.fromkeys(name for layer in find_layers(content.graph) for name in layer.activations))


def test_what_is_seen_does_not_depend_on_how_it_is_grouped(
    model: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = onnx.load(model)
    at_once = observe(content, names_of(content), samples)
    monkeypatch.setattr(module, "GROUP_BYTES", 200_000)
    sessions: list[int] = []
    session = module._session

    def count(content: onnx.ModelProto, names: list[str]) -> object:
        sessions.append(len(names))
        return session(content, names)

    monkeypatch.setattr(module, "_session", count)
    grouped = observe(content, names_of(content), samples)
    # 32 channels of 16 x 16 cells in float32 are 32 KiB; the input is of 4 bands of 32 x 32 px.
    assert max(sessions) in (6, 7)
    assert sum(sessions) == len(names_of(content))
    for name, histogram in at_once.items():
        assert grouped[name].maximum == pytest.approx(histogram.maximum, rel=1e-5)
        assert grouped[name].counts.sum() == histogram.counts.sum()


def test_the_histograms_are_those_of_the_activations(model: Path, samples: Samples) -> None:
    content = onnx.load(model)
    (histogram,) = observe(content, ["div"], samples).values()
    spec = load_engine(model).spec
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    values = np.abs(np.stack([(image[0] - mean) / std for image, _ in samples]))
    assert histogram.maximum == pytest.approx(float(values.max()), rel=1e-5)
    assert histogram.counts.sum() == values.size
    center = (np.arange(len(histogram.counts)) + 0.5) * histogram.maximum / len(histogram.counts)
    assert np.average(center, weights=histogram.counts) == pytest.approx(float(values.mean()), rel=1e-3)


def test_the_input_itself_can_be_looked_at(model: Path, samples: Samples) -> None:
    (histogram,) = observe(onnx.load(model), ["image"], samples).values()
    assert histogram.maximum == max(float(image.max()) for image, _ in samples)


def test_each_tile_of_both_passes_is_reported(model: Path, samples: Samples) -> None:
    calls: list[None] = []
    observe(onnx.load(model), ["div"], samples, lambda: calls.append(None))
    assert len(calls) == 2 * len(samples)


def test_activations_that_are_not_finite_are_refused(model: Path, samples: Samples) -> None:
    content = onnx.load(model)
    weights = next(item for item in content.graph.initializer if item.name.endswith("masked.0.look.layer.weight"))
    weights.CopyFrom(onnx.numpy_helper.from_array(np.full(list(weights.dims), np.inf, np.float32), weights.name))
    with pytest.raises(ModelError, match=r"not finite \(relu_1\)"):
        observe(content, names_of(content), samples)


def test_memory_does_not_grow_with_the_tiles(model: Path, tmp_path: Path) -> None:
    raster = save_raster(tmp_path / "a.tif", noise(4, 640, 640))
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(model), str(raster)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    few, many = (int(line) / 1024 for line in result.stdout.split())  # MiB
    # The activations of 56 more tiles of 64 x 64 px are 220 MiB.
    assert many - few < 20
