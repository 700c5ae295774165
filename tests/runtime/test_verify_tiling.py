import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoreg import Engine, ModelSpec, TilingOptions, load_engine, segment_array
from autoreg.errors import AutoregError, ConfigError, RasterError
from autoreg.export import export_onnx
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from autoreg.runtime.engine import Images, Labels, Prediction
from autoreg.runtime.probabilities import probabilities
from autoreg.runtime.segment import array_reader, scene_reader
from autoreg.runtime.verify_tiling import default_max_px, default_tiles_px, label_whole, plan_pieces, verify_tiling
from autoreg.train import train_network
from conftest import SHORT, noise, save_raster
from forks import autoreg


@dataclasses.dataclass
class Promising:
    """An engine whose spec promises something else than its model keeps."""

    engine: Engine
    spec: ModelSpec
    seen: list[Images] = dataclasses.field(default_factory=list)
    model_digest: str = "0" * 64
    device: str = "a wrapper"
    lanes: int = 2

    def label(self, images: Images) -> Labels:
        return self.engine.label(images)

    def predict(self, images: Images) -> Prediction:
        self.seen.append(images)
        return self.engine.predict(images)


def promising(engine: Engine, **promises: object) -> Promising:
    return Promising(engine, dataclasses.replace(engine.spec, **promises))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def attention_model(scenes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attention")
    train_network(scenes, folder / "checkpoint.pt", dataclasses.replace(SHORT, attention=True, steps=4))
    export_onnx(folder / "checkpoint.pt", folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster of no multiple of the stride, with a hole, and an edge without data."""
    return save_raster(tmp_path_factory.mktemp("source") / "source.tif", with_holes(), nodata=0)


def with_holes() -> NDArray[np.uint8]:
    image = noise(2, 333, 257) | np.uint8(1)
    image[:, 100:180, 50:90] = 0
    image[:, :, :7] = 0
    return image


def test_labels_of_an_exact_model_are_those_of_one_pass(random_engine: Engine, source: Path) -> None:
    checks = list(verify_tiling(random_engine, source, max_px=2**18))
    valid = (with_holes() != 0).any(axis=0)
    tiles_px = default_tiles_px(random_engine.spec, 2**18)
    assert [(check.tile_px, check.batch_size) for check in checks] == [(side, size) for side in tiles_px for size in (1, 2)]
    assert len(tiles_px) == 3
    for check in checks:
        assert (check.differing, check.differing_nodata, check.max_margin, check.largest_logit) == (0, 0, 0.0, 0.0)
        assert check.exact
        assert not check.failed
        assert check.pieces > 1 or (check.checked, check.labels) == (1.0, valid.sum())
    assert checks[-1].tiles > 100


def test_the_smallest_tile_leaves_a_core_and_no_smaller_one_does(random_engine: Engine, source: Path) -> None:
    smallest = min(default_tiles_px(random_engine.spec, 2**24))
    stride = random_engine.spec.stride
    (check, _) = verify_tiling(random_engine, source, tiles_px=(smallest,), max_px=10_000)
    assert check.tiles >= check.pieces * (smallest // stride) ** 2
    with pytest.raises(ConfigError, match=f"leaves no core .* use at least {smallest} px"):
        next(verify_tiling(random_engine, source, tiles_px=(smallest - 1,)))


def test_a_receptive_field_that_is_too_small_is_found(random_engine: Engine, source: Path) -> None:
    for field_px in (1, random_engine.spec.receptive_field_px // 2 | 1 if random_engine.spec.receptive_field_px else 1):
        engine = promising(random_engine, receptive_field_px=field_px)
        checks = list(verify_tiling(engine, source, tiles_px=(64,)))
        assert all(check.failed and check.differing_nodata == 0 for check in checks)
        assert checks[0].max_margin > 1e-3 * checks[0].largest_logit > 0  # no rounding


@dataclasses.dataclass(frozen=True)
class TiedEngine:
    """Two clusters whose logits differ by ``margin``; which is greater depends on the tile's width."""

    spec: ModelSpec
    margin: float
    model_digest: str = "0" * 64
    device: str = "numpy"
    lanes: int = 1

    def predict(self, images: Images) -> Prediction:
        count, _, height, width = images.shape
        logits = np.full((count, self.spec.clusters, height // self.spec.stride, width // self.spec.stride), -3, np.float32)
        best = width > 100
        logits[:, :2] = 3
        logits[:, int(best)] += self.margin
        return Prediction(np.full((count, height, width), best, np.uint8), logits)

    def label(self, images: Images) -> Labels:
        return self.predict(images).labels


def test_the_margin_tells_rounding_from_an_error(random_engine: Engine, source: Path) -> None:
    check = next(verify_tiling(TiedEngine(random_engine.spec, 1e-6), source, tiles_px=(80,)))
    assert check.failed
    assert check.differing == check.labels
    assert check.max_margin == pytest.approx(1e-6, rel=0.2)
    assert check.largest_logit == pytest.approx(3, abs=1e-4)


class ForgetfulEngine(Promising):
    """Labels what is no cluster, which a map shows as nodata."""

    def label(self, images: Images) -> Labels:
        return np.full_like(super().label(images), 200)


def test_nodata_that_only_one_of_the_two_has_is_counted(random_engine: Engine, source: Path) -> None:
    check = next(verify_tiling(ForgetfulEngine(random_engine, random_engine.spec), source, tiles_px=(80,)))
    assert check.failed
    assert (check.differing, check.differing_nodata, check.max_margin) == (check.labels, check.labels, 0.0)


def test_the_share_and_the_margin_are_those_of_the_definition(attention_model: Path, scenes: list[Path]) -> None:
    engine = load_engine(attention_model)
    assert engine.spec.receptive_field_px is None
    with RasterReader(scenes[0], bands=4) as raster:
        image, valid = raster.read(Window(0, 0, raster.height, raster.width))
    whole, logits = label_whole(engine, image, valid)
    (check, again) = verify_tiling(engine, scenes[0], tiles_px=(40,))
    tiled = segment_array(engine, image, valid, options=TilingOptions(40))
    differing = whole != tiled
    logs = np.log(probabilities(logits[None].astype(np.float64), engine.spec.stride)[0])[:, differing]
    at = np.arange(differing.sum())
    margins = logs[whole[differing], at] - logs[tiled[differing], at]
    assert 0 < check.differing == differing.sum()
    assert check.max_margin == pytest.approx(margins.max(), rel=1e-4)
    assert check.differing_share == differing.sum() / valid.sum()
    assert (check.labels, check.pieces, check.exact, check.failed) == (valid.sum(), 1, False, False)
    assert dataclasses.replace(again, batch_size=1) == check


@given(
    height=st.integers(1, 2000), width=st.integers(1, 2000), tile_px=st.integers(60, 200), max_px=st.integers(70_000, 10**6)
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_reach_from_corner_to_corner(
    random_engine: Engine, height: int, width: int, tile_px: int, max_px: int
) -> None:
    pieces = plan_pieces(random_engine.spec, height, width, tile_px=tile_px, max_px=max_px)
    assert 1 <= len(set(pieces)) == len(pieces) <= 9
    seen = np.zeros((height, width), np.uint8)
    for piece in pieces:
        assert piece == piece.clipped(height, width)
        assert piece.height * piece.width <= max_px
        assert piece.height > tile_px or piece.height == height
        assert piece.width > tile_px or piece.width == width
        seen[piece.slices] += 1
    assert seen[0, 0] and seen[0, -1] and seen[-1, 0] and seen[-1, -1]  # noqa: PT018
    for along in (seen[0], seen[:, 0]):
        assert along.max() == 1 or along.min() > 0  # an overlap only where there is no gap


def test_a_long_raster_is_cut_for_an_engine_that_takes_no_longer_images(random_engine: Engine) -> None:
    options = {"tile_px": 80, "max_px": 40_000}
    assert plan_pieces(random_engine.spec, 100, 300, **options) == [Window(0, 0, 100, 300)]
    pieces = plan_pieces(random_engine.spec, 100, 300, **options, max_side_px=200)
    assert len(pieces) > 1
    assert max(max(piece[2:]) for piece in pieces) <= 200


@pytest.mark.parametrize(("height", "width"), [(333, 257), (150, 700), (90, 1000)])
def test_a_large_raster_is_checked_on_pieces(random_engine: Engine, height: int, width: int, tmp_path: Path) -> None:
    source = save_raster(tmp_path / "source.tif", noise(2, height, width))
    (check, _) = verify_tiling(random_engine, source, tiles_px=(64,), max_px=10_000)
    pieces = plan_pieces(random_engine.spec, height, width, tile_px=64, max_px=10_000)
    seen = np.zeros((height, width), np.bool_)
    for piece in pieces:
        seen[piece.slices] = True
    assert check.checked == pytest.approx(seen.mean())
    assert check.labels == sum(piece.height * piece.width for piece in pieces)
    assert check.pieces == len(pieces) > 1
    assert check.tiles > check.pieces
    assert check.differing == 0
    failed = next(verify_tiling(promising(random_engine, receptive_field_px=1), source, tiles_px=(64,), max_px=10_000))
    assert failed.failed


def test_pieces_are_rescaled_as_the_scene_is(random_engine: Engine, source: Path) -> None:
    engine = promising(random_engine, normalisation="scene")
    checks = list(verify_tiling(engine, source, tiles_px=(72,), max_px=10_000))
    assert [check.differing for check in checks] == [0, 0]
    image = with_holes()
    valid = (image != 0).any(axis=0)
    read = scene_reader(engine.spec, array_reader(image, valid), *valid.shape)
    pieces = plan_pieces(engine.spec, *valid.shape, tile_px=72, max_px=10_000)
    for piece, (seen,) in zip(pieces, engine.seen, strict=True):
        pixels, data = read(piece)
        inside = seen[:, : piece.height, : piece.width]
        np.testing.assert_array_equal(inside[:, data], pixels[:, data])


def test_a_raster_without_data_has_nothing_to_compare(random_engine: Engine, tmp_path: Path) -> None:
    source = save_raster(tmp_path / "source.tif", np.zeros((2, 70, 90), np.uint8), nodata=0)
    assert {(check.labels, check.differing) for check in verify_tiling(random_engine, source)} == {(0, 0)}


def test_what_does_not_fit_is_refused_before_any_work(random_engine: Engine, source: Path, tmp_path: Path) -> None:
    engine = promising(random_engine)

    def refused(kind: type[AutoregError], path: Path, message: str, *tiles_px: int, max_px: int | None = None) -> None:
        with pytest.raises(kind, match=message):
            next(verify_tiling(engine, path, tiles_px=tiles_px, max_px=max_px))

    refused(
        RasterError, save_raster(tmp_path / "3.tif", noise(3, 9, 9)), r"3\.tif has 3 bands .* the model expects 2 \(band1"
    )
    wide = save_raster(tmp_path / "wide.tif", noise(2, 9, 9).astype(np.uint16))
    refused(RasterError, wide, r"wide\.tif has pixels of type uint16, but the model was trained on uint8")
    refused(RasterError, tmp_path / "none.tif", "there is no file")
    refused(ConfigError, source, "a tile of 8 px leaves no core", 64, 8)
    refused(ConfigError, source, "a tile of 100 px would not cut .* 10000 px in all; .* up to 15625 px", 100, max_px=10_000)
    assert not engine.seen


def test_the_command_prints_a_line_for_each_way_to_cut(model: Path, scenes: list[Path], tmp_path: Path) -> None:
    result = autoreg("verify-tiling", model, scenes[0], "--tile-px", 60, "--tile-px", 999)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert re.fullmatch(
        r"tiles of 60 px, batches of 1: 0 of 2\d{4} labels differ; \d+ tiles in the whole raster", lines[0]
    ), lines
    assert lines[-2].endswith("; 1 tile in the whole raster")
    assert lines[-1] == "equal: tiled labels are those of one pass"
    uncut = autoreg("verify-tiling", model, scenes[0], "--tile-px", 999).stdout.splitlines()
    assert uncut[-1] == "equal: tiled labels are those of one pass; nothing was cut, as a tile holds it all"
    pieces = autoreg("verify-tiling", model, scenes[0], "--tile-px", 60, "--max-px", 6000).stdout.splitlines()
    assert re.search(r"tiles in \d pieces, \d+(\.\d+)? % of the raster$", pieces[0]), pieces
    assert pieces[-1] == "equal: tiled labels are those of one pass; each piece was checked as a raster of its own"
    as_json = autoreg("verify-tiling", model, scenes[0], "--tile-px", 60, "--json").stdout.splitlines()
    assert [json.loads(line)["batch_size"] for line in as_json] == [1, 2]
    assert json.loads(as_json[0]) | {"tile_px": 60, "differing": 0, "exact": True, "pieces": 1} == json.loads(as_json[0])
    empty = save_raster(tmp_path / "empty.tif", np.zeros((4, 70, 90), np.uint8), nodata=0)
    assert "there is no data where it was checked" in autoreg("verify-tiling", model, empty).stdout


def test_the_command_says_how_much_attention_depends_on_the_tiling(attention_model: Path, scenes: list[Path]) -> None:
    result = autoreg("verify-tiling", attention_model, scenes[0])
    assert (result.returncode, result.stderr) == (0, "")
    *lines, last = result.stdout.splitlines()
    shares = [float(found) for line in lines for found in re.findall(r"differ \((\d+\.\d\d) %\)", line)]
    assert len(shares) == len(lines) == 4
    assert f"the model looks at the whole tile: up to {max(shares):.2f} % differ" in last
    assert 0 < max(shares) < 100


def test_the_command_fails_for_a_model_that_promises_too_small_a_field(
    model: Path, scenes: list[Path], tmp_path: Path
) -> None:
    content = onnx.load(model)
    spec = dataclasses.replace(ModelSpec.from_json(content.metadata_props[0].value), receptive_field_px=1)
    content.metadata_props[0].value = spec.to_json()
    onnx.save(content, tmp_path / "lying.onnx")
    result = autoreg("verify-tiling", tmp_path / "lying.onnx", scenes[0], "--tile-px", 32)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    margin, largest = map(float, re.findall(r"\d\.\de[+-]\d\d", result.stdout.splitlines()[-1])[:2])
    assert "DIFFERENT: where labels differ" in result.stdout
    assert margin > 1e-3 * largest
    failed = autoreg("verify-tiling", tmp_path / "lying.onnx", scenes[0], "--tile-px", 32, "--json")
    assert failed.returncode == 1
    assert all(json.loads(line)["differing"] > 0 for line in failed.stdout.splitlines())


def test_it_proves_the_engine_that_is_asked_for(model: Path, scenes: list[Path]) -> None:
    pytest.importorskip("openvino")
    proven = autoreg("verify-tiling", model, scenes[0], "--tile-px", 64, "--device", "openvino")
    assert (proven.returncode, proven.stderr) == (0, "")
    assert "equal: tiled labels are those of one pass" in proven.stdout


def test_mistakes_get_one_sentence(model: Path, scenes: list[Path], tmp_path: Path) -> None:
    three = save_raster(tmp_path / "three.tif", noise(3, 40, 40))
    for words, message in (
        ((tmp_path / "none.onnx", scenes[0]), "there is no model"),
        ((model, tmp_path / "none.tif"), "there is no file"),
        ((model, three), "three.tif has 3 bands"),
        ((model, scenes[0], "--tile-px", 8), "leaves no core"),
        ((model, scenes[0], "--max-px", 100), "would not cut pieces"),
    ):
        result = autoreg("verify-tiling", *words)
        assert (result.returncode, result.stdout) == (1, "")
        assert len(result.stderr.splitlines()) == 1
        assert message in result.stderr
    assert autoreg("verify-tiling", model, scenes[0], "--tile-px", 0).returncode == 2
    text = " ".join(autoreg("verify-tiling", "--help").stdout.split())
    assert "the share that differs is printed" in text
    assert text.endswith("autoreg verify-tiling model.onnx tiles/a.tif --tile-px 300")


def test_the_default_bound_of_attention_is_that_of_its_cells(attention_model: Path, random_engine: Engine) -> None:
    spec = load_engine(attention_model).spec
    assert math.isqrt(default_max_px(spec)) == 128 * spec.stride
    assert default_max_px(random_engine.spec) == 2**22
