"""Class maps as polygons: one for each region of a class, whichever maps it lies in."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import ConfigError, DamagedRasterError, RasterError
from autoreg.optional import require
from autoreg.output import check_output
from autoreg.raster.area import pixel_sides_m, row_areas_m2, to_ground
from autoreg.raster.cog import BLOCK_PX
from autoreg.raster.gdal import open_dataset
from autoreg.raster.mosaic import Grid, Mosaic, Placed, bounding_grid, find_mosaics
from autoreg.raster.outlines import Polygons, trace_polygons
from autoreg.raster.reader import Pixels, Valid
from autoreg.raster.regions import Labels
from autoreg.raster.sieve import sieve
from autoreg.raster.vector_file import check_vector_target, write_features
from autoreg.raster.window import Window
from autoreg.spec import NODATA_LABEL, MapClass

_STRIP_PIXELS = 2**22


def write_polygons(
    maps: Sequence[Path],
    target: Path,
    *,
    classes: Sequence[MapClass],
    min_area_m2: float | None,
    simplify_m: float | None,
    overwrite: bool,
) -> int:
    """Write the regions of class maps as polygons: pixels of one label that are connected by their sides.

    Maps whose pixels lie on one grid, and that overlap or touch, are one raster; where they overlap, the first that has data
    counts. The polygons of other maps are written as they are, be it on top of each other. Each polygon has the attributes
    ``label``, ``class``, ``colour`` (``#rrggbb``) and ``area_m2``: its area on the ground, or ``area_px`` where the CRS does
    not tell it. Neighbours share every point of their common border, and without ``simplify_m`` their areas add
    up to what is labelled. Then memory is that of the regions that a row of pixels crosses; with it, that of all polygons.

    Args:
        maps: GeoTIFFs of one uint8 band, with 255 for nodata.
        target: its suffix is the format: ``.gpkg``, ``.fgb`` or ``.parquet``.
        classes: the legend of the maps.
        min_area_m2: regions that are smaller become part of the neighbour with the longest common border; those that no
            other class touches stay. A table of all regions is in memory then.
        simplify_m: leave out points of borders whose triangle with the points beside them is smaller than the square of this
            many metres, at most; common borders stay common, so there are neither gaps nor overlaps.
        overwrite: replace an existing file.

    Returns:
        How many polygons there are.

    Raises:
        ConfigError: ``target`` is of no known format, a setting is not positive, or the CRS has no metres for it.
        DamagedRasterError: a map cannot be read.
        RasterError: something is not a class map, has labels that ``classes`` lacks, or another CRS than the first map.
        OutputError: ``target`` exists already, or cannot be written.
    """
    check_vector_target(target)
    check_output(target, overwrite=overwrite)
    for name, value in (("the least area", min_area_m2), ("the tolerance of the borders", simplify_m)):
        if value is not None and not 0 < value < np.inf:
            raise ConfigError(f"{name} is {value:g}, expected more than 0; leave it out to keep every border")
    grids = _read_grids(maps)
    crs = grids[0].crs
    if (min_area_m2 or simplify_m) and any(_no_metres(grid) for grid in grids):
        wrong = next(path for path, grid in zip(maps, grids, strict=True) if _no_metres(grid))
        raise ConfigError(
            f"{wrong} does not say how large its pixels are on the ground, expected a projected or geographic CRS and no "
            f"rotation of a geographic one; reproject it with gdalwarp, or leave out areas and tolerances"
        )
    area = "area_px" if to_ground(crs, grids[0].transform, 0, 0) is None else "area_m2"
    features = (
        _describe(found, polygons, grid, classes, area)
        for mosaic, grid in _mosaics(maps, grids)
        for found, polygons in _polygons_of(mosaic, grid, maps, classes, min_area_m2, simplify_m)
    )
    types = {"label": "int32", "class": "string", "colour": "string", area: "double"}
    return write_features(target, types, features, crs, overwrite=overwrite)


def _read_grids(maps: Sequence[Path]) -> list[Grid]:
    if not maps:
        raise ConfigError("there are no maps to write as polygons, expected at least one")
    grids = [_read_grid(path) for path in maps]
    for path, grid in zip(maps, grids, strict=True):
        if grid.crs != grids[0].crs:
            raise RasterError(
                f"{path} has the CRS {_name(grid.crs)}, expected {_name(grids[0].crs)} as {maps[0]} has; reproject it with "
                f"gdalwarp, or write it to a file of its own"
            )
    if len(maps) > 1 and grids[0].crs is None:
        raise RasterError(f"{maps[0]} has no CRS, expected one to put {len(maps)} maps in one file; write each to its own")
    return grids


def _read_grid(path: Path) -> Grid:
    with open_dataset(path) as dataset:
        if dataset.count != 1 or dataset.dtypes[0] != "uint8" or dataset.nodata not in (None, NODATA_LABEL):
            bands = f"{dataset.count} band{'s' * (dataset.count > 1)} of type {dataset.dtypes[0]}"
            raise RasterError(
                f"{path} has {bands} and nodata {dataset.nodata}, expected a class map: one band of type uint8 with nodata "
                f"{NODATA_LABEL}, as autoreg segment writes it"
            )
        crs, transform = dataset.crs or None, dataset.transform
        if dataset.gcps[0] or (dataset.rpcs and crs is None):
            raise RasterError(
                f"{path} is placed by ground control points or RPCs, expected an affine transform; rectify it with gdalwarp"
            )
        if not 0 < abs(transform.determinant) < np.inf:
            raise RasterError(f"{path} has pixels of no size, expected an invertible transform; set it with gdal_edit.py")
        return Grid(crs, transform, dataset.height, dataset.width, 1, "uint8")


def _name(crs: Any) -> str:
    return "none" if crs is None else str(crs.to_string())[:80]


def _no_metres(grid: Grid) -> bool:
    return row_areas_m2(grid.crs, grid.transform, 1) is None


def _mosaics(maps: Sequence[Path], grids: Sequence[Grid]) -> Iterator[tuple[Mosaic, Grid]]:
    """The maps as rasters that share no border, and the grid of each."""

    def read(index: int, window: Window) -> tuple[Pixels, Valid]:
        errors = require("rasterio.errors")
        # A map is open while it is read and no longer: there may be thousands.
        with open_dataset(maps[index]) as dataset:
            try:
                pixels = dataset.read(window=((window.row, window.bottom), (window.col, window.right)))
            except errors.RasterioError as error:
                reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
                raise DamagedRasterError(f"{maps[index]} is damaged: {reason}") from error
        return pixels, pixels[0] != NODATA_LABEL

    alone = [[Placed(0, Window(0, 0, grids[0].height, grids[0].width))]]
    for members in alone if grids[0].crs is None else find_mosaics(grids):
        grid = bounding_grid(members, grids)
        yield Mosaic(members, grid, read, bands=("class",), block_shape=(BLOCK_PX, BLOCK_PX)), grid


def _strips(mosaic: Mosaic, classes: Sequence[MapClass], maps: Sequence[Path]) -> Iterator[Labels]:
    """The labels from top to bottom; a row of blocks is read at once, and given in parts that are not too large."""
    known = np.zeros(NODATA_LABEL + 1, np.bool_)
    known[[*(item.label for item in classes), NODATA_LABEL]] = True
    rows = max(1, _STRIP_PIXELS // mosaic.width)
    read_rows = BLOCK_PX * max(1, rows // BLOCK_PX)
    for top in range(0, mosaic.height, read_rows):
        pixels, valid = mosaic.read(Window(top, 0, read_rows, mosaic.width).clipped(mosaic.height, mosaic.width))
        labels: Labels = np.where(valid, pixels[0], np.uint8(NODATA_LABEL))
        if not known[labels].all():
            wrong = int(labels[~known[labels]][0])
            listed = ", ".join(str(item.label) for item in classes)
            names = f"{maps[0]}" if len(maps) == 1 else f"one of {len(maps)} maps, {maps[0]} the first of them,"
            raise RasterError(f"{names} has the label {wrong}, expected {listed}; give the model that made the map")
        for start in range(0, len(labels), rows):
            yield labels[start : start + rows]


def _polygons_of(
    mosaic: Mosaic,
    grid: Grid,
    maps: Sequence[Path],
    classes: Sequence[MapClass],
    min_area_m2: float | None,
    simplify_m: float | None,
) -> Iterator[tuple[Labels, Polygons]]:
    """Labels and polygons, in pixels from the corner of the mosaic."""
    strips = partial(_strips, mosaic, classes, maps)
    sieved: Iterable[Labels] = strips()
    sides = pixel_sides_m(grid.crs, grid.transform, grid.width / 2, grid.height / 2)
    areas = row_areas_m2(grid.crs, grid.transform, grid.height)
    if min_area_m2 is not None and sides is not None and areas is not None:
        across, down = np.hypot(*sides).tolist()
        sieved = sieve(strips, areas, (across, down), min_area_m2)
    traced = trace_polygons(sieved, grid.width)
    if simplify_m is None or sides is None:
        yield from traced
        return
    batches = list(traced)
    if batches:
        labels, polygons = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        # Which points go is decided by areas, and these are in pixels what they are on the ground but for a factor.
        tolerance_px = simplify_m / float(np.sqrt(abs(np.linalg.det(sides))))
        yield labels, require("shapely").coverage_simplify(polygons, tolerance_px)


def _describe(
    labels: Labels, polygons: Polygons, grid: Grid, classes: Sequence[MapClass], area: str
) -> tuple[Polygons, dict[str, Any]]:
    """Polygons in the CRS, with their attributes."""
    shapely = require("shapely")
    a, b, c, d, e, f = grid.transform[:6]

    def to_plane(points: NDArray[np.float64]) -> NDArray[np.float64]:
        ground = to_ground(grid.crs, grid.transform, *points.T)
        return points if ground is None else np.column_stack(ground)

    def to_crs(points: NDArray[np.float64]) -> NDArray[np.float64]:
        col, row = points.T
        return np.column_stack([a * col + b * row + c, d * col + e * row + f])

    items = {item.label: item for item in classes}
    found = labels.tolist()
    values = {
        "label": labels.astype(np.int32),
        "class": [items[label].name for label in found],
        "colour": [items[label].colour for label in found],
        area: shapely.area(shapely.transform(polygons, to_plane)),
    }
    return shapely.transform(polygons, to_crs), values
