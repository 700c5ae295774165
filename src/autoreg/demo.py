"""A synthetic landscape with labels, for the demo, the README, tests and benchmarks.

Five land covers that differ in texture more than in colour, so that clustering the pixels' colours fails and looking at
their neighbourhood pays.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoreg.evaluation import Evaluation, confusion_matrix, score
from autoreg.optional import require
from autoreg.output import atomic_output
from autoreg.raster.palette import class_colours
from autoreg.raster.picture import encode_picture, paint
from autoreg.spec import NODATA_LABEL

BANDS = ("red", "green", "blue", "nir")
COVERS = ("water", "forest", "crops", "built-up", "bare")
SETTINGS = f"""\
# Small and fast, for textures of a few pixels; without a file like this, autoreg train takes its defaults.
stride = 2
ensemble = 1
classes = {len(COVERS)}
steps = 400
batch_size = 16
crop_px = 64
learning_rate = 1e-3
"""

_MEAN = np.array([[67, 77, 74, 71], [65, 81, 63, 105], [74, 82, 63, 98], [83, 84, 78, 82], [80, 81, 67, 92]], float)
_AMPLITUDE = np.array([12, 12, 11, 16], float)
_GSD_M = 0.5
_CORNER = (500_000.0, 5_400_000.0)


def make_scene(seed: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A landscape of ``height`` x ``width`` px.

    Returns:
        The image, uint8 (4, height, width), bands ``BANDS``; 0 in all bands of a corner without data, elsewhere at least 1.
        The truth, uint8 (height, width), indices into ``COVERS``; 255 where there is no data.
    """
    rng = np.random.default_rng(seed)
    shape = (height, width)
    truth = np.stack([_field(rng, shape, 28) for _ in COVERS]).argmax(axis=0)
    textures = np.stack(
        [_water(rng, shape), _forest(rng, shape), _crops(rng, shape), _built_up(rng, shape), _bare(rng, shape)]
    )
    texture = np.take_along_axis(textures, truth[None], axis=0)[0]
    light = 5 * _field(rng, shape, 40)
    image = _MEAN[truth] + texture[..., None] * _AMPLITUDE + light[..., None] + rng.normal(0, 3, (*shape, len(BANDS)))
    pixels = np.clip(image.round(), 1, 255).astype(np.uint8).transpose(2, 0, 1).copy()
    labels = truth.astype(np.uint8)
    rows, cols = np.mgrid[:height, :width]
    outside = rows / height + cols / width < 0.2  # as at the edge of a rotated flight strip
    pixels[:, outside] = 0
    labels[outside] = NODATA_LABEL
    return pixels, labels


def write_scene(seed: int, height: int, width: int, image_path: Path, truth_path: Path | None = None) -> None:
    """Write a landscape as GeoTIFF with 0.5 m pixels in UTM, nodata 0, and its truth, nodata 255, if a path is given."""
    rasterio = require("rasterio")
    image, truth = make_scene(seed, height, width)
    # One landscape after the other along the easting, so that no two lie on each other.
    west = _CORNER[0] + 1000 * seed
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(_GSD_M, 0, west, 0, -_GSD_M, _CORNER[1])}
    profile = {"driver": "GTiff", "height": height, "width": width, "dtype": "uint8", "compress": "deflate", **place}
    with rasterio.open(image_path, "w", count=len(BANDS), nodata=0, tiled=True, alpha="unspecified", **profile) as dataset:
        dataset.write(image)
        dataset.descriptions = BANDS
    if truth_path:
        with rasterio.open(truth_path, "w", count=1, nodata=NODATA_LABEL, **profile) as dataset:
            dataset.write(truth, 1)
            dataset.write_colormap(1, dict(enumerate(class_colours(len(COVERS)))))


def cluster_colours(image: NDArray[np.uint8], clusters: int, seed: int) -> NDArray[np.uint8]:
    """K-means on the colours of the pixels, best of 10 starts: labels (height, width). What texture has to beat."""
    vq = require("scipy.cluster.vq")
    colours = image.reshape(len(image), -1).T.astype(np.float64)
    sample = colours[np.random.default_rng(seed).permutation(len(colours))[:20_000]]
    centres, _ = vq.kmeans(sample, clusters, iter=10, rng=seed)
    labels, _ = vq.vq(colours, centres)
    return np.asarray(labels, np.uint8).reshape(image.shape[1:])


def compare_with_colours(
    image_path: Path, truth_path: Path, map_path: Path, picture_path: Path, *, seed: int, overwrite: bool
) -> tuple[Evaluation, Evaluation]:
    """Score a class map and K-means on colour on the same scene, and draw image, truth, K-means and map side by side.

    Returns:
        The scores of the map, and those of K-means.
    """
    rasterio = require("rasterio")
    with (
        rasterio.open(image_path) as image_file,
        rasterio.open(truth_path) as truth_file,
        rasterio.open(map_path) as map_file,
    ):
        image, truth, labels = image_file.read(), truth_file.read(1), map_file.read(1)
    colours = cluster_colours(image, len(COVERS), seed)
    colours[labels == NODATA_LABEL] = NODATA_LABEL
    ours, floor = (score(confusion_matrix(result, truth)) for result in (labels, colours))
    stretched = np.clip(image[:3].astype(np.float64) * 1.6, 0, 255).astype(np.uint8)
    gap = np.full((3, truth.shape[0], 8), 255, np.uint8)
    panels = [stretched, gap, _paint(truth), gap, _paint(colours, floor), gap, _paint(labels, ours)]
    picture = np.concatenate(panels, axis=2)
    with atomic_output(picture_path, overwrite=overwrite) as temporary:
        temporary.write_bytes(encode_picture(picture))
    return ours, floor


def _paint(labels: NDArray[np.uint8], scores: Evaluation | None = None) -> NDArray[np.uint8]:
    """A picture of labels, each cluster in the colour of the class that it stands for."""
    palette = class_colours(NODATA_LABEL)
    matching = scores.matching if scores else range(len(COVERS))
    colours = [palette[len(COVERS) + label if match is None else match] for label, match in enumerate(matching)]
    return paint(labels, colours)


def _field(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> NDArray[np.float64]:
    """A smooth random field with mean 0 and deviation 1."""
    noise = rng.standard_normal(shape)
    field = np.asarray(require("scipy.ndimage").gaussian_filter(noise, scale_px, mode="reflect"))
    return np.asarray((field - field.mean()) / field.std())


def _water(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Calm: hardly any texture."""
    return 0.25 * _field(rng, shape, 6)


def _forest(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Crowns: blobs of some pixels."""
    return _field(rng, shape, 1.8)


def _crops(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Rows 6 px apart, each field of about 100 px ploughed in a direction of its own."""
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    angles = rng.uniform(0, np.pi, (shape[0] // 100 + 1, shape[1] // 100 + 1))[rows // 100, cols // 100]
    return np.asarray(1.2 * np.sin((rows * np.cos(angles) + cols * np.sin(angles)) * 2 * np.pi / 6))


def _built_up(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Roofs of 6 x 8 px, each as bright as it likes, and dark streets between them."""
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    roofs = 0.9 * rng.standard_normal((shape[0] // 7 + 1, shape[1] // 9 + 1))[rows // 7, cols // 9]
    return np.where((rows % 7 == 0) | (cols % 9 == 0), -1.2, roofs)


def _bare(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Grain: every pixel for itself."""
    return 0.8 * rng.standard_normal(shape)
