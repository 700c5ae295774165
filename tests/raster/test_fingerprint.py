import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import Resampling

from autoreg.errors import DamagedRasterError, RasterError
from autoreg.raster.fingerprint import fingerprint
from autoreg.raster.gdal import georeference_optional
from conftest import noise, save_raster


def write_vrt(source: Path) -> Path:
    path = source.with_suffix(".vrt")
    with georeference_optional():
        rasterio.shutil.copy(source, path, driver="VRT")
    return path


def change_byte(path: Path, position: int) -> None:
    """Change a byte, and leave the size and the time of the last change as they are."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(position, os.SEEK_END if position < 0 else os.SEEK_SET)
        (value,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([value ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_it_stays_until_the_file_changes(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", noise(1, 100, 100))
    before = fingerprint(path)
    assert len(before) == 64
    assert fingerprint(str(path)) == before
    assert fingerprint(path.rename(tmp_path / "b.tif")) == before
    path = (tmp_path / "b.tif").rename(path)
    found = {before}
    change_byte(path, -1)
    found.add(fingerprint(path))
    os.utime(path, ns=(1, 1))
    found.add(fingerprint(path))
    save_raster(path, noise(1, 101, 100))
    found.add(fingerprint(path))
    assert len(found) == 4


def test_a_large_file_is_known_by_its_beginning_and_end(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", np.zeros((1, 2000, 2000), np.uint8))
    before = fingerprint(path)
    change_byte(path, 500_000)
    after = fingerprint(path)
    change_byte(path, 2_000_000)
    assert before != after == fingerprint(path)


def test_the_mask_and_the_georeference_beside_the_file_count_but_not_overviews(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", noise(1, 400, 400))
    found = [fingerprint(path)]
    with georeference_optional(), rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling.nearest)
    assert path.with_name("a.tif.ovr").exists()
    assert fingerprint(path) == found[0]
    with georeference_optional(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(noise(1, 400, 400)[0] // 128 * 255)
    found.append(fingerprint(path))
    path.with_name("a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    found.append(fingerprint(path))
    assert len(set(found)) == 3


def test_a_vrt_is_known_by_its_text_and_its_sources(tmp_path: Path) -> None:
    source = save_raster(tmp_path / "a.tif", noise(1, 20, 30))
    path = write_vrt(source)
    found = [fingerprint(path)]
    assert fingerprint(path) == found[0]
    change_byte(source, -1)
    found.append(fingerprint(path))
    path.write_text(path.read_text().replace("<SourceBand>", "<Description>green</Description><SourceBand>"))
    found.append(fingerprint(path))
    assert len(set(found)) == 3


def test_what_is_no_local_file_is_known_by_what_can_be_read(tmp_path: Path) -> None:
    for number in (1, 2):
        path = save_raster(tmp_path / "a.tif", noise(1, 100, 100, seed=number))
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.write(path, "a.tif")
    archives = [f"/vsizip/{tmp_path}/{number}.zip/a.tif" for number in (1, 2)]
    assert fingerprint(archives[0]) == fingerprint(archives[0]) != fingerprint(archives[1])


def test_a_raster_that_is_gone_or_damaged_is_one_sentence(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", noise(1, 20, 30))
    vrt = write_vrt(path)
    path.unlink()
    with pytest.raises(RasterError, match=r"there is no file .*a\.tif"):
        fingerprint(path)
    with pytest.raises(DamagedRasterError, match=r"a\.vrt (is damaged|cannot be read)"):
        fingerprint(vrt)
    path.write_bytes(b"II*\0")
    with pytest.raises(DamagedRasterError, match=r"a\.tif cannot be read"):
        fingerprint(path)
