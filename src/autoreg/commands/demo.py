"""``autoreg demo``."""

from pathlib import Path
from typing import Any

import click

from autoreg.commands.evaluate import evaluate
from autoreg.commands.export import export
from autoreg.commands.options import PATH, command, make_folder, overwrite_option, quiet_option
from autoreg.commands.segment import segment
from autoreg.commands.train import train
from autoreg.errors import OutputError


@command(epilog="autoreg demo demo\nautoreg demo /tmp/demo --seed 1 --overwrite")
@click.argument("folder", type=PATH)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the landscapes and of the training.")
@overwrite_option
@quiet_option
@click.pass_context
def demo(context: click.Context, folder: Path, seed: int, overwrite: bool, quiet: bool) -> None:
    """Run the whole chain on a synthetic scene.

    Makes landscapes, learns them without labels, maps one that was not seen, scores it and draws the result. Five
    land covers that differ in texture more than in colour. Takes some minutes on two processor cores.
    """
    from autoreg.demo import SETTINGS, compare_with_colours, write_scene

    make_folder(folder)
    if not overwrite and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; use --overwrite, or name another folder")
    for name in ("scenes", "tiles", "truth"):
        make_folder(folder / name)
    scenes = [str(folder / "scenes" / f"{index}.tif") for index in range(3)]
    tile, truth, class_map = (folder / name / "unseen.tif" for name in ("tiles", "truth", "out"))
    config, checkpoint, model, picture = (
        folder / name for name in ("train.toml", "checkpoint.pt", "model.onnx", "result.png")
    )
    for index, scene in enumerate(scenes):
        write_scene(4 * seed + index, 512, 512, Path(scene))
    write_scene(4 * seed + len(scenes), 730, 615, tile, truth)
    config.write_text(SETTINGS + f"seed = {seed}\n", encoding="utf-8")

    def run(command: click.Command, words: str, **parameters: Any) -> None:
        click.secho(f"$ autoreg {words}", bold=True)
        context.invoke(command, overwrite=True, **parameters)

    run(
        train,
        f"train {folder}/scenes/*.tif -c {config} -o {checkpoint}",
        scenes=tuple(scenes),
        output=checkpoint,
        config_path=config,
        preset=None,
        tensorboard=None,
        resume=False,
        quiet=quiet,
    )
    run(export, f"export {checkpoint} -o {model}", source=checkpoint, output=model)
    run(
        segment,
        f"segment {tile} -m {model} -o {class_map.parent}",
        tiles=(str(tile),),
        model=model,
        output=class_map.parent,
        tile_px=None,
        batch_size=1,
        as_json=False,
        quiet=quiet,
    )
    click.secho(f"$ autoreg evaluate {class_map} {truth}", bold=True)
    context.invoke(evaluate, labels=class_map, truth=truth, as_json=False)
    ours, floor = compare_with_colours(tile, truth, class_map, picture, seed=seed, overwrite=True)
    click.echo(
        f"accuracy on the unseen landscape: {100 * ours.accuracy:.1f} %, K-means on colour {100 * floor.accuracy:.1f} %"
    )
    click.echo(f"image, truth, K-means on colour and our map side by side: {picture}")
