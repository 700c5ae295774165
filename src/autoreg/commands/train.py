"""``autoreg train`` and ``autoreg baseline``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoreg.commands.options import INTERRUPTED, PATH, backbone_option, command, overwrite_option, quiet_option
from autoreg.errors import ConfigError
from autoreg.terminal import stop_on_interrupt, training_bar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autoreg.train import Status, TrainConfig

_seed = click.option("--seed", type=int, help="Of the initial weights, crops and orderings.  [default: 0]")
_device = click.option("--device", help="auto, cpu or cuda.  [default: auto]")
_config = click.option("-c", "--config", "config_path", type=PATH, help="Settings in TOML; options given here win over it.")
_classes = click.option("-k", "--classes", type=int, help="Number of clusters.  [default: 6]")
_size = click.option("--size", help="tiny, small, base or paper.  [default: small]")
_steps = click.option("--steps", type=int, help="Updates of the weights in all.  [default: 1000]")
_checkpoint = click.option(
    "-o", "--output", type=PATH, default="checkpoint.pt", show_default=True, help="Checkpoint to write."
)


@command(epilog="autoreg train scenes/*.tif -k 6\nautoreg train scenes/*.tif -c train.toml -o base.pt --device cuda")
@click.argument("scenes", nargs=-1, required=True, metavar="SCENES...")
@_checkpoint
@_config
@click.option("--preset", help="Settings of the paper for potsdam, potsdam3, coco-stuff or coco-stuff3 (Table 8).")
@_classes
@_size
@_steps
@_seed
@_device
@backbone_option
@click.option("--resume", is_flag=True, help="Go on with the checkpoint at -o, up to --steps.")
@overwrite_option
@quiet_option
def train(
    scenes: tuple[str, ...],
    output: Path,
    config_path: Path | None,
    preset: str | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Learn from unlabelled rasters.

    Writes a checkpoint. SCENES are GeoTIFF, JPEG, PNG or other rasters with the same bands and type. Pixels without
    data (nodata, masks, NaN) are ignored. Ctrl-C stops after the current step and writes the checkpoint; --resume goes
    on from there.
    """
    from autoreg.train import PRESETS, load_config, resume_training

    if not resume:
        settings = load_config(config_path, options, _choose(PRESETS, preset, "preset"))
        _train(scenes, output, settings, overwrite, quiet)
        return
    if config_path or preset:
        raise ConfigError("--resume takes the settings from the checkpoint; leave --config and --preset out")
    with stop_on_interrupt() as stopped, training_bar(quiet) as progress:
        status = resume_training(scenes, output, options, progress=progress, should_stop=stopped.is_set)
    _report_training(status, scenes, output)


@command(epilog="autoreg baseline kmeans scenes/*.tif -k 6 -o kmeans.pt\nautoreg baseline iic scenes/*.tif --steps 2000")
@click.argument("name")
@click.argument("scenes", nargs=-1, required=True, metavar="SCENES...")
@_checkpoint
@_config
@_classes
@_size
@_steps
@_seed
@_device
@overwrite_option
@quiet_option
def baseline(
    name: str,
    scenes: tuple[str, ...],
    output: Path,
    config_path: Path | None,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a method to compare with.

    NAME is random (a network as it was initialised), kmeans (of the pixels' colours), sift, doersch, isola, deepcluster or
    iic. Writes a checkpoint like that of train, for export, segment and evaluate.
    """
    from autoreg.train import BASELINES, load_config

    _train(scenes, output, load_config(config_path, options, _choose(BASELINES, name, "baseline")), overwrite, quiet)


def _choose(presets: "Mapping[str, dict[str, Any]]", name: str | None, kind: str) -> dict[str, Any]:
    if name is not None and name not in presets:
        raise ConfigError(f"there is no {kind} {name!r}, expected one of {', '.join(presets)}")
    return presets[name] if name else {}


def _train(scenes: tuple[str, ...], output: Path, config: "TrainConfig", overwrite: bool, quiet: bool) -> None:
    from autoreg.train import train_network

    with stop_on_interrupt() as stopped, training_bar(quiet) as progress:
        status = train_network(scenes, output, config, overwrite=overwrite, progress=progress, should_stop=stopped.is_set)
    _report_training(status, scenes, output)


def _report_training(status: "Status", scenes: tuple[str, ...], output: Path) -> None:
    shares = ", ".join(f"{100 * share:.0f} %" for share in sorted(status.usage, reverse=True))
    click.echo(
        f"{output}: step {status.step} of {status.steps}, mutual information {status.mutual_information:.3f} nats, "
        f"{status.clusters_used} of {len(status.usage)} clusters used ({shares})"
    )
    if status.step < status.steps:
        click.echo(
            f"stopped; go on with: autoreg train {' '.join(scenes[:1])}{' ...' * (len(scenes) > 1)} -o {output} --resume"
        )
        raise click.exceptions.Exit(INTERRUPTED)
    click.echo(f"next: autoreg export {output}")
