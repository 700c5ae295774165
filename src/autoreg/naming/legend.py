"""Read a legend: a TOML file with the names and colours of classes, and the clusters that stand for them, if they are known.

::

    [[classes]]
    name = "water"          # the only key that a class must have
    label = 0               # its value in the truth and in the maps; if left out, its place in the file, from 0
    colour = "#1f69c9"      # if left out, one of the palette that no other class has
    clusters = [2, 5]       # if no class has any, autoreg match --truth finds them
"""

from pathlib import Path
from typing import Any

from autoreg.errors import ConfigError
from autoreg.raster.palette import unused_colours
from autoreg.spec import MapClass, legend_problem
from autoreg.toml_file import read_toml, suggest

_KINDS = {"name": str, "label": int, "colour": str, "clusters": list}


def read_legend(path: Path) -> tuple[MapClass, ...]:
    """The classes of a legend file, ascending by label.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has an unknown key, or a value of the wrong type or range, or a
            label or a name twice.
    """
    rows = _rows(read_toml(path, expected="a legend of a few lines per class"), path)
    colours = unused_colours({row["colour"] for row in rows if "colour" in row})
    classes = [
        MapClass(
            row.get("label", place),
            row["name"],
            row["colour"] if "colour" in row else next(colours),
            tuple(sorted(row.get("clusters", ()))),
        )
        for place, row in enumerate(rows)
    ]
    if problem := legend_problem(classes):
        raise ConfigError(f"{path} is not a legend: {problem}")
    return tuple(sorted(classes, key=lambda item: item.label))


def _rows(values: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The tables of the file, their keys and types checked, their colours in lower case."""
    _check_keys(values, ("classes",), path)
    rows = values.get("classes")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} has no tables [[classes]], expected one for each class, with its name")
    for place, row in enumerate(rows):
        _check_keys(row, _KINDS, path)
        if "name" not in row:
            raise ConfigError(f"class {place} in {path} has no name, expected name, and if you like label, colour, clusters")
        for key, value in row.items():
            right = isinstance(value, _KINDS[key]) and not isinstance(value, bool)
            if not right or (key == "clusters" and not all(type(item) is int for item in value)):
                kind = {"name": "a string", "label": "an integer", "colour": 'a string "#rrggbb"'}.get(
                    key, "a list of integers"
                )
                raise ConfigError(f"{key} of class {place} in {path} is {value!r:.60}, expected {kind}")
        if "colour" in row:
            row["colour"] = row["colour"].lower()
    return rows


def _check_keys(values: dict[str, Any], known: Any, path: Path) -> None:
    for key in values:
        if key not in known:
            hint = suggest(key, known, otherwise=f"expected {', '.join(known)}")
            raise ConfigError(f"{path} has an unknown key {key!r}; {hint}")
