import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine

from autoreg.errors import DamagedRasterError
from autoreg.raster.handles import Handles
from autoreg.raster.mosaic import Grid, Mosaic, Placed, bounding_grid, find_mosaics, grid_of
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from conftest import EDGE, damage_raster, needs_edge, noise, save_raster

UTM = CRS.from_epsg(32632)
NORTH_UP = Affine(0.3, 0, 500_000.1, 0, -0.3, 5_300_000.7)
TRANSFORMS = {
    "north-up": NORTH_UP,
    "south-up": Affine(0.3, 0, 500_000.1, 0, 0.3, 5_300_000.7),
    "rotated": Affine(0.21, 0.17, 500_000.1, 0.18, -0.22, 5_300_000.7),
    "degrees": Affine(1 / 10800, 0, 7 + 1 / 3, 0, -1 / 10800, 50 - 1 / 7),
}


def moved(transform: Affine, row: float, col: float) -> Affine:
    a, b, c, d, e, f = transform[:6]
    return Affine(a, b, c + a * col + b * row, d, e, f + d * col + e * row)


def grid_at(row: float, col: float, height: int = 10, width: int = 10, **changes: Any) -> Grid:
    return replace(Grid(UTM, moved(NORTH_UP, row, col), height, width, 3, "uint8"), **changes)


def indexes(mosaics: Sequence[Sequence[Placed]]) -> list[list[int]]:
    return [[member.index for member in mosaic] for mosaic in mosaics]


def open_mosaic(stack: ExitStack, paths: Sequence[Path], order: Sequence[int] | None = None, **options: Any) -> Mosaic:
    """The one mosaic that the rasters make."""
    handles = stack.enter_context(Handles(lambda index: RasterReader(paths[index])))
    grids = [grid_of(handles[index]) for index in range(len(paths))]
    (members,) = find_mosaics(grids)
    return make_mosaic(handles, members, grids, order, **options)


def make_mosaic(
    handles: Handles,
    members: Sequence[Placed],
    grids: Sequence[Grid | None],
    order: Sequence[int] | None = None,
    **options: Any,
) -> Mosaic:
    first = handles[members[0].index]
    return Mosaic(
        members if order is None else [members[position] for position in order],
        bounding_grid(members, grids),
        lambda index, window: handles[index].read(window),
        bands=first.bands,
        block_shape=first.block_shape,
        **options,
    )


@dataclass
class Cut:
    """Pieces of an image, and where each has data."""

    image: NDArray[np.uint8]
    pieces: list[Window]
    blank: list[bool]
    """Whether the upper left quarter of a piece is nodata."""

    def pixels(self, number: int) -> NDArray[np.uint8]:
        piece = self.pieces[number]
        part = self.image[:, *piece.slices].copy()
        if self.blank[number]:
            part[:, : piece.height // 2, : piece.width // 2] = 0
        return part

    def whole(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """What the pieces with these numbers show of the image; elsewhere 0."""
        whole = np.zeros_like(self.image)
        for number in numbers:
            part = whole[:, *self.pieces[number].slices]
            np.maximum(part, self.pixels(number), out=part)
        return whole

    def connected(self) -> set[frozenset[int]]:
        """Numbers of the pieces that touch or overlap, directly or through others: slow and obvious."""
        groups = [{number} for number in range(len(self.pieces))]
        for one, a in enumerate(self.pieces):
            for other, b in enumerate(self.pieces[:one]):
                if a.row <= b.bottom and b.row <= a.bottom and a.col <= b.right and b.col <= a.right:
                    joined = next(group for group in groups if one in group) | next(g for g in groups if other in g)
                    groups = [group for group in groups if not group & joined] + [joined]
        return {frozenset(group) for group in groups}


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    image = noise(draw(st.integers(1, 3)), height, width, seed=draw(st.integers(0, 99)))
    image[:, (image == 0).any(axis=0)] = 1
    dark = Window(draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1)), 5, 8)
    image[:, *dark.slices] = 0  # no data in the image itself
    rows = sorted({0, height, *draw(st.lists(st.integers(0, height), max_size=3))})
    cols = sorted({0, width, *draw(st.lists(st.integers(0, width), max_size=3))})
    pieces = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(cols):
            up, aside, down, beyond = draw(st.tuples(*[st.sampled_from([0, 0, 0, 1, 3])] * 4))
            row, col = max(top - up, 0), max(left - aside, 0)
            piece = Window(row, col, bottom + down - row, right + beyond - col).clipped(height, width)
            pieces += [piece] * draw(st.sampled_from([1, 1, 1, 1, 0, 2]))  # a few are missing, or there twice
    pieces = draw(st.permutations(pieces or [Window(0, 0, height, width)]))
    return Cut(image, pieces, draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces))))


@settings(max_examples=60)
@given(cuts(), st.sampled_from(list(TRANSFORMS)), st.data())
def test_pieces_of_an_image_read_as_the_image(
    tmp_path_factory: pytest.TempPathFactory, cut: Cut, name: str, data: st.DataObject
) -> None:
    folder, transform = tmp_path_factory.mktemp("pieces"), TRANSFORMS[name]
    crs = CRS.from_epsg(4326) if name == "degrees" else UTM
    paths = [
        save_raster(
            folder / f"{number}.tif", cut.pixels(number), nodata=0, crs=crs, transform=moved(transform, piece.row, piece.col)
        )
        for number, piece in enumerate(cut.pieces)
    ]
    with Handles(lambda index: RasterReader(paths[index])) as handles:
        grids = [grid_of(handles[index]) for index in range(len(paths))]
        mosaics = find_mosaics(grids)
        assert {frozenset(group) for group in indexes(mosaics)} == cut.connected()
        assert all(sorted(group) == group for group in indexes(mosaics))
        assert sorted(mosaics, key=lambda members: members[0].index) == mosaics
        for members in mosaics:
            order = data.draw(st.permutations(range(len(members))))
            check_reading(make_mosaic(handles, members, grids, order), members, cut, transform, data)


def check_reading(mosaic: Mosaic, members: Sequence[Placed], cut: Cut, transform: Affine, data: st.DataObject) -> None:
    pieces = [cut.pieces[member.index] for member in members]
    top, left = min(piece.row for piece in pieces), min(piece.col for piece in pieces)
    for member, piece in zip(members, pieces, strict=True):
        assert member.window == piece._replace(row=piece.row - top, col=piece.col - left)
    assert mosaic.height == max(piece.bottom for piece in pieces) - top
    assert mosaic.width == max(piece.right for piece in pieces) - left
    assert mosaic.georeference["transform"].almost_equals(moved(transform, top, left), 1e-6)
    whole = cut.whole([member.index for member in members])[:, top : top + mosaic.height, left : left + mosaic.width]
    rows, cols = data.draw(st.integers(0, mosaic.height - 1)), data.draw(st.integers(0, mosaic.width - 1))
    past = st.integers(1, 45)
    for window in (
        Window(0, 0, mosaic.height, mosaic.width),
        Window(0, 0, mosaic.height + 3, mosaic.width + 2),
        Window(rows, cols, min(data.draw(past), mosaic.height - rows + 3), min(data.draw(past), mosaic.width - cols + 3)),
    ):
        pixels, valid = mosaic.read(window)
        expected = window.extend(whole[:, *window.clipped(mosaic.height, mosaic.width).slices])
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(valid, (expected != 0).any(axis=0))


def test_the_first_member_with_data_wins(tmp_path: Path) -> None:
    ones, twos = np.full((1, 10, 10), 1, np.uint8), np.full((1, 10, 10), 2, np.uint8)
    ones[:, :, 7] = 0
    paths = [
        save_raster(tmp_path / f"{col}.tif", pixels, crs=UTM, transform=moved(NORTH_UP, 0, col), nodata=0)
        for col, pixels in ((0, ones), (6, twos))
    ]
    with ExitStack() as stack:
        row = open_mosaic(stack, paths).read(Window(4, 0, 1, 16))[0][0, 0]
        np.testing.assert_array_equal(row, [1] * 7 + [2] + [1] * 2 + [2] * 6)
        row = open_mosaic(stack, paths, [1, 0]).read(Window(4, 0, 1, 16))[0][0, 0]
        np.testing.assert_array_equal(row, [1] * 6 + [2] * 10)


@pytest.mark.parametrize(
    "other",
    [
        grid_at(0, 10, crs=CRS.from_epsg(32633)),
        grid_at(0, 10, transform=moved(NORTH_UP, 0, 10) @ Affine.scale(1.000001)),
        grid_at(0, 10, transform=moved(NORTH_UP, 0, 10) @ Affine.rotation(0.001)),
        grid_at(0, 10, transform=moved(NORTH_UP, 10, 10) @ Affine.scale(1, -1)),
        grid_at(0, 5.5),
        grid_at(0.5, 10),
        grid_at(0.02, 10),
        grid_at(0, 10, bands=4),
        grid_at(0, 10, dtype="uint16"),
        grid_at(0, 11),
        grid_at(11, 10),
        grid_at(-11, 0),
    ],
    ids=lambda grid: f"{grid.crs.to_epsg()} {grid.transform[:6]} {grid.bands} {grid.dtype}",
)
def test_what_does_not_fit_is_apart(other: Grid) -> None:
    assert indexes(find_mosaics([grid_at(0, 0), other])) == [[0], [1]]


@pytest.mark.parametrize(
    ("row", "col"), [(0, 10), (10, 0), (10, 10), (-10, 10), (10, -10), (-10, -10), (3, -4), (0, 0), (0.005, 10), (2, 9.995)]
)
def test_what_touches_or_overlaps_is_together(row: float, col: float) -> None:
    (members,) = find_mosaics([grid_at(0, 0), grid_at(row, col)])
    (one, other) = members
    assert (other.window.row - one.window.row, other.window.col - one.window.col) == (round(row), round(col))


def test_a_crs_may_be_written_in_several_ways() -> None:
    same = CRS.from_wkt(UTM.to_wkt(version="WKT2_2019"))
    assert same.wkt != UTM.wkt
    assert indexes(find_mosaics([grid_at(0, 0), grid_at(0, 10, crs=same)])) == [[0, 1]]


def test_rounded_origins_do_not_add_up() -> None:
    # Each tile is 0.004 px too far to the right of the one before; after 300 of them that is more than a pixel.
    (members,) = find_mosaics([grid_at(0, number * 10.004) for number in range(300)])
    assert [member.window.col for member in members] == list(range(0, 3000, 10))


def test_a_raster_between_two_grids_belongs_to_one_of_them() -> None:
    assert indexes(find_mosaics([grid_at(0, 0), grid_at(0, 5.5), grid_at(0, 10), grid_at(0, 15.5)])) == [[0, 2], [1, 3]]


def test_what_lies_nowhere_has_no_grid(tmp_path: Path) -> None:
    pixels = noise(1, 20, 30)
    corners = [GroundControlPoint(row, col, 7 + col, 50 - row) for row in (0, 20) for col in (0, 30)]
    paths = [
        save_raster(tmp_path / "bare.tif", pixels),
        save_raster(tmp_path / "no_crs.tif", pixels, transform=NORTH_UP),
        save_raster(tmp_path / "no_transform.tif", pixels, crs=UTM),
        save_raster(tmp_path / "gcps.tif", pixels, gcps=corners, crs=CRS.from_epsg(4326)),
        save_raster(tmp_path / "placed.tif", pixels, crs=UTM, transform=NORTH_UP),
    ]
    grids = []
    for path in paths:
        with RasterReader(path) as raster:
            grids.append(grid_of(raster))
    assert grids == [None] * 4 + [Grid(UTM, NORTH_UP, 20, 30, 1, "uint8")]
    assert find_mosaics(grids) == [[Placed(4, Window(0, 0, 20, 30))]]
    with pytest.raises(ValueError, match="raster 0 has no grid"):
        bounding_grid([Placed(0, Window(0, 0, 20, 30))], grids)


def recording(calls: list[tuple[int, Window]]) -> Callable[[int, Window], tuple[Any, Any]]:
    """Reads float pixels whose value is the member's index, and keeps what was asked for."""

    def read_member(index: int, window: Window) -> tuple[Any, Any]:
        calls.append((index, window))
        shape = window.height, window.width
        return np.full((3, *shape), index, np.float32), np.ones(shape, np.bool_)

    return read_member


def mosaic_of(grids: Sequence[Grid], read_member: Any, **options: Any) -> Mosaic:
    (members,) = find_mosaics(grids)
    names = ("red", "green", "blue")
    return Mosaic(members, bounding_grid(members, grids), read_member, bands=names, block_shape=(4, 4), **options)


def test_of_thousands_only_those_in_the_window_are_read() -> None:
    shuffled = np.random.default_rng(0).permutation(5000).tolist()
    grids = [grid_at(place // 50 * 100, place % 50 * 100, 100, 100) for place in shuffled]
    calls: list[tuple[int, Window]] = []
    mosaic = mosaic_of(grids, recording(calls))
    assert (mosaic.height, mosaic.width) == (10_000, 5_000)
    pixels, valid = mosaic.read(Window(690, 1180, 20, 40))
    assert valid.all()
    assert pixels.dtype == np.float32  # that of what read_member gives
    numbers = {place: index for index, place in enumerate(shuffled)}
    quarters = {(6, 11): Window(90, 80, 10, 20), (6, 12): Window(90, 0, 10, 20)}
    quarters |= {(7, 11): Window(0, 80, 10, 20), (7, 12): Window(0, 0, 10, 20)}
    assert dict(calls) == {numbers[row * 50 + col]: window for (row, col), window in quarters.items()}
    assert len(calls) == 4
    assert (pixels[0, 0, 0], pixels[2, 19, 39]) == (numbers[311], numbers[362])


def test_what_is_covered_already_is_not_read() -> None:
    calls: list[tuple[int, Window]] = []
    mosaic = mosaic_of([grid_at(0, 0), grid_at(0, 0), grid_at(0, 5)], recording(calls))
    mosaic.read(Window(0, 0, 10, 10))
    assert [index for index, _ in calls] == [0]


def test_between_members_is_nothing() -> None:
    calls: list[tuple[int, Window]] = []
    mosaic = mosaic_of([grid_at(0, 0), grid_at(10, 10)], recording(calls))
    pixels, valid = mosaic.read(Window(2, 12, 5, 5))
    assert pixels.shape == (3, 5, 5)
    assert pixels.dtype == mosaic.dtype == "uint8"
    assert not pixels.any()
    assert not valid.any()
    assert not calls
    _, valid = mosaic.read(Window(0, 15, 22, 7))  # past the corner
    assert not valid[:10].any()
    assert valid[10:].all()


def test_is_empty_where_no_member_has_blocks() -> None:
    grids = [grid_at(0, 0), grid_at(10, 10)]
    plain = mosaic_of(grids, recording([]))
    assert plain.is_empty(Window(0, 10, 10, 12))
    assert not plain.is_empty(Window(0, 10, 11, 12))
    asked = []

    def left_is_empty(index: int, window: Window) -> bool:
        asked.append((index, window))
        return index == 1 and window.right <= 4

    sparse = mosaic_of(grids, recording([]), member_is_empty=left_is_empty)
    assert sparse.is_empty(Window(12, 8, 10, 6))
    assert asked == [(1, Window(2, 0, 8, 4))]
    assert not sparse.is_empty(Window(12, 8, 10, 7))
    assert not sparse.is_empty(Window(5, 5, 10, 7))


@pytest.fixture
def damaged(tmp_path: Path) -> list[Path]:
    """Two rasters side by side; the second is damaged in the middle."""
    options = {"crs": UTM, "compress": "deflate", "blockysize": 8}
    paths = [
        save_raster(tmp_path / f"{number}.tif", noise(1, 200, 200, seed=number) | 1, transform=place, **options)
        for number, place in enumerate((NORTH_UP, moved(NORTH_UP, 0, 200)))
    ]
    damage_raster(paths[1])
    return paths


def test_a_damaged_neighbour_counts_as_missing(damaged: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    whole = Window(0, 0, 200, 400)
    with ExitStack() as stack, caplog.at_level(logging.WARNING, "autoreg"):
        mosaic = open_mosaic(stack, damaged, primary=0)
        for _ in range(2):
            pixels, valid = mosaic.read(whole)
            np.testing.assert_array_equal(pixels[0, :, :200], noise(1, 200, 200)[0] | 1)
            assert valid[:, :200].all()
            assert not pixels[:, :, 200:].any()
            assert not valid[:, 200:].any()
        assert len(caplog.records) == 1
        assert "1.tif is damaged" in caplog.text
        assert mosaic.read(Window(0, 100, 8, 300))[1].all()  # above the damage


def test_damage_of_what_is_to_be_labelled_is_an_error(damaged: list[Path]) -> None:
    with ExitStack() as stack:
        for primary in (1, None):
            with pytest.raises(DamagedRasterError, match=r"1\.tif is damaged"):
                open_mosaic(stack, damaged, primary=primary).read(Window(0, 0, 200, 400))


def test_a_neighbour_that_cannot_be_opened_is_empty(caplog: pytest.LogCaptureFixture) -> None:
    def fail(index: int, window: Window) -> bool:
        raise DamagedRasterError(f"{index}.tif cannot be read as an image at {window}")

    options: dict[str, Any] = {"member_is_empty": fail, "primary": 0}
    mosaic = mosaic_of([grid_at(0, 0), grid_at(0, 10)], recording([]), **options)
    assert mosaic.is_empty(Window(0, 10, 5, 5))
    assert "1.tif cannot be read" in caplog.text
    with pytest.raises(DamagedRasterError, match=r"0\.tif"):
        mosaic.is_empty(Window(0, 8, 5, 5))


@needs_edge
def test_real_pieces_of_an_image_make_the_image() -> None:
    paths = [EDGE / f"rasterio_rgb{number}.tif" for number in (1, 2, 3, 4)]
    with ExitStack() as stack, RasterReader(EDGE / "rasterio_rgb_lzw.tif") as image:
        mosaic = open_mosaic(stack, paths)
        window = Window(0, 0, 720, 792)  # past the edges
        pixels, valid = mosaic.read(window)
        expected, expected_valid = image.read(window)
        assert (mosaic.height, mosaic.width, mosaic.bands) == (image.height, image.width, image.bands)
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(valid, expected_valid)
        assert mosaic.georeference["transform"] == image.georeference["transform"]
        with rasterio.open(paths[0]) as first:
            assert mosaic.georeference["crs"] == first.crs
