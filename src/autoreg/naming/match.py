"""Match the clusters of a model to classes: to those of a truth, or to those of an earlier model.

Both are one thing: a map of classes, given or drawn by the earlier model, beside the map of the clusters. From the pixels
that they share follows which class each cluster stands for (``evaluation.match_clusters``).
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import ConfigError
from autoreg.evaluation import Evaluation, check_matching, confusion_of_maps, match_clusters, open_truth, score
from autoreg.raster.palette import unnamed_classes, unused_colours
from autoreg.raster.reader import RasterReader
from autoreg.runtime.engine import Engine, load_engine
from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine
from autoreg.runtime.segment import segment_raster
from autoreg.spec import NODATA_LABEL, MapClass

Progress = Callable[[int, int], None]
"""Called with the images done and the images in all, after each."""


@dataclass(frozen=True)
class Matched:
    """What the clusters of a model stand for.

    Attributes:
        classes: legend for the model. A cluster that stands for no class has one of its own, with a free label, so that it
            stays visible in the maps.
        scores: of the model on the images that it was matched on; its classes are labels.
    """

    classes: tuple[MapClass, ...]
    scores: Evaluation


def match_to_truth(
    model: Path,
    pairs: Sequence[tuple[Path, Path]],
    *,
    matching: str = "one-to-one",
    legend: Sequence[MapClass] = (),
    progress: Progress | None = None,
) -> Matched:
    """Match clusters to the classes of labelled images.

    Args:
        model: from ``autoreg export``; names that it already has do not matter.
        pairs: an image and its truth: one band of uint8, 255 where it is not known.
        matching: one of ``evaluation.MATCHINGS``, see ``evaluation.match_clusters``.
        legend: classes of the truth, whatever clusters they list. If empty, the labels that occur, with the colours of the
            first truth that has a colour table, else of the palette.
        progress: see ``Progress``.

    Raises:
        ModelError: ``model`` is not one.
        ConfigError: the truth has a class that ``legend`` has not, or ``matching`` is not one.
        RasterError: a file cannot be read or does not fit its partner or the model, or no pixel counts.
    """
    check_matching(matching)
    engine = _cluster_engine(model)
    tables = [_check_pair(image, truth, len(engine.spec.bands)) for image, truth in pairs]
    confusion = _confusion(engine, pairs, len(pairs), progress)
    present = np.flatnonzero(confusion.any(axis=0)).tolist()
    if not legend:
        legend = _legend(present, next(filter(None, tables), {}))
    elif unknown := set(present) - {item.label for item in legend}:
        raise ConfigError(
            f"the truth has the label {min(unknown)}, but the legend has only "
            f"{', '.join(str(item.label) for item in legend)}; add a class with this label"
        )
    return _match(confusion, engine.spec.clusters, legend, matching)


def match_to_model(
    model: Path, images: Sequence[Path], *, earlier: Path, matching: str | None = None, progress: Progress | None = None
) -> Matched:
    """Match clusters to the classes of an earlier model, as both see some images, so that labels keep their meaning.

    Args:
        model: from ``autoreg export``; names that it already has do not matter.
        images: rasters, no labels needed.
        earlier: the model whose labels, names and colours to take over.
        matching: one of ``evaluation.MATCHINGS``; if None, many-to-one if a class of ``earlier`` has several clusters.
        progress: see ``Progress``.

    Raises:
        ModelError: ``model`` or ``earlier`` is not one.
        ConfigError: ``matching`` is not one.
        RasterError: an image cannot be read or does not fit one of the models, or no pixel counts.
    """
    engine, reference = _cluster_engine(model), load_engine(earlier)
    classes = reference.spec.classes
    if matching is None:
        matching = "many-to-one" if any(len(item.clusters) > 1 for item in classes) else "one-to-one"
    check_matching(matching)
    with TemporaryDirectory(prefix="autoreg-") as folder:
        answer = Path(folder, "earlier.tif")

        def answers() -> Iterator[tuple[Path, Path]]:
            for image in images:
                segment_raster(reference, image, answer, overwrite=True)
                yield image, answer

        confusion = _confusion(engine, answers(), len(images), progress)
    return _match(confusion, engine.spec.clusters, classes, matching)


def _cluster_engine(model: Path) -> OnnxRuntimeEngine:
    """An engine whose maps show the clusters themselves, whatever names the model has."""
    engine = OnnxRuntimeEngine.from_file(model)
    engine.spec = dataclasses.replace(engine.spec, classes=unnamed_classes(engine.spec.clusters))
    return engine


def _check_pair(image: Path, truth: Path, bands: int) -> dict[int, str]:
    """Make sure that they fit, before any work starts; the colours of the truth, if it has a colour table."""
    with RasterReader(image, bands=bands) as raster, open_truth(truth, raster) as dataset:
        if dataset.colorinterp[0].name != "palette":
            return {}
        return {label: f"#{red:02x}{green:02x}{blue:02x}" for label, (red, green, blue, _) in dataset.colormap(1).items()}


def _confusion(
    engine: Engine, pairs: Iterable[tuple[Path, Path]], total: int, progress: Progress | None
) -> NDArray[np.int64]:
    """Pixels by cluster and class, int64 (256, 256); a map lies in a temporary file as long as it is counted."""
    confusion = np.zeros((NODATA_LABEL + 1, NODATA_LABEL + 1), np.int64)
    with TemporaryDirectory(prefix="autoreg-") as folder:
        for done, (image, truth) in enumerate(pairs, start=1):
            clusters = Path(folder, "clusters.tif")
            segment_raster(engine, image, clusters, overwrite=True)
            confusion += confusion_of_maps([(clusters, truth)])
            if progress:
                progress(done, total)
    return confusion


def _legend(labels: Sequence[int], colours: Mapping[int, str]) -> tuple[MapClass, ...]:
    """A class for each label that nobody has named."""
    palette = unused_colours(set(colours.values()))
    return tuple(MapClass(label, f"class {label}", colours.get(label) or next(palette)) for label in labels)


def _match(confusion: NDArray[np.int64], clusters: int, legend: Sequence[MapClass], matching: str) -> Matched:
    found = match_clusters(confusion, matching)
    members: dict[int | None, list[int]] = defaultdict(list)
    for cluster in range(clusters):
        members[found[cluster] if cluster < len(found) else None].append(cluster)
    named = [dataclasses.replace(item, clusters=tuple(members[item.label])) for item in legend]
    classes = named + _left_over(members[None], named)
    return Matched(tuple(sorted(classes, key=lambda item: item.label)), score(confusion, found))


def _left_over(clusters: Sequence[int], named: Sequence[MapClass]) -> list[MapClass]:
    """A class for each cluster that stands for none: the labels after the highest, and when they are used up the gaps."""
    highest = max(item.label for item in named)
    free = sorted(set(range(NODATA_LABEL)) - {item.label for item in named}, key=lambda label: (label < highest, label))
    if len(free) < len(clusters):
        raise ConfigError(
            f"{len(clusters)} clusters stand for none of {len(named)} classes, and only {len(free)} labels below "
            f"{NODATA_LABEL} are free for them; match many-to-one"
        )
    colours = unused_colours({item.colour for item in named})
    return [
        MapClass(label, f"unnamed {label}", next(colours), (cluster,))
        for label, cluster in zip(free, clusters, strict=False)
    ]
