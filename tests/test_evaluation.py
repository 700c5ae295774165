from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import naive
from autoreg import evaluation
from autoreg.errors import RasterError
from autoreg.evaluation import confusion_matrix, evaluate, pair_files, score
from conftest import save_raster


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_scores_equal_the_definition(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels, truth = rng.integers(0, classes, (2, 9, 11)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = 255
    labels[rng.random(truth.shape) < 0.1] = 255
    counts = naive.confusion(labels, truth, classes)
    confusion = confusion_matrix(labels, truth)
    np.testing.assert_array_equal(confusion[:classes, :classes], counts)
    assert confusion.sum() == counts.sum()
    result = score(confusion)
    assert result.accuracy == pytest.approx(naive.best_accuracy(counts))
    for cluster, true_class in enumerate(result.matching):
        if true_class is not None and counts[:, true_class].any():
            ours, theirs = (labels == cluster) & (truth != 255), (truth == true_class) & (labels != 255)
            assert result.iou[true_class] == pytest.approx((ours & theirs).sum() / (ours | theirs).sum())


def test_swapped_clusters_are_matched() -> None:
    truth = np.array([[0, 0, 1, 1, 2]], np.uint8)
    result = score(confusion_matrix(np.array([[2, 2, 0, 0, 1]], np.uint8), truth))
    assert (result.accuracy, result.mean_iou, result.matching) == (1.0, 1.0, (1, 2, 0))


def test_more_clusters_than_classes_leave_one_over() -> None:
    truth = np.array([[0, 0, 0, 1, 1, 255]], np.uint8)
    result = score(confusion_matrix(np.array([[0, 0, 1, 2, 2, 2]], np.uint8), truth))
    assert result.matching == (0, None, 1)
    assert result.accuracy == pytest.approx(4 / 5)
    assert result.pixels == 5


def test_a_class_that_no_cluster_stands_for_counts_as_zero_in_the_mean() -> None:
    truth = np.array([[0, 0, 1]], np.uint8)
    result = score(confusion_matrix(np.zeros((1, 3), np.uint8), truth))
    assert result.iou == (pytest.approx(2 / 3), 0.0)
    assert result.mean_iou == pytest.approx(1 / 3)


def test_folders_are_paired_and_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_ROWS_AT_ONCE_PX", 50)
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 3, (2, 2, 1, 20, 30)).astype(np.uint8)
    for folder, suffix, arrays in (("maps", "tif", labels), ("truth", "png", truth)):
        (tmp_path / folder).mkdir()
        for name, array in zip("ab", arrays, strict=True):
            save_raster(tmp_path / folder / f"{name}.{suffix}", array, driver={"tif": "GTiff", "png": "PNG"}[suffix])
    pairs = pair_files(tmp_path / "maps", tmp_path / "truth")
    assert [(a.name, b.name) for a, b in pairs] == [("a.tif", "a.png"), ("b.tif", "b.png")]
    np.testing.assert_array_equal(evaluate(pairs).confusion, naive.confusion(labels, truth, 3))


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    small = save_raster(tmp_path / "small.tif", np.zeros((1, 4, 4), np.uint8))
    large = save_raster(tmp_path / "large.tif", np.zeros((1, 4, 5), np.uint8))
    colour = save_raster(tmp_path / "colour.tif", np.zeros((3, 4, 4), np.uint8))
    ignored = save_raster(tmp_path / "ignored.tif", np.full((1, 4, 4), 255, np.uint8))
    for pair, message in (
        ((small, large), r"small\.tif has 4 x 4 px, but .*large\.tif has 4 x 5"),
        ((colour, small), r"colour\.tif has 3 bands of uint8, expected a class map"),
        ((small, ignored), "no pixel has both"),
    ):
        with pytest.raises(RasterError, match=message):
            evaluate([pair])
    for labels, truth, message in (
        (tmp_path / "none", small, "there is no file or folder"),
        (tmp_path, small, "a file and a folder"),
    ):
        with pytest.raises(RasterError, match=message):
            pair_files(labels, truth)
    (tmp_path / "maps").mkdir()
    with pytest.raises(RasterError, match="no raster in the folder"):
        pair_files(tmp_path / "maps", tmp_path)
    save_raster(tmp_path / "maps" / "other.tif", np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(RasterError, match="no raster named other"):
        pair_files(tmp_path / "maps", tmp_path)
