"""The commands as a user runs them: output, exit status, and one sentence for each mistake."""

import dataclasses
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio

from autoreg.cli import cli
from autoreg.evaluation import pair_files, split_pairs
from autoreg.network.checkpoint import load_checkpoint
from autoreg.spec import ModelSpec
from conftest import noise, save_raster
from forks import autoreg

AUTOREG = [sys.executable, "-c", "from autoreg.cli import main; main()"]


def fresh_autoreg(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As ``autoreg``, but in a process that imports what it needs by itself."""
    command = [*AUTOREG, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=300)


def refused(result: subprocess.CompletedProcess[str], message: str, status: int = 1) -> None:
    """One sentence, no traceback."""
    assert result.returncode == status, result.stderr
    lines = result.stderr.strip().splitlines()
    assert message in lines[0]
    assert "Traceback" not in result.stderr


def test_the_default_names_chain(scenes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text("stride = 2\nsteps = 25\nbatch_size = 4\ncrop_px = 32\nlearning_rate = 2e-3\n")
    trained = fresh_autoreg("train", *scenes, "-c", "train.toml", "-k", 4, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "next: autoreg export checkpoint.pt" in trained.stdout
    exported = fresh_autoreg("export", "--fp16", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "next: autoreg segment -m model.onnx" in exported.stdout
    segmented = fresh_autoreg("segment", *scenes, cwd=tmp_path)
    assert segmented.returncode == 0, segmented.stderr
    assert segmented.stdout.split() == ["out/0.tif", "out/1.tif"]
    assert "MPx/s" in segmented.stderr
    truth = tmp_path / "truth"
    truth.mkdir()
    for index, scene in enumerate(scenes):
        (truth / f"{index}.tif").write_bytes(scene.with_name(f"truth{index}.tif").read_bytes())
    evaluated = fresh_autoreg("evaluate", "out", "truth", "--json", cwd=tmp_path)
    result = json.loads(evaluated.stdout)
    assert 0.2 < result["accuracy"] <= 1
    assert result["pixels"] > 30_000
    assert "mIoU" in autoreg("evaluate", "out", "truth", cwd=tmp_path).stdout
    for name, expected in (
        ("checkpoint.pt", {"kind": "checkpoint", "classes": 4}),
        ("model.onnx", {"kind": "model", "precision": "fp16"}),
    ):
        described = json.loads(autoreg("info", name, "--json", cwd=tmp_path).stdout)
        assert {key: described[key] for key in expected} == expected
        assert "receptive_field_px" in autoreg("info", name, cwd=tmp_path).stdout
    made = ["checkpoint.log.jsonl", "checkpoint.pt", "checkpoint.report.html", "model.onnx", "out", "train.toml", "truth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == made


def test_a_bad_input_is_reported_and_the_others_are_done(model: Path, scenes: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not an image")
    three = save_raster(tmp_path / "three.tif", noise(3, 40, 40))
    result = autoreg("segment", text, scenes[0], three, tmp_path / "none.tif", "-m", model, "-o", tmp_path / "out", "--json")
    assert result.returncode == 3
    failed, line, *others = map(json.loads, result.stdout.splitlines())
    assert [one.keys() for one in (failed, *others)] == [{"source", "error"}] * 3
    assert (line["source"], line["tiling_dependent"]) == (str(scenes[0]), 0.0)
    for sentence in (
        "text.tif cannot be read as an image",
        "three.tif has 3 bands",
        "there is no file",
        "3 of 4 rasters failed",
    ):
        assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.tif", "0.tif.aux.xml"]


def test_a_model_that_looks_at_the_whole_tile_says_what_depends_on_the_tiling(
    model: Path, scenes: list[Path], tmp_path: Path
) -> None:
    content = onnx.load(model)
    spec = dataclasses.replace(ModelSpec.from_json(content.metadata_props[0].value), receptive_field_px=None)
    content.metadata_props[0].value = spec.to_json()
    onnx.save(content, tmp_path / "whole.onnx")
    assert re.search(r"^receptive_field_px +whole tile$", autoreg("info", "whole.onnx", cwd=tmp_path).stdout, re.MULTILINE)
    assert json.loads(autoreg("info", "whole.onnx", "--json", cwd=tmp_path).stdout)["receptive_field_px"] is None
    segmented = autoreg("segment", scenes[0], "-m", "whole.onnx", cwd=tmp_path)
    printed = re.fullmatch(
        r"out/0\.tif: (\d+\.\d\d) % of the labels depend on the tiling \(the model looks at the whole tile\)\n",
        segmented.stdout,
    )
    assert printed, segmented
    assert 0 < float(printed[1]) < 50
    again = autoreg("segment", scenes[0], "-m", "whole.onnx", "--json", "--overwrite", cwd=tmp_path)
    assert json.loads(again.stdout)["tiling_dependent"] == pytest.approx(float(printed[1]) / 100, abs=1e-4)


def test_mistakes_get_one_sentence(model: Path, checkpoint: Path, scenes: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not an image")
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps({"weights": 1}))
    wide = save_raster(tmp_path / "wide.tif", noise(4, 140, 140).astype(np.uint16))
    refused(autoreg("train", tmp_path / "none.tif", "-o", tmp_path / "c.pt"), "there is no file")
    refused(autoreg("train", text, "-o", tmp_path / "c.pt"), "text.tif cannot be read as an image")
    refused(autoreg("train", scenes[0], wide, "-o", tmp_path / "c.pt"), "wide.tif has pixels of type uint16")
    refused(autoreg("train", scenes[0], "-o", checkpoint), "exists; use --overwrite")
    refused(autoreg("train", scenes[0], "-o", "/proc/c.pt"), "cannot be written: No such file or directory in /proc")
    refused(autoreg("train", scenes[0], "-k", 1, "-o", tmp_path / "c.pt"), "classes is 1, expected 2 to 255")
    refused(autoreg("train", scenes[0], "--resume", "-o", tmp_path / "c.pt"), "there is no checkpoint")
    refused(autoreg("export", evil, "-o", tmp_path / "m.onnx"), "evil.pt is not a checkpoint that autoreg train wrote")
    refused(autoreg("export", tmp_path / "none.pt", "-o", tmp_path / "m.onnx"), "there is no checkpoint")
    refused(autoreg("export", checkpoint, "-o", model), "model.onnx exists")
    refused(autoreg("segment", scenes[0], "-m", evil, "-o", tmp_path / "out"), "evil.pt is not an ONNX model")
    refused(autoreg("segment", scenes[0], "-m", tmp_path / "none.onnx"), "there is no model")
    refused(autoreg("segment", scenes[0], "-m", model, "-o", "/proc/out"), "the folder /proc/out cannot be made")
    refused(autoreg("segment", wide, "-m", model, "-o", tmp_path / "out"), "wide.tif has pixels of type uint16", status=3)
    refused(autoreg("segment", scenes[0], "-m", model, "-o", scenes[0].parent), "would replace")
    refused(autoreg("segment", scenes[0], scenes[0], "-m", model, "-o", tmp_path / "out"), "would both be written")
    refused(autoreg("segment", scenes[0], "-m", model, "-o", tmp_path / "out", "--tile-px", 8), "leaves no core", status=3)
    refused(autoreg("evaluate", tmp_path / "none", tmp_path), "there is no file or folder")
    refused(autoreg("info", tmp_path / "none"), "there is no model")
    assert autoreg("segment").returncode == 2
    assert autoreg("train", scenes[0], "--zebra").returncode == 2


def test_an_existing_map_stops_everything_before_it_starts(model: Path, scenes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "1.tif").write_text("precious")
    refused(autoreg("segment", *scenes, "-m", model, "-o", tmp_path), "1.tif exists; use --overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["1.tif"]
    assert autoreg("segment", *scenes, "-m", model, "-o", tmp_path, "--overwrite", "-q").stderr == ""
    with rasterio.open(tmp_path / "1.tif") as dataset:
        assert dataset.nodata == 255


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"it ended with {process.wait()} and never said {text!r}")


def test_ctrl_c_leaves_a_checkpoint_that_can_be_resumed(scenes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text("stride = 2\nsteps = 5000\nbatch_size = 4\ncrop_px = 32\n")
    command = [*AUTOREG, "train", *map(str, scenes), "-c", "train.toml"]
    with subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(process, "step 1 of 5000")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in out
    made = ["checkpoint.log.jsonl", "checkpoint.pt", "checkpoint.report.html", "train.toml"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == made
    step = load_checkpoint(tmp_path / "checkpoint.pt").loop["step"]
    resumed = autoreg("train", *scenes, "--resume", "--steps", step + 2, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert load_checkpoint(tmp_path / "checkpoint.pt").loop["step"] == step + 2


def test_ctrl_c_leaves_no_half_written_map(model: Path, tmp_path: Path) -> None:
    source = save_raster(tmp_path / "large.tif", noise(4, 3000, 3000), tiled=True, blockxsize=512, blockysize=512)
    out = tmp_path / "out"
    command = [*AUTOREG, "segment", str(source), "-m", str(model), "-o", str(out)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (out.is_dir() and any(out.iterdir())):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert [path for path in out.iterdir() if path.name != ".large.tif.journal"] == []


@pytest.mark.parametrize("command", list(cli.commands))
def test_every_help_ends_in_examples(command: str) -> None:
    text = autoreg(command, "--help").stdout
    assert text.rstrip().splitlines()[-1].strip().startswith(f"autoreg {command}")


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A prepared data set of four labelled images, three for training; and maps of it in ``out``, with three clusters."""
    folder = tmp_path / "prepared"
    for path in (folder / "labels", tmp_path / "out"):
        path.mkdir(parents=True)
    truth = np.array([[[0, 0, 0, 1, 1, 255]]], np.uint8)
    for name, labels in (("a", [1, 1, 2, 0, 0, 0]), ("b", [1, 1, 2, 0, 0, 0]), ("c", [1, 2, 2, 0, 0, 0])):
        save_raster(folder / "labels" / f"{name}.tif", truth)
        save_raster(tmp_path / "out" / f"{name}.tif", np.array([[labels]], np.uint8))
    save_raster(folder / "labels" / "test.tif", truth)
    save_raster(tmp_path / "out" / "test.tif", np.array([[[0, 0, 2, 1, 1, 1]]], np.uint8))
    save_raster(tmp_path / "out" / "unlabelled.tif", np.zeros((1, 1, 6), np.uint8))
    (folder / "unlabelled_train.txt").write_text("unlabelled\n")
    (folder / "labelled_train.txt").write_text("a\nb\nc\n")
    (folder / "labelled_test.txt").write_text("test\n")
    return folder


def test_the_protocols_map_and_score_what_they_say(prepared: Path) -> None:
    for protocol, matching, expected, pixels in (
        ("iic", "one-to-one", (6 + 5) / 20, 20),
        ("iic", "many-to-one", (3 * 5 + 1) / 20, 20),
        ("labelled_test", "one-to-one", 4 / 5, 5),
        ("labelled_test", "many-to-one", 1.0, 5),
        ("iic+", "one-to-one", 0.0, 5),
        ("iic+", "many-to-one", 1 / 5, 5),
    ):
        options = ("--protocol", protocol, "--matching", matching, "--json")
        result = autoreg("evaluate", "out", "prepared", *options, cwd=prepared.parent)
        assert result.returncode == 0, result.stderr
        scores = json.loads(result.stdout)
        assert (scores["accuracy"], scores["pixels"]) == (pytest.approx(expected), pixels), (protocol, matching)
        assert scores["majority_share"] == pytest.approx(3 / 5)
        assert 0 < scores["nmi"] <= 1


def test_the_table_names_every_cluster_of_a_class(prepared: Path) -> None:
    words = ("evaluate", "out", "prepared", "--protocol", "labelled_test", "--matching", "many-to-one")
    table = autoreg(*words, cwd=prepared.parent).stdout.splitlines()
    assert re.fullmatch(
        r"accuracy 100\.00 %   mIoU 100\.00 %   NMI 0\.\d{4}   most frequent class 60\.00 %   5 pixels", table[0]
    )
    assert [line.split() for line in table[3:]] == [
        ["0", "0", "2", "60.00", "100.00", "100.00"],
        ["1", "1", "40.00", "100.00", "100.00"],
    ]
    # One to one, cluster 2 is left over.
    one = autoreg(*words[:-2], cwd=prepared.parent).stdout.splitlines()
    assert [line.split() for line in one[3:]] == [
        ["0", "0", "60.00", "66.67", "66.67"],
        ["1", "1", "40.00", "100.00", "100.00"],
    ]


def test_the_mapping_is_found_on_some_pairs_and_scored_on_the_others(prepared: Path) -> None:
    (prepared.parent / "out" / "unlabelled.tif").unlink()
    words = ("evaluate", "out", "prepared/labels", "--matching", "many-to-one", "--json", "--map-on")
    left_out = {}
    for seed in range(20):
        _, (scored,) = split_pairs(pair_files(prepared.parent / "out", prepared / "labels"), 3, seed)
        left_out[scored[0].stem] = seed
    assert set(left_out) == {"a", "b", "c", "test"}
    for name, seed in left_out.items():
        scores = json.loads(autoreg(*words, 3, "--seed", seed, cwd=prepared.parent).stdout)
        assert (scores["accuracy"], scores["pixels"]) == (pytest.approx(1 / 5 if name == "test" else 1), 5)
    assert json.loads(autoreg(*words, 1, cwd=prepared.parent).stdout)["pixels"] == 15


def test_mistakes_of_evaluate_get_one_sentence(prepared: Path) -> None:
    def evaluated(*words: object) -> subprocess.CompletedProcess[str]:
        return autoreg("evaluate", *words, cwd=prepared.parent)

    refused(evaluated("out", "prepared", "--protocol", "best"), "there is no protocol 'best', expected one of iic,")
    refused(evaluated("out", "out", "--protocol", "iic"), "out is not a prepared data set")
    refused(evaluated("out", "prepared", "--protocol", "iic", "--map-on", 1), "both say what to match on; leave one out")
    refused(evaluated("out", "out", "--matching", "best"), "there is no matching 'best'")
    refused(evaluated("out", "out", "--map-on", 5), "the number of pairs to map on is 5, expected 1 to 4")
    refused(evaluated("out", "out", "--map-on", 0), "the number of pairs to map on is 0, expected 1 to 4")
    refused(evaluated("out/a.tif", "out/b.tif", "--map-on", 1), "maps with a truth is 1, expected at least 2")
    (prepared.parent / "out" / "b.tif").unlink()
    refused(evaluated("out", "prepared", "--protocol", "iic"), "out has no map named b")
    assert evaluated("out", "out", "--map-on", 1, "--seed", -1).returncode == 2


def test_a_method_to_compare_with_goes_through_the_whole_chain(scenes: list[Path], tmp_path: Path) -> None:
    for index, scene in enumerate(scenes):
        for folder, source in (("images", scene), ("truth", scene.with_name(f"truth{index}.tif"))):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{index}.tif").write_bytes(source.read_bytes())
    (tmp_path / "small.toml").write_text("stride = 2\nbatch_size = 4\ncrop_px = 32\n")
    trained = autoreg("baseline", "kmeans", *scenes, "-c", "small.toml", "-k", 5, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "step 0 of 0" in trained.stdout
    assert autoreg("export", cwd=tmp_path).returncode == 0
    assert autoreg("segment", "images/0.tif", "images/1.tif", cwd=tmp_path).returncode == 0
    scores = json.loads(autoreg("evaluate", "out", "truth", "--json", cwd=tmp_path).stdout)
    assert 0.2 < scores["accuracy"] <= 1
    probed = autoreg("probe", "checkpoint.pt", "images", "truth", "--json", cwd=tmp_path)
    assert probed.returncode == 0, probed.stderr
    assert json.loads(probed.stdout)["accuracy"] > 0.2
    refused(
        autoreg("baseline", "magic", *scenes, cwd=tmp_path), "there is no baseline 'magic', expected one of random, kmeans"
    )
    refused(
        autoreg("baseline", "kmeans", *scenes, "--steps", 5, cwd=tmp_path), "network pixels with features trains nothing"
    )
    refused(
        autoreg("train", *scenes, "--preset", "mars", cwd=tmp_path), "there is no preset 'mars', expected one of coco-stuff3"
    )
    refused(autoreg("probe", "checkpoint.pt", "images", "truth", "--kind", "cubic", cwd=tmp_path), "probe's kind is 'cubic'")


def test_data_prepares_what_train_and_evaluate_take(tmp_path: Path) -> None:
    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    colours = np.array([[255, 255, 255], [0, 0, 255], [0, 255, 0]], np.uint8)
    for name in ("2_10", "2_11"):
        truth = rng.integers(0, 3, (20, 20)).repeat(40, axis=0).repeat(40, axis=1)
        image = np.concatenate([colours[truth].transpose(2, 0, 1) // 2, rng.integers(0, 50, (1, 800, 800))]).astype(np.uint8)
        for folder, suffix, pixels in (
            ("4_Ortho_RGBIR", "RGBIR", image),
            ("5_Labels_for_participants", "label", colours[truth].transpose(2, 0, 1)),
        ):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            save_raster(raw / folder / f"top_potsdam_{name}_{suffix}.tif", pixels)
    made = autoreg("data", "potsdam3", raw, tmp_path / "potsdam3")
    assert made.returncode == 0, made.stderr
    assert "0 images without labels, 7 with labels to train, 1 to test" in made.stdout
    images = sorted((tmp_path / "potsdam3" / "images").glob("*.tif"))
    assert len(images) == 8
    trained = autoreg("baseline", "kmeans", *images, "-k", 3, "-o", tmp_path / "c.pt")
    assert trained.returncode == 0, trained.stderr
    assert autoreg("export", tmp_path / "c.pt", "-o", tmp_path / "m.onnx").returncode == 0
    assert autoreg("segment", *images, "-m", tmp_path / "m.onnx", "-o", tmp_path / "out").returncode == 0
    scored = autoreg("evaluate", tmp_path / "out", tmp_path / "potsdam3", "--protocol", "iic", "--json")
    assert json.loads(scored.stdout)["pixels"] == 8 * 200 * 200
    words = ["probe", tmp_path / "c.pt", tmp_path / "potsdam3" / "images", tmp_path / "potsdam3", "--protocol", "iic+"]
    probed = json.loads(autoreg(*words, "--json").stdout)
    assert (probed["pixels"], probed["accuracy"]) == (200 * 200, 1.0)  # each class has its own colour
    refused(autoreg(*words, "--train-on", 2), "--protocol iic+ and --train-on 2 both say what to train on")
    refused(autoreg("data", "mars", raw, tmp_path / "mars"), "there is no data set 'mars'")
    refused(autoreg("data", "potsdam", raw, tmp_path / "potsdam3"), "exists and is not empty; use --overwrite")


def test_orderings_are_drawn(tmp_path: Path) -> None:
    drawn = autoreg("orderings", tmp_path / "figures")
    assert drawn.returncode == 0, drawn.stderr
    names = ["orderings", "attention_masks", "kernels", "receptive_fields"]
    assert [Path(line).stem for line in drawn.stdout.splitlines()] == names
    refused(autoreg("orderings", tmp_path / "figures"), "exists; use --overwrite")
