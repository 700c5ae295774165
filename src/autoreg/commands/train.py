"""``autoreg train`` and ``autoreg baseline``."""

import dataclasses
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from autoreg.commands.options import INTERRUPTED, PATH, backbone_option, command, overwrite_option, quiet_option
from autoreg.errors import ConfigError
from autoreg.terminal import stop_on_interrupt, training_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from autoreg.train import Status, TrainConfig

_ensemble = click.option(
    "--ensemble",
    type=int,
    help="Networks trained side by side, of which one is kept; 1 takes a third of the time.  [default: 3]",
)
_seed = click.option("--seed", type=int, help="Of the initial weights, crops and orderings.  [default: 0]")
_device = click.option("--device", help="auto, cpu or cuda.  [default: auto]")
_config = click.option("-c", "--config", "config_path", type=PATH, help="Settings in TOML; options given here win over it.")
_classes = click.option("-k", "--classes", type=int, help="Number of clusters.  [default: 6]")
_size = click.option("--size", help="tiny, small, base or paper.  [default: tiny]")
_steps = click.option("--steps", type=int, help="Updates of the weights in all.  [default: 300]")
_checkpoint_steps = click.option(
    "--checkpoint-steps", type=int, help="Steps between two saves; 0: at the end only.  [default: 100]"
)
_normalisation = click.option(
    "--normalisation", help="global, with the statistics of all scenes, or scene, each with its own.  [default: global]"
)
_precision = click.option("--precision", help="fp32, fp16 or bf16, the network's in training.  [default: fp32]")
_compile = click.option("--compile/--no-compile", default=None, help="Compile a part of the network.  [default: no]")
_checkpointing = click.option(
    "--checkpointing/--no-checkpointing", default=None, help="Less memory for a third more time.  [default: no]"
)
_tensorboard = click.option("--tensorboard", type=PATH, metavar="DIR", help="Write figures and pictures for TensorBoard.")
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
@_ensemble
@_seed
@_device
@backbone_option
@_normalisation
@_checkpoint_steps
@_precision
@_compile
@_checkpointing
@_tensorboard
@click.option("--resume", is_flag=True, help="Go on with the checkpoint at -o, up to --steps.")
@overwrite_option
@quiet_option
def train(
    scenes: tuple[str, ...],
    output: Path,
    config_path: Path | None,
    preset: str | None,
    tensorboard: Path | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Learn from unlabelled rasters.

    Writes a checkpoint. SCENES are GeoTIFF, JPEG, PNG or other rasters with the same bands and type. Pixels without
    data (nodata, masks, NaN) are ignored.

    The checkpoint is saved now and then, and the best network so far beside it, as checkpoint.best.pt. Ctrl-C stops after
    the current step and saves; after that, or after a crash, --resume goes on from the last save.

    Beside it, checkpoint.log.jsonl grows by a line of figures every 10 steps, and checkpoint.report.html shows in the end
    what was learned.

    With several GPUs: torchrun --nproc-per-node 4 -m autoreg train ... Each process then takes batch_size crops a step.
    """
    from autoreg.train import PRESETS, load_config, resume_training
    from autoreg.train.recording import record_training

    if not resume:
        _train(
            scenes,
            output,
            lambda: load_config(config_path, options, _choose(PRESETS, preset, "preset")),
            tensorboard=tensorboard,
            overwrite=overwrite,
            quiet=quiet,
        )
        return
    if config_path or preset:
        raise ConfigError("--resume takes the settings from the checkpoint; leave --config and --preset out")
    with _run(quiet) as run, record_training(output, _about(scenes), tensorboard=tensorboard, resume=True) as record:
        status = resume_training(
            scenes, output, options, progress=run.progress, observe=record.observe, should_stop=run.should_stop
        )
        record.finish(status)
    _report_training(status, scenes, output, run.leads, options["backbone"])


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
@_tensorboard
@overwrite_option
@quiet_option
def baseline(
    name: str,
    scenes: tuple[str, ...],
    output: Path,
    config_path: Path | None,
    tensorboard: Path | None,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a method to compare with.

    NAME is random (a network as it was initialised), kmeans (of the pixels' colours), sift, doersch, isola, deepcluster or
    iic. Writes a checkpoint like that of train, for export, segment and evaluate.
    """
    from autoreg.train import BASELINES, load_config

    _train(
        scenes,
        output,
        lambda: load_config(config_path, options, _choose(BASELINES, name, "baseline")),
        tensorboard=tensorboard,
        overwrite=overwrite,
        quiet=quiet,
    )


def _choose(presets: "Mapping[str, dict[str, Any]]", name: str | None, kind: str) -> dict[str, Any]:
    if name is not None and name not in presets:
        raise ConfigError(f"there is no {kind} {name!r}, expected one of {', '.join(presets)}")
    return presets[name] if name else {}


class _Run(NamedTuple):
    """How a training reports, and how it learns that it shall stop."""

    leads: bool
    progress: "Callable[[Status], None]"
    should_stop: "Callable[[], bool]"


@contextmanager
def _run(quiet: bool) -> "Iterator[_Run]":
    """One of the processes that torchrun started, or the only one. All but the first say only what went wrong."""
    from autoreg.train.distributed import join_ranks, rank, rank_count

    with join_ranks():
        leads = rank() == 0
        if not leads:
            quiet = True
            logging.getLogger("autoreg").setLevel(logging.ERROR)
        with stop_on_interrupt(launched=rank_count() > 1, quiet=not leads) as stopped, training_bar(quiet) as progress:
            yield _Run(leads, progress, stopped.is_set)


def _train(
    scenes: tuple[str, ...],
    output: Path,
    load: "Callable[[], TrainConfig]",
    *,
    tensorboard: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    from autoreg.train import train_network
    from autoreg.train.distributed import lead
    from autoreg.train.recording import record_training

    with _run(quiet) as run:
        config = lead(load)
        about = _about(scenes) | {"settings": dataclasses.asdict(config)}
        with record_training(output, about, tensorboard=tensorboard, overwrite=overwrite) as record:
            status = train_network(
                scenes,
                output,
                config,
                overwrite=overwrite,
                progress=run.progress,
                observe=record.observe,
                should_stop=run.should_stop,
            )
            record.finish(status)
    _report_training(status, scenes, output, run.leads, config.backbone)


def _about(scenes: tuple[str, ...]) -> dict[str, Any]:
    """What the log says of the rasters."""
    return {"rasters": len(scenes), "first_raster": Path(scenes[0]).name}


def _report_training(status: "Status", scenes: tuple[str, ...], output: Path, leads: bool, backbone: str | None) -> None:
    from autoreg.train.report import write_report

    if not leads:
        raise click.exceptions.Exit(INTERRUPTED if status.step < status.steps else 0)
    shares = ", ".join(f"{100 * share:.0f} %" for share in sorted(status.usage, reverse=True))
    click.echo(
        f"{output}: step {status.step} of {status.steps}, mutual information {status.mutual_information:.3f} nats, "
        f"{status.clusters_used} of {len(status.usage)} clusters used ({shares})"
    )
    click.echo(f"report: {write_report(output, backbone=backbone, overwrite=True)}")
    if status.step < status.steps:
        click.echo(
            f"stopped; go on with: autoreg train {' '.join(scenes[:1])}{' ...' * (len(scenes) > 1)} -o {output} --resume"
        )
        raise click.exceptions.Exit(INTERRUPTED)
    click.echo(f"next: autoreg export {output}")
