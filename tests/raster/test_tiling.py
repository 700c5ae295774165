import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoreg.errors import ConfigError
from autoreg.raster import tiling
from autoreg.raster.tiling import plan_tiles, round_up
from autoreg.raster.window import Window

sizes = st.integers(1, 700) | st.integers(1, 5000)


@given(
    st.data(),
    sizes,
    sizes,
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 30),
    st.integers(1, 200),
    st.booleans(),
    st.booleans(),
)
def test_cores_partition_the_region_and_tiles_are_exact(
    data: st.DataObject, height: int, width: int, stride: int, radius: int, extra: int, part: bool, by_rows: bool
) -> None:
    tile_px = 2 * (radius + stride) + stride + extra
    region = Window(0, 0, height, width)
    if part:
        row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        region = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "_STRIP_PX", 200)
        plan = plan_tiles(
            height,
            width,
            tile_px=tile_px,
            receptive_field_px=2 * radius + 1,
            stride=stride,
            region=region if part else None,
            by_rows=by_rows,
        )
    limits = round_up(height, stride), round_up(width, stride)
    covered = np.zeros((height, width), np.uint8)
    areas = list(plan)
    assert len(areas) == len(plan)
    for core, (window,) in areas:
        assert (window.height, window.width) == plan.tile_shape
        assert max(plan.tile_shape) <= tile_px + (stride if part else 0)
        covered[core.slices] += 1
        for start, size, inner, inner_size, limit in (
            (window.row, window.height, core.row, core.height, limits[0]),
            (window.col, window.width, core.col, core.width, limits[1]),
        ):
            assert start % stride == 0
            assert size % stride == 0
            assert start >= 0
            assert start + size <= limit
            # Between the core and a cut lies a halo; where there is none, the raster ends.
            assert start == 0 or inner - start >= radius
            assert start + size == limit or start + size - (inner + inner_size) >= radius
    assert (covered[region.slices] == 1).all()
    assert covered.sum() == region.height * region.width


def test_a_tile_without_core_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"64 px leaves no core .* use at least 84 px"):
        plan_tiles(100, 100, tile_px=64, receptive_field_px=79, stride=4)
