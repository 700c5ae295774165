"""How large pixels are on the ground."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Metres = NDArray[np.float64]

_RADIUS_M = 6_378_137.0
_FLATTENING = 1 / 298.257223563
_SQUARED = _FLATTENING * (2 - _FLATTENING)
_ECCENTRICITY = math.sqrt(_SQUARED)
_WEB_MERCATOR = 3857


def row_areas_m2(crs: Any, transform: Any, height: int) -> NDArray[np.float64] | None:
    """Area on the ground of one pixel of each row of a raster, (height,), in square metres.

    Of a geographic CRS, and of Web Mercator, whose metres are not those of the ground, it is the area on the ellipsoid
    WGS84, exact for a pixel that lies between two parallels. Of any other projected CRS it is that on the map's plane, in
    metres whatever its unit is: of UTM right to 0.2 %.

    Args:
        crs: of rasterio, or None.
        transform: from (col, row) to the CRS, an Affine, or None.
        height: number of rows.

    Returns:
        None where a row has no such area: without a CRS or a transform, with one that is neither projected nor geographic,
        and where the rows do not follow the parallels of a geographic CRS or of Web Mercator.
    """
    if crs is None or transform is None or (not _is_plane(crs) and (transform.b or transform.d)):
        return None
    corners = to_ground(crs, transform, np.array([[0.0], [1.0]]), np.arange(height + 1.0))
    if corners is None:
        return None
    (left_x, right_x), (left_y, right_y) = corners
    across = right_x[:-1] - left_x[:-1], right_y[:-1] - left_y[:-1]
    down = left_x[1:] - left_x[:-1], left_y[1:] - left_y[:-1]
    areas: Metres = np.abs(across[0] * down[1] - across[1] * down[0])
    return areas


def to_ground(crs: Any, transform: Any, cols: ArrayLike, rows: ArrayLike) -> tuple[Metres, Metres] | None:
    """Points of a raster, put on a plane in metres on which every area is that on the ground, but no distance need be.

    Args:
        crs: of rasterio, or None.
        transform: from (col, row) to the CRS, an Affine.
        cols: of the points, in pixels from the raster's corner.
        rows: likewise; they broadcast.

    Returns:
        x and y, up to a shift; None where it is not known how large the raster is.
    """
    cols, rows = np.broadcast_arrays(np.asarray(cols, np.float64), np.asarray(rows, np.float64))
    # Without the shift, which may be millions of times a pixel, nothing is rounded away.
    x, y = transform.a * cols + transform.b * rows, transform.d * cols + transform.e * rows
    if crs is None or not (crs.is_projected or crs.is_geographic):
        return None
    unit = crs.units_factor[1]
    if _is_plane(crs):
        return x * unit, y * unit
    if crs.is_geographic:
        return _RADIUS_M * unit * x, _authalic_m(unit * (y + transform.f))
    return x, _authalic_m(_latitude(y + transform.f))


def pixel_sides_m(crs: Any, transform: Any, col: float, row: float) -> NDArray[np.float64] | None:
    """Where the sides of the pixel at (col, row) lead on the ground: (2, 2), in metres east and north.

    Returns:
        One column for a step of a column, one for a step of a row; None as in ``to_ground``.
    """
    points = to_ground(crs, transform, [col - 0.5, col + 0.5, col, col], [row, row, row - 0.5, row + 0.5])
    if points is None:
        return None
    x, y = points
    sides: Metres = np.array([[x[1] - x[0], x[3] - x[2]], [y[1] - y[0], y[3] - y[2]]])
    if _is_plane(crs):
        return sides
    # The plane of equal areas is as wide everywhere as at the equator, and as much too low as it is too wide.
    north = transform.d * col + transform.e * row + transform.f
    latitude = crs.units_factor[1] * north if crs.is_geographic else float(_latitude(np.array(north)))
    wide = math.sqrt(1 - _SQUARED * math.sin(latitude) ** 2) / max(math.cos(latitude), 1e-6)
    sides[0], sides[1] = sides[0] / wide, sides[1] * wide
    return sides


def _is_plane(crs: Any) -> bool:
    """Whether areas on the map are those on the ground, nearly."""
    return bool(crs.is_projected) and crs.to_epsg() != _WEB_MERCATOR


def _latitude(northing_m: Metres) -> Metres:
    """Geodetic latitude in radians of a northing of Web Mercator."""
    return np.arctan(np.sinh(northing_m / _RADIUS_M))


def _authalic_m(latitude: Metres) -> Metres:
    """Northing in metres of a latitude in radians, in the cylindrical equal-area projection of the ellipsoid WGS84.

    The area between the equator and a latitude is the circumference of the equator times this: Snyder, Map Projections: A
    Working Manual (1987), equations 3-12 and 10-15 with the equator as standard parallel.
    """
    sine = np.sin(np.clip(latitude, -np.pi / 2, np.pi / 2))  # a global raster may reach half a pixel past the poles
    bent = _ECCENTRICITY * sine
    q = (1 - _SQUARED) * (sine / (1 - bent**2) + np.arctanh(bent) / _ECCENTRICITY)
    return _RADIUS_M / 2 * np.asarray(q)
