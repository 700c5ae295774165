import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autoreg.errors import RasterError
from autoreg.raster import handles
from autoreg.raster.handles import Handles
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from conftest import noise, save_raster


@pytest.fixture
def opened() -> list[RasterReader]:
    return []


@pytest.fixture
def rasters(tmp_path: Path, opened: list[RasterReader]) -> Handles:
    paths = [save_raster(tmp_path / f"{index}.tif", noise(1, 20, 20, seed=index)) for index in range(5)]

    def open_raster(index: int) -> RasterReader:
        opened.append(RasterReader(paths[index]))
        return opened[-1]

    return Handles(open_raster)


def count_open(rasters: list[RasterReader]) -> int:
    count = 0
    for raster in rasters:
        try:
            raster.read(Window(0, 0, 5, 5))
        except RasterError:
            continue
        count += 1
    return count


def test_a_raster_is_opened_once_and_closed_in_the_end(rasters: Handles, opened: list[RasterReader]) -> None:
    with rasters:
        assert rasters[3] is rasters[3]
        assert rasters[1] is not rasters[3]
        assert count_open(opened) == 2
    assert len(opened) == 2
    assert count_open(opened) == 0


def test_the_one_not_used_for_longest_is_closed(
    rasters: Handles, opened: list[RasterReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "MOST_OPEN", 2)
    with rasters:
        for index in (0, 1, 0, 2, 0, 2):
            rasters[index]
        assert [Path(raster.path).stem for raster in opened] == ["0", "1", "2"]
        assert count_open(opened) == 2
        rasters[1]
        assert len(opened) == 4


def test_each_thread_has_its_own(rasters: Handles, opened: list[RasterReader]) -> None:
    meet = threading.Barrier(3)

    def use(_: int) -> RasterReader:
        meet.wait()
        return rasters[0]

    with rasters:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(use, range(3)))
        assert len({id(raster) for raster in found}) == 3
        assert count_open(opened) == 3
    assert count_open(opened) == 0


def test_what_cannot_be_opened_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with Handles(lambda _: RasterReader(path)) as rasters:
        with pytest.raises(RasterError, match="there is no file"):
            rasters[0]
        save_raster(path, noise(1, 20, 20))
        assert rasters[0].height == 20
