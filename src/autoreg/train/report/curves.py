"""What the log says of a training, as curves over its steps."""

import math
from collections.abc import Iterable, Iterator, Sequence

from autoreg.raster.palette import class_colours
from autoreg.train.log import Measurement
from autoreg.train.report.charts import Line, draw_lines, draw_shares
from autoreg.train.report.markup import heading


def draw_curves(measurements: Sequence[Measurement], objective: str, trained: int, *, merged: bool) -> Iterator[str]:
    """The section, part by part; nothing where there are fewer than two measurements.

    Args:
        measurements: in the order of the steps.
        objective: of the training.
        trained: how many clusters are trained; 0 for an objective without.
        merged: those are merged into those of the maps in the end.
    """
    if len(measurements) < 2:
        return
    yield "<h2>While it trained</h2>"
    yield from _information(measurements, objective, trained)
    shares = [(item.step, item.usage) for item in measurements if 0 < len(item.usage) == trained]
    if len(shares) > 1:
        yield heading(
            "h3",
            "Share of the pixels in each cluster",
            "Each colour is a cluster; its height is the share of the pixels that the network without scan order gives "
            "to it. Good: several bands that no longer change much. Bad: one that swallows the others."
            + " These are the clusters of one decoder; in the end, those of all are merged into those of the maps."
            * merged,
        )
        title = "share of the pixels in each cluster, by step"
        yield draw_shares(title, shares, class_colours(trained), named=not merged)
    speed = _points(measurements, "images_per_second")
    if len(speed) > 1:
        yield heading(
            "h3",
            "Speed",
            "Crops trained on per second. Dips are waits for data, or another program on the same machine.",
        )
        yield draw_lines("crops per second, by step", [Line("crops per second", speed, "one")])


def _information(measurements: Sequence[Measurement], objective: str, trained: int) -> Iterator[str]:
    lines = [
        Line(name, points, kind)
        for field, name, kind in (
            ("mutual_information", "mutual information", "one"),
            ("entropy_y", "H(y), entropy of the first view", "two"),
            ("entropy_z", "H(z), entropy of the second view", "three"),
        )
        if len(points := _points(measurements, field)) > 1
    ]
    if not lines:
        return
    if trained:
        yield heading(
            "h3",
            "Mutual information",
            "How much the cluster of a pixel under one set of scan orders tells about its cluster under another, in "
            "nats. Good: it rises, then levels off. It cannot exceed the entropies, which say how evenly the clusters "
            "are used: where they fall, clusters die out. The dotted line is the most that so many clusters can tell.",
        )
        most = math.log(trained)
        ceiling = (f"log {trained} = {most:.3f}", most)
        yield draw_lines("mutual information and entropies in nats, by step", lines, ceiling=ceiling)
    else:
        yield heading(
            "h3",
            "Information",
            f"What the objective {objective} learned, in nats: a lower bound of a mutual information. "
            "Good: it rises, then levels off.",
        )
        yield draw_lines("information in nats, by step", lines)


def _points(measurements: Iterable[Measurement], field: str) -> list[tuple[float, float]]:
    return [(item.step, value) for item in measurements if (value := getattr(item, field)) is not None]
