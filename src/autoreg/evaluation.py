"""How well clusters fit classes: one streamed confusion matrix, and the matching that makes the most of it. No torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.optional import require
from autoreg.raster.reader import open_dataset
from autoreg.spec import NODATA_LABEL

_CLASSES = NODATA_LABEL + 1
_ROWS_AT_ONCE_PX = 2**24
_RASTER_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".vrt", ".jp2", ".img"}


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of class maps. Pixels that are 255 in the map or in the truth do not count.

    Attributes:
        accuracy: share of the pixels whose matched class is the true one (total over all maps), 0..1.
        mean_iou: mean of ``iou`` over the classes that occur in the truth.
        iou: intersection over union per class of the truth, 0..1; NaN for a class that occurs nowhere.
        matching: class that each cluster stands for; None for a cluster that is left over.
        confusion: pixels, (clusters, classes).
    """

    accuracy: float
    mean_iou: float
    iou: tuple[float, ...]
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


def score(confusion: NDArray[np.int64]) -> Evaluation:
    """Match clusters to classes one to one, so that most pixels are right (Hungarian method), and score that.

    Args:
        confusion: pixels by cluster and class, of any size; unused clusters and classes at the end are dropped.

    Raises:
        RasterError: no pixel counts.
    """
    if not confusion.any():
        raise RasterError("no pixel has both a label and a true class, expected some below 255 in both")
    clusters = int(np.flatnonzero(confusion.any(axis=1))[-1]) + 1
    classes = int(np.flatnonzero(confusion.any(axis=0))[-1]) + 1
    confusion = confusion[:clusters, :classes]
    rows, cols = require("scipy.optimize").linear_sum_assignment(confusion, maximize=True)
    matching: list[int | None] = [None] * clusters
    iou = np.where(confusion.any(axis=0), 0.0, np.nan)
    for cluster, true_class in zip(rows.tolist(), cols.tolist(), strict=True):
        matching[cluster] = true_class
        both = confusion[cluster, true_class]
        either = confusion[cluster].sum() + confusion[:, true_class].sum() - both
        if confusion[:, true_class].any():
            iou[true_class] = both / either
    return Evaluation(
        accuracy=float(confusion[rows, cols].sum() / confusion.sum()),
        mean_iou=float(np.nanmean(iou)),
        iou=tuple(iou.tolist()),
        matching=tuple(matching),
        confusion=confusion,
    )


def evaluate(pairs: Iterable[tuple[Path, Path]]) -> Evaluation:
    """Score class maps against truths, reading a few rows at a time.

    Args:
        pairs: a map and its truth, each a raster with one band of uint8.

    Raises:
        RasterError: a file cannot be read, is not a class map, or has another size than its partner.
    """
    total = np.zeros((_CLASSES, _CLASSES), np.int64)
    for labels_path, truth_path in pairs:
        for labels, truth in _rows(labels_path, truth_path):
            total += confusion_matrix(labels, truth)
    return score(total)


def pair_files(labels: Path, truth: Path) -> list[tuple[Path, Path]]:
    """The maps and truths to compare: two files, or two folders whose files are paired by name without suffix.

    Raises:
        RasterError: one is a file and the other a folder, or a map has no truth, or there is no map.
    """
    if not labels.exists() or not truth.exists():
        raise RasterError(f"there is no file or folder {truth if labels.exists() else labels}")
    if labels.is_dir() != truth.is_dir():
        raise RasterError(f"{labels} and {truth} are a file and a folder, expected two files or two folders")
    if labels.is_file():
        return [(labels, truth)]
    maps, truths = _by_stem(labels), _by_stem(truth)
    if not maps:
        raise RasterError(f"there is no raster in the folder {labels}")
    missing = sorted(set(maps) - set(truths))
    if missing:
        raise RasterError(f"{truth} has no raster named {missing[0]}, expected one for each of the {len(maps)} in {labels}")
    return [(maps[stem], truths[stem]) for stem in sorted(maps)]


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
