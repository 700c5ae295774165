"""Models whose clusters are known: each pixel belongs to the nearest of K brightnesses."""

import dataclasses
import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autoreg import load_engine, segment_array, segment_raster
from autoreg.errors import ConfigError, ModelError, OutputError, RasterError
from autoreg.evaluation import pair_labelled
from autoreg.naming import match_to_model, match_to_truth, read_legend, write_classes
from autoreg.raster.palette import unnamed_classes
from autoreg.spec import METADATA_KEY, MapClass, ModelSpec
from conftest import save_raster
from forks import autoreg
from test_cli import AUTOREG, refused

GREY = np.arange(0, 200, 40)  # 0, 40, 80, 120, 160


def save_model(path: Path, centres: Sequence[int]) -> Path:
    """A model of one band whose cluster k is what is nearest to ``centres[k]``; the largest of linear functions says so."""
    values = np.array(centres, np.float32)
    weights = numpy_helper.from_array((2 * values)[:, None, None, None], "weights")
    bias = numpy_helper.from_array(-(values**2), "bias")
    nodes = [
        helper.make_node("Conv", ["image", "weights", "bias"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["indices"], axis=1, keepdims=0),
        helper.make_node("Cast", ["indices"], ["labels"], to=TensorProto.UINT8),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, "height", "width"])
    labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, ["batch", "height", "width"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(centres), "height", "width"])
    graph = helper.make_graph(nodes, "nearest", [image], [labels, logits], [weights, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spec = ModelSpec(
        bands=("grey",),
        dtype="uint8",
        classes=unnamed_classes(len(centres)),
        stride=1,
        receptive_field_px=1,
        crop_px=32,
        mean=(0.0,),
        std=(1.0,),
        precision="fp32",
        checkpoint_digest="",
        agreement=1.0,
        autoreg_version="0.1.0",
    )
    helper.set_model_props(model, {METADATA_KEY: spec.to_json(), "author": "somebody"})
    onnx.save(model, path)
    return path


def save_pair(folder: Path, name: str, truth_of: Sequence[int], seed: int = 0) -> tuple[Path, Path]:
    """An image of patches of the grey values with noise, and its truth: the class of each grey value; a quarter has none."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, len(truth_of), (9, 12)).repeat(7, axis=0).repeat(7, axis=1)
    image = (GREY[index] + rng.integers(0, 15, index.shape)).astype(np.uint8)
    truth = np.array(truth_of, np.uint8)[index]
    truth[:16] = 255
    for part in ("images", "truth"):
        (folder / part).mkdir(exist_ok=True)
    return (
        save_raster(folder / "images" / f"{name}.tif", image[None]),
        save_raster(folder / "truth" / f"{name}.tif", truth[None]),
    )


def read(path: Path) -> NDArray[np.uint8]:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read(1))


def map_of(model: Path, image: Path) -> NDArray[np.uint8]:
    target = model.with_suffix(".map.tif")
    segment_raster(load_engine(model), image, target, overwrite=True)
    return read(target)


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_one_to_one_gives_the_labels_of_the_truth(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", [80, 0, 160, 40, 120])
    pairs = [save_pair(tmp_path, str(seed), [10, 20, 30, 200, 50], seed) for seed in range(3)]
    seen: list[tuple[int, int]] = []
    matched = match_to_truth(model, pairs, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert matched.scores.accuracy == 1.0
    assert [(item.label, item.name, item.clusters) for item in matched.classes] == [
        (10, "class 10", (1,)),
        (20, "class 20", (3,)),
        (30, "class 30", (0,)),
        (50, "class 50", (2,)),
        (200, "class 200", (4,)),
    ]
    assert len({item.colour for item in matched.classes}) == 5
    write_classes(model, model, matched.classes, overwrite=True)
    for image, truth in pairs:
        known = read(truth) != 255
        np.testing.assert_array_equal(map_of(model, image)[known], read(truth)[known])
        np.testing.assert_array_equal(segment_array(load_engine(model), read(image)[None]), map_of(model, image))


def test_the_map_carries_names_and_colours(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", [80, 0])
    image, _ = save_pair(tmp_path, "a", [0, 0, 1])
    classes = (
        MapClass(3, "Gewässer, <tief>", "#0102fe", (1,)),
        MapClass(9, "nothing", "#777777"),
        MapClass(5, "b", "#ff0000", (0,)),
    )
    spec = write_classes(model, model, classes, overwrite=True)
    assert [item.label for item in spec.classes] == [3, 5, 9]
    segment_raster(load_engine(model), image, tmp_path / "map.tif")
    assert not (tmp_path / "map.tif.aux.xml").exists()  # nothing is lost where a sidecar file is
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert set(np.unique(dataset.read(1))) == {3, 5}
        table = {label: colour for label, colour in dataset.colormap(1).items() if any(colour[:3])}
        assert table == {3: (1, 2, 254, 255), 5: (255, 0, 0, 255), 9: (119, 119, 119, 255)}
        rows = json.loads(dataset.tags()["AUTOREG_CLASSES"])
        assert [(row["label"], row["name"]) for row in rows] == [(3, "Gewässer, <tief>"), (5, "b"), (9, "nothing")]
        assert dataset.tags()["AUTOREG_MODEL_SHA256"] == load_engine(model).model_digest


def test_many_to_one_with_the_users_names(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", [80, 0, 160, 40, 120])
    image, truth = save_pair(tmp_path, "a", [1, 1, 0, 1, 0])
    legend = (MapClass(0, "land", "#00ff00"), MapClass(1, "water", "#0000ff"), MapClass(2, "snow", "#ffffff"))
    matched = match_to_truth(model, [(image, truth)], matching="many-to-one", legend=legend)
    assert [item.clusters for item in matched.classes] == [(0, 2), (1, 3, 4), ()]
    assert [item.name for item in matched.classes] == ["land", "water", "snow"]
    write_classes(model, model, matched.classes, overwrite=True)
    known = read(truth) != 255
    np.testing.assert_array_equal(map_of(model, image)[known], read(truth)[known])
    with pytest.raises(ConfigError, match="the truth has the label 1, but the legend has only 0, 2; add a class"):
        match_to_truth(model, [(image, truth)], legend=(legend[0], legend[2]))


def test_a_cluster_that_stands_for_nothing_stays_visible(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", [80, 0, 160, 40, 120])
    # Patches of 0 and 160 are the most of their classes; 250 is no brightness of these images.
    image, truth = save_pair(tmp_path, "a", [2, 2, 254, 254, 254])
    matched = match_to_truth(model, [(image, truth)])
    assert matched.classes[-1].label == 254
    assert [(item.label, item.name) for item in matched.classes[:4]] == [
        (0, "unnamed 0"),  # no label is free above 254
        (1, "unnamed 1"),
        (2, "class 2"),
        (3, "unnamed 3"),
    ]
    assert sorted(cluster for item in matched.classes for cluster in item.clusters) == [0, 1, 2, 3, 4]
    assert len({item.colour for item in matched.classes}) == 5
    write_classes(model, model, matched.classes, overwrite=True)
    assert set(np.unique(map_of(model, image))) == {0, 1, 2, 3, 254}
    # Where there is room, they follow the others; a cluster without pixels is no exception.
    many = save_model(tmp_path / "many.onnx", [80, 0, 250, 160, 40, 120])
    image, truth = save_pair(tmp_path, "b", [2, 2, 5, 5, 5])
    matched = match_to_truth(many, [(image, truth)], matching="many-to-one")
    assert [(item.label, item.name, item.clusters) for item in matched.classes] == [
        (2, "class 2", (1, 4)),
        (5, "class 5", (0, 3, 5)),
        (6, "unnamed 6", (2,)),
    ]


def test_the_colours_of_the_truth_are_taken_over(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", [0, 40, 80])
    image, truth = save_pair(tmp_path, "a", [0, 1, 1])
    with rasterio.open(truth, "r+") as dataset:
        dataset.write_colormap(1, {0: (1, 2, 3), 1: (254, 0, 16)})
    matched = match_to_truth(model, [(image, truth)])
    assert [item.colour for item in matched.classes[:2]] == ["#010203", "#fe0010"]
    assert matched.classes[2].colour not in ("#010203", "#fe0010")


def test_matching_again_forgets_the_earlier_names_and_touches_the_spec_alone(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", [80, 0, 160, 40, 120])
    original = onnx.load(model)
    pairs = [save_pair(tmp_path, "a", [4, 3, 2, 1, 0])]
    named = tmp_path / "named.onnx"
    write_classes(model, named, match_to_truth(model, pairs).classes)
    once = named.read_bytes()
    write_classes(named, named, (MapClass(0, "all", "#000000", (0, 1, 2, 3, 4)),), overwrite=True)
    assert set(np.unique(map_of(named, pairs[0][0]))) == {0}
    write_classes(named, named, match_to_truth(named, pairs).classes, overwrite=True)
    assert named.read_bytes() == once
    written = onnx.load(named)
    onnx.checker.check_model(written, full_check=True)
    assert written.graph.SerializeToString() == original.graph.SerializeToString()
    before, after = ({entry.key: entry.value for entry in content.metadata_props} for content in (original, written))
    assert [key for key in before | after if before.get(key) != after.get(key)] == [METADATA_KEY]
    specs = ModelSpec.from_json(before[METADATA_KEY]), ModelSpec.from_json(after[METADATA_KEY])
    assert dataclasses.replace(specs[1], classes=specs[0].classes) == specs[0]
    del original.metadata_props[:], written.metadata_props[:]
    assert original.SerializeToString() == written.SerializeToString()


@pytest.mark.parametrize("seed", range(3))
def test_a_new_model_goes_on_with_the_labels_of_an_earlier_one(seed: int, tmp_path: Path) -> None:
    earlier = save_model(tmp_path / "earlier.onnx", GREY.tolist())
    # The same clusters, numbered otherwise and drawn a little differently.
    new = save_model(tmp_path / "new.onnx", (np.random.default_rng(seed).permutation(GREY) + 3).tolist())
    images = [save_pair(tmp_path, name, [0, 1, 2, 3, 4], index)[0] for index, name in enumerate("ab")]
    # Nobody has named the earlier one: its numbers go on.
    matched = match_to_model(new, images, earlier=earlier)
    write_classes(new, new, matched.classes, overwrite=True)
    for image in images:
        np.testing.assert_array_equal(map_of(new, image), map_of(earlier, image))
    named = (MapClass(7, "dark", "#111111", (0, 2)), MapClass(8, "light", "#eeeeee", (1, 3, 4)))
    write_classes(earlier, earlier, named, overwrite=True)
    matched = match_to_model(new, images, earlier=earlier)  # many clusters of a class there, so many here
    assert [(item.label, item.name, item.colour) for item in matched.classes] == [
        (7, "dark", "#111111"),
        (8, "light", "#eeeeee"),
    ]
    write_classes(new, new, matched.classes, overwrite=True)
    for image in images:
        np.testing.assert_array_equal(map_of(new, image), map_of(earlier, image))


def test_a_new_model_with_more_clusters_gives_the_others_free_numbers(tmp_path: Path) -> None:
    earlier = save_model(tmp_path / "earlier.onnx", [0, 80, 160])
    new = save_model(tmp_path / "new.onnx", [160, 121, 0, 39, 80])
    image = save_raster(tmp_path / "a.tif", np.repeat(GREY, (30, 10, 30, 10, 30)).astype(np.uint8).reshape(1, 10, 11))
    classes = match_to_model(new, [image], earlier=earlier).classes
    assert [(item.label, item.name, item.clusters) for item in classes if item.label in (0, 1, 2)] == [
        (0, "cluster 0", (2,)),
        (1, "cluster 1", (4,)),
        (2, "cluster 2", (0,)),
    ]
    assert [(item.label, item.name, item.clusters) for item in classes[3:]] == [
        (3, "unnamed 3", (1,)),
        (4, "unnamed 4", (3,)),
    ]
    fewer = match_to_model(earlier, [image], earlier=new).classes
    assert [item.label for item in fewer] == [0, 1, 2, 3, 4]  # a number is never given to something else
    assert [item.clusters for item in fewer] == [(2,), (), (0,), (), (1,)]


def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", [0, 40])
    image, truth = save_pair(tmp_path, "a", [0, 1])
    small = save_raster(tmp_path / "small.tif", np.zeros((1, 5, 6), np.uint8))
    wide = save_raster(tmp_path / "wide.tif", np.zeros((3, 63, 84), np.uint8))
    unknown = save_raster(tmp_path / "unknown.tif", np.full((1, 63, 84), 255, np.uint8))
    with pytest.raises(RasterError, match=r"small\.tif has 1 bands of uint8 and 5 x 6 px, expected a truth for .*a\.tif"):
        match_to_truth(model, [(image, truth), (image, small)])
    with pytest.raises(RasterError, match=r"wide\.tif has 3 bands"):
        match_to_truth(model, [(wide, truth)])
    with pytest.raises(RasterError, match="no pixel has both a label and a true class"):
        match_to_truth(model, [(image, unknown)])
    with pytest.raises(ConfigError, match="there is no matching 'given', expected one of one-to-one, many-to-one"):
        match_to_truth(model, [(image, truth)], matching="given")
    with pytest.raises(ModelError, match="there is no model"):
        match_to_model(model, [image], earlier=tmp_path / "none.onnx")
    for classes, message in (
        ((MapClass(0, "a", "#000000", (0,)),), "do not fit .*: cluster 1 is in none of its classes, expected each of"),
        ((MapClass(0, "a", "#000000", (0, 1, 2)),), "it lists cluster 2, expected each of the clusters 0 to 1"),
        ((MapClass(0, "a", "#000000", (0, 1)), MapClass(1, "b", "#000000", (1,))), "cluster 1 is in 2 of its classes"),
        ((MapClass(0, "a", "#000000", (0,)), MapClass(1, "a", "#000000", (1,))), "2 of its classes have the name 'a'"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_classes(model, tmp_path / "new.onnx", classes)
    with pytest.raises(OutputError, match=r"m\.onnx exists; use --overwrite"):
        write_classes(model, model, unnamed_classes(2))
    assert not (tmp_path / "new.onnx").exists()


def test_images_are_paired_with_the_truths_that_there_are(tmp_path: Path) -> None:
    pairs = {name: save_pair(tmp_path, name, [0, 1]) for name in "abc"}
    images, truth = tmp_path / "images", tmp_path / "truth"
    pairs["b"][1].unlink()
    assert pair_labelled([images], truth) == [pairs["a"], pairs["c"]]
    assert pair_labelled([pairs["b"][0], pairs["c"][0]], truth) == [pairs["c"]]
    assert pair_labelled([pairs["b"][0]], pairs["a"][1]) == [(pairs["b"][0], pairs["a"][1])]
    for wrong, other, message in (
        ([images, images], truth, r"a\.tif and .*a\.tif have one name"),
        ([images], pairs["a"][1], r"a\.tif is a file, expected a folder with truths for 3 images"),
        ([pairs["b"][0]], truth, "none of 1 images has a truth of its name"),
        ([tmp_path / "none"], truth, "there is no file or folder .*none"),
        ([images], tmp_path / "none", "there is no file or folder .*none"),
    ):
        with pytest.raises(RasterError, match=message):
            pair_labelled(wrong, other)


def test_a_write_that_fails_leaves_the_model(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", [0, 40])
    content = model.read_bytes()
    classes = (MapClass(0, "a", "#000000", (0,)), MapClass(1, "b", "#ffffff", (1,)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"m\.onnx was not written: File too large"):
            write_classes(model, model, classes, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert model.read_bytes() == content
    assert list(tmp_path.iterdir()) == [model]


def test_the_command_names_a_model_and_its_maps_are_scored_as_they_are(tmp_path: Path) -> None:
    save_model(tmp_path / "m.onnx", [80, 0, 160, 40, 120])
    for seed, name in enumerate("ab"):
        save_pair(tmp_path, name, [1, 1, 0, 1, 0], seed)
    (tmp_path / "legend.toml").write_text('[[classes]]\nname = "land"\n[[classes]]\nname = "water"\ncolour = "#0000ff"\n')
    words = ("match", "m.onnx", "images", "--truth", "truth", "--classes", "legend.toml", "--matching", "many-to-one")
    matched = autoreg(*words, cwd=tmp_path)
    assert matched.returncode == 0, matched.stderr
    first, _, *table, last = matched.stdout.splitlines()
    assert re.fullmatch(r"100\.00 % of \d+ pixels are as in truth, mIoU 100\.00 %", first)
    assert [line.split()[:4] for line in table[1:]] == [["0", "land", "#1f69c9", "0"], ["1", "water", "#0000ff", "1"]]
    assert table[2].split()[3:6] == ["1", "3", "4"]
    assert last == "next: autoreg segment -m m.onnx TILES..."
    described = autoreg("info", "m.onnx", cwd=tmp_path).stdout
    assert "0 land #1f69c9 (clusters 0 2)\n" in described
    assert "  1 water #0000ff (clusters 1 3 4)\n" in described
    assert autoreg("segment", "images/a.tif", "images/b.tif", "-m", "m.onnx", cwd=tmp_path).returncode == 0
    scores = json.loads(autoreg("evaluate", "out", "truth", "--matching", "given", "--json", cwd=tmp_path).stdout)
    assert (scores["accuracy"], scores["matching"]) == (1.0, [0, 1])
    # One to one, clusters are left over: their pixels are wrong, whatever could be matched to them.
    again = json.loads(autoreg("match", "m.onnx", "images", "--truth", "truth", "--json", cwd=tmp_path).stdout)
    assert len(again["classes"]) == 5
    autoreg("segment", "images/a.tif", "images/b.tif", "-m", "m.onnx", "--overwrite", cwd=tmp_path)
    scores = json.loads(autoreg("evaluate", "out", "truth", "--matching", "given", "--json", cwd=tmp_path).stdout)
    assert scores["accuracy"] == pytest.approx(again["accuracy"])
    assert scores["accuracy"] < 1


def test_the_command_takes_a_mapping_by_hand_and_an_earlier_model(tmp_path: Path) -> None:
    save_model(tmp_path / "old.onnx", GREY.tolist())
    save_model(tmp_path / "new.onnx", GREY[::-1].tolist())
    image, _ = save_pair(tmp_path, "a", [0, 1, 2, 3, 4])
    (tmp_path / "hand.toml").write_text(
        '[[classes]]\nname = "dark"\nclusters = [0, 1]\n[[classes]]\nname = "light"\nclusters = [4, 3, 2]\n'
    )
    by_hand = autoreg("match", "old.onnx", "--classes", "hand.toml", "-o", "named.onnx", cwd=tmp_path)
    assert by_hand.returncode == 0, by_hand.stderr
    assert [line.split() for line in by_hand.stdout.splitlines()[1:3]] == [
        ["0", "dark", "#1f69c9", "0", "1"],
        ["1", "light", "#187a38", "2", "3", "4"],
    ]
    assert load_engine(tmp_path / "named.onnx").spec.classes == read_legend(tmp_path / "hand.toml")
    like = autoreg("match", "new.onnx", image, "--like", "named.onnx", cwd=tmp_path)
    assert "100.00 % of 5292 pixels are as in named.onnx" in like.stdout
    np.testing.assert_array_equal(map_of(tmp_path / "new.onnx", image), map_of(tmp_path / "named.onnx", image))
    refused(autoreg("match", "old.onnx", "--classes", "hand.toml", "-o", "new.onnx", cwd=tmp_path), "new.onnx exists; use")


def test_mistakes_of_the_command_get_one_sentence(tmp_path: Path) -> None:
    save_model(tmp_path / "m.onnx", GREY.tolist())
    save_pair(tmp_path, "a", [0, 1, 2, 3, 4])
    (tmp_path / "names.toml").write_text('[[classes]]\nname = "dark"\n')
    (tmp_path / "hand.toml").write_text('[[classes]]\nname = "dark"\nclusters = [0, 1]\n')
    content = (tmp_path / "m.onnx").read_bytes()
    for words, message in (
        ("m.onnx", "nothing says what the clusters stand for; give --truth, --like, or --classes with clusters"),
        ("m.onnx images --classes names.toml", "nothing says what the clusters stand for"),
        ("m.onnx images --truth truth --like m.onnx", "--truth and --like both say what the clusters stand for"),
        ("m.onnx --like m.onnx --classes hand.toml", "--like and the clusters in hand.toml both say"),
        ("m.onnx images/a.tif --like m.onnx --classes names.toml", "so --classes would have no effect; leave it out"),
        ("m.onnx --truth truth", "--truth was given without IMAGES"),
        (
            "m.onnx images --classes hand.toml",
            "hand.toml say what they stand for, so IMAGES would have no effect; leave it out",
        ),
        ("m.onnx --classes hand.toml --matching one-to-one", "so --matching would have no effect; leave it out"),
        ("m.onnx --classes hand.toml", "the classes do not fit m.onnx: cluster 2 is in none of its classes"),
        ("m.onnx --classes none.toml", "none.toml cannot be read"),
        ("none.onnx images --truth truth -o n.onnx", "there is no model none.onnx"),
        ("m.onnx images --truth none", "there is no file or folder none"),
        (
            "m.onnx images --truth truth --matching best",
            "there is no matching 'best', expected one of one-to-one, many-to-one",
        ),
        ("m.onnx images --like m.onnx", "images is a folder, expected an image file such as images/*.tif"),
        ("m.onnx images --truth truth -o none/n.onnx", "there is no folder none"),
    ):
        refused(autoreg("match", *words.split(), cwd=tmp_path), message)
    assert (tmp_path / "m.onnx").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hand.toml", "images", "m.onnx", "names.toml", "truth"]


def test_ctrl_c_leaves_the_model(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", GREY.tolist())
    content = model.read_bytes()
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 60_000, "width": 60_000, "sparse_ok": True}
    with rasterio.open(tmp_path / "large.tif", "w", tiled=True, **profile):
        pass
    (tmp_path / "tmp").mkdir()
    command = [*AUTOREG, "match", "m.onnx", "large.tif", "--like", "m.onnx"]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not any((tmp_path / "tmp").glob("*/*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert model.read_bytes() == content
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.tif", "m.onnx", "tmp"]
