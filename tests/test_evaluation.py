from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import naive
from autoreg import evaluation
from autoreg.errors import ConfigError, RasterError
from autoreg.evaluation import (
    GIVEN,
    MATCHINGS,
    confusion_matrix,
    evaluate,
    match_clusters,
    mean_and_deviation,
    pair_files,
    score,
    split_pairs,
)
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


def random_counts(seed: int, clusters: int, classes: int) -> np.ndarray:
    """Confusion matrix with empty rows, empty columns and ties, but not empty."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 6, (clusters, classes))
    counts[rng.random(clusters) < 0.3] = 0
    counts[:, rng.random(classes) < 0.2] = 0
    counts[rng.integers(clusters), rng.integers(classes)] += 1
    return counts.astype(np.int64)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 5))
def test_many_to_one_equals_the_definition_and_is_never_below_one_to_one(seed: int, clusters: int, classes: int) -> None:
    mapping, scoring = random_counts(seed, clusters, classes), random_counts(seed + 1, clusters, classes)
    many = match_clusters(mapping, "many-to-one")
    assert score(scoring, many).accuracy == pytest.approx(naive.many_to_one_accuracy(mapping, scoring))
    on_itself = score(mapping, many)
    assert on_itself.accuracy >= score(mapping, match_clusters(mapping, "one-to-one")).accuracy
    assert on_itself.accuracy >= on_itself.majority_share  # as each cluster could answer the most frequent class


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 5), st.sampled_from(MATCHINGS))
def test_scores_are_those_of_the_maps_with_each_cluster_replaced(seed: int, clusters: int, classes: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    matching = match_clusters(random_counts(seed, clusters, classes), kind)
    labels = rng.integers(0, clusters, (7, 9)).astype(np.uint8)
    truth = rng.integers(0, classes, (7, 9)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = 255
    answer_of = {cluster: true_class for cluster, true_class in enumerate(matching) if true_class is not None}
    answer = np.array([answer_of.get(label, 254) for label in labels.ravel().tolist()]).reshape(7, 9)  # 254: none
    result = score(confusion_matrix(labels, truth), matching)
    counts = truth != 255
    assert result.accuracy == pytest.approx((answer == truth)[counts].mean())
    assert result.matching[: len(matching)] == matching
    assert set(result.matching[len(matching) :]) <= {None}
    assert result.confusion.shape == (len(result.matching), len(result.iou))
    for true_class, iou in enumerate(result.iou):
        ours, theirs = (answer == true_class) & counts, truth == true_class
        expected = (ours & theirs).sum() / (ours | theirs).sum() if theirs.any() else np.nan
        assert iou == pytest.approx(expected, nan_ok=True)
    assert result.mean_iou == pytest.approx(np.nanmean(result.iou))


def test_clusters_of_one_class_are_united() -> None:
    truth = np.array([[0, 0, 0, 0, 1, 1]], np.uint8)
    labels = np.array([[0, 0, 1, 1, 3, 1]], np.uint8)
    confusion = confusion_matrix(labels, truth)
    matching = match_clusters(confusion, "many-to-one")
    assert matching == (0, 0, None, 1)
    result = score(confusion, matching)
    assert (result.accuracy, result.iou) == (pytest.approx(5 / 6), (pytest.approx(4 / 5), pytest.approx(1 / 2)))


def test_maps_of_classes_are_scored_as_they_are(tmp_path: Path) -> None:
    values = {"a": ([0, 0, 2, 7], [2, 2, 0, 2]), "b": ([2, 255, 0, 0], [0, 0, 2, 0])}
    pairs = []
    for name, rows in values.items():
        labels, truth = (np.array([[row]], np.uint8) for row in rows)
        pairs.append((save_raster(tmp_path / f"{name}.tif", labels), save_raster(tmp_path / f"{name}_truth.tif", truth)))
    result = evaluate(pairs, matching=GIVEN)
    assert (result.accuracy, evaluate(pairs).accuracy) == (pytest.approx(1 / 7), pytest.approx(5 / 7))
    assert result.iou[0] == pytest.approx(1 / 6)
    assert result.iou[2] == 0
    assert result.matching == tuple(range(8))
    with pytest.raises(ConfigError, match="there is no matching 'best', expected one of one-to-one, many-to-one, given"):
        evaluate([], matching="best")
    with pytest.raises(RasterError, match="no pixel has both a label and a true class"):
        evaluate([], matching=GIVEN)


@pytest.mark.parametrize("kind", MATCHINGS)
def test_what_has_no_mapping_pixels_stays_unmatched_and_wrong(kind: str) -> None:
    matching = match_clusters(np.array([[0, 0, 0], [5, 0, 1], [0, 0, 4]]), kind)
    assert matching == (None, 0, 2)
    result = score(np.array([[3, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 4]]), matching)
    assert result.matching == (None, 0, 2, None)
    assert result.accuracy == pytest.approx(2 / 10)
    assert result.iou == (pytest.approx(2 / 5), 0.0, pytest.approx(np.nan, nan_ok=True), 0.0)


def test_a_matched_class_that_is_not_in_the_scored_truth_is_kept() -> None:
    result = score(np.array([[4], [1]]), (0, 2, 1))
    assert result.matching == (0, 2, 1)
    assert result.confusion.tolist() == [[4, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert result.accuracy == result.mean_iou == pytest.approx(4 / 5)
    assert result.as_dict()["iou"] == [pytest.approx(4 / 5), None, None]


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(2, 5))
def test_normalised_information_equals_the_definition(seed: int, clusters: int, classes: int) -> None:
    counts = random_counts(seed, clusters, classes)
    counts[:2, :2] += 1  # so that the entropies are not both zero
    result = score(counts)
    assert result.nmi == pytest.approx(naive.normalised_information(counts))
    assert 0 <= result.nmi <= 1
    assert score(1000 * counts.T).nmi == pytest.approx(result.nmi)


def test_known_scores_that_need_no_matching() -> None:
    permuted = score(np.array([[0, 7, 0], [0, 0, 2], [5, 0, 0]]))
    assert (permuted.nmi, permuted.majority_share) == (pytest.approx(1), pytest.approx(1 / 2))
    independent = score(np.outer([1, 2, 3], [4, 5, 1]))
    assert (independent.nmi, independent.majority_share) == (pytest.approx(0, abs=1e-12), pytest.approx(1 / 2))
    assert score(np.array([[3, 4]])).nmi == pytest.approx(0, abs=1e-12)
    assert score(np.array([[0, 0], [0, 4]])).nmi == 1
    # Two clusters split one of two equal classes: log 2 nats shared, of entropies log 2 and 1.5 log 2.
    assert score(np.array([[2, 0], [0, 1], [0, 1]])).nmi == pytest.approx(1 / 1.25)
    plain = permuted.as_dict()
    assert (plain["nmi"], plain["majority_share"]) == (permuted.nmi, permuted.majority_share)


def test_the_mapping_is_found_on_other_images(tmp_path: Path) -> None:
    # Clusters 0, 1 and 2 stand for class 1, 0 and 0 in image a; image b calls the same clusters otherwise.
    for name, labels, truth in (
        ("a", [[0, 0, 1, 1, 2, 255]], [[1, 1, 0, 0, 0, 0]]),
        ("b", [[0, 0, 1, 2, 2, 3]], [[0, 0, 0, 0, 1, 1]]),
    ):
        save_raster(tmp_path / f"map_{name}.tif", np.array([labels], np.uint8))
        save_raster(tmp_path / f"truth_{name}.tif", np.array([truth], np.uint8))
    a, b = ((tmp_path / f"map_{name}.tif", tmp_path / f"truth_{name}.tif") for name in "ab")
    many = evaluate([b], mapping_pairs=[a], matching="many-to-one")
    assert (many.matching, many.accuracy, many.pixels) == ((1, 0, 0, None), pytest.approx(2 / 6), 6)
    one = evaluate([b], mapping_pairs=[a])
    assert (one.matching, one.accuracy) == ((1, 0, None, None), pytest.approx(1 / 6))
    assert evaluate([b]).accuracy == pytest.approx(3 / 6)
    assert evaluate([b], matching="many-to-one").accuracy == pytest.approx(5 / 6)
    assert evaluate([b], mapping_pairs=iter([b]), matching="many-to-one").matching == (0, 0, 0, 1)


def test_pairs_are_drawn_by_seed_and_a_larger_draw_contains_the_smaller() -> None:
    pairs = [(Path(f"map{index}"), Path(f"truth{index}")) for index in range(10)]
    mapping, scoring = split_pairs(pairs, 4, seed=3)
    assert (len(mapping), sorted(mapping + scoring)) == (4, pairs)
    assert mapping == sorted(mapping)
    assert scoring == sorted(scoring)
    assert split_pairs(pairs, 4, seed=3) == (mapping, scoring)
    assert {tuple(split_pairs(pairs, 4, seed)[0]) for seed in range(20)} != {tuple(mapping)}
    assert set(mapping) < set(split_pairs(pairs, 7, seed=3)[0])
    for count in (-1, 0, 10, 11):
        with pytest.raises(ConfigError, match=f"pairs to map on is {count}, expected 1 to 9"):
            split_pairs(pairs, count, seed=0)
    with pytest.raises(ConfigError, match="maps with a truth is 1, expected at least 2"):
        split_pairs(pairs[:1], 1, seed=0)


def test_named_files_are_paired_and_others_left_alone(tmp_path: Path) -> None:
    for folder, names in (("maps", "abcd"), ("truth", "bcde")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.tif").touch()
    maps, truth = tmp_path / "maps", tmp_path / "truth"
    assert [(a.name, b.name) for a, b in pair_files(maps, truth, ["d", "b"])] == [("d.tif", "d.tif"), ("b.tif", "b.tif")]
    for args, message in (
        ((maps, truth, ["b", "e", "f"]), "maps has no map named e, expected one for each of 3 images, 2 are missing"),
        ((maps, truth, ["a"]), "truth has no raster named a"),
        ((maps / "a.tif", truth, ["a"]), r"a\.tif is a file, expected a folder with 1 rasters"),
        ((maps, truth / "b.tif", ["b"]), r"b\.tif is a file, expected a folder"),
    ):
        with pytest.raises(RasterError, match=message):
            pair_files(*args)


def test_an_unknown_matching_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    message = "there is no matching 'best', expected one of one-to-one, many-to-one"
    with pytest.raises(ConfigError, match=message):
        match_clusters(np.eye(2, dtype=np.int64), "best")
    with pytest.raises(ConfigError, match=message):
        evaluate([(tmp_path / "none", tmp_path / "none")], matching="best")
    with pytest.raises(RasterError, match="no pixel has both"):
        match_clusters(np.zeros((2, 2), np.int64), "many-to-one")


def test_mean_and_deviation_over_seeds() -> None:
    assert mean_and_deviation([0.5]) == (0.5, 0.0)
    assert mean_and_deviation([1.0, 2.0, 3.0, 4.0]) == (2.5, pytest.approx(np.std([1, 2, 3, 4], ddof=1)))
    with pytest.raises(ConfigError, match="0 values"):
        mean_and_deviation([])
