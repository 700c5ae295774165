"""Colours for classes that nobody has named yet."""

import colorsys
from collections.abc import Collection, Iterator

from autoreg.spec import NODATA_LABEL, MapClass

Colour = tuple[int, int, int]
"""Red, green, blue, each 0..255."""

_FIRST: tuple[Colour, ...] = (
    (31, 105, 201),
    (24, 122, 56),
    (226, 201, 92),
    (204, 62, 62),
    (168, 164, 148),
    (140, 86, 190),
    (240, 140, 50),
    (110, 205, 180),
    (120, 72, 40),
    (235, 140, 190),
    (170, 210, 70),
    (60, 60, 80),
)
_GOLDEN_RATIO = 0.618033988749895


def class_colours(count: int) -> tuple[Colour, ...]:
    """``count`` colours that are easy to tell apart; the first dozen by hand, then hues a golden angle apart."""
    further = (
        colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1, 0.55 + 0.15 * (index % 3), 0.65 + 0.15 * (index % 2))
        for index in range(len(_FIRST), count)
    )
    return (*_FIRST[:count], *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in further))


def unused_colours(used: Collection[str]) -> Iterator[str]:
    """The palette as ``#rrggbb``, without the colours in ``used``; enough of them for every class that a model can have."""
    palette = (f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in class_colours(len(used) + NODATA_LABEL))
    return (colour for colour in palette if colour not in used)


def unnamed_classes(clusters: int) -> tuple[MapClass, ...]:
    """A class for each of ``clusters`` clusters, with its number for a label: the legend of a model until it is matched."""
    colours = unused_colours(())
    return tuple(MapClass(cluster, f"cluster {cluster}", next(colours), (cluster,)) for cluster in range(clusters))
