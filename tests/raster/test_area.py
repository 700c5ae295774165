import math

import numpy as np
import pytest
import rasterio.warp
from rasterio import Affine
from rasterio.crs import CRS

from autoreg.raster.area import pixel_sides_m, row_areas_m2, to_ground

UTM = CRS.from_epsg(32633)
WGS84 = CRS.from_epsg(4326)
WEB_MERCATOR = CRS.from_epsg(3857)
FEET = CRS.from_epsg(2263)


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        (UTM, Affine(10, 0, 500_000, 0, -10, 5_400_000), 100),
        (UTM, Affine(0.1, 0, 500_000, 0, 0.1, 5_400_000), 0.01),
        (UTM, Affine.translation(500_000, 5_400_000) @ Affine.rotation(30) @ Affine.scale(3, 2), 6),
        (FEET, Affine(2, 0, 1e6, 0, -2, 2e5), (2 * 1200 / 3937) ** 2),
    ],
    ids=["metres", "south up", "rotated", "US survey feet"],
)
def test_pixels_of_a_projected_raster_are_all_as_large(crs: CRS, transform: Affine, expected: float) -> None:
    areas = row_areas_m2(crs, transform, 7)
    assert areas is not None
    np.testing.assert_allclose(areas, np.full(7, expected), rtol=1e-12)


def test_the_earth_is_as_large_as_it_is() -> None:
    areas = row_areas_m2(WGS84, Affine(0.5, 0, -180.25, 0, -0.5, 90.25), 361)  # half a pixel past each pole
    assert areas is not None
    assert areas.sum() * 720 == pytest.approx(510_065_621_724_089, rel=1e-12)
    np.testing.assert_allclose(areas, areas[::-1], rtol=1e-9)


@pytest.mark.parametrize("latitude", [-67.0, 0.0, 48.5])
def test_a_geographic_pixel_is_as_large_as_a_projection_of_equal_areas_makes_it(latitude: float) -> None:
    transform = Affine(1e-3, 0, 11, 0, -1e-3, latitude)
    areas = row_areas_m2(WGS84, transform, 5)
    assert areas is not None
    for row, area in enumerate(areas):
        corners = [transform @ point for point in ((0, row), (1, row), (1, row + 1), (0, row + 1))]
        xs, ys = rasterio.warp.transform(WGS84, "EPSG:6933", *zip(*corners, strict=True))
        assert area == pytest.approx((xs[1] - xs[0]) * (ys[0] - ys[2]), rel=1e-6)


def test_web_mercator_is_measured_on_the_ground() -> None:
    pixel_m, latitude = 100.0, 52.0
    (x,), (y,) = rasterio.warp.transform(WGS84, WEB_MERCATOR, [13.0], [latitude])
    transform = Affine(pixel_m, 0, x, 0, -pixel_m, y)
    areas = row_areas_m2(WEB_MERCATOR, transform, 3)
    assert areas is not None
    corners = [transform @ point for point in ((0, 0), (1, 0), (0, 1))]
    xs, ys = rasterio.warp.transform(WEB_MERCATOR, "EPSG:6933", *zip(*corners, strict=True))
    assert areas[0] == pytest.approx((xs[1] - xs[0]) * (ys[0] - ys[2]), rel=1e-6)
    assert areas[0] < 0.4 * pixel_m**2


def test_what_has_no_area_says_so() -> None:
    turned = Affine.translation(10, 50) @ Affine.rotation(20) @ Affine.scale(1e-3)
    assert row_areas_m2(None, Affine.identity(), 3) is None
    assert row_areas_m2(WGS84, turned, 3) is None
    assert row_areas_m2(WEB_MERCATOR, turned, 3) is None
    assert to_ground(None, Affine.identity(), [0], [0]) is None
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    assert row_areas_m2(local, Affine.identity(), 3) is None
    assert pixel_sides_m(local, Affine.identity(), 0, 0) is None


@pytest.mark.parametrize("crs", [UTM, WGS84, WEB_MERCATOR], ids=["UTM", "WGS84", "Web Mercator"])
def test_the_sides_of_a_pixel_are_lengths_on_the_ground(crs: CRS) -> None:
    """Compared with a transverse Mercator projection that has its origin in the pixel."""
    longitude, latitude = 15.0, 60.0
    (x,), (y,) = rasterio.warp.transform(WGS84, crs, [longitude], [latitude])
    step = 1e-4 if crs == WGS84 else 10.0
    transform = Affine(step, 0, x - 7.5 * step, 0, -step, y + 3.5 * step)
    sides = pixel_sides_m(crs, transform, 7.5, 3.5)
    assert sides is not None
    local = f"+proj=tmerc +lon_0={longitude} +lat_0={latitude} +ellps=WGS84 +units=m"
    xs, ys = rasterio.warp.transform(crs, local, [x - step / 2, x + step / 2, x, x], [y, y, y + step / 2, y - step / 2])
    expected = np.array([[xs[1] - xs[0], xs[3] - xs[2]], [ys[1] - ys[0], ys[3] - ys[2]]])
    np.testing.assert_allclose(sides, expected, rtol=1e-3, atol=1e-3 * math.hypot(*expected[:, 0]))
