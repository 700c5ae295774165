"""The training loop: unlabelled rasters to a checkpoint."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoreg.errors import CheckpointError, ConfigError
from autoreg.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from autoreg.network.network import Network, network_config, upsample
from autoreg.output import check_output
from autoreg.train.config import TrainConfig, config_from
from autoreg.train.data import Batch, Scenes, estimate_normalisation, open_scenes, read_batches
from autoreg.train.losses import MutualInformation, joint_distribution, joint_per_displacement, mutual_information
from autoreg.train.transforms import draw_dihedral, find_rgb, jitter_colours
from autoreg.train.views import calibrate_decoder, draw_orderings, predict_views

STATUS_EVERY = 20
"""Steps between two looks at the unmasked network."""

COLLAPSE_NATS = 1e-3
COLLAPSE_SHARE = 0.99

_CHANGEABLE = {"steps", "device"}  # settings that a resumed training may set anew
_log = logging.getLogger("autoreg")


@dataclass(frozen=True)
class Status:
    """How a training stands.

    Attributes:
        step: updates done.
        steps: updates in all.
        mutual_information: of the last step's two views, in nats; at most log K.
        usage: share of the pixels that the *unmasked* network gives to each cluster, on the last batch looked at; sums to 1.
    """

    step: int
    steps: int
    mutual_information: float
    usage: tuple[float, ...]

    @property
    def clusters_used(self) -> int:
        """Clusters with at least a tenth of an equal share of the pixels."""
        return sum(share >= 0.1 / len(self.usage) for share in self.usage)

    @property
    def collapsed(self) -> bool:
        """Whether the views tell nothing about each other, or one cluster takes everything."""
        return self.mutual_information < COLLAPSE_NATS or max(self.usage) > COLLAPSE_SHARE


def train_network(
    paths: Sequence[str | Path],
    output: Path,
    config: TrainConfig | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[Status], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Status:
    """Train on unlabelled rasters and write a checkpoint.

    Maximises the mutual information between the predictions of two sets of orderings (eq. 12). On one machine and with one
    number of threads, the same rasters, settings and seed give the same weights.

    Args:
        paths: rasters with the same bands and type.
        output: the checkpoint to write.
        config: settings; the defaults if None.
        overwrite: replace an existing file.
        progress: called after each step.
        should_stop: asked after each step; if true, the checkpoint is written and the function returns.

    Returns:
        How it stood in the end.

    Raises:
        RasterError: a raster cannot be read or does not fit.
        ConfigError: the device does not exist.
        OutputError: ``output`` exists or cannot be written.
    """
    config = config or TrainConfig()
    check_output(output, overwrite=overwrite)
    device = _device(config.device)
    scenes = open_scenes(paths, crop_px=config.crop_px)
    if config.colour_jitter:
        find_rgb(scenes.bands)
    mean, std = estimate_normalisation(scenes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = Network(network_config(config.size, bands=len(scenes.bands), classes=config.classes))
    network.mean.copy_(torch.from_numpy(mean))
    network.std.copy_(torch.from_numpy(std))
    return _Training(network.to(device), scenes, config).run(output, progress, should_stop)


def resume_training(
    paths: Sequence[str | Path],
    checkpoint_path: Path,
    options: dict[str, Any] | None = None,
    *,
    progress: Callable[[Status], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Status:
    """Go on with the training that wrote ``checkpoint_path``, and replace that file at the end.

    With the same rasters, the weights become those of a training that was never interrupted.

    Args:
        paths: the same rasters, in the same order.
        checkpoint_path: the checkpoint.
        options: settings that were given anew; only ``steps`` and ``device`` may differ from the checkpoint's.
        progress: see ``train_network``.
        should_stop: see ``train_network``.

    Raises:
        CheckpointError: no such file, or not a checkpoint.
        ConfigError: a setting differs that cannot change, or all steps are done.
        RasterError: the rasters are not of the checkpoint's kind.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    check_output(checkpoint_path, overwrite=True)
    config = _resumed_config(checkpoint, options or {}, checkpoint_path)
    scenes = open_scenes(paths, crop_px=config.crop_px)
    if len(scenes.bands) != len(checkpoint.bands) or scenes.dtype != checkpoint.dtype:
        raise CheckpointError(
            f"{checkpoint_path} was trained on {len(checkpoint.bands)} bands of {checkpoint.dtype}, "
            f"but {scenes.paths[0]} has {len(scenes.bands)} bands of {scenes.dtype}"
        )
    scenes = dataclasses.replace(scenes, bands=checkpoint.bands)
    training = _Training(checkpoint.build_network().to(_device(config.device)), scenes, config)
    training.restore(checkpoint, checkpoint_path)
    return training.run(checkpoint_path, progress, should_stop)


class _Training:
    """Network, optimiser and step: what a checkpoint holds."""

    def __init__(self, network: Network, scenes: Scenes, config: TrainConfig) -> None:
        self.network, self.scenes, self.config = network, scenes, config
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
        self.step = 0
        self.samples: Tensor | None = None

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        try:
            self.optimizer.load_state_dict(checkpoint.loop["optimizer"])
            self.step = int(checkpoint.loop["step"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} has no valid state of the training to go on from: {error!r}") from error
        self.samples = checkpoint.samples
        if self.step >= self.config.steps:
            raise ConfigError(f"{path} has done all {self.step} steps; to go on give more, such as --steps {2 * self.step}")

    def run(
        self,
        output: Path,
        progress: Callable[[Status], None] | None,
        should_stop: Callable[[], bool],
    ) -> Status:
        """Do the steps that are left, then write the checkpoint."""
        config, network = self.config, self.network.train()
        batches = read_batches(
            self.scenes,
            crop_px=config.crop_px,
            batch_size=config.batch_size,
            fill=network.mean.cpu().numpy(),
            seed=config.seed,
            start=self.step,
        )
        device = network.mean.device
        usage: tuple[float, ...] = ()
        for batch in batches:
            images = torch.from_numpy(batch.images).to(device)
            if self.samples is None:
                self.samples = images[:4].cpu()
                calibrate_decoder(network, images)
            information = self._update(images, batch)
            if not math.isfinite(information):
                raise ConfigError(f"the training diverged in step {self.step}; use a smaller learning_rate")
            if not usage or self.step % STATUS_EVERY == 0 or self.step == config.steps:
                usage = self._usage(images, batch)
            status = Status(self.step, config.steps, information, usage)
            if progress:
                progress(status)
            if self.step >= config.steps or should_stop():
                break
        batches.close()
        if status.collapsed:
            _log.warning(
                "the training has collapsed (mutual information %.4f nats, largest cluster %.1f %%): "
                "the map will say nothing; try another --seed, more --steps or a smaller learning_rate",
                status.mutual_information,
                100 * max(status.usage),
            )
        self._save(output)
        return status

    def _update(self, images: Tensor, batch: Batch) -> float:
        """One step; returns the mutual information in nats."""
        rng = np.random.default_rng((self.config.seed, self.step, 1))
        information = self._mutual_information(images, torch.from_numpy(batch.valid), rng)
        self.optimizer.zero_grad()
        (-information.objective(self.config.entropy_weight)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        return information.value.item()

    def _mutual_information(self, images: Tensor, valid: Tensor, rng: np.random.Generator) -> MutualInformation:
        config, second_images = self.config, None
        first, second = draw_orderings(rng)
        transform = draw_dihedral(rng, flip=config.flip, rotate=config.rotate)
        if config.colour_jitter:
            second_images = jitter_colours(images, find_rgb(self.scenes.bands), config.colour_jitter, rng)
        probs_y, probs_z = predict_views(
            self.network, images, first, second, second_images=second_images, transform=transform
        )
        if not valid.all():
            mask = valid[:, None].to(images)
            probs_y, probs_z = probs_y * mask, probs_z * mask
        joint = joint_per_displacement if config.displacements == "separate" else joint_distribution
        return mutual_information(joint(probs_y, probs_z, config.displacement_px))

    @torch.no_grad()
    def _usage(self, images: Tensor, batch: Batch) -> tuple[float, ...]:
        """Share of the valid pixels that each cluster gets from the unmasked network."""
        self.network.eval()
        labels = upsample(self.network(images), self.network.config.stride).argmax(dim=1)
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
            loop={"step": self.step, "optimizer": self.optimizer.state_dict()},
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
