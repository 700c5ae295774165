from pathlib import Path

import pytest

from autoreg.errors import ConfigError
from autoreg.naming import read_legend
from autoreg.raster.palette import class_colours
from autoreg.spec import MapClass


def palette(index: int) -> str:
    return "#" + bytes(class_colours(12)[index]).hex()


def test_what_is_left_out_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        f"""
        [[classes]]
        name = "Gewässer"
        [[classes]]
        name = "forest"
        colour = "{palette(0).upper()}"
        label = 40
        clusters = [5, 2]
        [[classes]]
        name = "bare"
        """,
        encoding="utf-8",
    )
    assert read_legend(tmp_path / "a.toml") == (
        MapClass(0, "Gewässer", palette(1)),
        MapClass(2, "bare", palette(2)),
        MapClass(40, "forest", palette(0), (2, 5)),
    )


WATER = '[[classes]]\nname = "water"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.toml has no tables \[\[classes\]\]"),
        ("classes = 3", r"has no tables \[\[classes\]\]"),
        ("classes = [1]", r"has no tables \[\[classes\]\]"),
        ("classes = []", "it has 0 classes, expected 1 to 255"),
        ("[[klasses]]", "unknown key 'klasses'; did you mean classes?"),
        (WATER + 'color = "#000000"', "unknown key 'color'; did you mean colour?"),
        (WATER + "zebra = 1", "unknown key 'zebra'; expected name, label, colour, clusters"),
        ("[[classes]]\nlabel = 1", "class 0 in .* has no name"),
        ("[[classes]]\nname = 1", "name of class 0 in .* is 1, expected a string"),
        ('[[classes]]\nname = ""', "the name of class 0 is ''"),
        ('[[classes]]\nname = "a\\u0007"', "the name of class 0 is .*printable"),
        (WATER + WATER, "2 of its classes have the name 'water'"),
        (WATER + "label = 1\n" + WATER.replace("water", "b"), "2 of its classes have the label 1"),
        (WATER + "label = true", "label of class 0 in .* is True, expected an integer"),
        (WATER + "label = 255", "the label of class 'water' is 255, expected 0 to 254"),
        (WATER + 'colour = "blue"', "the colour of class 0 is 'blue', expected #rrggbb"),
        (WATER + "colour = 3", 'colour of class 0 in .* is 3, expected a string "#rrggbb"'),
        (WATER + "clusters = 3", "clusters of class 0 in .* is 3, expected a list of integers"),
        (WATER + "clusters = [true]", r"clusters of class 0 in .* is \[True\], expected a list of integers"),
        ("name = ", "is not a TOML file"),
        ("a = " + "[" * 100_000, "is not a TOML file"),
        ("#" * 2**20 + "#", "has more than 1048576 bytes"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_legend(tmp_path / "a.toml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'[[classes]]\nname = "Gew\xe4sser"')
    for path, message in (
        (tmp_path / "a.toml", "is not a TOML file"),
        (tmp_path / "b.toml", "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_legend(path)
