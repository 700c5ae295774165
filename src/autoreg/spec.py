"""ModelSpec: what a model file promises to whoever runs it.

The spec is written when a checkpoint is exported, and travels inside the ONNX file as the metadata entry
``autoreg.spec`` (JSON). Whoever runs the model asks the spec and nobody else: there is no option that has to agree with
the training.

The graph answers clusters, numbered 0 .. K-1 as they were trained. What a cluster is called, and which value stands for it
in a map, is said by the spec alone (``classes``), so a model gets names, colours and other numbers without a change to its
graph: what was proven of the graph, or compiled from it, holds. A program that runs the graph without autoreg replaces
each cluster by the label of the class that lists it.
"""

import dataclasses
import json
import math
import re
import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoreg.errors import ModelError

METADATA_KEY = "autoreg.spec"
CALIBRATION_KEY = "autoreg.calibration"
"""Metadata entry of an INT8 model: how it was calibrated, layer by layer, as JSON."""
SPEC_VERSION = 2
DTYPES = ("uint8", "uint16", "int16", "float32")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
NORMALISATIONS = ("global", "scene")
NODATA_LABEL = 255
"""Label of pixels without data; so a model has at most 255 classes."""

_NAME_LIMIT = 200
_COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class MapClass:
    """A class of the maps: a row of their legend.

    Attributes:
        label: its value in the maps, 0 .. 254.
        name: one printable line.
        colour: ``#rrggbb``, hexadecimal, in lower case.
        clusters: those of the model that stand for it, ascending; none if the model cannot tell it from the others.
    """

    label: int
    name: str
    colour: str
    clusters: tuple[int, ...] = ()

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, each 0..255."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue


def legend_problem(classes: Sequence[MapClass]) -> str | None:
    """What is wrong with a legend, or None; which clusters it lists is not looked at."""
    if not 1 <= len(classes) <= NODATA_LABEL:
        return f"it has {len(classes)} classes, expected 1 to {NODATA_LABEL}"
    for item in classes:
        if not 0 <= item.label < NODATA_LABEL:
            return f"the label of class {item.name!r} is {item.label}, expected 0 to {NODATA_LABEL - 1}"
        if not (item.name.strip() and item.name.isprintable() and len(item.name) <= _NAME_LIMIT):
            return (
                f"the name of class {item.label} is {item.name[:40]!r}, expected a printable line, 1 to {_NAME_LIMIT} long"
            )
        if not _COLOUR.fullmatch(item.colour):
            return f"the colour of class {item.label} is {item.colour[:40]!r}, expected #rrggbb, hexadecimal in lower case"
    for kind, values in (("label", [item.label for item in classes]), ("name", [item.name for item in classes])):
        value, times = Counter(values).most_common(1)[0]
        if times > 1:
            return f"{times} of its classes have the {kind} {value!r}, expected one"
    return None


def cluster_problem(classes: Sequence[MapClass], clusters: int) -> str | None:
    """What is wrong with the clusters that the classes list, or None: each of 0 .. ``clusters`` - 1 belongs to one class."""
    listed = Counter(cluster for item in classes for cluster in item.clusters)
    expected = f"expected each of the clusters 0 to {clusters - 1} in one class"
    for cluster in sorted(listed.keys() | set(range(clusters))):
        if not 0 <= cluster < clusters:
            return f"it lists cluster {cluster}, {expected}"
        if listed[cluster] != 1:
            return f"cluster {cluster} is in {listed[cluster] or 'none'} of its classes, {expected}"
    return None


@dataclass(frozen=True)
class ModelSpec:
    """What goes into a model, what comes out, and where it came from.

    Attributes:
        bands: names of the input bands, in order; the input is float32 (N, bands, H, W), raw pixel values.
        dtype: type of the rasters that it was trained on; a raster of another type has another value range.
        classes: legend of the maps, ascending by label; each of the K clusters that the graph answers is in one of them.
        stride: pixels per cell of the feature map; H and W of the input are multiples of it.
        receptive_field_px: side of the square of input pixels that one label depends on (odd); None if one label depends on
            the whole input, as with attention.
        crop_px: side of the crops of the training, a multiple of ``stride``: the context that a model without finite
            receptive field has learned to use.
        mean, std: per band, in raw pixel values; applied inside the graph.
        normalisation: ``global``: raw pixels go into the graph; ``scene``: pixels that the caller has shifted and scaled
            so that each band has ``mean`` and ``std`` over the scene (see ``raster/statistics.py``).
        precision: of the weights and activations inside; input and logits are float32 in each. A model of ``bf16`` is
            stored in float32: an engine that can computes it in bfloat16, any other in float32.
        checkpoint_digest: SHA-256 of the checkpoint file, hexadecimal.
        agreement: share of labels, 0..1, that were equal to PyTorch's when the file was made; of an INT8 model, to those of
            the float32 model that it was made of.
        autoreg_version: version that wrote the file.
        version: of this layout.
    """

    bands: tuple[str, ...]
    dtype: str
    classes: tuple[MapClass, ...]
    stride: int
    receptive_field_px: int | None
    crop_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str
    checkpoint_digest: str
    agreement: float
    autoreg_version: str
    normalisation: str = "global"
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ModelError(f"the model's spec is not valid: {problem}; export the model again")

    def _problem(self) -> str | None:
        if not 1 <= len(self.bands) <= 4096:
            return f"it has {len(self.bands)} bands, expected 1 to 4096"
        if not 2 <= self.clusters <= NODATA_LABEL:
            return f"it has {self.clusters} clusters, expected 2 to {NODATA_LABEL}"
        if problem := legend_problem(self.classes) or cluster_problem(self.classes, self.clusters):
            return problem
        if not len(self.mean) == len(self.std) == len(self.bands):
            return f"it has {len(self.mean)} means and {len(self.std)} deviations for {len(self.bands)} bands"
        if not all(math.isfinite(value) for value in self.mean + self.std) or min(self.std) <= 0:
            return "a mean is not finite or a deviation is not positive"
        if self.dtype not in DTYPES:
            return f"its dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}"
        if self.normalisation not in NORMALISATIONS:
            return f"its normalisation is {self.normalisation!r}, expected one of {', '.join(NORMALISATIONS)}"
        if self.precision not in PRECISIONS:
            return f"its precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}"
        if not 1 <= self.stride <= 64:
            return f"its stride is {self.stride}, expected 1 to 64"
        field_px = self.receptive_field_px
        if field_px is not None and not (1 <= field_px <= 65535 and field_px % 2):
            return f"its receptive field is {field_px} px, expected an odd number below 65536"
        if not 16 <= self.crop_px <= 4096 or self.crop_px % self.stride:
            return f"its crops are {self.crop_px} px, expected 16 to 4096, a multiple of the stride, {self.stride}"
        return None

    @property
    def clusters(self) -> int:
        """K, the number of clusters that the graph answers."""
        return sum(len(item.clusters) for item in self.classes)

    @property
    def cluster_labels(self) -> tuple[int, ...]:
        """Value in the maps of each cluster 0 .. K-1."""
        return tuple(
            label for _, label in sorted((cluster, item.label) for item in self.classes for cluster in item.clusters)
        )

    @property
    def takes_uint8(self) -> bool:
        """Whether all that goes into the model is whole numbers of 0 .. 255, so that images may be uint8, too."""
        return self.dtype == "uint8" and self.normalisation == "global"

    @property
    def fill(self) -> tuple[float, ...]:
        """What the model sees, per band, where there is no data: the mean, rounded where images may be uint8."""
        return tuple(float(min(max(round(value), 0), 255)) for value in self.mean) if self.takes_uint8 else self.mean

    def to_json(self) -> str:
        """The spec as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Read what ``to_json`` wrote.

        Raises:
            ModelError: ``text`` is not JSON, or lacks a field, or has one of the wrong type or range.
        """
        try:
            values = json.loads(text)
            # Another version has other fields, and is said before one of them is missed.
            version = parse_value(int, values["version"])
            if version != SPEC_VERSION:
                raise ValueError(f"it has version {version}, and this autoreg reads {SPEC_VERSION}")
            spec: ModelSpec = parse_value(cls, values)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ModelError(f"the model's spec is not valid ({error!r}); export the model again") from error
        return spec


def parse_value(kind: Any, value: Any) -> Any:
    """Check one JSON value against a type: str, int, float, bool, a dataclass, a tuple of one of these, or one or None.

    Raises:
        TypeError: it is of another type.
        KeyError: a field is missing.
    """
    if isinstance(kind, types.UnionType):
        return None if value is None else parse_value(kind.__args__[0], value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (str, int, float, bool):
        accepted = (int, float) if kind is float else kind
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise TypeError(f"{value!r} is not of type {kind.__name__}")
        return kind(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"{value!r} is not an object")
        return kind(**{field.name: parse_value(field.type, value[field.name]) for field in dataclasses.fields(kind)})
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return tuple(parse_value(kind.__args__[0], item) for item in value)
