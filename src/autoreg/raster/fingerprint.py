"""Tell cheaply whether a raster is still the one that it was, without reading the whole of it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from autoreg.errors import RasterError
from autoreg.raster.gdal import network_options, open_dataset
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window

_EDGE_BYTES = 2**20
_CORNER_PX = 16


def fingerprint(path: str | Path) -> str:
    """Identify the content of a raster, as it is now.

    Of the file, and of each file that belongs to it (a mask or georeference beside it, the sources of a VRT), it takes the
    size, the time of the last change, and the first and the last MiB, or less where there are many files. Overviews beside
    the file do not count: they change no pixel. What is no local file has no such time: of a raster on a server, in an
    archive, or with such sources, it takes what the raster says of itself and the pixels at its corners.

    Args:
        path: a file, or any other name that GDAL opens.

    Returns:
        64 hexadecimal digits. Other ones, if the raster was replaced or changed; the same for the same raster under another
        name, if that one was not copied but moved.

    Raises:
        DamagedRasterError: GDAL cannot read it.
        RasterError: it is not there, or may not be read.
    """
    with network_options(path), open_dataset(path) as dataset:
        names = [str(path), *(name for name in dataset.files if name != str(path))]
    files = [Path(name) for name in names if not name.endswith(".ovr")]
    digest = hashlib.sha256()
    try:
        local = [file for file in files if file.is_file()]
        for file in local:
            for part in _parts_of_file(file, _EDGE_BYTES // len(local)):
                digest.update(part)
    except OSError as error:
        raise RasterError(f"{path} cannot be read to see whether it has changed: {error.strerror or error}") from error
    if len(local) < len(files):
        for part in _parts_of_raster(path):
            digest.update(part)
    return digest.hexdigest()


def _parts_of_file(file: Path, edge_bytes: int) -> Iterator[bytes]:
    status = file.stat()
    yield f"{status.st_size} {status.st_mtime_ns} ".encode()
    with file.open("rb") as stream:
        yield stream.read(edge_bytes)
        stream.seek(max(edge_bytes, status.st_size - edge_bytes))
        yield stream.read(edge_bytes)


def _parts_of_raster(path: str | Path) -> Iterator[bytes]:
    with network_options(path), open_dataset(path) as dataset:
        yield repr((str(path), dataset.profile, dataset.tags(), dataset.files)).encode()
    with RasterReader(path) as raster:
        place = raster.georeference
        points = [
            (point.row, point.col, point.x, point.y, point.z) for point in place.pop("gcps", [])
        ]  # their names may vary
        yield repr((raster.bands, place, points)).encode()
        for row in (0, max(0, raster.height - _CORNER_PX)):
            for col in (0, max(0, raster.width - _CORNER_PX)):
                for part in raster.read(Window(row, col, _CORNER_PX, _CORNER_PX)):
                    yield part.tobytes()
