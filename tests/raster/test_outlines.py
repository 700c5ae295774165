from collections.abc import Iterator

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from autoreg.raster import outlines
from autoreg.raster.outlines import trace_polygons

Labels = NDArray[np.uint8]
Found = list[tuple[int, shapely.Polygon]]

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)


@st.composite
def strips_of_labels(draw: st.DrawFn) -> list[Labels]:
    """A map of few labels, so that regions are large and touch themselves, cut to strips."""
    values = draw(st.sampled_from([(0, 1), (0, 255), (0, 1, 255), (3, 4, 254, 255)]))
    labels = draw(hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from(values), fill=st.nothing()))
    cuts = draw(st.sets(st.integers(1, max(1, len(labels) - 1))))
    return [strip for strip in np.split(labels, sorted(cuts)) if len(strip)]


def trace(strips: list[Labels]) -> Found:
    batches = trace_polygons(strips, strips[0].shape[1])
    return [pair for labels, polygons in batches for pair in zip(labels.tolist(), polygons, strict=True)]


def shapes_of_gdal(labels: Labels) -> Found:
    found = rasterio.features.shapes(labels, mask=labels != 255, connectivity=4)
    return [(int(label), shapely.geometry.shape(polygon)) for polygon, label in found]


def assert_same(found: Found, expected: Found) -> None:
    """Whatever their order, and the points in the middle of straight borders."""

    def place(pair: tuple[int, shapely.Polygon]) -> tuple[object, ...]:
        return pair[0], pair[1].bounds, pair[1].area

    assert len(found) == len(expected)
    for one, other in zip(sorted(found, key=place), sorted(expected, key=place), strict=True):
        assert one[0] == other[0]
        assert one[1].equals(other[1])


@pytest.mark.parametrize("most", [1, 2**21], ids=["collected at once", "collected late"])
@given(strips=strips_of_labels())
def test_they_are_those_of_gdal_wherever_the_map_is_cut(most: int, strips: list[Labels]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlines, "_COLLECT_CORNERS", most)
        found = trace(strips)
    labels = np.vstack(strips)
    assert_same(found, shapes_of_gdal(labels))
    polygons = [polygon for _, polygon in found]
    assert shapely.is_valid(polygons).all()
    assert shapely.is_ccw([shapely.reverse(polygon.exterior) for polygon in polygons]).all()  # rows count downwards
    assert shapely.coverage_is_valid(polygons)  # neighbours have all points of their borders
    assert sum(polygon.area for polygon in polygons) == np.count_nonzero(labels != 255)


def test_there_is_no_point_that_says_nothing() -> None:
    strips = [np.full((2, 6), 5, np.uint8) for _ in range(4)]
    ((label, square),) = trace(strips)
    assert label == 5
    assert shapely.get_num_coordinates(square) == 5
    strips[1][0, 3:] = 6
    assert sorted(shapely.get_num_coordinates(polygon) for _, polygon in trace(strips)) == [5, 9]


def test_a_region_waits_for_the_last_row_that_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "_COLLECT_CORNERS", 1)
    labels = np.zeros((40, 30), np.uint8)
    labels[:, 15] = 255
    labels[::2, 3:10:2] = 1
    read = 0

    def strips() -> Iterator[Labels]:
        nonlocal read
        for row in labels:
            read += 1
            yield row[None]

    seen = [(read, int(label)) for batch, _ in trace_polygons(strips(), 30) for label in batch]
    assert [place for place, label in seen if label == 0] == [40, 40]
    early = [place for place, label in seen if label == 1 and place < 40]
    assert early[0] <= 4
    assert len(early) > 40


def test_a_map_of_nodata_has_no_polygons() -> None:
    assert trace([np.full((3, 4), 255, np.uint8)]) == []
