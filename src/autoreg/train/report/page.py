"""Write the page: what the training and its network say of themselves, and around them the sections on curves and crops."""

import math
import shlex
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, fields
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import torch
from torch import nn

from autoreg.network.backbone import load_backbone
from autoreg.network.checkpoint import Checkpoint, load_checkpoint
from autoreg.network.orderings import find_orderings
from autoreg.output import atomic_output, check_output
from autoreg.train.config import TrainConfig, config_from
from autoreg.train.log import LogContent, log_path, read_log
from autoreg.train.report.crops import draw_crops
from autoreg.train.report.curves import draw_curves
from autoreg.train.report.markup import counted, duration, heading, tile
from autoreg.train.samples import Examination, examine
from autoreg.train.status import LEAST_SHARE

_MOST_SAMPLES = 8


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
    template = Template(resources.files("autoreg.train.report").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(f"Training of {checkpoint_path.name}"),
        summary=report.summary(),
        warnings="\n".join(f'<p class="warning">{words}</p>' for words in report.warnings()),
        tiles="".join(report.tiles()),
        sections="\n".join(report.sections()),
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
            f"{counted(rasters, 'raster')} like {about.get('first_raster')}" if isinstance(rasters, int) else "",
            f"{counted(len(checkpoint.bands), 'band')} ({bands}) of {checkpoint.dtype}",
            f"{self.classes} clusters",
            f"network {self.config.network}, size {self.config.size}, {counted(self.parameters, 'weight')}"
            + f", kept of {self.config.members} networks" * (self.config.members > 1),
        ]
        if self.log.last:
            parts.append(f"{duration(self.log.last.seconds)} on {about.get('device', 'a device that is not known')}")
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
            yield tile("mutual_information", name, last.mutual_information, f"{last.mutual_information:.3f} nats", words)
        if last and last.usage:
            words = "with at least a tenth of an equal share of the pixels"
            yield tile(
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
                yield tile(name, title, share, f"{100 * share:.1f} %", words)
        confidence = seen.mean_confidence
        words = f"mean probability of the winning cluster; {1 / classes:.2f} would be a guess"
        yield tile("confidence", "Confidence", confidence, f"{confidence:.2f}", words)
        speeds = [item.images_per_second for item in self.log.measurements if item.images_per_second is not None]
        if speeds:
            speed = statistics.median(speeds)
            words = "crops trained on per second, waiting for data included (median)"
            yield tile("images_per_second", "Speed", speed, f"{speed:.1f} / s", words)

    def sections(self) -> Iterator[str]:
        merged = self.trained != self.classes
        yield from draw_curves(self.log.measurements, self.config.objective, self.trained, merged=merged)
        yield from draw_crops(self.checkpoint, self.seen, rescaled=self.config.normalisation == "scene")
        yield self.changed_settings()
        yield self.next_commands()

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
        return heading("h2", "Settings", "Those that differ from the defaults." if rows else "All are the defaults.") + table

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


def _setting(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return escape(text) or "—"
