from pathlib import Path

import numpy as np
import pytest

from autoreg.datasets.layout import DatasetWriter, image_path, label_path, protocol_pairs, read_ids, read_split
from autoreg.errors import ConfigError, OutputError, RasterError
from autoreg.raster.gdal import open_dataset
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window


def make_writer(folder: Path, *bands: str) -> DatasetWriter:
    return DatasetWriter(folder, bands=bands, tags={"dataset": "test"})


@pytest.mark.parametrize("bands", [("red", "green", "blue", "nir"), ("red", "green", "blue"), ("blue", "green", "red")])
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, bands: tuple[str, ...], masked: bool) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(bands), 30, 20), np.uint8)
    pixels[-1] = 255 * (pixels[-1] > 100)  # as an alpha band would look
    valid = rng.random((30, 20)) > 0.3
    labels = rng.integers(0, 5, (30, 20), np.uint8)
    writer = make_writer(tmp_path, *bands)
    writer.write_image("a", pixels, valid=valid if masked else None)
    writer.write_labels("a", labels)
    with RasterReader(image_path(tmp_path, "a")) as raster:
        assert raster.bands == bands
        assert raster.georeference == {}
        read, read_valid = raster.read(Window(0, 0, 30, 20))
    np.testing.assert_array_equal(read, pixels)
    np.testing.assert_array_equal(read_valid, valid if masked else np.ones_like(valid))
    with open_dataset(label_path(tmp_path, "a")) as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels)
        assert (dataset.count, dataset.nodata, dataset.tags()["dataset"]) == (1, 255, "test")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tif", "a.tif", "images", "labels"]


def test_what_gdal_cannot_write_is_one_sentence(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, "red")
    with pytest.raises(OutputError, match=r"^a\.tif was not written: "):
        writer.write_image("a", np.zeros((1, 4, 4), np.uint8), place={"tiled": True, "blockxsize": 5})
    assert not image_path(tmp_path, "a").exists()


def test_protocols_say_who_is_mapped_and_who_is_scored(tmp_path: Path) -> None:
    make_writer(tmp_path, "red").write_splits(
        {"unlabelled_train": ["u"], "labelled_train": ["d", "b"], "labelled_test": ["c", "a"]}
    )
    assert (tmp_path / "labelled_train.txt").read_bytes() == b"b\nd\n"
    assert read_split(tmp_path, "unlabelled_train") == ["u"]
    assert protocol_pairs(tmp_path, "iic") == (["a", "b", "c", "d"], ["a", "b", "c", "d"])
    assert protocol_pairs(tmp_path, "labelled_test") == (["a", "c"], ["a", "c"])
    assert protocol_pairs(tmp_path, "iic+") == (["b", "d"], ["a", "c"])


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match=r"is not a prepared data set: it has no labelled_test\.txt"):
        read_split(tmp_path, "labelled_test")
    make_writer(tmp_path, "red").write_splits({"unlabelled_train": ["u"], "labelled_train": [], "labelled_test": ["a"]})
    with pytest.raises(ConfigError, match="there is no split 'test', expected one of unlabelled_train, "):
        read_split(tmp_path, "test")
    with pytest.raises(ConfigError, match="there is no protocol 'all', expected one of iic, "):
        protocol_pairs(tmp_path, "all")
    with pytest.raises(RasterError, match=r"has 0 images in labelled_train and 1 in labelled_test, too few for .* 'iic\+'"):
        protocol_pairs(tmp_path, "iic+")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\n../b\n", r"holds '\.\./b', expected ids of letters"),
        (b"a\nb\na\n", "holds an id twice, expected each of its 3 lines once"),
        (b"\xff\xfe", "cannot be read as a list of ids"),
    ],
)
def test_ids_are_names_of_files(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(text)
    with pytest.raises(RasterError, match=message):
        read_ids(path)


def test_blank_lines_and_line_ends_of_any_kind_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"b-1\r\n\na_2 \n")
    assert read_ids(path) == ["b-1", "a_2"]
