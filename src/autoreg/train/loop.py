"""The training loop: crops to weights and checkpoints."""

import dataclasses
import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoreg.errors import CheckpointError, ConfigError
from autoreg.network.checkpoint import Checkpoint
from autoreg.network.network import Network, evaluating, upsample
from autoreg.network.orderings import find_orderings
from autoreg.train.acceleration import accelerate
from autoreg.train.config import TrainConfig
from autoreg.train.data import Batch, read_batches
from autoreg.train.distributed import (
    any_rank,
    average_gradients,
    lead,
    rank,
    rank_count,
    share_batch,
    sum_over_ranks,
    together,
)
from autoreg.train.objectives import Gain, Objective, Step, average_gains
from autoreg.train.precision import Precision
from autoreg.train.saving import Saver
from autoreg.train.scenes import Scenes
from autoreg.train.shared_norm import share_norms
from autoreg.train.status import Status
from autoreg.train.views import CROSSED, calibrate_network

STATUS_EVERY = 20
"""Steps between two looks at the unmasked network."""

SAMPLES = 8
"""Crops of the first batch that the checkpoint keeps."""

_log = logging.getLogger("autoreg")


Observe = Callable[[Network, Status], None]
"""Looks at the network after a step, such as to score it; must leave it as it was."""


class Training:
    """Networks, objective, optimiser and step: what a checkpoint holds.

    The networks of an ensemble see crops of the same scenes, and have nothing else in common until their clusters are
    merged. One of them is then kept, ``network``; before that it is the first.
    """

    def __init__(self, networks: Sequence[Network], objective: Objective, scenes: Scenes, config: TrainConfig) -> None:
        self.networks, self.objective, self.scenes, self.config = networks, objective, scenes, config
        self.network = networks[0]
        self.trained = objective.trained_decoder(self.network)
        if self.trained is not self.network.decoder:
            for network in networks:
                network.decoder.requires_grad_(requires_grad=False)  # it is fitted in the end
        self.parameters = [
            parameter for module in (*networks, objective) for parameter in module.parameters() if parameter.requires_grad
        ]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate) if self.parameters else None
        ensemble = nn.ModuleList(networks)
        if rank_count() > 1:
            share_norms(ensemble)
        accelerate(ensemble, compiler="inductor" if config.compile else None, checkpointing=config.checkpointing)
        self.precision = Precision(config.precision, self.network.mean.device)
        self.share = share_batch(config.batch_size, CROSSED**2 if config.crossed else 1)
        self._crops = self.share.total * len(networks)
        self.step = 0
        self.samples: Tensor | None = None

    def restore(self, checkpoint: Checkpoint, saver: Saver, path: Path) -> None:
        """Go on from ``checkpoint``."""
        try:
            self._load(checkpoint)
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
        config, network, trained = self.config, self.network, self.trained
        exportable = trained is network.decoder
        for module in (*self.networks, self.objective):
            module.train()
        usage: tuple[float, ...] = ()
        with closing(self._read(self.step, self.share.places)) as batches:
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
            status = dataclasses.replace(status, usage=self._usage(self.network.decoder, images, batch))
        if rank() == 0:
            self._warn(status)
        lead(lambda: saver.save(self._checkpoint(fitted=True), final=True))
        if not exportable:
            self._fit_best(saver)
        return status

    def _fit_decoder(self) -> None:
        """Fit the decoder to the networks as they are, and choose the one to keep."""
        # Of the whole batches on every rank, so that all find the same; it is not done often enough to be shared.
        with closing(self._read(0, np.arange(self.share.total))) as batches:
            self.network = self.objective.fit_decoder(self.networks, batches, self.config.seed)

    def _fit_best(self, saver: Saver) -> None:
        """Fit the decoder of the best network too; while it trains, that would cost more than it is worth."""
        best = lead(saver.load_best)
        if best and not best.fitted:
            self._load(best)
            self._fit_decoder()
            lead(lambda: saver.replace_best(dataclasses.replace(best, fitted=True, **self._weights(best.loop))))

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
            for network, part in zip(self.networks, images.chunk(len(self.networks)), strict=True):
                calibrate_network(network, part, find_orderings(self.config.orderings))

    def _read(self, start: int, places: NDArray[np.intp]) -> Generator[Batch]:
        """The images at ``places`` of each network's batch, one network's after the other, from number ``start`` on."""
        positions = np.arange(len(self.networks))[:, None] * self.share.total + places
        return read_batches(
            self.scenes,
            crop_px=self.config.crop_px,
            batch_size=self._crops,
            fill=self.network.mean.cpu().numpy(),
            seed=self.config.seed,
            start=start,
            scene_std=self.network.std.cpu().numpy() if self.config.normalisation == "scene" else None,
            part=positions.ravel().tolist(),
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
        """One step of each network; returns what they gained on average, without gradient."""
        assert self.optimizer
        parts = (of_all.chunk(len(self.networks)) for of_all in (images, torch.from_numpy(batch.valid).to(images.device)))
        gains = []
        self.optimizer.zero_grad()
        for member, (network, own, valid) in enumerate(zip(self.networks, *parts, strict=True)):
            rng = np.random.default_rng((self.config.seed, self.step, 1, member))
            with self._seeded(rng), self.precision.computing():
                gain = self.objective(network, Step(own, valid, self.step, rng, self.share))
            self.precision.backward(-gain.objective)
            gains.append(gain.detach())
        average_gradients(self.parameters)
        self.precision.update(self.optimizer)
        self.step += 1
        return average_gains(gains)

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
            images=self._crops,
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

    def _load(self, checkpoint: Checkpoint) -> None:
        """Give each network the weights that it has in ``checkpoint``."""
        for network, state in zip(self.networks, checkpoint.loop["members"], strict=True):
            network.load_state_dict(state)

    def _weights(self, loop: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a checkpoint that hold weights: of the network that is kept, and in ``loop`` of all.

        They are the same tensors, which a file holds once.
        """
        members = [{name: value.cpu() for name, value in network.state_dict().items()} for network in self.networks]
        return {"weights": members[self.networks.index(self.network)], "loop": {**loop, "members": members}}

    def _checkpoint(self, *, fitted: bool) -> Checkpoint:
        """Network, settings and all that ``restore`` needs."""
        assert self.samples is not None
        loop = {
            "step": self.step,
            "ranks": rank_count(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else {},
            "objective": self.objective.state_dict(),
            "precision": self.precision.state_dict(),
        }
        return Checkpoint(
            network=self.network.config,
            bands=self.scenes.bands,
            dtype=self.scenes.dtype,
            samples=self.samples,
            settings=dataclasses.asdict(self.config),
            fitted=fitted,
            **self._weights(loop),
        )
