"""ModelSpec: what a model file promises to whoever runs it.

The spec is written once, when a checkpoint is exported, and travels inside the ONNX file as the metadata entry
``autoreg.spec`` (JSON). Whoever runs the model asks the spec and nobody else: there is no option that has to agree with
the training.
"""

import dataclasses
import json
import math
import types
from dataclasses import dataclass
from typing import Any

from autoreg.errors import ModelError

METADATA_KEY = "autoreg.spec"
SPEC_VERSION = 1
DTYPES = ("uint8", "uint16", "int16", "float32")
PRECISIONS = ("fp32", "fp16", "int8")
NODATA_LABEL = 255
"""Label of pixels without data; so a model has at most 255 classes."""


@dataclass(frozen=True)
class ModelSpec:
    """What goes into a model, what comes out, and where it came from.

    Attributes:
        bands: names of the input bands, in order; the input is float32 (N, bands, H, W), raw pixel values.
        dtype: type of the rasters that it was trained on; a raster of another type has another value range.
        classes: names of the K output classes, in order of their label 0 .. K-1.
        stride: pixels per cell of the feature map; H and W of the input are multiples of it.
        receptive_field_px: side of the square of input pixels that one label depends on (odd); None if one label depends on
            the whole input, as with attention.
        crop_px: side of the crops of the training, a multiple of ``stride``: the context that a model without finite
            receptive field has learned to use.
        mean, std: per band, in raw pixel values; applied inside the graph. ``mean`` also fills pixels without data.
        precision: of the weights and activations inside; input and logits are float32 in each.
        checkpoint_digest: SHA-256 of the checkpoint file, hexadecimal.
        agreement: share of labels, 0..1, that were equal to PyTorch's when the file was made.
        autoreg_version: version that wrote the file.
        version: of this layout.
    """

    bands: tuple[str, ...]
    dtype: str
    classes: tuple[str, ...]
    stride: int
    receptive_field_px: int | None
    crop_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str
    checkpoint_digest: str
    agreement: float
    autoreg_version: str
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ModelError(f"the model's spec is not valid: {problem}; export the model again")

    def _problem(self) -> str | None:
        if self.version != SPEC_VERSION:
            return f"it has version {self.version}, and this autoreg reads {SPEC_VERSION}"
        if not 1 <= len(self.bands) <= 4096:
            return f"it has {len(self.bands)} bands, expected 1 to 4096"
        if not 2 <= len(self.classes) <= NODATA_LABEL:
            return f"it has {len(self.classes)} classes, expected 2 to {NODATA_LABEL}"
        if not len(self.mean) == len(self.std) == len(self.bands):
            return f"it has {len(self.mean)} means and {len(self.std)} deviations for {len(self.bands)} bands"
        if not all(math.isfinite(value) for value in self.mean + self.std) or min(self.std) <= 0:
            return "a mean is not finite or a deviation is not positive"
        if self.dtype not in DTYPES:
            return f"its dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}"
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
            return cls(**{field.name: _parse(field.type, values[field.name]) for field in dataclasses.fields(cls)})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ModelError(f"the model's spec is not valid ({error!r}); export the model again") from error


def _parse(kind: Any, value: Any) -> Any:
    """Check one JSON value against a field's type: str, int, float, a tuple of one of these, or one of these or None."""
    if isinstance(kind, types.UnionType):
        return None if value is None else _parse(kind.__args__[0], value)
    if kind in (str, int, float):
        accepted = (int, float) if kind is float else kind
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise TypeError(f"{value!r} is not of type {kind.__name__}")
        return kind(value)
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return tuple(_parse(kind.__args__[0], item) for item in value)
