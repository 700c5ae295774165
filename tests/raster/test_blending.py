import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreg.errors import ConfigError
from autoreg.raster import blending
from autoreg.raster.blending import cells, plan_blending, weights
from autoreg.raster.tiling import Area, round_up
from autoreg.raster.window import Window

sizes = st.integers(1, 150)


def contains(outer: Window, inner: Window) -> bool:
    return outer.row <= inner.row and inner.bottom <= outer.bottom and outer.col <= inner.col and inner.right <= outer.right


@given(
    data=st.data(),
    height=sizes,
    width=sizes,
    stride=st.sampled_from([1, 2, 4, 7]),
    tile_px=st.integers(7, 60),
    core_px=st.integers(8, 60),
)
@settings(max_examples=60)
def test_every_pixel_is_labelled_once_and_covered_by_all_its_tiles(
    data: st.DataObject, height: int, width: int, stride: int, tile_px: int, core_px: int
) -> None:
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    region = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blending, "CORE_PX", core_px)
        patch.setattr(blending, "_STRIP_STEPS", 2)
        areas = list(plan_blending(height, width, tile_px=tile_px, stride=stride, region=region))
        plan = plan_blending(height, width, tile_px=tile_px, stride=stride)
        tiles = {tile for area in plan for tile in area.tiles}
    limits = round_up(height, stride), round_up(width, stride)
    assert {tile for area in areas for tile in area.tiles} <= tiles
    for tile in tiles:
        assert (tile.height, tile.width) == plan.tile_shape
        assert max(plan.tile_shape) <= tile_px
        assert not any(value % stride for value in tile)
        assert min(tile) >= 0
        assert tile.bottom <= limits[0]
        assert tile.right <= limits[1]
    labelled = np.zeros((height, width), np.uint8)
    for core, covering_core in areas:
        for cell, covering in cells(core, covering_core):
            labelled[cell.slices] += 1
            assert contains(core, cell)
            assert set(covering) == {tile for tile in tiles if contains(tile, cell)}
            assert covering
            assert all((weights(tile, cell) > 0).all() for tile in covering)
    assert (labelled[region.slices] == 1).all()
    assert labelled.sum() == region.height * region.width


@given(height=sizes, width=sizes, stride=st.sampled_from([1, 2, 4]))
def test_a_raster_that_fits_into_a_tile_is_one_tile(height: int, width: int, stride: int) -> None:
    whole = Window(0, 0, height, width)
    extended = Window(0, 0, round_up(height, stride), round_up(width, stride))
    assert list(plan_blending(height, width, tile_px=152, stride=stride)) == [Area(whole, (extended,))]


def test_weights_fall_linearly_from_the_centre_and_sum_to_a_constant() -> None:
    whole = weights(Window(0, 0, 8, 4), Window(0, 0, 8, 4))
    np.testing.assert_array_equal(whole[:, 0], [0.25, 0.75, 1.25, 1.75, 1.75, 1.25, 0.75, 0.25])
    np.testing.assert_array_equal(whole[0], [0.25, 0.75, 0.75, 0.25])
    part = Window(6, 9, 3, 2)
    np.testing.assert_array_equal(weights(Window(4, 8, 8, 4), part), whole[2:5, 1:3])
    around = [Window(row, col, 8, 4) for row in (0, 4) for col in (8, 10)]
    np.testing.assert_array_equal(sum(weights(tile, Window(4, 10, 4, 2)) for tile in around), np.full((4, 2), 8.0))


def test_a_huge_raster_is_planned_without_allocating_it() -> None:
    side, tile_px, step = 10**6, 128, 64
    plan = plan_blending(side, side, tile_px=tile_px, stride=4)
    cores_of_a_strip = -(-side // 512)
    tracemalloc.start()
    most = run = 0
    held: tuple[Window, ...] = ()
    for area in itertools.islice(plan, cores_of_a_strip, 2 * cores_of_a_strip):
        most, run = max(most, len(area.tiles)), run + len(set(area.tiles) - set(held))
        held = area.tiles
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert area.core == Window(side // 512 * 512, 2048, side % 512, 2048)
    assert most <= (2048 // step + 1) * (512 // step + 1)
    assert run <= 1.04 * (2048 / step) * (side / step)
    assert peak < 2**21


def test_a_tile_smaller_than_the_stride_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a tile of 3 px is smaller .* use at least 4 px"):
        plan_blending(100, 100, tile_px=3, stride=4)
