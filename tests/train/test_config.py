from pathlib import Path

import pytest

from autoreg.errors import ConfigError
from autoreg.train.config import TrainConfig, load_config


def test_an_option_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text('size = "tiny"\nsteps = 7\nlearning_rate = 1e-3\n')
    config = load_config(path, {"steps": 9, "seed": None})
    assert (config.size, config.steps, config.learning_rate) == ("tiny", 9, 1e-3)
    assert config.seed == TrainConfig().seed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", r"unknown setting 'step'; did you mean steps\?"),
        ("zebra = 3", "unknown setting 'zebra'; expected one of classes"),
        ('steps = "many"', "steps in .* is 'many', expected a value of type int"),
        ("seed = true", "seed in .* is True"),
        ('displacements = "some"', "displacements is 'some', expected one of collapsed, separate"),
        ("displacement_px = 64\ncrop_px = 64", "displacement_px is 64, expected 0 to 63"),
        ("flip = 1", "flip in .* is 1, expected a value of type bool"),
        ("colour_jitter = 0.9", "colour_jitter is 0.9, expected 0 to 0.5"),
        ("steps = -1", "steps is -1, expected 0 to"),
        ("classes = 300", "classes is 300, expected 2 to 255"),
        ("batch_size = 6", "batch_size is 6, expected a multiple of 4"),
        ("learning_rate = -1.0", "learning_rate is -1.0, expected more than 0"),
        ('size = "huge"', "size is 'huge', expected one of tiny, small, base, paper"),
        ("= 3", "not a TOML file"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "train.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        load_config(tmp_path / "none.toml", {})
