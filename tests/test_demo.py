from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from autoreg import demo
from autoreg.cli import cli
from autoreg.demo import BANDS, COVERS, cluster_colours, compare_with_colours, make_scene, write_scene
from autoreg.evaluation import confusion_matrix, score


def test_a_scene_is_a_function_of_its_seed() -> None:
    image, truth = make_scene(5, 90, 120)
    again, _ = make_scene(5, 90, 120)
    np.testing.assert_array_equal(image, again)
    assert (image != make_scene(6, 90, 120)[0]).any()
    assert image.shape == (len(BANDS), 90, 120)
    np.testing.assert_array_equal(truth == 255, (image == 0).all(axis=0))
    assert 0.01 < (truth == 255).mean() < 0.05


def test_all_covers_occur_and_colour_does_not_tell_them_apart() -> None:
    image, truth = make_scene(0, 400, 400)
    shares = np.bincount(truth[truth < 255], minlength=len(COVERS)) / (truth < 255).sum()
    assert shares.min() > 0.1
    assert 0.25 < score(confusion_matrix(cluster_colours(image, len(COVERS), seed=0), truth)).accuracy < 0.55


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_perfect_map_scores_one_and_is_drawn_like_the_truth(tmp_path: Path) -> None:
    scene, truth, picture = tmp_path / "scene.tif", tmp_path / "truth.tif", tmp_path / "picture.png"
    write_scene(0, 100, 80, scene, truth)
    ours, floor = compare_with_colours(scene, truth, truth, picture, seed=0, overwrite=False)
    assert ours.accuracy == 1.0
    assert floor.accuracy < 0.9
    with rasterio.open(picture, driver="PNG") as dataset:
        pixels = dataset.read()
    assert pixels.shape == (3, 100, 4 * 80 + 3 * 8)
    np.testing.assert_array_equal(pixels[:, :, 88:168], pixels[:, :, -80:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.png", "scene.tif", "truth.tif"]


def test_the_demo_calls_commands_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, after two steps of training; what it promises of a whole training is measured elsewhere."""
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS.replace("steps = 400", "steps = 2"))
    done = CliRunner().invoke(cli, ["demo", str(tmp_path), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "$ autoreg evaluate" in done.output
    assert {"checkpoint.pt", "model.onnx", "out", "result.png"} <= {path.name for path in tmp_path.iterdir()}
