"""The report of a training: one page that shows what it did and what it learned, and needs nothing but itself."""

import base64
import math
import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autoreg.network.backbone import load_backbone
from autoreg.network.checkpoint import Checkpoint, load_checkpoint
from autoreg.network.orderings import find_orderings
from autoreg.output import atomic_output, check_output
from autoreg.raster.palette import Colour, class_colours
from autoreg.raster.picture import Picture, encode_picture, paint, stretch
from autoreg.train.charts import Line, css, draw_lines, draw_shares
from autoreg.train.config import TrainConfig, config_from
from autoreg.train.log import LogContent, Measurement, log_path, read_log
from autoreg.train.samples import Examination, examine
from autoreg.train.status import LEAST_SHARE

_MOST_SAMPLES = 8
_WIDEST_PX = 256
"""Of the pictures; larger crops are thinned out."""


def report_path(checkpoint: Path) -> Path:
    """Where the report of the training that writes ``checkpoint`` goes: ``checkpoint.report.html`` for ``checkpoint.pt``."""
    return checkpoint.with_name(checkpoint.name.removesuffix(".pt") + ".report.html")


def write_report(
    checkpoint_path: Path,
    output: Path | None = None,
    *,
    log: Path | None = None,
    extractor: nn.Module | None = None,
    backbone: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a page about a training: its curves, what the network says of sample crops, and what it learned in numbers.

    It is one HTML file that loads nothing from elsewhere.

    Args:
        checkpoint_path: of the training.
        output: the page; ``report_path`` if None.
        log: of the training; ``log_path`` if None. The page has no curves if there is no such file.
        extractor: the user's own backbone, where the network was trained with one.
        backbone: or its name; see ``load_backbone``.
        overwrite: replace an existing page.

    Returns:
        The page.

    Raises:
        CheckpointError: no such checkpoint, or not a valid one.
        ConfigError: the backbone is missing or does not fit.
        OutputError: the page exists or cannot be written.
    """
    output = output or report_path(checkpoint_path)
    check_output(output, overwrite=overwrite)
    checkpoint = load_checkpoint(checkpoint_path)
    network = checkpoint.build_network(extractor or load_backbone(backbone, len(checkpoint.bands)))
    config = config_from(checkpoint.settings, source=str(checkpoint_path))
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    report = _Report(
        path=checkpoint_path,
        checkpoint=checkpoint,
        config=config,
        log=read_log(log or log_path(checkpoint_path)),
        seen=examine(network, checkpoint.samples[:_MOST_SAMPLES], find_orderings(config.orderings)),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )
    template = Template(resources.files("autoreg.train").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(f"Training of {checkpoint_path.name}"),
        summary=report.summary(),
        warnings="\n".join(f'<p class="warning">{words}</p>' for words in report.warnings()),
        tiles="".join(report.tiles()),
        sections="\n".join([*report.curves(), *report.predictions(), report.changed_settings(), report.next_commands()]),
    )
    with atomic_output(output, overwrite=overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


@dataclass(frozen=True)
class _Report:
    """What the page says, part by part, as HTML."""

    path: Path
    checkpoint: Checkpoint
    config: TrainConfig
    log: LogContent
    seen: Examination
    parameters: int

    @property
    def step(self) -> int:
        return int(self.checkpoint.loop.get("step", 0))

    @property
    def classes(self) -> int:
        return self.checkpoint.network.classes

    @property
    def colours(self) -> Sequence[Colour]:
        """Those of the maps."""
        return class_colours(self.classes)

    @property
    def trained(self) -> int:
        """How many clusters are trained: those of the maps, or more that are merged into them; 0 for another objective."""
        if self.config.objective != "clustering":
            return 0
        return self.checkpoint.network.aux_classes if self.config.merge else self.classes

    def summary(self) -> str:
        about, checkpoint = self.log.about, self.checkpoint
        bands = ", ".join(checkpoint.bands) if len(checkpoint.bands) <= 13 else f"{checkpoint.bands[0]} and others"
        rasters = about.get("rasters")
        parts = [
            f"Step {self.step} of {self.config.steps}",
            f"{_count(rasters, 'raster')} like {about.get('first_raster')}" if isinstance(rasters, int) else "",
            f"{_count(len(checkpoint.bands), 'band')} ({bands}) of {checkpoint.dtype}",
            f"{self.classes} clusters",
            f"network {self.config.network}, size {self.config.size}, {_count(self.parameters, 'weight')}"
            + f", kept of {self.config.members} networks" * (self.config.members > 1),
        ]
        if self.log.last:
            parts.append(f"{_duration(self.log.last.seconds)} on {about.get('device', 'a device that is not known')}")
        if "time" in about:
            parts.append(f"begun {str(about['time'])[:16].replace('T', ' ')} UTC")
        return escape(" · ".join(filter(None, parts)))

    def warnings(self) -> Iterator[str]:
        end, last = self.log.end or {}, self.log.last
        if end.get("collapsed") is True:
            yield (
                "<strong>The training has collapsed</strong>: the views tell nothing about each other, or one cluster takes "
                "everything, so the map will say nothing. Try another seed, more steps or a smaller learning_rate."
            )
        if not self.checkpoint.fitted:
            yield "The clusters are found when the training ends; those below are not yet anything."
        if end.get("outcome") == "failed":
            yield f"The training failed: {escape(str(end.get('error')))}"
        elif last is None:
            yield "There is no log beside the checkpoint, so this page has no curves."
        elif self.step < self.config.steps:
            yield (
                f"The training is not done: the checkpoint is of step {self.step} of {self.config.steps}. "
                f"To go on: <code>autoreg train SCENES… -o {escape(self._quoted)} --resume</code>"
            )
        if last and last.usage:
            unused = [str(cluster) for cluster, share in enumerate(last.usage) if share < LEAST_SHARE / len(last.usage)]
            if unused:
                yield f"Hardly used: {'clusters' if len(unused) > 1 else 'cluster'} {', '.join(unused)}."

    def tiles(self) -> Iterator[str]:
        """What was learned in numbers."""
        last, seen, classes = self.log.last, self.seen, self.classes
        if last and last.mutual_information is not None and self.config.steps:
            if self.trained:
                most = math.log(self.trained)
                words = (
                    f"{100 * last.mutual_information / most:.0f} % of log {self.trained} = {most:.3f}, "
                    f"the most that the {self.trained} trained clusters can tell"
                )
            else:
                words = f"a lower bound, of the objective {self.config.objective}"
            name = "Mutual information of the views"
            yield _tile("mutual_information", name, last.mutual_information, f"{last.mutual_information:.3f} nats", words)
        if last and last.usage:
            words = "with at least a tenth of an equal share of the pixels"
            yield _tile(
                "clusters_used", "Clusters used", last.clusters_used, f"{last.clusters_used} of {len(last.usage)}", words
            )
        for name, title, share, words in (
            (
                "agreement_between",
                "Agreement of scan orders",
                seen.agreement_between,
                "of the pixels get the same cluster under two scan orders, on average",
            ),
            (
                "agreement_with_none",
                "Agreement with the deployed network",
                seen.agreement_with_none,
                "of the pixels get the cluster that the network gives without scan order, as it is deployed",
            ),
        ):
            if share is not None:
                yield _tile(name, title, share, f"{100 * share:.1f} %", words)
        confidence = seen.mean_confidence
        words = f"mean probability of the winning cluster; {1 / classes:.2f} would be a guess"
        yield _tile("confidence", "Confidence", confidence, f"{confidence:.2f}", words)
        speeds = [item.images_per_second for item in self.log.measurements if item.images_per_second is not None]
        if speeds:
            speed = statistics.median(speeds)
            words = "crops trained on per second, waiting for data included (median)"
            yield _tile("images_per_second", "Speed", speed, f"{speed:.1f} / s", words)

    def curves(self) -> Iterator[str]:
        measurements = self.log.measurements
        if len(measurements) < 2:
            return
        yield "<h2>While it trained</h2>"
        yield from self._information(measurements)
        shares = [(item.step, item.usage) for item in measurements if len(item.usage) == self.trained]
        if len(shares) > 1:
            merged = self.trained != self.classes
            yield _heading(
                "h3",
                "Share of the pixels in each cluster",
                "Each colour is a cluster; its height is the share of the pixels that the network without scan order gives "
                "to it. Good: several bands that no longer change much. Bad: one that swallows the others."
                + " These are the clusters of one decoder; in the end, those of all are merged into those of the maps."
                * merged,
            )
            title = "share of the pixels in each cluster, by step"
            yield draw_shares(title, shares, class_colours(self.trained), named=not merged)
        speed = _points(measurements, "images_per_second")
        if len(speed) > 1:
            yield _heading(
                "h3",
                "Speed",
                "Crops trained on per second. Dips are waits for data, or another program on the same machine.",
            )
            yield draw_lines("crops per second, by step", [Line("crops per second", speed, "one")])

    def _information(self, measurements: Sequence[Measurement]) -> Iterator[str]:
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
        if self.trained:
            yield _heading(
                "h3",
                "Mutual information",
                "How much the cluster of a pixel under one set of scan orders tells about its cluster under another, in "
                "nats. Good: it rises, then levels off. It cannot exceed the entropies, which say how evenly the clusters "
                "are used: where they fall, clusters die out. The dotted line is the most that so many clusters can tell.",
            )
            most = math.log(self.trained)
            ceiling = (f"log {self.trained} = {most:.3f}", most)
            yield draw_lines("mutual information and entropies in nats, by step", lines, ceiling=ceiling)
        else:
            yield _heading(
                "h3",
                "Information",
                f"What the objective {self.config.objective} learned, in nats: a lower bound of a mutual information. "
                "Good: it rises, then levels off.",
            )
            yield draw_lines("information in nats, by step", lines)

    def predictions(self) -> Iterator[str]:
        """The sample crops, and the clusters that were found in them."""
        samples = self.checkpoint.samples[: len(self.seen.labels)].numpy()
        pictures = stretch(samples, self.checkpoint.bands, self.seen.valid)
        yield _heading(
            "h2",
            "Sample crops",
            "Crops of the rasters. Beside each are the clusters that the network gives without scan order, in the colours "
            "of the maps, and its confidence: the brighter, the surer; lines are dark where clusters meet. Good: borders "
            "that follow what you see, and one colour for one kind of thing.",
        )
        drawn = zip(pictures, paint(self.seen.labels, self.colours), self._confidence(), strict=True)
        triples = "".join(_triple(number, *three) for number, three in enumerate(drawn, start=1))
        yield f'<div class="samples">{triples}</div>'
        rescaled = ", each rescaled to the mean and deviation of all" if self.config.normalisation == "scene" else ""
        yield _heading(
            "h2",
            "Clusters",
            "What each cluster holds in the crops above: its share of their pixels, their mean colour in the pictures, and "
            f"their mean in each band, in the values of the rasters{rescaled}. Clusters that share a mean differ in "
            "texture.",
        )
        yield self._cluster_table(pictures)

    def _confidence(self) -> Iterator[Picture]:
        """Grey, from black at chance to white at certainty."""
        chance = 1 / self.classes
        share = (self.seen.confidence - chance) / (1 - chance)
        yield from (255 * np.clip(share, 0, 1)).round().astype(np.uint8)[:, None]

    def _cluster_table(self, pictures: Picture) -> str:
        seen, total = self.seen, max(int(self.seen.pixels.sum()), 1)
        names = "".join(f"<th>{escape(name)}</th>" for name in self.checkpoint.bands)
        rows = []
        for cluster, (pixels, means) in enumerate(zip(seen.pixels.tolist(), seen.means, strict=True)):
            colour = css(self.colours[cluster])
            share = (
                f'<span style="width:{140 * pixels / total:.1f}px;background:{colour}"></span>{100 * pixels / total:.1f} %'
            )
            figures = "".join(f"<td>{_short(mean)}</td>" for mean in means)
            look = f'<i style="background:{css(_mean_colour(pictures, seen.labels == cluster))}"></i>' if pixels else ""
            cells = (
                f'<td><i style="background:{colour}"></i>{cluster}</td><td class="bar">{share}</td>',
                f'<td><data id="pixels_{cluster}" value="{pixels}">{_number(pixels)}</data></td><td>{look}</td>',
            )
            rows.append(f"<tr>{''.join(cells)}{figures}</tr>")
        head = f'<tr><th>cluster</th><th class="bar">share</th><th>pixels</th><th>looks like</th>{names}</tr>'
        return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'

    def changed_settings(self) -> str:
        default = TrainConfig()
        values = [(field.name, getattr(self.config, field.name), getattr(default, field.name)) for field in fields(default)]
        rows = "".join(
            f"<tr><td>{name}</td><td>{_setting(here)}</td><td>{_setting(usual)}</td></tr>"
            for name, here, usual in values
            if here != usual
        )
        head = "<tr><th>setting</th><th>here</th><th>default</th></tr>"
        table = f'<div class="wide"><table class="words">{head}{rows}</table></div>' if rows else ""
        return (
            _heading("h2", "Settings", "Those that differ from the defaults." if rows else "All are the defaults.") + table
        )

    def next_commands(self) -> str:
        return (
            "<h2>Next</h2><pre>"
            f"# to a model that runs without PyTorch\nautoreg export {escape(self._quoted)} -o model.onnx\n\n"
            "# give the clusters names, from a few labelled images\nautoreg match model.onnx IMAGES… --truth TRUTHS\n\n"
            "# write class maps\nautoreg segment -m model.onnx TILES…</pre>"
        )

    @property
    def _quoted(self) -> str:
        return shlex.quote(str(self.path))


def _heading(level: str, title: str, words: str) -> str:
    return f"<{level}>{escape(title)}</{level}><p>{escape(words)}</p>"


def _tile(identifier: str, title: str, value: float, text: str, words: str) -> str:
    """A figure, its value also for programs."""
    data = f'<data id="{identifier}" value="{value}">{escape(text)}</data>'
    return f"<div><dt>{escape(title)}</dt><dd>{data}<small>{escape(words)}</small></dd></div>"


def _points(measurements: Iterable[Measurement], field: str) -> list[tuple[float, float]]:
    return [(item.step, value) for item in measurements if (value := getattr(item, field)) is not None]


def _triple(number: int, crop: Picture, labels: Picture, confidence: Picture) -> str:
    step = math.ceil(max(crop.shape[1:]) / _WIDEST_PX)
    parts = (
        ("crop", crop, "JPEG", "photo"),
        ("clusters of crop", labels, "PNG", ""),
        ("confidence in crop", confidence, "PNG", ""),
    )
    images = []
    for name, picture, driver, kind in parts:
        content = base64.b64encode(encode_picture(picture[:, ::step, ::step], driver)).decode()
        source = f"data:image/{driver.lower()};base64,{content}"
        images.append(f'<img alt="{name} {number}" class="{kind}" src="{source}">')
    return f"<div>{''.join(images)}</div>"


def _mean_colour(pictures: Picture, where: NDArray[np.bool_]) -> Colour:
    red, green, blue = (round(float(pictures[:, channel][where].mean())) for channel in range(3))
    return red, green, blue


def _setting(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return escape(text) or "—"


def _short(value: float) -> str:
    if math.isnan(value):
        return "—"
    return _number(round(value)) if abs(value) >= 1000 else f"{value:.4g}"


def _number(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def _count(number: int, thing: str) -> str:
    return f"{_number(number)} {thing}{'s' * (number != 1)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 120 else f"{minutes} min"
