import numpy as np
import pytest
import rasterio

from autoreg.raster.gdal import georeference_optional
from autoreg.raster.picture import display_bands, encode_picture, paint, stretch


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        (("red", "green", "blue", "nir"), (0, 1, 2)),
        (("nir", "Blue", "green", "Red"), (3, 2, 1)),
        (("band1", "band2", "band3", "band4"), (0, 1, 2)),
        (("vv", "vh"), (0, 0, 0)),
    ],
)
def test_bands_are_found_by_name_or_else_by_place(bands: tuple[str, ...], expected: tuple[int, int, int]) -> None:
    assert display_bands(bands) == expected


def test_crops_share_one_stretch_and_what_is_no_data_does_not_count() -> None:
    images = np.linspace(0, 1000, 2 * 3 * 20 * 20).reshape(3, 2, 20, 20).transpose(1, 0, 2, 3)
    valid = np.ones((2, 20, 20), np.bool_)
    valid[0, :5] = False
    images = np.where(valid[:, None], images, 1e6)
    pictures = stretch(images, ("a", "b", "c"), valid)
    assert (pictures[0, :, :5] == 255).all()
    for channel in range(3):
        values = images[:, channel][valid]
        shades = pictures[:, channel][valid].astype(int)
        order = values.argsort()
        assert (np.diff(shades[order]) >= 0).all()
        assert (shades[order[: len(order) // 50]] == 0).all()
        assert (shades[order[-(len(order) // 50) :]] == 255).all()
        assert 126 <= np.median(shades) <= 129


def test_flat_and_empty_crops_have_a_picture() -> None:
    flat = np.full((1, 1, 4, 4), 7.0)
    assert (stretch(flat, ("grey",), np.ones((1, 4, 4), np.bool_)) == 0).all()
    assert (stretch(flat, ("grey",), np.zeros((1, 4, 4), np.bool_)) == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_survives_its_file(channels: int) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.uint8)
    labels[0] = 255
    picture = paint(labels, [(1, 2, 3), (40, 50, 60), (7, 8, 9)])[:channels]
    assert picture[:, 0].min() == 255
    assert (picture[0][labels == 1] == 40).all()
    with georeference_optional(), rasterio.MemoryFile(encode_picture(picture)) as file, file.open() as dataset:
        assert dataset.driver == "PNG"
        assert (dataset.read() == picture).all()
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)[None].repeat(channels, axis=0)
    with georeference_optional(), rasterio.MemoryFile(encode_picture(smooth, "JPEG")) as file, file.open() as dataset:
        assert dataset.driver == "JPEG"
        assert np.abs(dataset.read().astype(int) - smooth).max() <= 8
