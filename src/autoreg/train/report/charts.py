"""Charts for the report: SVG that fills its frame, with labels in HTML, so that they stay readable on a narrow screen."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from autoreg.raster.palette import Colour

Point = tuple[float, float]

_SIDE = 1000
"""Of the square that the SVG draws in; the page stretches it, but not the width of the lines."""

_MOST_POINTS = 300


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: for the legend.
        points: step and value, in the order of the steps.
        kind: class of the stroke in the page's style sheet.
    """

    name: str
    points: Sequence[Point]
    kind: str


def draw_lines(title: str, lines: Sequence[Line], *, ceiling: tuple[str, float] | None = None) -> str:
    """A chart of some curves over the steps, as HTML.

    Args:
        title: what it shows, for who cannot see it.
        lines: at least one with at least one point.
        ceiling: name and value of a line that the curves cannot cross.
    """
    values = [0.0, *(value for line in lines for _, value in line.points), *([ceiling[1]] if ceiling else [])]
    low, high = min(values), max(values)
    axes = _Axes(max(step for line in lines for step, _ in line.points), low, high if high > low else low + 1)
    drawn = [(line.kind, line.name, _thin(line.points)) for line in lines]
    if ceiling:
        drawn.append(("ceiling", ceiling[0], [(0, ceiling[1]), (axes.last, ceiling[1])]))
    shapes = [f'<path class="{kind}" d="{axes.outline(points)}"/>' for kind, _, points in drawn]
    legend = [f'<svg viewBox="0 0 20 10"><path class="{kind}" d="M0 5h20"/></svg>{escape(name)}' for kind, name, _ in drawn]
    return axes.frame(title, shapes, legend)


def draw_shares(
    title: str, shares: Sequence[tuple[float, Sequence[float]]], colours: Sequence[Colour], *, named: bool = True
) -> str:
    """A chart of shares that sum to 1, stacked on each other, as HTML.

    Args:
        title: what it shows, for who cannot see it.
        shares: step and shares, in the order of the steps.
        colours: of the shares, the first at the bottom.
        named: whether the clusters have numbers that mean something; else there is no legend.
    """
    axes = _Axes(shares[-1][0], 0, 1)
    edges = [_thin([(step, sum(parts[:count])) for step, parts in shares]) for count in range(len(colours) + 1)]
    shapes = [
        f'<path fill="{css(colour)}" d="{axes.outline([*lower, *reversed(upper)])}z"><title>cluster {cluster}</title></path>'
        for cluster, ((lower, upper), colour) in enumerate(zip(pairwise(edges), colours, strict=True))
    ]
    legend = [
        f'<i style="background:{css(colour)}"></i>cluster {cluster}: {100 * share:.1f} %'
        for cluster, (colour, share) in enumerate(zip(colours, shares[-1][1], strict=True))
    ]
    return axes.frame(title, shapes, legend if named else [])


def css(colour: Colour) -> str:
    """A colour as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


@dataclass(frozen=True)
class _Axes:
    """Steps 0 to ``last`` across, values ``low`` to ``high`` upwards."""

    last: float
    low: float
    high: float

    def outline(self, points: Iterable[Point]) -> str:
        """A path through points."""
        return "M" + "L".join(f"{_SIDE * step / max(self.last, 1):.1f} {self._down(value):.1f}" for step, value in points)

    def frame(self, title: str, shapes: Iterable[str], legend: Iterable[str]) -> str:
        """Shapes before a grid, with labels at the axes and a legend below."""
        rows, columns = _ticks(self.low, self.high), _ticks(0, max(self.last, 1))
        grid = "".join(f"M0 {self._down(tick):.1f}h{_SIDE}" for tick in rows)
        labels = [f'<span class="y" style="top:{100 * self._down(tick) / _SIDE:.2f}%">{tick:g}</span>' for tick in rows]
        labels += [f'<span class="x" style="left:{100 * tick / max(self.last, 1):.2f}%">{tick:g}</span>' for tick in columns]
        return (
            f'<div class="plot" role="img" aria-label="{escape(title)}">'
            f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none"><path class="grid" d="{grid}"/>{"".join(shapes)}'
            f"</svg>{''.join(labels)}</div>"
            f'<ul class="legend">{"".join(f"<li>{entry}</li>" for entry in legend)}</ul>'
        )

    def _down(self, value: float) -> float:
        """Where a value lies, from the top of the drawing."""
        return _SIDE * (self.high - value) / (self.high - self.low)


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    """No more points than can be seen: means of neighbours, so that noise does not become a pattern."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Some round numbers between ``low`` and ``high``."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if high - low <= 5 * power * factor)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
