"""Settings of a training: option of the command line, else train.toml, else the default here."""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoreg.errors import ConfigError
from autoreg.network.network import PRESETS
from autoreg.spec import NODATA_LABEL

DISPLACEMENTS = ("collapsed", "separate")


@dataclass(frozen=True)
class TrainConfig:
    """What a training does. Every field is a key of ``train.toml``.

    Attributes:
        classes: number of clusters K.
        size: preset of the network: ``tiny``, ``small``, ``base`` or ``paper``.
        steps: updates of the weights in all.
        batch_size: crops per step; a multiple of 4, because each step crosses 2 orderings with 2 others.
        crop_px: side of a crop; a multiple of 4.
        displacement_px: T, less than ``crop_px``; predictions up to T pixels apart, in rows and in columns, should agree
            (Table 8: 10).
        displacements: ``collapsed`` sums the joint distributions of all displacements into one (eq. 12); ``separate``
            takes the mean of their mutual informations, as IIC's public code does.
        entropy_weight: of the marginal entropies in the objective; 1 is the paper's eq. 12, IIC's public code has 1.5.
        learning_rate: of Adam.
        colour_jitter: how much brightness, contrast, saturation and hue of the second view change, 0 (not) to 0.5; the paper
            has 0.1. Needs bands named red, green and blue.
        flip: mirror the second view half of the time.
        rotate: turn the second view by a random number of quarter turns.
        seed: decides the initial weights, the crops and the orderings.
        device: ``auto``, ``cpu``, ``cuda`` or another torch device.
    """

    classes: int = 6
    size: str = "small"
    steps: int = 1000
    batch_size: int = 16
    crop_px: int = 128
    displacement_px: int = 5
    displacements: str = "collapsed"
    entropy_weight: float = 1.5
    learning_rate: float = 3e-4
    colour_jitter: float = 0.0
    flip: bool = False
    rotate: bool = False
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.size not in PRESETS:
            raise ConfigError(f"size is {self.size!r}, expected {_alternatives(PRESETS)}")
        if self.displacements not in DISPLACEMENTS:
            raise ConfigError(f"displacements is {self.displacements!r}, expected {_alternatives(DISPLACEMENTS)}")
        for name, low, high in (
            ("classes", 2, NODATA_LABEL),
            ("steps", 1, 10**9),
            ("batch_size", 4, 2**16),
            ("crop_px", 16, 4096),
            ("displacement_px", 0, 4096),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}, expected {low} to {high}")
        if self.displacement_px >= self.crop_px:
            raise ConfigError(f"displacement_px is {self.displacement_px}, expected less than crop_px, {self.crop_px}")
        for name in ("batch_size", "crop_px"):
            if getattr(self, name) % 4:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a multiple of 4")
        if not 0 <= self.colour_jitter <= 0.5:
            raise ConfigError(f"colour_jitter is {self.colour_jitter}, expected 0 to 0.5")
        for name, limit in (("learning_rate", 1), ("entropy_weight", 10)):
            if not 0 < getattr(self, name) < limit:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0 and less than {limit}")


def load_config(path: Path | None, options: Mapping[str, Any]) -> TrainConfig:
    """Settings from a TOML file (``path`` may be None) and from ``options``, which win; None among them means not given.

    Raises:
        ConfigError: the file is missing or not TOML, or a key is unknown, or a value has the wrong type or range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not a TOML file: {error}") from error
    values |= {name: value for name, value in options.items() if value is not None}
    return config_from(values, source=str(path) if path else "the options")


def config_from(values: Mapping[str, Any], *, source: str) -> TrainConfig:
    """Check names and types of ``values`` and make a ``TrainConfig`` of them; ``source`` names them in errors.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or range.
    """
    fields = {field.name: type(field.default) for field in dataclasses.fields(TrainConfig)}
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected {_alternatives(fields)}"
            raise ConfigError(f"{source} has an unknown setting {name!r}; {hint}")
        accepted = (int, float) if fields[name] is float else (fields[name],)
        if isinstance(value, bool) != (fields[name] is bool) or not isinstance(value, accepted):
            raise ConfigError(f"{name} in {source} is {value!r}, expected a value of type {fields[name].__name__}")
    return TrainConfig(**values)


def _alternatives(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)
