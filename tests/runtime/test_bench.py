"""``autoreg bench``: what it measures, what it marks, and what it keeps of it."""

import dataclasses
import itertools
import json
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from autoreg.cli import cli
from autoreg.errors import AutoregError, ConfigError, EngineError, RasterError
from autoreg.export import export_onnx
from autoreg.export.strip import strip
from autoreg.network.checkpoint import load_checkpoint
from autoreg.raster.background import count_cores
from autoreg.runtime.devices import choose_device
from autoreg.runtime.engine import load_engine
from autoreg.runtime.measure import machine
from autoreg.runtime.measure.bench import Row, bench_models, fastest_devices, find_devices, mark_fastest
from autoreg.runtime.measure.fastest import fastest_known, remember_fastest
from autoreg.runtime.measure.flops import count_flops
from autoreg.runtime.measure.growth import Growth
from autoreg.runtime.measure.sgemm import SgemmMeter
from autoreg.runtime.sample_tiles import make_noise, read_tiles
from autoreg.spec import METADATA_KEY
from conftest import Models, noise, save_random_checkpoint, save_raster

CACHE = "autoreg/bench.json"
QUICK = ["--seconds", "0.1", "--tile-px", "96"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one checkpoint, ``a.onnx`` and ``a.fp16.onnx``, one that says something else, and a raster."""
    folder = tmp_path_factory.mktemp("bench")
    for name, stride in (("a", 4), ("b", 2)):
        save_random_checkpoint(folder / f"{name}.pt", stride=stride)
        export_onnx(folder / f"{name}.pt", folder / f"{name}.onnx")
    export_onnx(folder / "a.pt", folder / "a.fp16.onnx", precision="fp16")
    save_raster(folder / "raster.tif", noise(2, 300, 400) | np.uint8(1), nodata=0)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the test, and not of whoever runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / CACHE


def bench(*words: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, words)])


def row(**changes: object) -> Row:
    usual = Row("a", "0", "fp32", "cpu", "an engine", 1, 1, 64, 10.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1000)
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


def change_spec(model: Path, changed: Path, **promises: object) -> Path:
    """A copy of a model whose spec promises something else."""
    content = onnx.load(model)
    (entry,) = (item for item in content.metadata_props if item.key == METADATA_KEY)
    entry.value = dataclasses.replace(load_engine(model).spec, **promises).to_json()  # type: ignore[arg-type]
    onnx.save(content, changed)
    return changed


def test_the_table_of_two_models_on_rasters(folder: Path, cache: Path) -> None:
    models = [folder / "a.onnx", folder / "a.fp16.onnx", folder / "b.onnx"]
    rasters = [folder / "raster.tif", folder / "raster.tif"]  # as a shell leaves *.tif
    done = bench(*models, "--tiles", *rasters, *QUICK, "--batch-size", 2, "-o", folder / "new.json")
    assert done.exit_code == 0, done.output
    heading, *lines = done.output.split("\n\n")[0].splitlines()
    expected = "model engine precision batch lanes ms/tile MPx/s GFLOP/s sgemm agreement memory"
    assert heading.split() == expected.split()
    measured = json.loads((folder / "new.json").read_text())
    rows = measured["rows"]
    assert len(lines) == len(rows)
    assert {item["model"] for item in rows} == {str(path) for path in models}
    for line, item in zip(lines, rows, strict=True):
        assert line.startswith("*") == item["fastest"]
        assert Path(item["model"]).name in line
        assert f"{100 * item['agreement']:.3f} %" in line
        assert item["ms_per_tile"] > 0
        assert item["mpx_per_s"] == pytest.approx(item["core_px"] ** 2 / 1e3 / item["ms_per_tile"])
        assert item["gflop_per_s"] == pytest.approx(1e3 * item["gflop_per_tile"] / item["ms_per_tile"])
        assert item["sgemm_share"] == pytest.approx(item["gflop_per_s"] / measured["sgemm"]["gflop_per_s"])
        assert item["batch_size"] == 2
        exact = item["model"] == str(models[0])
        assert item["agreement"] == 1.0 if exact else item["agreement"] < 1.0 or item["precision"] == "fp16"
    (best,) = (item for item in rows if item["fastest"])
    kept = [item for item in rows if item["agreement"] >= 0.99]
    assert best["mpx_per_s"] == max(item["mpx_per_s"] for item in kept)
    assert {item["model"] for item in kept} == {str(path) for path in models[:2]}
    assert "* is the fastest that has at least 99 % of the labels of" in done.output
    assert measured["machine"]["cores"] >= 1
    assert measured["machine"]["libraries"]["numpy"] == np.__version__
    assert measured["sources"] == list(map(str, rasters))
    assert measured["reference"].startswith(f"{models[0]} (fp32) on ")
    assert f"{measured['tiles']} tiles of 2 rasters, 96 px; median of {measured['rounds']} rounds" in done.output
    # The model that disagrees is none that could be chosen.
    digests = [load_engine(path).model_digest for path in models]
    assert [fastest_known(digest) is None for digest in digests] == [False, False, True]
    assert cache.exists()


def test_labels_are_compared_only_where_there_are_tiles(folder: Path, cache: Path) -> None:
    done = bench(folder / "a.onnx", *QUICK, "--json")
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout)
    assert measured["sources"] == []
    assert all(item["agreement"] is None and not item["fastest"] for item in measured["rows"])
    assert not cache.exists()
    words = bench(folder / "a.onnx", *QUICK).output
    assert "no labels were compared, so none is marked; give --tiles RASTER..." in words
    assert "*" not in words
    assert "8 tiles of noise, 96 px" in words


def test_where_none_keeps_the_agreement_none_is_marked(folder: Path) -> None:
    done = bench(folder / "a.onnx", "--tiles", folder / "raster.tif", *QUICK, "--min-agreement", 1)
    assert "* is the fastest that has at least 100 %" in done.output
    rows = mark_fastest([row(agreement=0.5, mpx_per_s=9.0)], 0.99)
    assert not any(item.fastest for item in rows)


def test_the_fastest_that_keeps_the_agreement_is_marked() -> None:
    rows = [
        row(),
        row(model_digest="1", device="gpu", mpx_per_s=5.0, agreement=0.98),
        row(model_digest="1", device="cpu", mpx_per_s=3.0, agreement=0.995),
        row(model_digest="2", mpx_per_s=2.0, agreement=0.995),
        row(model_digest="3", mpx_per_s=9.0, agreement=None),
    ]
    assert [item.fastest for item in mark_fastest(rows, 0.99)] == [False, False, True, False, False]
    assert [item.fastest for item in mark_fastest(rows, 0.98)] == [False, True, False, False, False]
    assert [item.fastest for item in mark_fastest(rows, 1.0)] == [True, False, False, False, False]
    assert fastest_devices(rows, 0.99) == {"0": "cpu", "1": "cpu", "2": "cpu"}
    assert fastest_devices(rows, 0.5) == {"0": "cpu", "1": "gpu", "2": "cpu"}


def test_auto_leaves_a_device_only_for_one_that_is_clearly_faster() -> None:
    for speed, expected in ((1.04, "cpu"), (1.06, "openvino")):
        rows = [row(), row(device="openvino", mpx_per_s=speed)]
        assert fastest_devices(rows, 0.99) == {"0": expected}
        assert [item.fastest for item in mark_fastest(rows, 0.99)] == [False, True]
    slow = row(device="openvino", mpx_per_s=0.5)
    assert fastest_devices([row(agreement=0.5), slow], 0.99) == {"0": "openvino"}
    assert fastest_devices([row(mpx_per_s=1.04), row(device="cuda"), slow], 0.99) == {"0": "cuda"}


def test_operations_are_those_that_a_hand_counts(tmp_path: Path) -> None:
    shapes = {"w1": (6, 2, 3, 3), "w2": (6, 3, 3, 3), "w3": (6, 5, 2, 2), "w4": (16, 7), "w5": (80, 9)}
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),  # (3, 6, 4, 8)
        helper.make_node("Conv", ["a", "w2"], ["b"], pads=[1, 1, 1, 1], group=2),
        helper.make_node("ConvTranspose", ["b", "w3"], ["c"], strides=[2, 2]),  # (3, 5, 8, 16)
        helper.make_node("MatMul", ["c", "w4"], ["d"]),  # (3, 5, 8, 7)
        helper.make_node("Flatten", ["c"], ["e"], axis=3),  # (120, 16)
        helper.make_node("Reshape", ["e", "side"], ["f"]),  # (80, 24)
        helper.make_node("Gemm", ["f", "w5"], ["labels"], transA=1),  # (24, 9)
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "by hand",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [3, 2, 8, 16])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("labels", "d")],
            [
                *(numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()),
                numpy_helper.from_array(np.asarray([80, 24]), "side"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "hand.onnx")
    strided = 2 * (3 * 6 * 4 * 8) * (2 * 3 * 3)
    grouped = 2 * (3 * 6 * 4 * 8) * (3 * 3 * 3)
    transposed = 2 * (3 * 6 * 4 * 8) * (5 * 2 * 2)
    product = 2 * (3 * 5 * 8 * 7) * 16
    of_transposed = 2 * (24 * 9) * 80
    total = strided + grouped + transposed + product + of_transposed
    assert count_flops(tmp_path / "hand.onnx", (3, 2, 8, 16)) == total


def test_operations_of_a_network_are_those_that_torch_counts(folder: Path) -> None:
    network = strip(load_checkpoint(folder / "a.pt").build_network())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 2, 32, 64))
    counted = count_flops(folder / "a.onnx", (2, 2, 32, 64))
    assert counted == counter.get_total_flops()
    assert count_flops(folder / "a.fp16.onnx", (2, 2, 32, 64)) == counted
    with pytest.raises(EngineError, match=r"the operations of .*a\.onnx for input of shape \(1, 3, 32, 32\) cannot be"):
        count_flops(folder / "a.onnx", (1, 3, 32, 32))


def test_what_is_known_is_of_this_machine_and_readable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_known("0") is None
    remember_fastest({"0": "cpu", "1": "gpu"})
    remember_fastest({"2": "cpu", "0": "gpu"})
    assert [fastest_known(digest) for digest in "0123"] == ["gpu", "gpu", "cpu", None]
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_processor", lambda: "another")
        assert fastest_known("0") is None
        remember_fastest({"0": "cpu"})
        assert fastest_known("0") == "cpu"
    assert fastest_known("0") == "gpu"  # both machines share a home
    written = cache.read_bytes()
    this = machine.describe_machine().key
    for content in (
        b"",
        b"\xff\xfe",
        written[:-9],
        b"[" * 100_000,
        b"[]",
        b'{"machines": 5}',
        json.dumps({"machines": {this: ["0"]}}).encode(),
        json.dumps({"machines": {this: {"0": 5}}}).encode(),
        b" " * 2**21 + written,
    ):
        cache.write_bytes(content)
        assert fastest_known("0") is None
    remember_fastest({"0": "cpu"})
    assert fastest_known("0") == "cpu"


def test_auto_takes_what_was_fastest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = load_engine(folder / "a.onnx")
    other = next((device for device in find_devices() if not device.automatic), None)
    remember_fastest({usual.model_digest: "a device that is gone"})
    assert load_engine(folder / "a.onnx").device == usual.device
    if other is None:
        pytest.skip("openvino is not installed")
    remember_fastest({usual.model_digest: other.name})
    assert choose_device(model_digest=usual.model_digest) == other
    assert choose_device("cpu", model_digest=usual.model_digest).name == "cpu"
    taken = load_engine(folder / "a.onnx")
    assert taken.device != usual.device
    assert taken.device == load_engine(folder / "a.onnx", device=other.name).device
    assert load_engine(folder / "b.onnx").device == usual.device
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_processor", lambda: "another")
        assert load_engine(folder / "a.onnx").device == usual.device
    out = folder / "maps"
    words = ["segment", folder / "raster.tif", "-m", folder / "a.onnx", "-o", out, "--json", "--overwrite"]
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert json.loads(done.stdout)["engine"] == taken.device


def test_the_fastest_is_known_only_after_all_devices_were_measured(folder: Path, cache: Path) -> None:
    tiles = ["--tiles", folder / "raster.tif", *QUICK]
    one = json.loads(bench(folder / "a.onnx", "--device", "cpu", *tiles, "--json").stdout)
    assert {item["device"] for item in one["rows"]} == {"cpu"}
    there = {device.name for device in find_devices()}
    assert cache.exists() == (there == {"cpu"})
    everything = json.loads(bench(folder / "a.onnx", *tiles, "--json").stdout)
    assert {item["device"] for item in everything["rows"]} == there
    assert cache.exists()


def test_the_cache_is_bounded_and_may_not_be_writable(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        remember_fastest({f"{number}:{index}": "cpu" for index in range(60)})
    assert [fastest_known(digest) for digest in ("0:59", "1:0", "1:20", "2:59")] == [None, None, "cpu", "cpu"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))  # a file
    remember_fastest({"0": "cpu"})
    assert "the fastest device is not remembered" in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, as the specification says
    monkeypatch.setenv("HOME", str(cache.parent))
    remember_fastest({"0": "cpu"})
    assert (cache.parent / ".cache" / CACHE).exists()


def test_tiles_are_spread_over_where_rasters_have_data(folder: Path, tmp_path: Path) -> None:
    spec = load_engine(folder / "a.onnx").spec
    image = noise(2, 256, 512) | np.uint8(1)
    image[:, :, 200:] = 0
    half = save_raster(tmp_path / "half.tif", image, nodata=0)
    empty = save_raster(tmp_path / "empty.tif", np.zeros((2, 256, 256), np.uint8), nodata=0)
    small = save_raster(tmp_path / "small.tif", image[:, :40, :50], nodata=0)
    tiles = read_tiles([str(half), str(folder / "raster.tif")], spec, tile_px=64, count=8)
    assert tiles.images.shape[1:] == (2, 64, 64)
    assert 4 < len(tiles.images) <= 8
    assert tiles.valid.mean(axis=(1, 2)).min() >= 0.5
    mean = np.asarray(spec.mean, np.float32)
    assert all((image[:, ~data] == mean[:, None]).all() for image, data in zip(tiles.images, tiles.valid, strict=True))
    assert len({image.tobytes() for image in tiles.images}) == len(tiles.images)
    (valid,) = read_tiles([str(small)], spec, tile_px=64, count=8).valid
    assert valid.sum() == 40 * 50
    with pytest.raises(RasterError, match=r"no tile of 64 px in .*empty\.tif has data in 50 % of it; give other rasters"):
        read_tiles([str(empty)], spec, tile_px=64, count=8)


def test_noise_is_like_the_rasters_of_the_training(folder: Path) -> None:
    spec = load_engine(folder / "a.onnx").spec
    tiles = make_noise(spec, tile_px=512, count=4)
    np.testing.assert_allclose(tiles.images.mean(axis=(0, 2, 3)), spec.mean, rtol=0.05)
    np.testing.assert_allclose(tiles.images.std(axis=(0, 2, 3)), spec.std, rtol=0.05)


def test_a_model_that_looks_at_the_whole_tile_adds_half_of_it(folder: Path, tmp_path: Path) -> None:
    model = change_spec(folder / "a.onnx", tmp_path / "whole.onnx", receptive_field_px=None)
    measured = bench_models([model], devices=["cpu"], seconds=0.1)
    assert measured.tile_px == load_engine(model).spec.crop_px
    assert {item.core_px for item in measured.rows} == {measured.tile_px // 2}
    # A model of another stride sees the same tiles, of a side that suits both.
    both = bench_models([folder / "a.onnx", folder / "b.onnx"], tile_px=65, devices=["cpu"], seconds=0.1)
    assert both.tile_px == 68


def test_named_models_agree_in_their_clusters(folder: Path, tmp_path: Path) -> None:
    spec = load_engine(folder / "a.onnx").spec
    classes = [dataclasses.replace(item, label=item.label + 7, name=f"class {item.label}") for item in spec.classes]
    named = change_spec(folder / "a.onnx", tmp_path / "named.onnx", classes=tuple(classes))
    rasters = [str(folder / "raster.tif")]
    measured = bench_models([folder / "a.onnx", named], rasters=rasters, devices=["cpu"], tile_px=64, seconds=0.1)
    assert {item.agreement for item in measured.rows} == {1.0}


@pytest.mark.parametrize("at", [1, 4])
def test_an_interruption_ends_all_calls(folder: Path, at: int) -> None:
    seen = itertools.count(1)

    def interrupt(_done: int, _steps: int) -> None:
        if next(seen) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_models([folder / "a.onnx"], tile_px=64, seconds=0.1, progress=interrupt)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("autoreg-bench")]


def test_memory_is_what_the_work_took_at_its_peak() -> None:
    with Growth() as growth:
        np.ones(2**23, np.float64).sum()
    if growth.bytes is None:
        pytest.skip("this system does not tell a process its memory")
    assert 0.9 * 2**26 < growth.bytes < 1.5 * 2**26  # some of it may have been freed, and kept, before


def test_wrong_inputs_are_said_before_any_work(folder: Path, models: Models, tmp_path: Path) -> None:
    def refused(*words: object) -> AutoregError:
        done = bench(*words)
        assert isinstance(done.exception, AutoregError), done
        return done.exception

    model, raster = folder / "a.onnx", folder / "raster.tif"
    assert "there is no model none.onnx" in str(refused("none.onnx"))
    assert "leaves no core between two halos" in str(refused(model, "--tile-px", 16))
    assert "has 2 bands" in str(refused(models(3, "uint8"), "--tiles", raster, *QUICK))
    assert "measure them one by one" in str(refused(model, models(3, "uint8"), *QUICK))
    assert "no.tif" in str(refused(model, "--tiles", raster, folder / "no.tif", *QUICK))
    assert f"{tmp_path} is a folder" in str(refused(model, "-o", tmp_path))
    (tmp_path / "old.json").write_text("mine")
    assert "old.json exists; use --overwrite" in str(refused(model, "-o", tmp_path / "old.json"))
    assert (tmp_path / "old.json").read_text() == "mine"
    with pytest.raises(
        ConfigError, match=r"\d+ tiles at once, of 2 bands and 4096 px, are \d+ values, expected at most 134"
    ):
        bench_models([model], tile_px=4096, batch_sizes=[8])
    with pytest.raises(ConfigError, match=r"this would measure \d+ rows, expected at most 64; give fewer"):
        bench_models([model], tile_px=64, batch_sizes=range(1, 70))
    for words in ([], [model, "--batch-size", 0], [model, "--seconds", 0], [model, "--min-agreement", 1.5]):
        assert bench(*words).exit_code == 2


def test_it_is_said_when_others_use_the_cores() -> None:
    meter = SgemmMeter()
    meter.measure()
    measured = meter.result()
    assert measured.gflop_per_s > 0
    assert measured.threads <= count_cores()
    assert not dataclasses.replace(measured, busy_threads=0.9 * measured.threads).disturbed
    assert dataclasses.replace(measured, busy_threads=0.5 * measured.threads).disturbed
    assert f"{measured.threads} thread" in str(measured)


def test_help_says_what_is_measured() -> None:
    text = " ".join(bench("--help").output.split())
    for words in (
        "Measure how fast models are here, and mark the fastest that keeps the labels.",
        "--tiles RASTER...",
        "[default: 10; 0.1<=x<=3600]",
        "autoreg bench model.onnx model.int8.onnx --tiles scenes/*.tif",
    ):
        assert words in text
