"""How well clusters fit classes: streamed confusion matrices, and the matching that makes the most of them. No torch."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import ConfigError, RasterError
from autoreg.optional import require
from autoreg.raster.gdal import open_dataset
from autoreg.raster.reader import RasterReader
from autoreg.spec import NODATA_LABEL

MATCHINGS = ("one-to-one", "many-to-one")
"""See ``match_clusters``."""
GIVEN = "given"
"""For maps of classes, as a model that ``autoreg match`` has named makes them: each label is the class of that number."""

_CLASSES = NODATA_LABEL + 1
_ROWS_AT_ONCE_PX = 2**24
_RASTER_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".vrt", ".jp2", ".img"}


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of class maps. Pixels that are 255 in the map or in the truth do not count.

    Attributes:
        accuracy: share of the pixels whose matched class is the true one (total over all maps), 0..1.
        mean_iou: mean of ``iou`` over the classes that occur in the truth.
        iou: intersection over union per class of the truth, 0..1, of all clusters that stand for it; NaN for a class that
            does not occur in the truth.
        nmi: mutual information of clusters and classes over the mean of their entropies, 0..1; asks for no matching. 1 if
            there is but one cluster and one class.
        majority_share: share of the most frequent class, 0..1: the accuracy of whoever answers nothing else.
        matching: class that each cluster stands for; None for a cluster that stands for none, all its pixels are wrong.
        confusion: pixels, (clusters, classes).
    """

    accuracy: float
    mean_iou: float
    iou: tuple[float, ...]
    nmi: float
    majority_share: float
    matching: tuple[int | None, ...]
    confusion: NDArray[np.int64]

    @property
    def pixels(self) -> int:
        """Pixels that count."""
        return int(self.confusion.sum())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "accuracy": self.accuracy,
            "mean_iou": self.mean_iou,
            "iou": [None if np.isnan(value) else value for value in self.iou],
            "nmi": self.nmi,
            "majority_share": self.majority_share,
            "matching": list(self.matching),
            "pixels": self.pixels,
            "confusion": self.confusion.tolist(),
        }


def confusion_matrix(labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels by label (row) and true class (column): int64 (256, 256), those with 255 in either left out."""
    counts = np.bincount(labels.ravel().astype(np.intp) * _CLASSES + truth.ravel(), minlength=_CLASSES * _CLASSES).reshape(
        _CLASSES, _CLASSES
    )
    counts[NODATA_LABEL] = 0
    counts[:, NODATA_LABEL] = 0
    return counts.astype(np.int64)


def match_clusters(confusion: NDArray[np.int64], matching: str) -> tuple[int | None, ...]:
    """The class that each cluster stands for.

    ``one-to-one`` makes most pixels right while no two clusters share a class (Hungarian method; section 4, evaluation
    metrics). ``many-to-one`` gives each cluster the class that most of its pixels have, the first of several (section 4.1,
    overclustering, and Fig. 7). Either way a cluster or a class without pixels stays out.

    Args:
        confusion: pixels by cluster and class, of any size, of the images to map on.
        matching: one of ``MATCHINGS``.

    Returns:
        A class, or None, for each cluster up to the last that has pixels.

    Raises:
        ConfigError: ``matching`` is not one of ``MATCHINGS``.
        RasterError: no pixel counts.
    """
    check_matching(matching)
    _check_pixels(confusion)
    clusters, classes = (np.flatnonzero(confusion.any(axis=axis)) for axis in (1, 0))
    counts = confusion[np.ix_(clusters, classes)]
    if matching == "one-to-one":
        rows, cols = require("scipy.optimize").linear_sum_assignment(counts, maximize=True)
    else:
        rows, cols = np.arange(len(clusters)), counts.argmax(axis=1)
    found = dict(zip(clusters[rows].tolist(), classes[cols].tolist(), strict=True))
    return tuple(found.get(cluster) for cluster in range(int(clusters[-1]) + 1))


def score(confusion: NDArray[np.int64], matching: Sequence[int | None] | None = None) -> Evaluation:
    """Score clusters as the classes that they stand for.

    Args:
        confusion: pixels by cluster and class, of any size; clusters and classes at the end that neither have pixels nor are
            matched are dropped.
        matching: what ``match_clusters`` found, on these or on other images; clusters beyond its end stand for no class.
            None for the best one-to-one matching of ``confusion`` itself.

    Raises:
        RasterError: no pixel counts.
    """
    _check_pixels(confusion)
    confusion, found = _fit(confusion, match_clusters(confusion, "one-to-one") if matching is None else matching)
    total, sizes = confusion.sum(), confusion.sum(axis=0)
    by_class = np.zeros((len(sizes), len(sizes)), np.int64)
    for counts, true_class in zip(confusion, found, strict=True):
        if true_class is not None:
            by_class[true_class] += counts
    hits = by_class.diagonal()
    either = by_class.sum(axis=1) + sizes - hits
    iou = np.where(sizes > 0, hits / np.maximum(either, 1), np.nan)
    return Evaluation(
        accuracy=float(hits.sum() / total),
        mean_iou=float(np.nanmean(iou)),
        iou=tuple(iou.tolist()),
        nmi=_normalised_information(confusion),
        majority_share=float(sizes.max() / total),
        matching=found,
        confusion=confusion,
    )


def evaluate(
    pairs: Iterable[tuple[Path, Path]],
    *,
    mapping_pairs: Iterable[tuple[Path, Path]] | None = None,
    matching: str = "one-to-one",
) -> Evaluation:
    """Score class maps against truths, reading a few rows at a time.

    Args:
        pairs: a map and its truth, each a raster with one band of uint8.
        mapping_pairs: the same, of the images that say which class each cluster stands for; None for ``pairs`` themselves.
        matching: one of ``MATCHINGS``, see ``match_clusters``, or ``GIVEN``, which looks at no mapping pairs.

    Raises:
        ConfigError: ``matching`` is neither.
        RasterError: a file cannot be read, is not a class map, or has another size than its partner, or no pixel counts.
    """
    check_matching(matching, (*MATCHINGS, GIVEN))
    if matching == GIVEN:
        confusion = confusion_of_maps(pairs)
        return score(confusion, tuple(range(_used(confusion, axis=1))))
    if mapping_pairs is not None:
        found = match_clusters(confusion_of_maps(mapping_pairs), matching)
        return score(confusion_of_maps(pairs), found)
    confusion = confusion_of_maps(pairs)
    return score(confusion, match_clusters(confusion, matching))


def confusion_of_maps(pairs: Iterable[tuple[Path, Path]]) -> NDArray[np.int64]:
    """Pixels by label and true class, int64 (256, 256), over maps and their truths; see ``evaluate``."""
    total = np.zeros((_CLASSES, _CLASSES), np.int64)
    for labels_path, truth_path in pairs:
        for labels, truth in _rows(labels_path, truth_path):
            total += confusion_matrix(labels, truth)
    return total


def open_truth(path: Path, image: RasterReader) -> Any:
    """Open the truth of an image, a rasterio dataset.

    Raises:
        RasterError: it cannot be read, or is not one band of uint8 of the image's size.
    """
    dataset = open_dataset(path)
    if dataset.count != 1 or dataset.dtypes[0] != "uint8" or dataset.shape != (image.height, image.width):
        dataset.close()
        raise RasterError(
            f"{path} has {dataset.count} bands of {dataset.dtypes[0]} and {dataset.height} x {dataset.width} px, "
            f"expected a truth for {image.path}: one band of uint8, {image.height} x {image.width} px"
        )
    return dataset


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of a score over seeds; the deviation of one value is 0.

    Raises:
        ConfigError: there is no value.
    """
    if not values:
        raise ConfigError("there are 0 values to average, expected at least 1; run at least one seed")
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def split_pairs(
    pairs: Sequence[tuple[Path, Path]], count: int, seed: int
) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """Draw the pairs to map on; the others are to be scored (section 4.1, overclustering, and Fig. 7).

    Args:
        pairs: as for ``evaluate``.
        count: number to map on, 1 to ``len(pairs) - 1``. With one seed, a larger draw contains the smaller ones.
        seed: of the draw, at least 0.

    Returns:
        The pairs to map on and the pairs to score, each in the order of ``pairs``.

    Raises:
        ConfigError: ``count`` leaves nothing to map on or nothing to score.
    """
    if len(pairs) < 2:
        raise ConfigError(
            f"the number of maps with a truth is {len(pairs)}, expected at least 2, one to map on and one to score"
        )
    if not 1 <= count < len(pairs):
        raise ConfigError(
            f"the number of pairs to map on is {count}, expected 1 to {len(pairs) - 1}: "
            f"some of the {len(pairs)} have to be left to score"
        )
    drawn = set(np.random.default_rng(seed).permutation(len(pairs))[:count].tolist())
    mapping = [pair for index, pair in enumerate(pairs) if index in drawn]
    return mapping, [pair for index, pair in enumerate(pairs) if index not in drawn]


def pair_files(labels: Path, truth: Path, names: Sequence[str] | None = None) -> list[tuple[Path, Path]]:
    """The maps and truths to compare: two files, or two folders whose files are paired by name without suffix.

    Args:
        labels: a map, or a folder of maps.
        truth: its truth, or a folder of truths.
        names: of the files in the two folders to pair, in this order; None for all maps.

    Raises:
        RasterError: one is a file and the other a folder, or a map has no truth or a truth no map, or there is no map.
    """
    if not labels.exists() or not truth.exists():
        raise RasterError(f"there is no file or folder {truth if labels.exists() else labels}")
    if names is not None and not (labels.is_dir() and truth.is_dir()):
        raise RasterError(f"{truth if labels.is_dir() else labels} is a file, expected a folder with {len(names)} rasters")
    if labels.is_dir() != truth.is_dir():
        raise RasterError(f"{labels} and {truth} are a file and a folder, expected two files or two folders")
    if labels.is_file():
        return [(labels, truth)]
    maps, truths = _by_stem(labels), _by_stem(truth)
    if not maps:
        raise RasterError(f"there is no raster in the folder {labels}")
    if names is None:
        names = sorted(maps)
    elif missing := sorted(set(names) - set(maps)):
        raise RasterError(
            f"{labels} has no map named {missing[0]}, expected one for each of {len(names)} images, {len(missing)} are "
            "missing; run autoreg segment on them first"
        )
    if missing := sorted(set(names) - set(truths)):
        raise RasterError(f"{truth} has no raster named {missing[0]}, expected one for each of the {len(names)} in {labels}")
    return [(maps[name], truths[name]) for name in names]


def pair_labelled(images: Sequence[Path], truth: Path) -> list[tuple[Path, Path]]:
    """Those of some images that have a truth, paired with it by name without suffix.

    Args:
        images: files, or folders of them.
        truth: a folder of truths; or a file, the truth of the only image, whatever its name.

    Raises:
        RasterError: there is no such file or folder, two images have one name, or no image has a truth.
    """
    if missing := [path for path in (*images, truth) if not path.exists()]:
        raise RasterError(f"there is no file or folder {missing[0]}")
    files = [file for path in images for file in (_by_stem(path).values() if path.is_dir() else [path])]
    if truth.is_file():
        if len(files) != 1:
            raise RasterError(f"{truth} is a file, expected a folder with truths for {len(files)} images")
        return [(files[0], truth)]
    by_stem: dict[str, Path] = {}
    for file in files:
        if file.stem in by_stem:
            raise RasterError(f"{by_stem[file.stem]} and {file} have one name, so they would have one truth; leave one out")
        by_stem[file.stem] = file
    pairs = [(by_stem[stem], path) for stem, path in _by_stem(truth).items() if stem in by_stem]
    if not pairs:
        raise RasterError(f"none of {len(files)} images has a truth of its name in {truth}, expected at least one")
    return pairs


def check_matching(matching: str, choices: Sequence[str] = MATCHINGS) -> None:
    """Refuse what is not one of ``choices``.

    Raises:
        ConfigError: it is not.
    """
    if matching not in choices:
        raise ConfigError(f"there is no matching {matching!r}, expected one of {', '.join(choices)}")


def _check_pixels(confusion: NDArray[np.int64]) -> None:
    if not confusion.any():
        raise RasterError(
            "no pixel has both a label and a true class, expected some below 255 in both; give images with both"
        )


def _used(confusion: NDArray[np.int64], axis: int) -> int:
    """Clusters (``axis`` 1) or classes (0) up to the last that has pixels."""
    return int(np.flatnonzero(confusion.any(axis=axis)).max(initial=-1)) + 1


def _fit(confusion: NDArray[np.int64], matching: Sequence[int | None]) -> tuple[NDArray[np.int64], tuple[int | None, ...]]:
    """Both cut or padded to the clusters and classes that have pixels or are matched."""
    matched = [true_class for true_class in matching if true_class is not None]
    rows, cols = (_used(confusion, axis) for axis in (1, 0))
    clusters, classes = max(rows, len(matching)), max(cols, max(matched, default=-1) + 1)
    fitted = np.zeros((clusters, classes), np.int64)
    fitted[:rows, :cols] = confusion[:rows, :cols]
    return fitted, (*matching, *[None] * (clusters - len(matching)))


def _normalised_information(confusion: NDArray[np.int64]) -> float:
    """Mutual information of rows and columns over the arithmetic mean of their entropies."""
    joint = confusion / confusion.sum()
    by_cluster, by_class = joint.sum(axis=1), joint.sum(axis=0)
    entropies = _entropy(by_cluster) + _entropy(by_class)
    if entropies == 0:
        return 1.0
    information = entropies - _entropy(joint)
    return float(np.clip(2 * information / entropies, 0, 1))


def _entropy(shares: NDArray[np.float64]) -> float:
    used = shares[shares > 0]
    return float(-(used * np.log(used)).sum())


def _by_stem(folder: Path) -> dict[str, Path]:
    files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _RASTER_SUFFIXES)
    return {path.stem: path for path in files if not path.name.startswith(".")}


def _rows(labels_path: Path, truth_path: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    with open_dataset(labels_path) as labels, open_dataset(truth_path) as truth:
        for path, dataset in ((labels_path, labels), (truth_path, truth)):
            if dataset.count != 1 or dataset.dtypes[0] != "uint8":
                raise RasterError(
                    f"{path} has {dataset.count} bands of {dataset.dtypes[0]}, expected a class map: one band of uint8"
                )
        if labels.shape != truth.shape:
            raise RasterError(
                f"{labels_path} has {labels.height} x {labels.width} px, but {truth_path} has {truth.height} x {truth.width}"
            )
        step = max(1, _ROWS_AT_ONCE_PX // labels.width)
        errors = require("rasterio.errors")
        for row in range(0, labels.height, step):
            window = ((row, min(row + step, labels.height)), (0, labels.width))
            try:
                yield labels.read(1, window=window), truth.read(1, window=window)
            except errors.RasterioError as error:
                raise RasterError(f"{labels_path} or {truth_path} is damaged: {error}") from error
