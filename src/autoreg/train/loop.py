"""The training loop: unlabelled rasters to a checkpoint."""

import dataclasses
import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoreg.errors import CheckpointError, ConfigError
from autoreg.network.backbone import load_backbone
from autoreg.network.checkpoint import Checkpoint, load_checkpoint
from autoreg.network.network import Network, evaluating, measure_extractor, upsample
from autoreg.network.orderings import find_orderings
from autoreg.train.acceleration import accelerate
from autoreg.train.config import TrainConfig, config_from
from autoreg.train.data import Batch, read_batches
from autoreg.train.distributed import (
    any_rank,
    average_gradients,
    copy_from_lead,
    lead,
    own_device,
    rank,
    rank_count,
    share_batch,
    sum_over_ranks,
    together,
)
from autoreg.train.objectives import Gain, Objective, Step, make_objective
from autoreg.train.precision import Precision
from autoreg.train.saving import Saver
from autoreg.train.scenes import Scenes, estimate_normalisation, open_scenes
from autoreg.train.shared_norm import share_norms
from autoreg.train.status import Status
from autoreg.train.views import CROSSED, calibrate_network

STATUS_EVERY = 20
"""Steps between two looks at the unmasked network."""

SAMPLES = 8
"""Crops of the first batch that the checkpoint keeps."""

_CHANGEABLE = {"steps", "device", "precision", "compile", "checkpointing", "checkpoint_steps"}
"""Settings that a resumed training may set anew."""

_log = logging.getLogger("autoreg")


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
    weights. The checkpoint is also written in the midst of the training, and the best network so far beside it (see
    ``train/saving.py``).

    Where processes are linked (``join_ranks``), each calls this with the same arguments and trains its share of every
    batch; rank 0 alone writes, and calls ``progress`` and ``observe``.

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
        should_stop: asked after each step, on each rank; if true on any, the checkpoint is written and the function returns.

    Returns:
        How it stood in the end.

    Raises:
        RasterError: a raster cannot be read or does not fit.
        ConfigError: the device does not exist, or the settings do not fit the rasters, the backbone or several processes.
        OutputError: ``output``, or the best network beside it, exists or cannot be written.
        RankError: another process failed; that one raises the reason.
    """
    config = config or TrainConfig()
    saver = lead(lambda: Saver(output, config.checkpoint_steps, overwrite=overwrite))
    scenes = lead(lambda: open_scenes(paths, crop_px=config.crop_px))
    with together():
        device = _device(config.device)
        bands = len(scenes.bands)
        extractor = extractor or load_backbone(config.backbone, bands)
        layers = config.network_config(bands, measure_extractor(extractor, bands) if extractor else None)
        if config.crop_px % layers.stride:
            raise ConfigError(f"crop_px is {config.crop_px}, expected a multiple of the network's stride, {layers.stride}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = Network(layers, extractor)
            objective = _make_objective(config, network, scenes)
    mean, std = lead(lambda: estimate_normalisation(scenes))
    network.mean.copy_(torch.from_numpy(mean))
    network.std.copy_(torch.from_numpy(std))
    # The user's backbone may come with weights of its own that no seed decides.
    copy_from_lead(network)
    copy_from_lead(objective)
    training = _Training(network.to(device), objective.to(device), scenes, config)
    return training.run(saver, progress, observe, should_stop)


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
        options: settings that were given anew; only those of ``_CHANGEABLE`` may differ from the checkpoint's.
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
    checkpoint = lead(lambda: load_checkpoint(checkpoint_path))
    with together():
        config = _resumed_config(checkpoint, options, checkpoint_path)
    saver = lead(lambda: Saver(checkpoint_path, config.checkpoint_steps, overwrite=True))
    scenes = lead(lambda: open_scenes(paths, crop_px=config.crop_px))
    with together():
        if len(scenes.bands) != len(checkpoint.bands) or scenes.dtype != checkpoint.dtype:
            raise CheckpointError(
                f"{checkpoint_path} was trained on {len(checkpoint.bands)} bands of {checkpoint.dtype}, "
                f"but {scenes.paths[0]} has {len(scenes.bands)} bands of {scenes.dtype}"
            )
        scenes = dataclasses.replace(scenes, bands=checkpoint.bands)
        device = _device(config.device)
        network = checkpoint.build_network(extractor or load_backbone(options.get("backbone"), len(scenes.bands)))
        objective = _make_objective(config, network, scenes)
        training = _Training(network.to(device), objective.to(device), scenes, config)
        training.restore(checkpoint, saver, checkpoint_path)
    return training.run(saver, progress, observe, should_stop)


class _Training:
    """Network, objective, optimiser and step: what a checkpoint holds."""

    def __init__(self, network: Network, objective: Objective, scenes: Scenes, config: TrainConfig) -> None:
        self.network, self.objective, self.scenes, self.config = network, objective, scenes, config
        # A decoder that is fitted in the end must not be moved; what requires no gradient is somebody's frozen backbone.
        self.trained = objective.trained_decoder(network)
        fitted = () if self.trained is network.decoder else tuple(network.decoder.parameters())
        self.parameters = [
            parameter
            for parameter in (*network.parameters(), *objective.parameters())
            if parameter.requires_grad and not any(parameter is other for other in fitted)
        ]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate) if self.parameters else None
        if rank_count() > 1:
            share_norms(network)
        accelerate(network, compiler="inductor" if config.compile else None, checkpointing=config.checkpointing)
        self.precision = Precision(config.precision, network.mean.device)
        self.share = share_batch(config.batch_size, CROSSED**2 if config.crossed else 1)
        self.step = 0
        self.samples: Tensor | None = None

    def restore(self, checkpoint: Checkpoint, saver: Saver, path: Path) -> None:
        """Go on from ``checkpoint``, whose weights the network has already."""
        try:
            if self.optimizer:
                self.optimizer.load_state_dict(checkpoint.loop["optimizer"])
            self.objective.load_state_dict(checkpoint.loop["objective"])
            self.precision.load_state_dict(checkpoint.loop.get("precision", {}))
            self.step = int(checkpoint.loop["step"])
            ranks = int(checkpoint.loop.get("ranks", 1))
            saver.restore(checkpoint)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} has no valid state of the training to go on from: {error!r}") from error
        self.samples = checkpoint.samples
        if self.step >= self.config.steps:
            more = max(2 * self.step, 1)
            raise ConfigError(f"{path} has done all {self.step} steps; to go on give more, such as --steps {more}")
        if ranks != rank_count() and rank() == 0:
            _log.warning(
                "%s was trained by %d processes and goes on with %d: its batches now have %d crops",
                path,
                ranks,
                rank_count(),
                self.share.total,
            )

    def run(
        self,
        saver: Saver,
        progress: Callable[[Status], None] | None,
        observe: Observe | None,
        should_stop: Callable[[], bool],
    ) -> Status:
        """Do the steps that are left, save now and then and at the end."""
        config, network, trained = self.config, self.network.train(), self.trained
        exportable = trained is network.decoder
        self.objective.train()
        usage: tuple[float, ...] = ()
        with closing(self._read(self.step, self.share.places.tolist())) as batches:
            while True:
                with together():
                    batch = next(batches)
                images = torch.from_numpy(batch.images).to(network.mean.device)
                if self.samples is None:
                    self._begin(images)
                gain = self._update(images, batch) if config.steps else Gain(torch.zeros(()), torch.zeros(()))
                if not math.isfinite(gain.information):
                    raise ConfigError(f"the training diverged in step {self.step}; use a smaller learning_rate")
                ends = self.step >= config.steps
                if trained and (not usage or self.step % STATUS_EVERY == 0 or ends):
                    usage = self._usage(trained, images, batch)
                status = self._status(gain, usage)
                if trained:
                    saver.note(status.objective)
                if rank() == 0 and progress:
                    progress(status)
                if rank() == 0 and observe:
                    observe(network, status)
                if any_rank(should_stop()) or ends:
                    break
                if saver.is_due(self.step):
                    lead(lambda: saver.save(self._checkpoint(fitted=exportable), final=False))
        if not exportable:
            # First what was learned: who asked to stop, such as a scheduler, may not wait for the rest.
            lead(lambda: saver.save(self._checkpoint(fitted=False), final=False))
            self._fit_decoder()
            status = dataclasses.replace(status, usage=self._usage(network.decoder, images, batch))
        if rank() == 0:
            self._warn(status)
        lead(lambda: saver.save(self._checkpoint(fitted=True), final=True))
        if not exportable:
            self._fit_best(saver)
        return status

    def _fit_decoder(self) -> None:
        """Fit the decoder of the network as it is."""
        # Of the whole batches on every rank, so that all find the same; it is not done often enough to be shared.
        with closing(self._read(0, range(self.share.total))) as batches:
            self.objective.fit_decoder(self.network, batches, self.config.seed)

    def _fit_best(self, saver: Saver) -> None:
        """Fit the decoder of the best network too; while it trains, that would cost more than it is worth."""
        best = lead(saver.load_best)
        if best and not best.fitted:
            self.network.load_state_dict(best.weights)
            self._fit_decoder()
            lead(lambda: saver.replace_best(dataclasses.replace(best, weights=self._weights(), fitted=True)))

    def _warn(self, status: Status) -> None:
        """Say what should not have happened."""
        if status.collapsed:
            _log.warning(
                "the training has collapsed (mutual information %.4f nats, largest cluster %.1f %%): "
                "the map will say nothing; try another --seed, more --steps or a smaller learning_rate",
                status.mutual_information,
                100 * max(status.usage),
            )
        self.scenes.report_skipped()

    def _begin(self, images: Tensor) -> None:
        """What is done once, with the first batch."""
        self.samples = images[:SAMPLES].cpu()
        with self._seeded(np.random.default_rng((self.config.seed, 3))):
            calibrate_network(self.network, images, find_orderings(self.config.orderings))

    def _read(self, start: int, part: Sequence[int]) -> Generator[Batch]:
        """The images at the places ``part`` of the batches from number ``start`` on."""
        return read_batches(
            self.scenes,
            crop_px=self.config.crop_px,
            batch_size=self.share.total,
            fill=self.network.mean.cpu().numpy(),
            seed=self.config.seed,
            start=start,
            scene_std=self.network.std.cpu().numpy() if self.config.normalisation == "scene" else None,
            part=part,
        )

    @contextmanager
    def _seeded(self, rng: np.random.Generator) -> Iterator[None]:
        """Have torch's own choices, those of dropout, follow from ``rng``: a step has no hidden state.

        Each rank makes its own: the same units dropped from images of all ranks would be a smaller sample.
        """
        device = self.network.mean.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(rng.integers(2**63 - 1)) + rank())
            yield

    def _update(self, images: Tensor, batch: Batch) -> Gain:
        """One step; returns what it gained, without gradient."""
        assert self.optimizer
        rng = np.random.default_rng((self.config.seed, self.step, 1))
        step = Step(images, torch.from_numpy(batch.valid).to(images.device), self.step, rng, self.share)
        with self._seeded(rng), self.precision.computing():
            gain = self.objective(self.network, step)
        self.optimizer.zero_grad()
        self.precision.backward(-gain.objective)
        average_gradients(self.parameters)
        self.precision.update(self.optimizer)
        self.step += 1
        entropies = None if gain.entropies is None else gain.entropies.detach()
        return Gain(gain.objective.detach(), gain.information.detach(), entropies)

    def _status(self, gain: Gain, usage: tuple[float, ...]) -> Status:
        return Status(
            step=self.step,
            steps=self.config.steps,
            mutual_information=float(gain.information),
            usage=usage,
            trains_clusters=self.trained is not None,
            objective=float(gain.objective),
            entropies=None if gain.entropies is None else tuple(gain.entropies.tolist()),
            learning_rate=self.optimizer.param_groups[0]["lr"] if self.optimizer else None,
            images=self.share.total,
            samples=self.samples,
            bands=self.scenes.bands,
        )

    @torch.no_grad()
    def _usage(self, decoder: nn.Conv2d, images: Tensor, batch: Batch) -> tuple[float, ...]:
        """Share of the valid pixels that each cluster of ``decoder`` gets from the unmasked network."""
        network = self.network
        with evaluating(network):
            logits = decoder(network.features(network.encode(images), None))
        labels = upsample(logits, network.config.stride).argmax(dim=1)
        counts = labels[torch.from_numpy(batch.valid).to(labels.device)].bincount(minlength=decoder.out_channels)
        counts = sum_over_ranks(counts)
        return tuple((counts / counts.sum()).tolist())

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.cpu() for name, value in self.network.state_dict().items()}

    def _checkpoint(self, *, fitted: bool) -> Checkpoint:
        """Network, settings and all that ``restore`` needs."""
        assert self.samples is not None
        return Checkpoint(
            network=self.network.config,
            weights=self._weights(),
            bands=self.scenes.bands,
            dtype=self.scenes.dtype,
            samples=self.samples,
            settings=dataclasses.asdict(self.config),
            loop={
                "step": self.step,
                "ranks": rank_count(),
                "optimizer": self.optimizer.state_dict() if self.optimizer else {},
                "objective": self.objective.state_dict(),
                "precision": self.precision.state_dict(),
            },
            fitted=fitted,
        )


def _make_objective(config: TrainConfig, network: Network, scenes: Scenes) -> Objective:
    """The objective, if as many processes as there are can train it."""
    objective = make_objective(config, network, scenes.bands)
    if rank_count() > 1 and not objective.parallel:
        raise ConfigError(
            f"objective {config.objective} can be trained by one process only, not by {rank_count()}: start autoreg "
            f"without torchrun"
        )
    return objective


def _resumed_config(checkpoint: Checkpoint, options: dict[str, Any], path: Path) -> TrainConfig:
    settings = checkpoint.settings
    given = {name: value for name, value in options.items() if value is not None}
    changed = [name for name in given if name not in _CHANGEABLE and given[name] != settings.get(name)]
    if changed:
        name = changed[0]
        *others, last = sorted(_CHANGEABLE)
        raise ConfigError(
            f"{path} was trained with {name} {settings.get(name)}, not {given[name]}; --resume can change only "
            f"{', '.join(others)} and {last}, so leave {name} out or train anew"
        )
    return config_from(settings | given, source=str(path))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = own_device(torch.device(name))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it does not exist"
        raise ConfigError(f"device {name!r} cannot be used: {reason}; expected auto, cpu or cuda") from error
    return device
