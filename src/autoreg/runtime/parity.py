"""Parity: whether a converted model says what its source said. Every conversion in autoreg proves itself with this."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import ConfigError, ModelError, ParityError, RasterError
from autoreg.runtime.engine import Engine, Images, Labels, Prediction
from autoreg.runtime.probabilities import probabilities
from autoreg.spec import ModelSpec

PARITY_KEY = "autoreg.parity"
"""Metadata entry of a model: the ``Parity`` that was measured when it was made, as JSON."""

CLEAR_MARGIN = 0.05
"""Where the two greatest probabilities of a pixel are further apart than this, its label is no matter of rounding."""

_LABELS = 256


@dataclass(frozen=True)
class Tolerance:
    """What a conversion may change.

    Attributes:
        agreement: least share of equal labels, 0..1.
        probability_difference: greatest absolute difference of a probability; None where only labels count.
    """

    agreement: float
    probability_difference: float | None


TOLERANCES = {
    "fp32": Tolerance(0.9999, 1e-5),
    "fp16": Tolerance(0.999, None),
    "bf16": Tolerance(0.99, None),
}
"""By precision of the converted model."""

LEAST_AGREEMENT = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.99, "int8": 0.99}
"""Share of equal labels, 0..1, that may be expected of two models on any imagery, by the coarser precision of the two.

Less than ``TOLERANCES`` for fp32: there a model is compared with exact arithmetic, here two that both round.
"""

NOISE_AGREEMENT = LEAST_AGREEMENT | {"fp16": 0.995, "int8": 0.95}
"""Likewise of one model in two libraries, on noise: unlike imagery, much of it lies between clusters, and beyond the ranges
that INT8 was calibrated for. ONNX Runtime and OpenVINO agree on 98.7 % of the labels of an INT8 model there."""


@dataclass(frozen=True)
class Parity:
    """How much two predictions of the same images have in common.

    Attributes:
        agreement: share of equal labels, 0..1.
        clear_agreement: likewise, of the pixels where the reference prefers its label by more than ``CLEAR_MARGIN``; None if
            there are none.
        iou: of each cluster, the pixels that both give it by those that one of them does; None if neither does.
        max_probability_difference: greatest absolute difference of a probability.
        mean_probability_difference: mean absolute difference.
        pixels: how many labels were compared.
        clear_pixels: how many of them are clear.
    """

    agreement: float
    clear_agreement: float | None
    iou: tuple[float | None, ...]
    max_probability_difference: float
    mean_probability_difference: float
    pixels: int
    clear_pixels: int

    def __str__(self) -> str:
        return (
            f"{100 * self.agreement:.4f} % of {self.pixels} labels equal, "
            f"probabilities differ by at most {self.max_probability_difference:.1e}"
        )

    def reaches(self, agreement: float) -> bool:
        """Whether at least this share of the labels, 0..1, is equal, and no probability is NaN."""
        return self.agreement >= agreement and math.isfinite(self.max_probability_difference)

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, as JSON can hold them: None for NaN."""
        found = dataclasses.asdict(self)
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in found.items()
        }

    def to_json(self) -> str:
        """The figures as a JSON object."""
        return json.dumps(self.as_dict())


def read_parity(metadata: Mapping[str, str]) -> Parity | None:
    """What was measured when a model was made, from the entries of its file; None if they do not say.

    Raises:
        ModelError: the entry is not valid.
    """
    text = metadata.get(PARITY_KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
        return Parity(**{**values, "iou": tuple(values["iou"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"the model's {PARITY_KEY} is not valid ({error!r}); export the model again") from error


class Tile(NamedTuple):
    """What two engines are both shown.

    Attributes:
        place: where it is from, for people.
        image: what goes into the models (bands, height, width); the sides are multiples of both strides.
        valid: which pixels are data, (height, width); the others do not count.
    """

    place: str
    image: Images
    valid: NDArray[np.bool_]


class WorstTile(NamedTuple):
    """The tile with the most labels that differ.

    Attributes:
        tile: as it was shown.
        reference, candidate: the labels of the two engines, (height, width).
        differing: which of them differ and count, (height, width).
    """

    tile: Tile
    reference: Labels
    candidate: Labels
    differing: NDArray[np.bool_]


class Compared(NamedTuple):
    """What ``compare_engines`` found."""

    parity: Parity
    worst: WorstTile


class _Sums:
    """What is summed up over images; the memory does not depend on how many there are."""

    def __init__(self, clusters: int) -> None:
        self._clusters = clusters
        # By label, though a broken model may give one that is no cluster: of the reference, the candidate, and both at once.
        self._counts = np.zeros((3, _LABELS), np.int64)
        self._clear = self._clear_equal = 0
        self._greatest = self._total = 0.0

    def add(
        self, reference: Prediction, candidate: Prediction, strides: tuple[int, int], valid: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Count one image (N is 1), and say which of the pixels that are data have different labels, (height, width)."""
        probs, others = (
            probabilities(prediction.logits, stride)[0][:, valid]
            for prediction, stride in zip((reference, candidate), strides, strict=True)
        )
        labels, other_labels = reference.labels[0][valid], candidate.labels[0][valid]
        equal = labels == other_labels
        for counts, found in zip(self._counts, (labels, other_labels, labels[equal]), strict=True):
            counts += np.bincount(found, minlength=_LABELS)
        if labels.size:
            second, first = np.partition(probs, -2, axis=0)[-2:]
            clear = first - second > CLEAR_MARGIN
            self._clear += int(np.count_nonzero(clear))
            self._clear_equal += int(np.count_nonzero(clear & equal))
            difference = np.abs(probs - others)
            self._greatest = float(np.maximum(self._greatest, difference.max()))  # NaN stays
            self._total += float(difference.sum(dtype=np.float64))
        return np.asarray((reference.labels[0] != candidate.labels[0]) & valid)

    def parity(self) -> Parity:
        """Of all images so far; at least one pixel was counted."""
        ones, others, both = self._counts
        pixels = int(ones.sum())
        pairs = list(zip(both.tolist(), (ones + others - both).tolist(), strict=True))[: self._clusters]
        return Parity(
            agreement=float(both.sum() / pixels),
            clear_agreement=self._clear_equal / self._clear if self._clear else None,
            iou=tuple(shared / either if either else None for shared, either in pairs),
            max_probability_difference=self._greatest,
            mean_probability_difference=self._total / (pixels * self._clusters),
            pixels=pixels,
            clear_pixels=self._clear,
        )


def compare(reference: Prediction, candidate: Prediction, stride: int) -> Parity:
    """Compare two predictions of the same images."""
    sums = _Sums(reference.logits.shape[1])
    for index in range(len(reference.labels)):
        one, other = (
            Prediction(prediction.labels[index : index + 1], prediction.logits[index : index + 1])
            for prediction in (reference, candidate)
        )
        sums.add(one, other, (stride, stride), np.ones(reference.labels.shape[1:], np.bool_))
    return sums.parity()


def compare_engines(reference: Engine, candidate: Engine, tiles: Iterable[Tile]) -> Compared:
    """Compare what two engines say about the same tiles, one of which is in memory at a time, and the worst so far.

    Args:
        reference: that should be right.
        candidate: that should say the same.
        tiles: with the bands of both.

    Raises:
        ConfigError: the two do not answer the same question, see ``check_comparable``.
        RasterError: there is no pixel to compare.
        EngineError: one of them failed.
    """
    check_comparable(reference.spec, candidate.spec)
    strides = reference.spec.stride, candidate.spec.stride
    sums, worst, most = _Sums(reference.spec.clusters), None, -1
    for tile in tiles:
        one, other = (engine.predict(tile.image[None]) for engine in (reference, candidate))
        differing = sums.add(one, other, strides, tile.valid)
        count = int(np.count_nonzero(differing))
        if count > most and tile.valid.any():
            worst, most = WorstTile(tile, one.labels[0], other.labels[0], differing), count
    if worst is None:
        raise RasterError("there is no pixel with data to compare labels on; give other tiles")
    return Compared(sums.parity(), worst)


def check_comparable(reference: ModelSpec, candidate: ModelSpec) -> None:
    """Make sure that two models answer the same question.

    Raises:
        ConfigError: they have other bands, another number of clusters, or other pixels go into them.
    """
    scene = reference.normalisation == candidate.normalisation == "scene"
    for what, one, other in (
        ("bands", ", ".join(reference.bands), ", ".join(candidate.bands)),
        ("number of clusters", reference.clusters, candidate.clusters),
        ("type of pixels", reference.dtype, candidate.dtype),
        ("normalisation", reference.normalisation, candidate.normalisation),
        # Scenes are rescaled to these, so the two would need different pixels.
        *([("mean of the bands", reference.mean, candidate.mean)] if scene else []),
        *([("deviation of the bands", reference.std, candidate.std)] if scene else []),
    ):
        if one != other:
            raise ConfigError(
                f"the {what} of the first is {one} and of the second {other}, expected the same; "
                f"compare models that come from one checkpoint"
            )


def require_parity(parity: Parity, precision: str, *, rounding: float = 0.0) -> None:
    """Refuse a conversion that changed too much.

    Args:
        parity: of the converted model with its source, computed exactly.
        precision: of the converted model.
        rounding: greatest error of a probability that the source itself makes when it computes in float32. A network with
            large logits amplifies rounding beyond any fixed limit, and no engine can be closer to the truth than that;
            two implementations may round in opposite directions, so twice this much is allowed where it is more.

    Raises:
        ParityError: the agreement or the probabilities (NaN included) are outside ``TOLERANCES[precision]``.
    """
    tolerance = TOLERANCES[precision]
    limit = tolerance.probability_difference
    if limit is not None:
        limit = max(limit, 2 * rounding)
    close = limit is None or parity.max_probability_difference <= limit
    if not (parity.reaches(tolerance.agreement) and close):
        raise ParityError(
            f"the {precision} model does not say what PyTorch says: {parity}; expected at least "
            f"{100 * tolerance.agreement:.2f} % equal" + (f" and at most {limit:.1e}" if limit is not None else "")
        )
