"""The training loop: unlabelled rasters to a checkpoint."""

import dataclasses
import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoreg.errors import CheckpointError, ConfigError
from autoreg.network.backbone import load_backbone
from autoreg.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from autoreg.network.network import Network, label_pixels, measure_extractor, valid_cells
from autoreg.network.orderings import find_orderings
from autoreg.output import check_output
from autoreg.train.config import TrainConfig, config_from
from autoreg.train.data import Batch, Scenes, estimate_normalisation, open_scenes, read_batches
from autoreg.train.kmeans import fit_decoder
from autoreg.train.objectives import Objective, Step, make_objective
from autoreg.train.views import calibrate_network

STATUS_EVERY = 20
"""Steps between two looks at the unmasked network."""

COLLAPSE_NATS = 1e-3
COLLAPSE_SHARE = 0.99

_FIT_BATCHES, _FIT_CELLS = 8, 2**15
"""What K-means sees of the features: so many cells of so many batches."""

_CHANGEABLE = {"steps", "device"}  # settings that a resumed training may set anew
_log = logging.getLogger("autoreg")


@dataclass(frozen=True)
class Status:
    """How a training stands.

    Attributes:
        step: updates done.
        steps: updates in all.
        mutual_information: of the last step's two views, in nats; at most log K. Of another objective, the lower bound of a
            mutual information that it maximises; 0 if no step was done.
        usage: share of the pixels that the *unmasked* network gives to each cluster, on the last batch looked at; sums to 1.
            Empty while there are no clusters yet.
        trains_clusters: whether the clusters are trained; else K-means finds them in the end, whatever was learned.
    """

    step: int
    steps: int
    mutual_information: float
    usage: tuple[float, ...]
    trains_clusters: bool = True

    @property
    def clusters_used(self) -> int:
        """Clusters with at least a tenth of an equal share of the pixels."""
        return sum(share >= 0.1 / len(self.usage) for share in self.usage)

    @property
    def collapsed(self) -> bool:
        """Whether the views tell nothing about each other, or one cluster takes everything."""
        if self.steps == 0:
            return False
        uninformed = self.trains_clusters and self.mutual_information < COLLAPSE_NATS
        return uninformed or max(self.usage, default=0.0) > COLLAPSE_SHARE


Observe = Callable[[Network, Status], None]
"""Looks at the network after a step, such as to score it; must leave it as it was."""


def train_network(
    paths: Sequence[str | Path],
    output: Path,
    config: TrainConfig | None = None,
    *,
    extractor: nn.Module | None = None,
    overwrite: bool = False,
    progress: Callable[[Status], None] | None = None,
    observe: Observe | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Status:
    """Train on unlabelled rasters and write a checkpoint.

    Maximises what ``config.objective`` says; by default the mutual information between the predictions of two sets of
    orderings (eq. 12). On one machine and with one number of threads, the same rasters, settings and seed give the same
    weights.

    Args:
        paths: rasters with the same bands and type.
        output: the checkpoint to write.
        config: settings; the defaults if None.
        extractor: a module that stands in the place of the stem, such as a pretrained backbone: from normalised pixels
            (N, bands, H, W) to a feature map (N, C, H / stride, W / stride). It is trained as far as its parameters
            require gradients. ``config.backbone`` names one instead.
        overwrite: replace an existing file.
        progress: called after each step.
        observe: called after each step with the network.
        should_stop: asked after each step; if true, the checkpoint is written and the function returns.

    Returns:
        How it stood in the end.

    Raises:
        RasterError: a raster cannot be read or does not fit.
        ConfigError: the device does not exist, or the settings do not fit the rasters or the backbone.
        OutputError: ``output`` exists or cannot be written.
    """
    config = config or TrainConfig()
    check_output(output, overwrite=overwrite)
    device = _device(config.device)
    scenes = open_scenes(paths, crop_px=config.crop_px)
    bands = len(scenes.bands)
    extractor = extractor or load_backbone(config.backbone, bands)
    layers = config.network_config(bands, measure_extractor(extractor, bands) if extractor else None)
    if config.crop_px % layers.stride:
        raise ConfigError(f"crop_px is {config.crop_px}, expected a multiple of the network's stride, {layers.stride}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = Network(layers, extractor)
        objective = make_objective(config, network, scenes.bands)
    mean, std = estimate_normalisation(scenes)
    network.mean.copy_(torch.from_numpy(mean))
    network.std.copy_(torch.from_numpy(std))
    training = _Training(network.to(device), objective.to(device), scenes, config)
    return training.run(output, progress, observe, should_stop)


def resume_training(
    paths: Sequence[str | Path],
    checkpoint_path: Path,
    options: dict[str, Any] | None = None,
    *,
    extractor: nn.Module | None = None,
    progress: Callable[[Status], None] | None = None,
    observe: Observe | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Status:
    """Go on with the training that wrote ``checkpoint_path``, and replace that file at the end.

    With the same rasters, the weights become those of a training that was never interrupted.

    Args:
        paths: the same rasters, in the same order.
        checkpoint_path: the checkpoint.
        options: settings that were given anew; only ``steps`` and ``device`` may differ from the checkpoint's.
        extractor: see ``train_network``; a backbone that the checkpoint names has to be given in ``options`` again, because
            a file should not say what code to run.
        progress: see ``train_network``.
        observe: see ``train_network``.
        should_stop: see ``train_network``.

    Raises:
        CheckpointError: no such file, or not a checkpoint.
        ConfigError: a setting differs that cannot change, or all steps are done.
        RasterError: the rasters are not of the checkpoint's kind.
    """
    options = options or {}
    checkpoint = load_checkpoint(checkpoint_path)
    check_output(checkpoint_path, overwrite=True)
    config = _resumed_config(checkpoint, options, checkpoint_path)
    scenes = open_scenes(paths, crop_px=config.crop_px)
    if len(scenes.bands) != len(checkpoint.bands) or scenes.dtype != checkpoint.dtype:
        raise CheckpointError(
            f"{checkpoint_path} was trained on {len(checkpoint.bands)} bands of {checkpoint.dtype}, "
            f"but {scenes.paths[0]} has {len(scenes.bands)} bands of {scenes.dtype}"
        )
    scenes = dataclasses.replace(scenes, bands=checkpoint.bands)
    extractor = extractor or load_backbone(options.get("backbone"), len(scenes.bands))
    device = _device(config.device)
    network = checkpoint.build_network(extractor).to(device)
    training = _Training(network, make_objective(config, network, scenes.bands).to(device), scenes, config)
    training.restore(checkpoint, checkpoint_path)
    return training.run(checkpoint_path, progress, observe, should_stop)


class _Training:
    """Network, objective, optimiser and step: what a checkpoint holds."""

    def __init__(self, network: Network, objective: Objective, scenes: Scenes, config: TrainConfig) -> None:
        self.network, self.objective, self.scenes, self.config = network, objective, scenes, config
        # A decoder that K-means fits must not be moved; what requires no gradient is somebody's frozen backbone.
        fitted = () if objective.trains_decoder else tuple(network.decoder.parameters())
        parameters = [
            parameter
            for parameter in (*network.parameters(), *objective.parameters())
            if parameter.requires_grad and not any(parameter is other for other in fitted)
        ]
        self.optimizer = torch.optim.Adam(parameters, lr=config.learning_rate) if parameters else None
        self.step = 0
        self.samples: Tensor | None = None

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        try:
            if self.optimizer:
                self.optimizer.load_state_dict(checkpoint.loop["optimizer"])
            self.objective.load_state_dict(checkpoint.loop["objective"])
            self.step = int(checkpoint.loop["step"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} has no valid state of the training to go on from: {error!r}") from error
        self.samples = checkpoint.samples
        if self.step >= self.config.steps:
            more = max(2 * self.step, 1)
            raise ConfigError(f"{path} has done all {self.step} steps; to go on give more, such as --steps {more}")

    def run(
        self,
        output: Path,
        progress: Callable[[Status], None] | None,
        observe: Observe | None,
        should_stop: Callable[[], bool],
    ) -> Status:
        """Do the steps that are left, then write the checkpoint."""
        config, network = self.config, self.network.train()
        self.objective.train()
        batches = self._read(self.step)
        usage: tuple[float, ...] = ()
        for batch in batches:
            images = torch.from_numpy(batch.images).to(network.mean.device)
            if self.samples is None:
                self.samples = images[:4].cpu()
                with self._seeded(np.random.default_rng((config.seed, 3))):
                    calibrate_network(network, images, find_orderings(config.orderings))
            information = self._update(images, batch) if config.steps else 0.0
            if not math.isfinite(information):
                raise ConfigError(f"the training diverged in step {self.step}; use a smaller learning_rate")
            if self.objective.trains_decoder and (not usage or self.step % STATUS_EVERY == 0 or self.step == config.steps):
                usage = self._usage(images, batch)
            status = Status(self.step, config.steps, information, usage, self.objective.trains_decoder)
            if progress:
                progress(status)
            if observe:
                observe(network, status)
            if self.step >= config.steps or should_stop():
                break
        batches.close()
        if not self.objective.trains_decoder:
            self.fit_clusters()
            status = dataclasses.replace(status, usage=self._usage(images, batch))
        if status.collapsed:
            _log.warning(
                "the training has collapsed (mutual information %.4f nats, largest cluster %.1f %%): "
                "the map will say nothing; try another --seed, more --steps or a smaller learning_rate",
                status.mutual_information,
                100 * max(status.usage),
            )
        self._save(output)
        return status

    def _read(self, start: int) -> Generator[Batch]:
        return read_batches(
            self.scenes,
            crop_px=self.config.crop_px,
            batch_size=self.config.batch_size,
            fill=self.network.mean.cpu().numpy(),
            seed=self.config.seed,
            start=start,
        )

    @contextmanager
    def _seeded(self, rng: np.random.Generator) -> Iterator[None]:
        """Have torch's own choices, those of dropout, follow from ``rng``: a step has no hidden state."""
        device = self.network.mean.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(rng.integers(2**63 - 1)))
            yield

    def _update(self, images: Tensor, batch: Batch) -> float:
        """One step; returns the mutual information in nats."""
        assert self.optimizer
        rng = np.random.default_rng((self.config.seed, self.step, 1))
        step = Step(images, torch.from_numpy(batch.valid).to(images.device), self.step, rng)
        with self._seeded(rng):
            gain = self.objective(self.network, step)
        self.optimizer.zero_grad()
        (-gain.objective).backward()
        self.optimizer.step()
        self.step += 1
        return float(gain.information.detach())

    @torch.no_grad()
    def fit_clusters(self) -> None:
        """Find clusters of the features of the unmasked network by K-means, on some batches of the training."""
        self.network.eval()
        rng = np.random.default_rng((self.config.seed, 2))
        parts, most = [], _FIT_CELLS // _FIT_BATCHES
        batches = self._read(0)
        for batch in islice(batches, _FIT_BATCHES):
            images = torch.from_numpy(batch.images).to(self.network.mean.device)
            features = self.network.features(self.network.encode(images), None)
            cells = valid_cells(torch.from_numpy(batch.valid), self.network.config.stride)
            found = features.movedim(1, -1).cpu()[cells]
            parts.append(found[torch.from_numpy(rng.permutation(len(found))[:most])])
        batches.close()
        fit_decoder(self.network.decoder, torch.cat(parts), self.config.seed)
        self.network.train()

    @torch.no_grad()
    def _usage(self, images: Tensor, batch: Batch) -> tuple[float, ...]:
        """Share of the valid pixels that each cluster gets from the unmasked network."""
        self.network.eval()
        labels = label_pixels(self.network(images), self.network.config.stride)
        self.network.train()
        counts = labels[torch.from_numpy(batch.valid).to(labels.device)].bincount(minlength=self.config.classes)
        return tuple((counts / counts.sum()).tolist())

    def _save(self, output: Path) -> None:
        assert self.samples is not None
        checkpoint = Checkpoint(
            network=self.network.config,
            weights={name: value.cpu() for name, value in self.network.state_dict().items()},
            bands=self.scenes.bands,
            dtype=self.scenes.dtype,
            samples=self.samples,
            settings=dataclasses.asdict(self.config),
            loop={
                "step": self.step,
                "optimizer": self.optimizer.state_dict() if self.optimizer else {},
                "objective": self.objective.state_dict(),
            },
        )
        save_checkpoint(checkpoint, output, overwrite=True)  # asked before the training began


def _resumed_config(checkpoint: Checkpoint, options: dict[str, Any], path: Path) -> TrainConfig:
    settings = checkpoint.settings
    given = {name: value for name, value in options.items() if value is not None}
    changed = [name for name in given if name not in _CHANGEABLE and given[name] != settings.get(name)]
    if changed:
        name = changed[0]
        raise ConfigError(
            f"{path} was trained with {name} {settings.get(name)}, not {given[name]}; --resume can change only "
            f"{' and '.join(sorted(_CHANGEABLE))}, so leave {name} out or train anew"
        )
    return config_from(settings | given, source=str(path))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it does not exist"
        raise ConfigError(f"device {name!r} cannot be used: {reason}; expected auto, cpu or cuda") from error
    return device
