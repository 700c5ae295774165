import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rio_cogeo.cogeo import cog_validate

from autoreg.raster import cog, waiting
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from autoreg.raster.writer import MapFile, write_maps
from conftest import save_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def labels_of(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Patches of labels, and large parts without data."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 1, 7, 255, 255], (height // 300 + 1, width // 300 + 1)).astype(np.uint8)
    labels = coarse.repeat(300, axis=0).repeat(300, axis=1)[:height, :width]
    noisy = rng.random(labels.shape) < 0.05
    return np.where(noisy & (labels != 255), rng.integers(0, 8, labels.shape), labels).astype(np.uint8)


def write(folder: Path, labels: NDArray[np.uint8], core_px: int) -> Path:
    source = folder / "source.tif"
    if not source.exists():
        save_raster(source, np.zeros((1, *labels.shape), np.uint8))
    target = folder / "map.tif"
    with (
        RasterReader(source) as raster,
        write_maps(
            [MapFile(target, ("class",), colours={0: (1, 2, 3)})],
            like=raster,
            tags={"A": "b"},
            job=bytes(32),
            overwrite=True,
        ) as out,
    ):
        for row in range(0, labels.shape[0], core_px):
            for col in range(0, labels.shape[1], core_px):
                window = Window(row, col, core_px, core_px).clipped(*labels.shape)
                out.write([labels[window.slices][..., None]], window)
    return target


def check(target: Path, labels: NDArray[np.uint8]) -> None:
    if labels.shape[1] > 1:  # a tall raster of one column has no overviews, which the validator wants for it
        assert cog_validate(target, strict=True) == (True, [], [])
    with rasterio.open(target) as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags()["A"] == "b"
        levels = dataset.overviews(1)
    expected = labels
    for level, factor in enumerate(levels):
        expected = expected[::2, ::2]
        with rasterio.open(target, overview_level=level) as overview:
            np.testing.assert_array_equal(overview.read(1), expected)
            assert factor == 2 ** (level + 1)
            assert overview.nodata == 255
            assert overview.colormap(1)[0] == (1, 2, 3, 255)
    assert max(expected.shape) <= cog.BLOCK_PX or expected.shape[1] == 1


@given(
    height=st.integers(1, 1700),
    width=st.integers(1, 1700),
    core_px=st.sampled_from((100, 512, 700)),
    in_memory=st.sampled_from((0, 1, waiting.WAITING_BLOCKS)),
    seed=st.integers(0, 99),
)
def test_every_size_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, core_px: int, in_memory: int, seed: int
) -> None:
    labels = labels_of(height, width, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "WAITING_BLOCKS", in_memory)
        check(write(tmp_path_factory.mktemp("cog"), labels, core_px), labels)


def test_memory_does_not_grow_with_the_width_of_rows_that_are_written_whole(tmp_path: Path) -> None:
    peaks = []
    for blocks in (16, 128):
        labels = np.random.default_rng(0).integers(0, 8, (600, 512 * blocks), np.uint8)
        write(tmp_path, labels, 256)  # makes the source, too
        tracemalloc.start()
        write(tmp_path, labels, 256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        check(tmp_path / "map.tif", labels)
        (tmp_path / "source.tif").unlink()
    assert peaks[1] < 1.1 * peaks[0], peaks


def test_a_file_of_more_than_4_gib_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = labels_of(1100, 1300, 3)
    small = write(tmp_path, labels, 512).read_bytes()
    monkeypatch.setattr(cog, "_CLASSIC_LIMIT", 1000)
    target = write(tmp_path, labels, 512)
    assert (small[2], target.read_bytes()[2]) == (42, 43)
    check(target, labels)


def test_blocks_stand_between_their_size_and_their_last_bytes(tmp_path: Path) -> None:
    labels = labels_of(1300, 1100, 1)
    target = write(tmp_path, labels, 512)
    content = target.read_bytes()
    with rasterio.open(target) as dataset:
        for row, col in np.ndindex(3, 3):
            place = [dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE")]
            if None in place:
                assert (labels[row * 512 : row * 512 + 512, col * 512 : col * 512 + 512] == 255).all()
                continue
            start, size = map(int, place)
            assert int.from_bytes(content[start - 4 : start], "little") == size
            assert content[start + size : start + size + 4] == content[start + size - 4 : start + size]


def test_a_raster_without_data_needs_hardly_any_space(tmp_path: Path) -> None:
    labels = np.full((5000, 5000), 255, np.uint8)
    target = write(tmp_path, labels, 512)
    check(target, labels)
    assert target.stat().st_size < 15_000


def test_a_template_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="begins with b'MM"):
        cog.write_cog(tmp_path / "map.tif", b"MM\0*\0\0\0\x08", [cog.Level(1, 1, 1, io.BytesIO())])
