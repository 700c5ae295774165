import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from autoreg.datasets import DATASETS, prepare, read_split
from autoreg.datasets.layout import image_path, label_path
from autoreg.datasets.potsdam import decode_colours, split_labelled
from autoreg.errors import ConfigError, OutputError, RasterError
from autoreg.raster.gdal import open_dataset
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from conftest import save_raster

COLOURS = {0: (255, 255, 255), 1: (0, 0, 255), 2: (0, 255, 255), 3: (0, 255, 0), 4: (255, 255, 0), 5: (255, 0, 0)}
MERGED = {0: 0, 4: 0, 1: 1, 5: 1, 2: 2, 3: 2, 255: 255}
SHAPE = (830, 1210)
"""Two rows of three pieces, and something left over on both sides."""
IMAGES, LABELS = "4_Ortho_RGBIR", "5_Labels_for_participants"
TRANSFORM = rasterio.Affine(0.05, 0, 368_000, 0, -0.05, 5_808_000)


def make_tile(raw: Path, tile: str, *, labels: str | None = LABELS, place: dict[str, Any] | None = None) -> None:
    """A raw tile of noise, seeded by its name, and labels of noise in the folder ``labels``."""
    rng = np.random.default_rng([*tile.encode()])
    (raw / IMAGES).mkdir(parents=True, exist_ok=True)
    # GDAL's own default takes the fourth band for alpha.
    image = rng.integers(0, 256, (4, *SHAPE), np.uint8)
    save_raster(raw / IMAGES / f"top_potsdam_{tile}_RGBIR.tif", image, alpha="yes", **(place or {}))
    if labels:
        (raw / labels).mkdir(parents=True, exist_ok=True)
        colours = np.array(list(COLOURS.values()), np.uint8)[rng.integers(0, 6, SHAPE)].transpose(2, 0, 1)
        save_raster(raw / labels / f"top_potsdam_{tile}_label.tif", colours, **(place or {}))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles with labels, one without."""
    folder = tmp_path_factory.mktemp("potsdam")
    make_tile(folder, "2_10", place={"crs": "EPSG:32633", "transform": TRANSFORM})
    make_tile(folder, "6_7")
    make_tile(folder, "2_13", labels=None)
    return folder


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "potsdam"
    prepare("potsdam", raw, out)
    return out


def read(path: Path) -> NDArray[np.uint8]:
    with open_dataset(path) as dataset:
        return np.asarray(dataset.read())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def ids(*tiles: str) -> list[str]:
    return sorted(f"{tile}_{row:02d}_{col:02d}" for tile in tiles for row in range(2) for col in range(3))


@pytest.mark.parametrize("tile", ["2_10", "6_7", "2_13"])
def test_pieces_are_the_halved_tile(raw: Path, prepared: Path, tile: str) -> None:
    whole = read(raw / IMAGES / f"top_potsdam_{tile}_RGBIR.tif")
    for row in range(2):
        for col in range(3):
            piece = read(image_path(prepared, f"{tile}_{row:02d}_{col:02d}"))
            assert piece.shape == (4, 200, 200)
            source = whole[:, row * 400 : row * 400 + 400, col * 400 : col * 400 + 400].astype(float)
            means = np.stack([source[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(axis=0)
            np.testing.assert_array_equal(piece, np.floor(means + 0.5))


@pytest.mark.parametrize("name", ["potsdam", "potsdam3"])
def test_labels_are_the_classes_of_every_second_pixel(raw: Path, prepared: Path, tmp_path: Path, name: str) -> None:
    folder = prepared if name == "potsdam" else tmp_path / "out"
    if name == "potsdam3":
        result = prepare(name, raw, folder)
        assert result.classes == ("road and car", "building and clutter", "vegetation and tree")
    whole = read(raw / LABELS / "top_potsdam_6_7_label.tif")
    labels = read(label_path(folder, "6_7_01_02"))
    assert labels.shape == (1, 200, 200)
    classes = {colour: label for label, colour in COLOURS.items()}
    for row in range(0, 200, 7):
        for col in range(0, 200, 3):
            red, green, blue = whole[:, 400 + 2 * row, 800 + 2 * col].tolist()
            expected = classes[red, green, blue]
            assert labels[0, row, col] == (expected if name == "potsdam" else MERGED[expected])


def test_bands_are_named_and_near_infrared_is_not_alpha(prepared: Path) -> None:
    with RasterReader(image_path(prepared, "6_7_00_00")) as raster:
        assert raster.bands == ("red", "green", "blue", "nir")
        _, valid = raster.read(Window(0, 0, 200, 200))
    assert valid.all()


def test_pieces_lie_where_the_tile_lies(prepared: Path) -> None:
    for path in (image_path, label_path):
        with open_dataset(path(prepared, "2_10_01_02")) as dataset:
            assert dataset.crs == rasterio.CRS.from_epsg(32633)
            expected = (0.1, 0, 368_000 + 800 * 0.05, 0, -0.1, 5_808_000 - 400 * 0.05)
            np.testing.assert_allclose(dataset.transform[:6], expected, rtol=0, atol=1e-6)
    with RasterReader(image_path(prepared, "6_7_01_02")) as raster:
        assert raster.georeference == {}


def test_lists_are_disjoint_and_complete(prepared: Path) -> None:
    unlabelled, train, test = (
        read_split(prepared, name) for name in ("unlabelled_train", "labelled_train", "labelled_test")
    )
    assert unlabelled == ids("2_13")
    assert sorted(train + test) == ids("2_10", "6_7")
    assert len(test) == round(12 * 855 / 5400) == 2
    assert sorted(path.stem for path in (prepared / "images").iterdir()) == ids("2_10", "6_7", "2_13")
    assert sorted(path.stem for path in (prepared / "labels").iterdir()) == ids("2_10", "6_7")


def test_the_split_is_a_function_of_the_seed_and_has_the_original_sizes() -> None:
    names = [f"{tile}_{piece}" for tile in range(24) for piece in range(225)]
    train, test = split_labelled(names, 0)
    assert (len(train), len(test)) == (4545, 855)
    assert not set(train) & set(test)
    assert (train, test) == split_labelled(names[::-1], 0)
    assert test != split_labelled(names, 1)[1]


def test_the_same_command_makes_the_same_bytes_and_iic_compat_changes_the_tag_alone(raw: Path, tmp_path: Path) -> None:
    written = []
    for index, iic_compat in enumerate((False, False, True)):
        prepare("potsdam", raw, tmp_path / str(index), iic_compat=iic_compat)
        written.append(tree(tmp_path / str(index)))
    assert written[0] == written[1]
    assert written[0].keys() == written[2].keys()
    for name, content in written[0].items():
        if name.endswith(".txt"):
            assert content == written[2][name]
    for path in (image_path, label_path):
        with (
            open_dataset(path(tmp_path / "0", "2_10_00_01")) as one,
            open_dataset(path(tmp_path / "2", "2_10_00_01")) as two,
        ):
            np.testing.assert_array_equal(one.read(), two.read())
            assert (one.tags()["iic_compat"], two.tags()["iic_compat"]) == ("false", "true")


def test_what_is_reported(raw: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    result = prepare("potsdam", raw, tmp_path / "out", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert (result.folder, result.unlabelled_train, result.labelled_train, result.labelled_test) == (
        tmp_path / "out",
        6,
        10,
        2,
    )
    assert result.bands == ("red", "green", "blue", "nir")
    assert result.classes == ("road", "building", "low vegetation", "tree", "car", "clutter")


def test_colours_of_no_class_are_ignored_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = tmp_path / "raw"
    make_tile(raw, "2_10", place={"crs": "EPSG:32633", "transform": TRANSFORM})
    make_tile(raw, "2_13", labels=None)
    path = raw / LABELS / "top_potsdam_2_10_label.tif"
    with rasterio.open(path, "r+") as dataset:
        colours = dataset.read()
        colours[:, 10:14, 20:24] = [[[252]], [[255]], [[0]]]
        dataset.write(colours)
    with caplog.at_level(logging.WARNING, logger="autoreg"):
        prepare("potsdam3", raw, tmp_path / "out")
    (message,) = [record.getMessage() for record in caplog.records if record.name == "autoreg"]
    assert f"{path}: 4 of {415 * 605} pixels" in message
    labels = read(label_path(tmp_path / "out", "2_10_00_00"))[0]
    np.testing.assert_array_equal(np.argwhere(labels == 255), [[5, 10], [5, 11], [6, 10], [6, 11]])


def test_every_byte_of_a_colour_counts() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.choice(np.array([0, 1, 254, 255], np.uint8), (3, 61, 47))
    for merged in (False, True):
        labels = decode_colours(rgb, merged=merged)
        for row in range(61):
            for col in range(47):
                found = [label for label, colour in COLOURS.items() if colour == tuple(rgb[:, row, col].tolist())]
                expected = found[0] if found else 255
                assert labels[row, col] == (MERGED[expected] if merged else expected)


def test_labels_of_participants_come_first_and_all_labels_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = tmp_path / "raw"
    for tile in ("2_10", "2_13"):
        make_tile(raw, tile, labels="5_Labels_all")
    result = prepare("potsdam", raw, tmp_path / "all")
    assert (result.unlabelled_train, result.labelled_train + result.labelled_test) == (0, 12)
    assert "unlabelled_train is empty; papers take the labels of 24 of the 38 tiles" in caplog.text
    make_tile(raw, "2_10")
    result = prepare("potsdam", raw, tmp_path / "participants")
    assert (result.unlabelled_train, result.labelled_train + result.labelled_test) == (6, 6)


def test_a_wrong_layout_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"

    def fails(message: str) -> None:
        with pytest.raises(RasterError, match=message):
            prepare("potsdam", raw, out)
        assert not [path for path in tmp_path.iterdir() if path != raw]

    fails(r"there is no folder .*raw, expected the one with the unpacked download of potsdam")
    raw.mkdir()
    fails(r"there is no \*_RGBIR\.tif below .*raw, expected .* 4_Ortho_RGBIR/top_potsdam_2_10_RGBIR\.tif")
    make_tile(raw, "2_13", labels=None)
    fails(
        r"no \*_label\.tif below .* belongs to one of its 1 images, .*5_Labels_for_participants/top_potsdam_2_10_label\.tif"
    )
    make_tile(raw, "2_10")
    label = raw / LABELS / "top_potsdam_2_10_label.tif"
    save_raster(label, np.zeros((3, 400, 400), np.uint8))
    fails(r"2_10_label\.tif has 400 x 400 px, expected the size of its image, 830 x 1210; download both again")
    save_raster(label, np.zeros((1, *SHAPE), np.uint8))
    fails(r"has 1 bands of uint8, expected 3 of uint8")
    image = raw / IMAGES / "top_potsdam_2_10_RGBIR.tif"
    save_raster(image, np.zeros((4, 399, 500), np.uint8))
    fails(r"2_10_RGBIR\.tif has 399 x 500 px, expected 6000 x 6000 as in the original")
    save_raster(image, np.zeros((4, 1, 20_001), np.uint8))
    fails(r"has 1 x 20001 px, expected at most 20000 x 20000")
    save_raster(image, np.zeros((3, 400, 400), np.uint8))
    fails(r"has 3 bands of uint8, expected 4 of uint8")
    image.write_bytes(b"not a tiff")
    fails(r"2_10_RGBIR\.tif cannot be read as an image")
    save_raster(image, np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8), compress="deflate")
    image.write_bytes(image.read_bytes()[:1_000_000] + bytes(image.stat().st_size - 1_000_000))
    fails(r"2_10_RGBIR\.tif (is damaged|cannot be read)")
    image.unlink()
    make_tile(raw / "copy", "2_13", labels=None)
    fails(r"2_13_RGBIR\.tif and .*2_13_RGBIR\.tif are both of tile 2_13, expected one")


def test_nothing_is_left_of_an_interrupted_preparation(raw: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total - 1:
            assert [path for path in tmp_path.iterdir() if path.suffix == ".part"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("potsdam", raw, tmp_path / "out", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_an_existing_data_set_is_replaced_only_on_request(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("potsdam3", raw, out)
    before = tree(out)
    with pytest.raises(OutputError, match="out exists and is not empty; use --overwrite"):
        prepare("potsdam", raw, out)
    assert tree(out) == before
    prepare("potsdam", raw, out, overwrite=True, seed=3)
    assert tree(out) != before
    with pytest.raises(OutputError, match="holds 4_Ortho_RGBIR, so it is more than a prepared data set"):
        prepare("potsdam", raw, raw, overwrite=True)


def test_settings_that_do_not_exist_are_named(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no data set 'vaihingen', expected one of {', '.join(DATASETS)}"):
        prepare("vaihingen", raw, tmp_path / "out")
    with pytest.raises(ConfigError, match="the seed is -1, expected 0 or more"):
        prepare("potsdam", raw, tmp_path / "out", seed=-1)


def test_importing_needs_numpy_alone() -> None:
    loaded = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, autoreg.datasets; assert not {{'rasterio', 'torch', 'scipy'}} & {loaded}"
    subprocess.run([sys.executable, "-c", code], check=True)
