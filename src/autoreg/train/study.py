"""A study: configurations over seeds on a folder of images with labels, the rows of the paper's Tables 1, 2 and 3.

Labels score, and never train. Three selections are reported apart: the ``final`` network; ``best_by_loss``, the one with the
highest objective, which asks for no label; and ``best_by_accuracy``, an oracle that looks at the labels, which is how the
literature often reports (method of IIC: the best epoch).
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoreg.evaluation import Evaluation, match_clusters, mean_and_deviation, score
from autoreg.network.checkpoint import load_checkpoint
from autoreg.network.network import Network
from autoreg.train.config import TrainConfig, load_config
from autoreg.train.scoring import TorchEngine, confusion_of_network
from autoreg.train.start import train_network
from autoreg.train.status import Status

SELECTIONS = ("final", "best_by_loss", "best_by_accuracy")

Pairs = Sequence[tuple[Path, Path]]
"""Images and their truths."""


@dataclass(frozen=True)
class Moment:
    """The network at one step.

    Attributes:
        step: updates done.
        information: mean of the objective's mutual information since the moment before, in nats.
        evaluation: its scores on the images trained on.
        left_out: on images left out of the training, their own clusters matched with their own truths; None without them.
        named: on the same ones, each cluster being the class that it is on the images trained on.
    """

    step: int
    information: float
    evaluation: Evaluation
    left_out: Evaluation | None = None
    named: Evaluation | None = None


@dataclass(frozen=True)
class Row:
    """One configuration over several seeds.

    Attributes:
        name: of the configuration.
        settings: that differ from the study's.
        runs: the moments of each seed, the last one the final network.
    """

    name: str
    settings: Mapping[str, Any]
    runs: list[list[Moment]] = field(default_factory=list)

    def select(self, selection: str) -> list[Moment]:
        """One moment of each seed, by one of ``SELECTIONS``."""
        keys: dict[str, Callable[[Moment], float]] = {
            "final": lambda moment: moment.step,
            "best_by_loss": lambda moment: moment.information,
            "best_by_accuracy": lambda moment: moment.evaluation.accuracy,
        }
        return [max(moments, key=keys[selection]) for moments in self.runs]

    def summary(self) -> dict[str, Any]:
        """Mean and deviation over the seeds, in percent, by selection; and each seed's figures.

        The figures of images left out, ``left_out`` and ``named``, are those of the final networks.
        """
        result: dict[str, Any] = {"name": self.name, "settings": dict(self.settings)}
        for selection in SELECTIONS:
            result[selection] = _summarise([moment.evaluation for moment in self.select(selection)])
        for images in ("left_out", "named"):
            evaluations = [getattr(moment, images) for moment in self.select("final")]
            if all(evaluations):
                result[images] = _summarise(evaluations)
        return result


def _summarise(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Mean and deviation of the scores, and each of them, in percent."""
    summary = {}
    for score_name in ("accuracy", "mean_iou"):
        values = [100 * getattr(evaluation, score_name) for evaluation in evaluations]
        mean, deviation = mean_and_deviation(values)
        summary[f"{score_name}_percent"] = {
            "mean": round(mean, 2),
            "deviation": round(deviation, 2),
            "by_seed": [round(value, 2) for value in values],
        }
    return summary


def run_study(
    pairs: Pairs | Callable[[int], tuple[Pairs, Pairs]],
    configurations: Mapping[str, Mapping[str, Any]],
    *,
    common: Mapping[str, Any],
    seeds: Sequence[int],
    moments: int = 5,
    mapping: Pairs | None = None,
    matching: str = "one-to-one",
    progress: Callable[[str, int, Status], None] | None = None,
) -> list[Row]:
    """Train each configuration with each seed on the images of ``pairs``, and score it on their labels.

    Args:
        pairs: images to train on, and truths to score with; or a function of the seed that gives them and those to leave out
            of the training and to score as well.
        configurations: settings by name; they win over ``common``.
        common: settings of all.
        seeds: at least one.
        moments: how often a run is scored; objectives without clusters of their own are scored at the end only.
        mapping: images that say which class a cluster stands for; those trained on if None.
        matching: see ``match_clusters``.
        progress: called after each step with the configuration's name, the seed and how it stands.

    Raises:
        ConfigError: a setting is unknown or does not fit.
        RasterError: a file cannot be read.
    """
    rows = []
    for name, settings in configurations.items():
        row = Row(name, settings)
        for seed in seeds:
            config = load_config(None, {**settings, "seed": seed}, common)
            trained, left_out = pairs(seed) if callable(pairs) else (pairs, ())
            scorer = _Scorer(trained, left_out, mapping, matching, moments, config)

            def report(status: Status, name: str = name, seed: int = seed) -> None:
                if progress:
                    progress(name, seed, status)

            with tempfile.TemporaryDirectory() as folder:
                checkpoint_path = Path(folder) / "checkpoint.pt"
                train_network(
                    [image for image, _ in trained], checkpoint_path, config, progress=report, observe=scorer.observe
                )
                checkpoint = load_checkpoint(checkpoint_path)
            scorer.finish(checkpoint.build_network().to(scorer.device), checkpoint.bands, checkpoint.dtype)
            row.runs.append(scorer.moments)
        rows.append(row)
    return rows


class _Scorer:
    """Scores one run now and then."""

    def __init__(
        self, pairs: Pairs, left_out: Pairs, mapping: Pairs | None, matching: str, count: int, config: TrainConfig
    ) -> None:
        self._pairs, self._left_out, self._mapping, self._matching = pairs, left_out, mapping, matching
        self._count, self._config = count, config
        self._since: list[float] = []
        self._step = 0
        self.moments: list[Moment] = []
        self.device = "cpu"

    def observe(self, network: Network, status: Status) -> None:
        self._since.append(status.mutual_information)
        self._step, self.device = status.step, str(network.mean.device)
        every = max(status.steps // self._count, 1)
        if len(status.usage) == self._config.classes and status.step % every == 0 and status.step < status.steps:
            bands = tuple(f"band{index + 1}" for index in range(network.config.bands))
            self._look(network, bands, "uint8")

    def finish(self, network: Network, bands: tuple[str, ...], dtype: str) -> None:
        self._look(network, bands, dtype)

    def _look(self, network: Network, bands: tuple[str, ...], dtype: str) -> None:
        config = self._config
        engine = TorchEngine(network, bands, dtype, config.crop_px, normalisation=config.normalisation)
        confusion = confusion_of_network(engine, self._pairs)
        mapped = confusion if self._mapping is None else confusion_of_network(engine, self._mapping)
        names = match_clusters(mapped, self._matching)
        left_out = named = None
        if self._left_out:
            other = confusion_of_network(engine, self._left_out)
            left_out, named = score(other, match_clusters(other, self._matching)), score(other, names)
        information = sum(self._since) / len(self._since)
        self.moments.append(Moment(self._step, information, score(confusion, names), left_out, named))
        self._since = []
