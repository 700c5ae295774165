from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autoreg.datasets import prepare, read_split
from autoreg.datasets.coco_stuff import CLASSES, FINE_CLASSES, CocoStuff, meets_rule
from autoreg.datasets.layout import image_path, label_path
from autoreg.errors import RasterError
from autoreg.raster.gdal import open_dataset
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from conftest import save_raster

Bytes = NDArray[np.uint8]
PERSON, CEILING, PAVEMENT, TREE, SKY, NOTHING = 0, 101, 139, 168, 156, 255
LABELS = {PERSON: 255, CEILING: 0, PAVEMENT: 9, TREE: 10, SKY: 11, NOTHING: 255}
FEW_LABELS = {PERSON: 255, CEILING: 255, PAVEMENT: 2, TREE: 1, SKY: 0, NOTHING: 255}
MOSTLY_FEW = [SKY] * 4 + [TREE] * 4 + [PAVEMENT] * 4 + [CEILING, PERSON, NOTHING]
LARGE, SMALL, GREY = "000000000009", "000000000025", "000000000139"


def make_picture(raw: Path, folder: str, sample_id: str, fine: Bytes, *, bands: int = 3) -> None:
    """A picture of soft colours, which survive JPEG, and its annotation ``fine`` (height, width)."""
    images, annotations = raw / "images" / folder, raw / "annotations" / folder
    for path in (images, annotations):
        path.mkdir(parents=True, exist_ok=True)
    rows, cols = np.mgrid[: fine.shape[0], : fine.shape[1]]
    pixels = np.stack([40 + rows % 150, 60 + cols % 120, 200 - (rows + cols) % 90])[:bands].astype(np.uint8)
    save_raster(images / f"{sample_id}.jpg", pixels, driver="JPEG", QUALITY=95)
    save_raster(annotations / f"{sample_id}.png", fine[None], driver="PNG")


def scatter(height: int, width: int, *values: int) -> Bytes:
    """Annotation (height, width) of ``values`` in patches of 5 x 5 px."""
    rng = np.random.default_rng([height, width])
    patches = rng.choice(np.array(values, np.uint8), (height // 5 + 1, width // 5 + 1))
    return np.asarray(patches.repeat(5, axis=0).repeat(5, axis=1)[:height, :width])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that fit the rule for 3 classes, for 15 classes only, and for neither."""
    folder = tmp_path_factory.mktemp("coco")
    make_picture(folder, "train2017", LARGE, scatter(480, 450, *MOSTLY_FEW))
    make_picture(folder, "train2017", SMALL, scatter(361, 500, CEILING, CEILING, SKY, TREE, CEILING, PAVEMENT))
    make_picture(folder, "train2017", "000000000030", scatter(400, 500, PERSON, NOTHING, SKY))
    make_picture(folder, "train2017", "000000000034", scatter(359, 640, SKY, TREE))
    make_picture(folder, "val2017", GREY, scatter(360, 640, *MOSTLY_FEW), bands=1)
    return folder


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """By name and ``iic_compat``."""
    folder = tmp_path_factory.mktemp("prepared")
    paths = {
        (name, compat): folder / f"{name}-{compat}" for name in ("coco-stuff", "coco-stuff3") for compat in (False, True)
    }
    for (name, compat), path in paths.items():
        prepare(name, raw, path, iic_compat=compat)
    return paths


def read(path: Path) -> Bytes:
    with open_dataset(path) as dataset:
        return np.asarray(dataset.read())


def read_image(folder: Path, sample_id: str) -> tuple[Bytes, NDArray[np.bool_]]:
    with RasterReader(image_path(folder, sample_id)) as raster:
        pixels, valid = raster.read(Window(0, 0, raster.height, raster.width))
    return pixels.astype(np.uint8), valid


def annotation(raw: Path, sample_id: str) -> Bytes:
    (path,) = raw.glob(f"annotations/*/{sample_id}.png")
    return np.asarray(read(path)[0])


def shrink_slowly(fine: Bytes, table: dict[int, int]) -> Bytes:
    """Labels of an annotation at 0.33: for each pixel the one whose place, divided by 0.33, is at its top left."""
    height, width = (round(size * 0.33) for size in fine.shape)
    rows, cols = ([int(place / 0.33) for place in range(size)] for size in (height, width))
    return np.array([[table[int(fine[row, col])] for col in cols] for row in rows], np.uint8)


def test_the_classes_are_all_stuff_and_each_fine_class_is_in_one() -> None:
    fine = [value for values in FINE_CLASSES.values() for value in values]
    assert sorted(fine) == list(range(91, 182))
    assert len(CLASSES) == 15
    table = CocoStuff(few=False, iic_compat=False).tabulate_labels()
    assert (table[:91] == 255).all()
    assert (table[182:] == 255).all()
    assert [CLASSES[table[value]] for value in (CEILING, PAVEMENT, TREE, SKY, 181)] == [
        "ceiling",
        "ground",
        "plant",
        "sky",
        "solid",
    ]


@pytest.mark.parametrize(("name", "table"), [("coco-stuff", LABELS), ("coco-stuff3", FEW_LABELS)])
def test_labels_are_the_classes_at_a_third(
    raw: Path, prepared: dict[tuple[str, bool], Path], name: str, table: dict[int, int]
) -> None:
    labels = read(label_path(prepared[name, False], LARGE))[0]
    assert labels.shape == (158, 148)
    np.testing.assert_array_equal(labels, shrink_slowly(annotation(raw, LARGE), table))


def test_pixels_are_interpolated_without_antialiasing(raw: Path, prepared: dict[tuple[str, bool], Path]) -> None:
    source = read(raw / "images" / "train2017" / f"{LARGE}.jpg").astype(float)
    pixels, valid = read_image(prepared["coco-stuff", False], LARGE)
    assert pixels.shape == (3, 158, 148)
    assert valid.all()
    for row in range(0, 158, 13):
        for col in range(0, 148, 11):
            y, x = (max((place + 0.5) / 0.33 - 0.5, 0) for place in (row, col))
            (top, left), (down, right) = (int(y), int(x)), (y % 1, x % 1)
            upper, lower = (source[:, i, left] * (1 - right) + source[:, i, left + 1] * right for i in (top, top + 1))
            assert np.abs(pixels[:, row, col] - (upper * (1 - down) + lower * down)).max() <= 0.5 + 1e-4


def test_bands_are_named_as_they_are(prepared: dict[tuple[str, bool], Path]) -> None:
    ours, theirs = prepared["coco-stuff", False], prepared["coco-stuff", True]
    with RasterReader(image_path(ours, LARGE)) as one, RasterReader(image_path(theirs, LARGE)) as two:
        assert one.bands == ("red", "green", "blue")
        assert two.bands == ("blue", "green", "red")
        assert one.georeference == two.georeference == {}
    np.testing.assert_array_equal(read_image(ours, LARGE)[0], read_image(theirs, LARGE)[0][::-1])


def test_a_grey_picture_has_three_equal_bands(prepared: dict[tuple[str, bool], Path]) -> None:
    pixels, _ = read_image(prepared["coco-stuff", False], GREY)
    np.testing.assert_array_equal(pixels[0], pixels[1])
    np.testing.assert_array_equal(pixels[0], pixels[2])


def test_a_picture_that_is_too_small_for_a_crop_is_padded_and_masked(
    raw: Path, prepared: dict[tuple[str, bool], Path]
) -> None:
    folder = prepared["coco-stuff", False]
    pixels, valid = read_image(folder, SMALL)
    labels = read(label_path(folder, SMALL))[0]
    assert pixels.shape[1:] == labels.shape == (128, 165)
    inside = slice(64 - 119 // 2, 64 - 119 // 2 + 119)
    np.testing.assert_array_equal(valid.all(axis=1), valid.any(axis=1))
    np.testing.assert_array_equal(np.flatnonzero(valid[:, 0]), np.arange(128)[inside])
    assert (pixels[:, ~valid] == 0).all()
    assert (labels[~valid] == 255).all()
    np.testing.assert_array_equal(labels[inside], shrink_slowly(annotation(raw, SMALL), LABELS))
    assert sorted(path.name for path in (folder / "images").iterdir()) == [f"{name}.tif" for name in (LARGE, SMALL, GREY)]


@pytest.mark.parametrize(("name", "clean"), [("coco-stuff", LABELS), ("coco-stuff3", FEW_LABELS)])
@pytest.mark.parametrize("sample_id", [LARGE, GREY])
def test_iic_compat_masks_by_the_truth_scores_the_centre_and_takes_the_unlabelled_for_sky(
    raw: Path, prepared: dict[tuple[str, bool], Path], name: str, clean: dict[int, int], sample_id: str
) -> None:
    folder = prepared[name, True]
    table = clean | {NOTHING: 0} if name == "coco-stuff3" else clean
    expected = shrink_slowly(annotation(raw, sample_id), table)
    missing = max(128 - len(expected), 0)
    before = 64 - len(expected) // 2 if missing else 0
    expected = np.pad(expected, ((before, missing - before), (0, 0)), constant_values=255)
    _, valid = read_image(folder, sample_id)
    np.testing.assert_array_equal(valid, expected != 255)
    top, left = (size // 2 - 64 for size in expected.shape)
    scored = np.zeros(expected.shape, bool)
    scored[top : top + 128, left : left + 128] = True
    np.testing.assert_array_equal(read(label_path(folder, sample_id))[0], np.where(scored, expected, 255))


def test_without_lists_the_rule_selects(prepared: dict[tuple[str, bool], Path]) -> None:
    for (name, _), folder in prepared.items():
        assert read_split(folder, "unlabelled_train") == []
        assert read_split(folder, "labelled_train") == ([LARGE, SMALL] if name == "coco-stuff" else [LARGE])
        assert read_split(folder, "labelled_test") == [GREY]
        assert len(list((folder / "labels").iterdir())) == (3 if name == "coco-stuff" else 2)


def test_the_rule_counts_pixels_of_the_classes() -> None:
    table = CocoStuff(few=True, iic_compat=False).tabulate_labels()
    fine = np.full((360, 360), PERSON, np.uint8)
    fine[:270] = SKY
    assert meets_rule(fine, table)
    fine[0, 0] = NOTHING
    assert not meets_rule(fine, table)
    fine[:] = SKY
    assert not meets_rule(fine[:359], table)
    assert not meets_rule(fine[:, :359], table)


def test_lists_select_if_they_are_there(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "raw"
    copy.mkdir()
    for name in ("images", "annotations"):
        (copy / name).symlink_to(raw / name)
    (copy / "curated" / "train2017").mkdir(parents=True)
    (copy / "curated" / "train2017" / "Coco164kFew_Stuff_6.txt").write_text(f"000000000034\n{LARGE}\n")
    calls: list[tuple[int, int]] = []
    result = prepare("coco-stuff3", copy, tmp_path / "few", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert read_split(result.folder, "labelled_train") == [LARGE, "000000000034"]
    assert read_split(result.folder, "labelled_test") == [GREY]
    assert (result.unlabelled_train, result.labelled_train, result.labelled_test) == (0, 2, 1)
    assert (result.bands, result.classes) == (("red", "green", "blue"), ("sky", "plant", "ground"))
    # The list of the other data set does not count.
    assert read_split(prepare("coco-stuff", copy, tmp_path / "all").folder, "labelled_train") == [LARGE, SMALL]


def test_a_wrong_layout_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()

    def fails(message: str) -> None:
        with pytest.raises(RasterError, match=message):
            prepare("coco-stuff", raw, out)
        assert list(tmp_path.iterdir()) == [raw]

    fails(r"no \*\.png in .*annotations/train2017, expected .* images/train2017/\*\.jpg and annotations/train2017/\*\.png")
    fine = scatter(360, 370, SKY, TREE)
    make_picture(raw, "train2017", "1", scatter(40, 50, SKY))
    fails(r"no \*\.png in .*annotations/val2017")
    make_picture(raw, "val2017", "1", fine)
    fails("1 is in both train2017 and val2017")
    (raw / "annotations" / "val2017" / "1.png").rename(raw / "annotations" / "val2017" / "2.png")
    fails(r"there is no file .*images/val2017/2\.jpg")
    make_picture(raw, "val2017", "2", fine[:, ::-1])
    save_raster(raw / "annotations" / "val2017" / "2.png", fine[None, :, :360], driver="PNG")
    fails(r"2\.jpg has 360 x 370 px, but its annotation has 360 x 360")
    save_raster(raw / "annotations" / "val2017" / "2.png", np.full((1, 360, 370), 183, np.uint8), driver="PNG")
    fails(r"2\.png holds the value 183, expected 0 to 181 and 255; take the annotations from stuffthingmaps_trainval2017")
    save_raster(raw / "annotations" / "val2017" / "2.png", np.full((3, 360, 370), SKY, np.uint8), driver="PNG")
    fails(r"2\.png has 3 bands of uint8, expected 1 of uint8")
    make_picture(raw, "val2017", "2", scatter(360, 370, PERSON))
    fails("none of the 2 pictures .* has 360 px on both sides and 75% of its pixels in the classes")
