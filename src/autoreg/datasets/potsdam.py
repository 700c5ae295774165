"""ISPRS Potsdam, as IIC cuts it: 38 tiles of 6000 x 6000 px, halved, in 225 pieces of 200 x 200 px each.

Source: ``potsdam_prepare.py`` of IIC's public code (Ji et al., 2019), whose data Ouali et al. (2020) measure on. It
draws its split without a seed, so the original lists exist in IIC's own archive only, and the ones made here differ.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.datasets.layout import DatasetWriter
from autoreg.datasets.raw import open_raw, read_bands
from autoreg.datasets.resampling import halve_linear, halve_nearest
from autoreg.errors import RasterError
from autoreg.optional import require
from autoreg.spec import NODATA_LABEL

BANDS = ("red", "green", "blue", "nir")
CLASSES = ("road", "building", "low vegetation", "tree", "car", "clutter")
MERGED_CLASSES = ("road and car", "building and clutter", "vegetation and tree")
MERGING = (0, 1, 2, 2, 0, 1)
"""Class of Potsdam-3 for each class of Potsdam."""
COLOURS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
"""Red, green and blue of each class in the label files."""
PIECE_PX = 200
LABELLED_TEST_SHARE = Fraction(855, 5400)
"""Of the labelled pieces; IIC takes a tenth of all 8550 pieces, and takes it from the 5400 labelled ones."""

_IMAGE_SUFFIX = "_RGBIR.tif"
_LABEL_SUFFIX = "_label.tif"
_PREFIX = "top_potsdam_"
_PARTICIPANTS = "5_Labels_for_participants"
_DECODED_AT_ONCE_PX = 2**20

_logger = logging.getLogger("autoreg")


class Tile(NamedTuple):
    """A raw tile.

    Attributes:
        name: row and column of the tile in the city, as in ``2_10``.
        image: path of the image.
        labels: path of the labels; None where the download has none.
    """

    name: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Potsdam:
    """The recipe.

    Attributes:
        merged: into the three classes of Potsdam-3.
        seed: of the draw of ``labelled_test``.
    """

    merged: bool
    seed: int

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in order."""
        return BANDS

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return MERGED_CLASSES if self.merged else CLASSES

    def write_samples(self, raw: Path, writer: DatasetWriter, progress: Callable[[int, int], None]) -> dict[str, list[str]]:
        """Cut all tiles below ``raw`` into pieces and write them.

        Args:
            raw: the unpacked download.
            writer: where the pieces go.
            progress: is told how many tiles are done, and of how many.

        Returns:
            The ids of the pieces in each of the three lists.

        Raises:
            RasterError: a file is missing, damaged or of another size or type than in the download.
            OutputError: a piece cannot be written.
        """
        tiles = find_tiles(raw)
        unlabelled: list[str] = []
        labelled: list[str] = []
        for done, tile in enumerate(tiles):
            progress(done, len(tiles))
            (labelled if tile.labels else unlabelled).extend(_cut_tile(tile, writer, merged=self.merged))
        progress(len(tiles), len(tiles))
        train, test = split_labelled(labelled, self.seed)
        return {"unlabelled_train": unlabelled, "labelled_train": train, "labelled_test": test}


def find_tiles(raw: Path) -> list[Tile]:
    """All tiles below ``raw``, by name. Labels lie in ``5_Labels_for_participants`` if there is a folder of that name.

    Raises:
        RasterError: there are no images or no labels, or two files for one tile.
    """
    images = _by_tile(sorted(raw.rglob(f"*{_IMAGE_SUFFIX}")), _IMAGE_SUFFIX)
    found = sorted(raw.rglob(f"*{_LABEL_SUFFIX}"))
    # Whoever also has the labels of the former test tiles (5_Labels_all) gets the 24 tiles that papers measure on.
    labels = _by_tile([path for path in found if path.parent.name == _PARTICIPANTS] or found, _LABEL_SUFFIX)
    expected = f"expected the unpacked ISPRS download, 4_Ortho_RGBIR/{_PREFIX}2_10{_IMAGE_SUFFIX} and so on"
    if not images:
        raise RasterError(f"there is no *{_IMAGE_SUFFIX} below {raw}, {expected}")
    if not images.keys() & labels.keys():
        raise RasterError(
            f"no *{_LABEL_SUFFIX} below {raw} belongs to one of its {len(images)} images, "
            f"{expected}, with {_PARTICIPANTS}/{_PREFIX}2_10{_LABEL_SUFFIX}"
        )
    if images.keys() <= labels.keys():
        _logger.warning(
            "every tile below %s has labels, so unlabelled_train is empty; papers take the labels of 24 of the 38 tiles, %s",
            raw,
            _PARTICIPANTS,
        )
    return [Tile(name, path, labels.get(name)) for name, path in sorted(images.items())]


def _by_tile(paths: list[Path], suffix: str) -> dict[str, Path]:
    tiles: dict[str, Path] = {}
    for path in paths:
        name = path.name.removesuffix(suffix).removeprefix(_PREFIX)
        if name in tiles:
            raise RasterError(f"{tiles[name]} and {path} are both of tile {name}, expected one; move the other elsewhere")
        tiles[name] = path
    return tiles


def split_labelled(ids: list[str], seed: int) -> tuple[list[str], list[str]]:
    """Draw ``LABELLED_TEST_SHARE`` of the labelled pieces, whatever order they come in.

    Returns:
        Ids of ``labelled_train`` and of ``labelled_test``, each sorted.
    """
    ids = sorted(ids)
    drawn = np.random.default_rng(seed).permutation(len(ids))[: round(len(ids) * LABELLED_TEST_SHARE)]
    test = {ids[index] for index in drawn.tolist()}
    return [name for name in ids if name not in test], sorted(test)


def _cut_tile(tile: Tile, writer: DatasetWriter, *, merged: bool) -> list[str]:
    """Write the pieces of one tile; what is left over at the right and at the bottom is dropped."""
    image, place = _read_halved_image(tile.image)
    pieces = dict(_pieces(tile.name, *image.shape[1:]))
    for sample_id, (row, col) in pieces.items():
        piece = image[:, row : row + PIECE_PX, col : col + PIECE_PX]
        writer.write_image(sample_id, piece, place=_place_piece(place, row, col))
    if tile.labels:
        labels = _read_halved_labels(tile.labels, image.shape[1:], merged=merged)
        for sample_id, (row, col) in pieces.items():
            piece = labels[row : row + PIECE_PX, col : col + PIECE_PX]
            writer.write_labels(sample_id, piece, place=_place_piece(place, row, col))
    return list(pieces)


def _pieces(tile: str, height: int, width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Ids and top left corners of the pieces, in pixels of the halved tile."""
    for row in range(height // PIECE_PX):
        for col in range(width // PIECE_PX):
            yield f"{tile}_{row:02d}_{col:02d}", (row * PIECE_PX, col * PIECE_PX)


def _read_halved_image(path: Path) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Pixels (4, height, width) of the halved tile, and where the raw tile lies."""
    with open_raw(path, bands=(len(BANDS),)) as dataset:
        shape = (dataset.height // 2, dataset.width // 2)
        if min(shape) < PIECE_PX:
            raise RasterError(
                f"{path} has {dataset.height} x {dataset.width} px, expected 6000 x 6000 as in the original, "
                f"and at least {2 * PIECE_PX} x {2 * PIECE_PX}; download it again"
            )
        image = np.empty((len(BANDS), *shape), np.uint8)
        even = ((0, 2 * shape[0]), (0, 2 * shape[1]))
        for index, band in enumerate(image):  # a band at a time: the raw tile as a whole has 144 MB
            band[:] = halve_linear(read_bands(dataset, path, index + 1, window=even))
        place: dict[str, Any] = {"crs": dataset.crs} if dataset.crs else {}
        if not dataset.transform.is_identity:
            place["transform"] = dataset.transform
        return image, place


def _place_piece(place: dict[str, Any], row: int, col: int) -> dict[str, Any]:
    """Where the piece lies whose corner is ``row`` and ``col`` of the halved tile, if the raw tile lies anywhere."""
    if "transform" not in place:
        return place
    # Written out: affine 3 warns of its operator *, and affine 2 has no @.
    a, b, c, d, e, f = place["transform"][:6]
    corner = (c + 2 * (a * col + b * row), f + 2 * (d * col + e * row))
    return place | {"transform": require("rasterio").Affine(2 * a, 2 * b, corner[0], 2 * d, 2 * e, corner[1])}


def _read_halved_labels(path: Path, shape: tuple[int, ...], *, merged: bool) -> NDArray[np.uint8]:
    """Class indices (height, width) of the halved tile; pixels of unknown colours are 255, with a warning."""
    with open_raw(path, bands=(3,)) as dataset:
        if (dataset.height // 2, dataset.width // 2) != tuple(shape):
            raise RasterError(
                f"{path} has {dataset.height} x {dataset.width} px, expected the size of its image, "
                f"{2 * shape[0]} x {2 * shape[1]}; download both again"
            )
        rgb = halve_nearest(read_bands(dataset, path, [1, 2, 3]))[:, : shape[0], : shape[1]]
    labels = decode_colours(rgb, merged=merged)
    unknown = int(np.count_nonzero(labels == NODATA_LABEL))
    if unknown:
        _logger.warning(
            "%s: %d of %d pixels (at half resolution) have a colour of no class and are ignored", path, unknown, labels.size
        )
    return labels


def decode_colours(rgb: NDArray[np.uint8], *, merged: bool) -> NDArray[np.uint8]:
    """Classes (height, width) of colours (3, height, width); 255 for a colour that belongs to none.

    Each pixel's three bytes are packed into one number, the place of its class in a table.
    """
    table = _colour_table(merged)
    _, height, width = rgb.shape
    labels = np.empty((height, width), np.uint8)
    step = max(1, _DECODED_AT_ONCE_PX // width)
    for row in range(0, height, step):  # in pieces that fit the processor's cache: the packed numbers take 4 bytes each
        part = rgb[:, row : row + step].astype(np.uint32)
        labels[row : row + step] = table[(part[0] << 16) | (part[1] << 8) | part[2]]
    return labels


@lru_cache(maxsize=2)
def _colour_table(merged: bool) -> NDArray[np.uint8]:
    table = np.full(2**24, NODATA_LABEL, np.uint8)
    for label, (red, green, blue) in enumerate(COLOURS):
        table[red << 16 | green << 8 | blue] = MERGING[label] if merged else label
    return table
