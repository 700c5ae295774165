"""Prepare a data set: its download in, the folder of ``autoreg.datasets.layout`` out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autoreg.datasets.coco_stuff import CocoStuff
from autoreg.datasets.layout import ENTRIES, DatasetWriter
from autoreg.datasets.potsdam import Potsdam
from autoreg.datasets.whole_folder import atomic_folder
from autoreg.errors import ConfigError, RasterError

DATASETS = ("potsdam", "potsdam3", "coco-stuff", "coco-stuff3")


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        folder: of the data set.
        bands: names of the bands of its images.
        classes: names of its classes, by label.
        unlabelled_train, labelled_train, labelled_test: number of images in each list.
    """

    folder: Path
    bands: tuple[str, ...]
    classes: tuple[str, ...]
    unlabelled_train: int
    labelled_train: int
    labelled_test: int


def prepare(
    name: str,
    raw: Path,
    out: Path,
    *,
    iic_compat: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Make a data set from its download. ``out`` appears when it is complete, or not at all.

    IIC's code, which made the data that papers compare on, has faults; numbers that are to be compared with such papers need
    them, so ``iic_compat`` brings them back. For ``coco-stuff`` and ``coco-stuff3``:

    * the bands are blue, green, red (and named so);
    * pixels outside the classes are masked as no data, as IIC drops them from its loss by the ground truth; here the network
      does not see them at all, whereas IIC's does;
    * only the centre 128 x 128 px are scored: all other labels are 255;
    * for ``coco-stuff3``, unlabelled pixels are sky, and are scored and trained on as such. Pixels of other classes are not.

    For Potsdam it changes nothing: there the only fault is a split that was drawn without a seed.

    Args:
        name: one of ``DATASETS``.
        raw: the unpacked download.
        out: folder to make, in an existing folder.
        iic_compat: see above.
        seed: of Potsdam's split, at least 0; COCO-Stuff has a fixed one.
        overwrite: replace ``out`` if it holds a prepared data set.
        progress: is told how many raw images are done, and of how many.

    Raises:
        ConfigError: there is no such data set, or the seed is negative.
        RasterError: the download is not complete, or damaged, or laid out differently.
        OutputError: ``out`` exists or cannot be written.
    """
    if name not in DATASETS:
        raise ConfigError(f"there is no data set {name!r}, expected one of {', '.join(DATASETS)}")
    if seed < 0:
        raise ConfigError(f"the seed is {seed}, expected 0 or more")
    if not raw.is_dir():
        raise RasterError(f"there is no folder {raw}, expected the one with the unpacked download of {name}")
    recipe = _recipe(name, iic_compat=iic_compat, seed=seed)
    tags = {"dataset": name, "classes": ", ".join(recipe.classes), "iic_compat": str(iic_compat).lower()}
    with atomic_folder(out, overwrite=overwrite, entries=ENTRIES) as folder:
        writer = DatasetWriter(folder, bands=recipe.bands, tags=tags)
        splits = recipe.write_samples(raw, writer, progress or _ignore_progress)
        writer.write_splits(splits)
    return Prepared(out, recipe.bands, recipe.classes, **{split: len(ids) for split, ids in splits.items()})


def _recipe(name: str, *, iic_compat: bool, seed: int) -> Potsdam | CocoStuff:
    few = name.endswith("3")
    return Potsdam(merged=few, seed=seed) if name.startswith("potsdam") else CocoStuff(few=few, iic_compat=iic_compat)


def _ignore_progress(done: int, total: int) -> None:
    """What is told to nobody."""
