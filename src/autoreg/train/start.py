"""Start a training of unlabelled rasters, or go on with one."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoreg.errors import CheckpointError, ConfigError
from autoreg.network.backbone import load_backbone
from autoreg.network.checkpoint import Checkpoint, load_checkpoint
from autoreg.network.network import Network, measure_extractor
from autoreg.train.config import TrainConfig, config_from
from autoreg.train.distributed import copy_from_lead, lead, own_device, rank_count, together
from autoreg.train.loop import Observe, Training
from autoreg.train.objectives import Objective, make_objective
from autoreg.train.saving import Saver
from autoreg.train.scenes import Scenes, estimate_normalisation, open_scenes
from autoreg.train.status import Status

_CHANGEABLE = {"steps", "device", "precision", "compile", "checkpointing", "checkpoint_steps"}
"""Settings that a resumed training may set anew."""


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
            networks = [Network(layers, own) for own in _copies(extractor, config.members)]
            objective = _make_objective(config, networks[0], scenes)
    mean, std = lead(lambda: estimate_normalisation(scenes))
    for network in networks:
        network.mean.copy_(torch.from_numpy(mean))
        network.std.copy_(torch.from_numpy(std))
    # The user's backbone may come with weights of its own that no seed decides.
    for module in (*networks, objective):
        copy_from_lead(module)
    training = Training([network.to(device) for network in networks], objective.to(device), scenes, config)
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
        extractor = extractor or load_backbone(options.get("backbone"), len(scenes.bands))
        networks = [checkpoint.build_network(own).to(device) for own in _copies(extractor, config.members)]
        objective = _make_objective(config, networks[0], scenes)
        training = Training(networks, objective.to(device), scenes, config)
        training.restore(checkpoint, saver, checkpoint_path)
    return training.run(saver, progress, observe, should_stop)


def _copies(extractor: nn.Module | None, count: int) -> list[nn.Module | None]:
    """A user's backbone for each network: what they were given, and copies of it."""
    return [extractor, *(copy.deepcopy(extractor) for _ in range(count - 1))]


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
