from pathlib import Path

import numpy as np
import pytest
import rasterio

from autoreg.errors import ConfigError, DamagedRasterError, OutputError, RasterError
from autoreg.raster.gdal import georeference_optional
from autoreg.raster.quicklook import write_quicklook
from conftest import damage_raster, noise, save_map, save_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

COLOURS = {0: (200, 10, 20), 1: (30, 220, 40), 7: (0, 0, 0)}


def random_map(path: Path, height: int, width: int) -> Path:
    labels = np.random.default_rng(0).choice(np.array([0, 1, 7], np.uint8), (height, width))
    labels[: height // 2, : width // 4] = 255
    return save_map(path, labels, COLOURS)


def test_every_pixel_has_the_colour_of_a_label_that_is_there(tmp_path: Path) -> None:
    path = random_map(tmp_path / "map.tif", 1100, 1700)
    write_quicklook(path, tmp_path / "map.png", max_px=300, overwrite=False)
    with georeference_optional(), rasterio.open(tmp_path / "map.png") as picture, rasterio.open(path) as dataset:
        pixels = picture.read()
        labels = dataset.read(1, out_shape=(194, 300))
        assert picture.driver == "PNG"
    assert pixels.shape == (4, 194, 300)
    for label, colour in COLOURS.items():
        assert (pixels[:, labels == label] == np.array([[*colour, 255]]).T).all()
    assert (pixels[3] == np.where(labels == 255, 0, 255)).all()
    assert (pixels[3, :96, :74] == 0).all()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.png", "map.tif"]


@pytest.mark.parametrize(("height", "width", "expected"), [(3, 5, (3, 5)), (1, 2000, (1, 1024)), (2000, 1, (1024, 1))])
def test_a_picture_is_not_larger_than_its_map_and_never_empty(
    tmp_path: Path, height: int, width: int, expected: tuple[int, int]
) -> None:
    write_quicklook(random_map(tmp_path / "map.tif", height, width), tmp_path / "map.png", overwrite=False)
    with georeference_optional(), rasterio.open(tmp_path / "map.png") as picture:
        assert picture.shape == expected


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    path, target = random_map(tmp_path / "map.tif", 600, 600), tmp_path / "map.png"
    grey = save_raster(tmp_path / "grey.tif", noise(1, 30, 40))
    with pytest.raises(ConfigError, match="picture of 0 px"):
        write_quicklook(path, target, max_px=0, overwrite=False)
    with pytest.raises(RasterError, match=r"grey\.tif has a band of type uint8 shown as gray, expected a class map"):
        write_quicklook(grey, target, overwrite=False)
    with pytest.raises(RasterError, match="there is no file"):
        write_quicklook(tmp_path / "none.tif", target, overwrite=False)
    target.write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        write_quicklook(path, target, overwrite=False)
    damage_raster(path)
    with pytest.raises(DamagedRasterError, match=r"map\.tif is damaged"):
        write_quicklook(path, target, overwrite=True)
    assert target.read_text() == "precious"
