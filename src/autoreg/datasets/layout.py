"""A prepared data set: what lies where in its folder, and who is mapped and scored under which protocol.

======================  ==============================================================================================
``images/<id>.tif``     uint8, named bands; a mask inside the file where some pixels are no data
``labels/<id>.tif``     uint8 class index, 255 where nothing is to be scored; for the ids in the two labelled lists
``<split>.txt``         ids, one a line, sorted; for each of ``SPLITS``
======================  ==============================================================================================
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import ConfigError, OutputError, RasterError
from autoreg.optional import require
from autoreg.raster.gdal import georeference_optional
from autoreg.spec import NODATA_LABEL

SPLITS = ("unlabelled_train", "labelled_train", "labelled_test")
"""The lists; every image is in exactly one."""
PROTOCOLS = ("iic", "labelled_test", "iic+")
"""See ``protocol_pairs``."""
IMAGES = "images"
LABELS = "labels"
ENTRIES = (IMAGES, LABELS, *(f"{split}.txt" for split in SPLITS))
"""All names in the folder."""

_RGB = ("red", "green", "blue")


def image_path(folder: Path, sample_id: str) -> Path:
    """Where the image ``sample_id`` lies."""
    return folder / IMAGES / f"{sample_id}.tif"


def label_path(folder: Path, sample_id: str) -> Path:
    """Where the labels of ``sample_id`` lie, if it has any."""
    return folder / LABELS / f"{sample_id}.tif"


def read_split(folder: Path, name: str) -> list[str]:
    """The ids in one list of a prepared data set, sorted.

    Raises:
        ConfigError: ``name`` is not one of ``SPLITS``.
        RasterError: ``folder`` is not a prepared data set.
    """
    if name not in SPLITS:
        raise ConfigError(f"there is no split {name!r}, expected one of {', '.join(SPLITS)}")
    path = folder / f"{name}.txt"
    if not path.is_file():
        raise RasterError(f"{folder} is not a prepared data set: it has no {path.name}; prepare it from the download first")
    return sorted(read_ids(path))


def read_ids(path: Path) -> list[str]:
    """Read ids, one a line, in their order; blank lines do not count.

    Raises:
        RasterError: the file cannot be read, or a line is not the name of a file without folder and suffix, or occurs twice.
    """
    try:
        ids = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RasterError(f"{path} cannot be read as a list of ids: {error}") from error
    ids = [line.strip() for line in ids if line.strip()]
    # An id becomes a file name, so it must not lead out of the folder.
    strange = [line for line in ids if not line.replace("_", "").replace("-", "").isalnum()]
    if strange:
        raise RasterError(f"{path} holds {strange[0]!r}, expected ids of letters, digits, _ and -, one a line")
    if len(set(ids)) < len(ids):
        raise RasterError(f"{path} holds an id twice, expected each of its {len(ids)} lines once")
    return ids


def protocol_pairs(folder: Path, protocol: str) -> tuple[list[str], list[str]]:
    """Which images tell what class each cluster stands for, and which are then scored.

    ``iic``: both are all labelled images, ``labelled_train`` and ``labelled_test`` together, 5400 for Potsdam. It is what
    IIC (Ji et al., 2019) reports, and Ouali et al. (2020) compare with; IIC trains on them too.

    ``labelled_test``: both are ``labelled_test`` (855 for Potsdam), as in STEGO and PriMaPs.

    ``iic+``: mapped on ``labelled_train``, scored on ``labelled_test``; IIC's semi-supervised split (mode ``IID+`` of its
    code), the only one of the three that scores images which the mapping has not seen.

    Returns:
        The ids to map on and the ids to score, each sorted.

    Raises:
        ConfigError: ``protocol`` is not one of ``PROTOCOLS``.
        RasterError: ``folder`` is not a prepared data set, or has no images for this protocol.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    train, test = read_split(folder, "labelled_train"), read_split(folder, "labelled_test")
    both = sorted(train + test)
    mapping, scoring = {"iic": (both, both), "labelled_test": (test, test), "iic+": (train, test)}[protocol]
    if not mapping or not scoring:
        raise RasterError(
            f"{folder} has {len(train)} images in labelled_train and {len(test)} in labelled_test, "
            f"too few for the protocol {protocol!r}"
        )
    return mapping, scoring


class DatasetWriter:
    """Fills the folder of a data set, one image at a time.

    Attributes:
        bands: names of the bands of every image.
    """

    def __init__(self, folder: Path, *, bands: tuple[str, ...], tags: Mapping[str, str]) -> None:
        """Make the folders inside ``folder``, which is empty. ``tags`` are written into every file, to say what it is."""
        self.bands = bands
        self._folder = folder
        self._tags = tags
        for name in (IMAGES, LABELS):
            (folder / name).mkdir()

    def write_image(
        self,
        sample_id: str,
        pixels: NDArray[np.uint8],
        *,
        valid: NDArray[np.bool_] | None = None,
        place: Mapping[str, Any] | None = None,
    ) -> None:
        """Write pixels (bands, height, width).

        Args:
            sample_id: name of the file without suffix.
            pixels: uint8.
            valid: (height, width), True where a pixel is data; None where all are.
            place: ``crs`` and ``transform``, as in ``rasterio.open``; None for an image that lies nowhere.

        Raises:
            OutputError: it cannot be written.
        """
        # Named explicitly: GDAL would take three bands for red, green, blue, and a fourth for alpha.
        photometric = "rgb" if self.bands[:3] == _RGB else "minisblack"
        profile = {"photometric": photometric, "alpha": "unspecified", "predictor": 2, **(place or {})}
        self._write(image_path(self._folder, sample_id), pixels, self.bands, profile, valid)

    def write_labels(self, sample_id: str, labels: NDArray[np.uint8], *, place: Mapping[str, Any] | None = None) -> None:
        """Write class indices (height, width), uint8, 255 = ignore; ``place`` as for the image.

        Raises:
            OutputError: they cannot be written.
        """
        profile = {"nodata": NODATA_LABEL, **(place or {})}
        self._write(label_path(self._folder, sample_id), labels[None], ("class",), profile, None)

    def write_splits(self, splits: Mapping[str, Iterable[str]]) -> None:
        """Write the three lists, sorted."""
        for name in SPLITS:
            lines = "".join(f"{sample_id}\n" for sample_id in sorted(splits[name]))
            (self._folder / f"{name}.txt").write_text(lines, encoding="utf-8", newline="\n")

    def _write(
        self,
        path: Path,
        pixels: NDArray[np.uint8],
        bands: tuple[str, ...],
        profile: dict[str, Any],
        valid: NDArray[np.bool_] | None,
    ) -> None:
        rasterio = require("rasterio")
        count, height, width = pixels.shape
        # One block per file: it is read whole, and blocks of a few kilobytes compress badly.
        profile |= {"driver": "GTiff", "compress": "deflate", "blockysize": height, "dtype": "uint8"}
        profile |= {"count": count, "height": height, "width": width}
        try:
            # In memory first: GDAL does not reliably report a disk that fills up while it closes a file, Python does.
            with georeference_optional(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.MemoryFile() as memory:
                with memory.open(**profile) as dataset:
                    dataset.write(pixels)
                    dataset.descriptions = bands
                    dataset.update_tags(**self._tags)
                    if valid is not None:
                        dataset.write_mask(valid.astype(np.uint8) * 255)
                path.write_bytes(memory.read())
        except rasterio.errors.RasterioError as error:
            raise OutputError(f"{path.name} was not written: {error}") from error
