"""COCO-Stuff 164k, as IIC takes it: pictures that are mostly stuff, shrunk to a third, in 15 coarse classes or 3 of them.

Source: ``coco164k_prepare.py`` and ``cocostuff.py`` of IIC's public code (Ji et al., 2019), whose data Ouali et al. (2020)
measure on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from autoreg.datasets.layout import DatasetWriter, read_ids
from autoreg.datasets.raw import open_raw, read_bands
from autoreg.datasets.resampling import pad_centred, shrink_linear, shrink_nearest
from autoreg.errors import RasterError
from autoreg.optional import require
from autoreg.spec import NODATA_LABEL

BANDS = ("red", "green", "blue")
BANDS_REVERSED = ("blue", "green", "red")
"""As IIC feeds them, by ``cv2.imread`` without converting."""
FINE_CLASSES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "ceiling": (101, 102),
        "floor": (100, 113, 114, 115, 116, 117),
        "food": (120, 121, 152, 169),
        "furniture": (97, 106, 107, 109, 111, 122, 129, 132, 155, 160, 164),
        "raw material": (99, 131, 138, 142),
        "textile": (91, 92, 103, 104, 108, 130, 136, 140, 151, 166, 167),
        "wall": (170, 171, 172, 173, 174, 175, 176),
        "window": (179, 180),
        "building": (94, 95, 127, 150, 157, 165),
        "ground": (110, 124, 125, 135, 139, 143, 144, 146, 148, 153, 158),
        "plant": (93, 96, 118, 123, 128, 133, 141, 162, 168),
        "sky": (105, 156),
        "solid": (126, 134, 149, 159, 161, 181),
        "structural": (98, 112, 137, 145, 163),
        "water": (119, 147, 154, 177, 178),
    }
)
"""Fine classes (0..181 in the annotations) of each coarse class of stuff; 0..90 are things and belong to none."""
CLASSES = tuple(FINE_CLASSES)
"""Of COCO-Stuff(-15), by label."""
FEW_CLASSES = ("sky", "plant", "ground")
"""Of COCO-Stuff-3, by label."""
FACTOR = 0.33
CROP_PX = 128
"""Side of the crops that IIC trains and scores on."""
CURATED_SIDE_PX = 360
CURATED_SHARE = 0.75

_LAST_FINE = 181
_FOLDERS = {"labelled_train": "train2017", "labelled_test": "val2017"}
_LIST = "Coco164kFull_Stuff_Coarse_7.txt"
_FEW_LIST = "Coco164kFew_Stuff_6.txt"


@dataclass(frozen=True)
class CocoStuff:
    """The recipe.

    Attributes:
        few: the 3 classes rather than the 15.
        iic_compat: with the faults of IIC's code, as ``prepare`` lists them.
    """

    few: bool
    iic_compat: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return FEW_CLASSES if self.few else CLASSES

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in order."""
        return BANDS_REVERSED if self.iic_compat else BANDS

    def tabulate_labels(self) -> NDArray[np.uint8]:
        """Label (256,) of each value of an annotation; 255 for values in no class."""
        table = np.full(NODATA_LABEL + 1, NODATA_LABEL, np.uint8)
        for label, name in enumerate(self.classes):
            table[list(FINE_CLASSES[name])] = label
        return table

    def write_samples(self, raw: Path, writer: DatasetWriter, progress: Callable[[int, int], None]) -> dict[str, list[str]]:
        """Shrink and write the curated pictures: those in IIC's lists if they are there, else those that fit its rule.

        Args:
            raw: folder with ``images``, ``annotations`` and perhaps ``curated``.
            writer: where the pictures go.
            progress: is told how many pictures are done, and of how many.

        Returns:
            The ids of the pictures in each of the three lists.

        Raises:
            RasterError: a file is missing, damaged, or not what COCO-Stuff has there.
            OutputError: a picture cannot be written.
        """
        candidates = {split: find_candidates(raw, folder, few=self.few) for split, folder in _FOLDERS.items()}
        _check_disjoint(raw, [ids for ids, _ in candidates.values()])
        jobs = [(split, sample_id, curated) for split, (ids, curated) in candidates.items() for sample_id in ids]
        splits: dict[str, list[str]] = {"unlabelled_train": [], "labelled_train": [], "labelled_test": []}
        # GDAL would list a folder of 118 000 files for every file that it opens in it, in search of its companions.
        with require("rasterio").Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            for done, (split, sample_id, curated) in enumerate(jobs):
                progress(done, len(jobs))
                if _write_picture(raw, _FOLDERS[split], sample_id, writer, self, curated=curated):
                    splits[split].append(sample_id)
        progress(len(jobs), len(jobs))
        if not any(splits.values()):
            raise RasterError(
                f"none of the {len(jobs)} pictures below {raw} has {CURATED_SIDE_PX} px on both sides "
                f"and {CURATED_SHARE:.0%} of its pixels in the classes; is the download complete?"
            )
        return splits


def find_candidates(raw: Path, folder: str, *, few: bool) -> tuple[list[str], bool]:
    """Ids of the pictures to look at in ``train2017`` or ``val2017``, and whether they come from a curated list.

    Raises:
        RasterError: there is neither a list nor an annotation.
    """
    curated = raw / "curated" / folder / (_FEW_LIST if few else _LIST)
    if curated.is_file():
        return read_ids(curated), True
    annotations = raw / "annotations" / folder
    ids = sorted(path.stem for path in annotations.glob("*.png"))
    if not ids:
        raise RasterError(
            f"there is no *.png in {annotations}, expected {raw} to hold images/{folder}/*.jpg and "
            f"annotations/{folder}/*.png: COCO's 2017 images and stuffthingmaps_trainval2017, each for train2017 and val2017"
        )
    return ids, False


def _check_disjoint(raw: Path, lists: list[list[str]]) -> None:
    both = set(lists[0]) & set(lists[1])
    if both:
        raise RasterError(f"{min(both)} is in both train2017 and val2017 below {raw}, expected no picture in both")


def meets_rule(fine: NDArray[np.uint8], table: NDArray[np.uint8]) -> bool:
    """Whether a picture is large enough and has enough pixels in the classes, by its annotation (height, width).

    IIC's lists for the 15 classes are made with this rule. Those for the 3 are of an older version, whose numbers are not
    published, so without the lists the selection for COCO-Stuff-3 may differ from IIC's.
    """
    inside = np.bincount(fine.ravel(), minlength=NODATA_LABEL + 1)[table != NODATA_LABEL].sum()
    return min(fine.shape) >= CURATED_SIDE_PX and bool(inside >= CURATED_SHARE * fine.size)


def _write_picture(
    raw: Path, folder: str, sample_id: str, writer: DatasetWriter, recipe: CocoStuff, *, curated: bool
) -> bool:
    """Write one picture and its labels, unless it is neither from a curated list nor fits the rule."""
    fine = _read_annotation(raw / "annotations" / folder / f"{sample_id}.png")
    if not curated and not meets_rule(fine, recipe.tabulate_labels()):
        return False
    path = raw / "images" / folder / f"{sample_id}.jpg"
    image = _read_picture(path)
    if image.shape[1:] != fine.shape:
        raise RasterError(
            f"{path} has {image.shape[1]} x {image.shape[2]} px, but its annotation has {fine.shape[0]} x {fine.shape[1]}; "
            f"download both again"
        )
    pixels, labels, valid = make_sample(image, fine, recipe)
    writer.write_image(sample_id, pixels, valid=None if valid.all() else valid)
    writer.write_labels(sample_id, labels)
    return True


def make_sample(
    image: NDArray[np.uint8], fine: NDArray[np.uint8], recipe: CocoStuff
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    """Shrink a picture and its annotation, map the classes and pad both, so that a crop of ``CROP_PX`` fits.

    Args:
        image: (3, height, width): red, green, blue.
        fine: (height, width), 0..181 and 255.
        recipe: with ``iic_compat``, see ``prepare`` for what is different.

    Returns:
        Pixels (3, h, w) in the recipe's bands, labels (h, w), and which pixels are data, (h, w).
    """
    table = recipe.tabulate_labels()
    if recipe.iic_compat and recipe.few:
        # IIC's _CocoFew._filter_label starts from zeros and visits 0..181 only, so unlabelled pixels stay 0: sky.
        table[NODATA_LABEL] = 0
    pixels = shrink_linear(image[::-1] if recipe.iic_compat else image, FACTOR)
    labels = table[shrink_nearest(fine, FACTOR)]
    valid = labels != NODATA_LABEL if recipe.iic_compat else np.ones(labels.shape, np.bool_)
    pixels, labels = pad_centred(pixels, CROP_PX, 0), pad_centred(labels, CROP_PX, NODATA_LABEL)
    valid = pad_centred(valid, CROP_PX, False)
    if recipe.iic_compat:
        labels = ignore_outside_centre(labels)
    return pixels, labels, valid


def ignore_outside_centre(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels (height, width), each side at least ``CROP_PX``, with 255 outside the crop in the centre that IIC scores."""
    kept = np.full_like(labels, NODATA_LABEL)
    row, col = (size // 2 - CROP_PX // 2 for size in labels.shape)
    centre = (slice(row, row + CROP_PX), slice(col, col + CROP_PX))
    kept[centre] = labels[centre]
    return kept


def _read_annotation(path: Path) -> NDArray[np.uint8]:
    with open_raw(path, bands=(1,)) as dataset:
        fine = read_bands(dataset, path, 1)
    strange = fine[(fine > _LAST_FINE) & (fine != NODATA_LABEL)]
    if strange.size:
        raise RasterError(
            f"{path} holds the value {strange[0]}, expected 0 to {_LAST_FINE} and {NODATA_LABEL}; "
            f"take the annotations from stuffthingmaps_trainval2017"
        )
    return fine


def _read_picture(path: Path) -> NDArray[np.uint8]:
    """Red, green and blue (3, height, width); some pictures of COCO are grey."""
    with open_raw(path, bands=(1, 3)) as dataset:
        return read_bands(dataset, path, [1, 1, 1] if dataset.count == 1 else [1, 2, 3])
