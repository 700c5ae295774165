"""Parity: whether a converted model says what its source said. Every conversion in autoreg proves itself with this."""

from dataclasses import dataclass

import numpy as np

from autoreg.errors import ParityError
from autoreg.runtime.engine import Prediction
from autoreg.runtime.probabilities import probabilities


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
}
"""By precision of the converted model."""


@dataclass(frozen=True)
class Parity:
    """How much two predictions of the same images have in common.

    Attributes:
        agreement: share of equal labels, 0..1.
        max_probability_difference: greatest absolute difference of a probability.
        mean_probability_difference: mean absolute difference.
        pixels: how many labels were compared.
    """

    agreement: float
    max_probability_difference: float
    mean_probability_difference: float
    pixels: int

    def __str__(self) -> str:
        return (
            f"{100 * self.agreement:.4f} % of {self.pixels} labels equal, "
            f"probabilities differ by at most {self.max_probability_difference:.1e}"
        )


def compare(reference: Prediction, candidate: Prediction, stride: int) -> Parity:
    """Compare two predictions of the same images."""
    difference = np.abs(probabilities(reference.logits, stride) - probabilities(candidate.logits, stride))
    return Parity(
        agreement=float(np.mean(reference.labels == candidate.labels)),
        max_probability_difference=float(difference.max()),
        mean_probability_difference=float(difference.mean()),
        pixels=reference.labels.size,
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
    if not (parity.agreement >= tolerance.agreement and close and np.isfinite(parity.max_probability_difference)):
        raise ParityError(
            f"the {precision} model does not say what PyTorch says: {parity}; expected at least "
            f"{100 * tolerance.agreement:.2f} % equal" + (f" and at most {limit:.1e}" if limit is not None else "")
        )
