import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoreg.errors import ConfigError
from autoreg.raster.tiling import plan_tiles, round_up

sizes = st.integers(1, 700)


@given(sizes, sizes, st.sampled_from([1, 2, 4, 8]), st.integers(0, 30), st.integers(1, 200))
def test_cores_partition_the_raster_and_tiles_are_exact(
    height: int, width: int, stride: int, radius: int, extra: int
) -> None:
    tile_px = 2 * (radius + stride) + stride + extra
    tiling = plan_tiles(height, width, tile_px=tile_px, receptive_field_px=2 * radius + 1, stride=stride)
    limits = round_up(height, stride), round_up(width, stride)
    covered = np.zeros((height, width), np.uint8)
    tiles = list(tiling)
    assert len(tiles) == len(tiling)
    for window, core in tiles:
        assert (window.height, window.width) == tiling.tile_shape
        assert max(tiling.tile_shape) <= tile_px
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
    assert (covered == 1).all()


def test_a_tile_without_core_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"64 px leaves no core .* use at least 84 px"):
        plan_tiles(100, 100, tile_px=64, receptive_field_px=79, stride=4)
