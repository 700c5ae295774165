"""Write polygons with attributes as a file: GeoPackage, FlatGeobuf or GeoParquet, as a stream of record batches of Arrow."""

import json
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from autoreg.errors import ConfigError, OutputError
from autoreg.optional import require
from autoreg.output import atomic_output
from autoreg.raster.outlines import Polygons

_DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".parquet": None}
"""Of GDAL; GeoParquet is written without it, since the GDAL inside pyogrio's wheels does not know it."""
_GEOMETRY = "geometry"
_MOST_ROWS = 2**16


def check_vector_target(path: Path) -> None:
    """Make sure, before any work starts, that ``path`` names a format that can be written here.

    Raises:
        ConfigError: its suffix is none of ``.gpkg``, ``.fgb`` and ``.parquet``.
        MissingDependencyError: the libraries of the extra ``vector`` are not installed.
    """
    if path.suffix.lower() not in _DRIVERS:
        raise ConfigError(
            f"{path} ends in {path.suffix or 'no suffix'}, expected .gpkg (GeoPackage), .fgb (FlatGeobuf) or .parquet "
            f"(GeoParquet); rename it"
        )
    for module in ("shapely", "pyarrow", "pyogrio"):
        require(module)


def write_features(
    target: Path, types: dict[str, str], features: Iterable[tuple[Polygons, dict[str, Any]]], crs: Any, *, overwrite: bool
) -> int:
    """Write polygons to ``target``; it appears when all are written.

    Args:
        target: its suffix is the format.
        types: name and Arrow type of each attribute.
        features: polygons (n,), and the values (n,) of each attribute; any number of times.
        crs: of the polygons, as rasterio gives it, or None.
        overwrite: replace an existing file.

    Returns:
        How many polygons there are.

    Raises:
        ConfigError, MissingDependencyError: see ``check_vector_target``.
        OutputError: it exists already, or cannot be written.
    """
    check_vector_target(target)
    pyarrow = require("pyarrow")
    driver = _DRIVERS[target.suffix.lower()]
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in types.items()])
    schema = schema.append(pyarrow.field(_GEOMETRY, pyarrow.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"}))
    batches = _Batches(features, schema)
    # GDAL keeps other files beside the one that it writes: a journal, an index. They go with their folder.
    with (
        atomic_output(target, overwrite=overwrite) as temporary,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem[:100]}.", suffix=".part") as folder,
    ):
        file = Path(folder) / f"polygons{target.suffix.lower()}"
        if driver is None:
            _write_parquet(file, batches, schema, crs)
        else:
            _write_with_gdal(file, batches, schema, crs, driver, target)
        file.replace(temporary)
    return batches.count


class _Batches:
    """Record batches of Arrow from polygons; iterate once.

    Attributes:
        count: of the polygons so far.
        bounds: of them, (4,): least x and y, largest x and y.
        error: that ended the iteration.
    """

    def __init__(self, features: Iterable[tuple[Polygons, dict[str, Any]]], schema: Any) -> None:
        self._features, self._schema = features, schema
        self.count = 0
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        try:
            for polygons, values in self._features:
                for start in range(0, len(polygons), _MOST_ROWS):
                    rows = slice(start, start + _MOST_ROWS)
                    yield self._batch(polygons[rows], {name: column[rows] for name, column in values.items()})
        except BaseException as error:  # on its way through Arrow's C interface it would lose its type
            self.error = error
            raise

    def _batch(self, polygons: Polygons, values: dict[str, Any]) -> Any:
        pyarrow, shapely = require("pyarrow"), require("shapely")
        bounds = shapely.bounds(polygons)
        self.count += len(polygons)
        self.bounds[:2] = np.minimum(self.bounds[:2], bounds[:, :2].min(axis=0))
        self.bounds[2:] = np.maximum(self.bounds[2:], bounds[:, 2:].max(axis=0))
        columns = values | {_GEOMETRY: shapely.to_wkb(polygons)}
        arrays = [pyarrow.array(columns[field.name], field.type) for field in self._schema]
        return pyarrow.RecordBatch.from_arrays(arrays, schema=self._schema)


def _write_with_gdal(file: Path, batches: _Batches, schema: Any, crs: Any, driver: str, target: Path) -> None:
    pyarrow, pyogrio = require("pyarrow"), require("pyogrio")
    place = {"crs": crs.to_wkt() if crs else None, "geometry_type": "Polygon", "geometry_name": _GEOMETRY}
    stream = pyarrow.RecordBatchReader.from_batches(schema, iter(batches))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
            pyogrio.write_arrow(stream, file, layer=target.stem, driver=driver, **place)
    except Exception as error:
        if batches.error is not None:
            raise batches.error from None
        raise OutputError(f"{target} was not written: {' '.join(str(error).split())}") from error
    if batches.error is not None:
        raise batches.error


def _write_parquet(file: Path, batches: _Batches, schema: Any, crs: Any) -> None:
    """Write as GeoParquet 1.1 says: https://geoparquet.org/releases/v1.1.0/."""
    parquet = require("pyarrow.parquet")
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
        geometry = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs.to_dict(projjson=True) if crs else None}
        if batches.count:
            geometry["bbox"] = batches.bounds.tolist()
        content = {"version": "1.1.0", "primary_column": _GEOMETRY, "columns": {_GEOMETRY: geometry}}
        writer.add_key_value_metadata({"geo": json.dumps(content)})
