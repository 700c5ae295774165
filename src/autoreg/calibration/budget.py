"""Decide which layers compute in INT8, so that labels stay what the float32 model says, with no truth needed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoreg.calibration.layers import Layer
from autoreg.calibration.samples import Samples
from autoreg.errors import ParityError
from autoreg.runtime.engine import Engine, Prediction

_RANKING_TILES = 8

Build = Callable[[Sequence[Layer]], Iterator[Engine]]
"""From the layers that compute in INT8 to engines that run such a model, each in a form of its own."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all."""


@dataclass(frozen=True)
class LayerChoice:
    """What was decided about a layer, and why.

    Attributes:
        name: of the layer.
        precision: ``int8`` or ``fp32``.
        agreement: share of labels, 0..1, that stay equal when this layer alone computes in INT8, on tiles that the
            ranges were measured on; None if layers were not compared, as all of them together hold the budget.
        reason: in words.
    """

    name: str
    precision: str
    agreement: float | None
    reason: str


@dataclass(frozen=True)
class Choice:
    """Which layers compute in INT8.

    Attributes:
        quantised: those layers.
        agreement: share of labels, 0..1, that are equal to the float32 model's, on tiles that are held out.
        pixels: how many labels were compared.
        layers: what was decided about each.
    """

    quantised: tuple[Layer, ...]
    agreement: float
    pixels: int
    layers: tuple[LayerChoice, ...]


def choose_layers(
    reference: Engine,
    layers: Sequence[Layer],
    build: Build,
    *,
    calibration: Samples,
    held_out: Samples,
    min_agreement: float,
    progress: Progress | None = None,
) -> Choice:
    """Let as many layers as the budget allows compute in INT8; those that do the most damage stay in float32.

    If all layers together break the budget, each is tried alone. The layers are then left out, the most harmful first; the
    fewest that are enough are found by bisection, as each one that is left out brings the labels nearer to the reference.

    Args:
        reference: runs the float32 model.
        layers: that could compute in INT8, at least one.
        build: makes a candidate, in all forms that the budget has to hold in.
        calibration: the tiles that the ranges were measured on; the layers are compared on eight of them.
        held_out: the tiles that the budget is checked on.
        min_agreement: the budget: share of labels, 0..1, that have to stay equal.
        progress: see ``Progress``.

    Raises:
        ParityError: the budget does not hold with any layer in INT8.
    """
    labels = [reference.label(image) for image, _ in held_out]

    def measure(quantised: Sequence[Layer]) -> tuple[float, int]:
        return min(_agreement(candidate, labels, held_out) for candidate in build(quantised))

    agreement, pixels = measure(layers)
    if agreement >= min_agreement:
        reason = f"all layers together keep {_percent(agreement)} of the labels"
        return Choice(
            tuple(layers), agreement, pixels, tuple(LayerChoice(item.name, "int8", None, reason) for item in layers)
        )
    damage = _rank(reference, layers, build, calibration.some(_RANKING_TILES), progress)
    worst_first = sorted(range(len(layers)), key=lambda place: damage[place])
    # Of the numbers of layers in float32, ``low`` are too few, and ``high`` are enough, or all.
    low, high = 0, len(layers)
    best: tuple[float, int] | None = None
    highest = agreement
    while high - low > 1:
        middle = (low + high) // 2
        found = measure([layer for place, layer in enumerate(layers) if place in worst_first[middle:]])
        highest = max(highest, found[0])
        if found[0] >= min_agreement:
            high, best = middle, found
        else:
            low = middle
    if best is None:
        raise ParityError(
            f"no INT8 model keeps {_percent(min_agreement)} of the labels: the best of them kept {_percent(highest)} on "
            f"{len(held_out)} held-out tiles; lower --min-agreement, or try another --method, or more tiles"
        )
    in_float = set(worst_first[:high])
    choices = [
        LayerChoice(layer.name, *_decision(place in in_float, damage[place][0], worst_first.index(place) + 1, min_agreement))
        for place, layer in enumerate(layers)
    ]
    quantised = tuple(layer for place, layer in enumerate(layers) if place not in in_float)
    return Choice(quantised, *best, tuple(choices))


def _decision(in_float: bool, alone: float, rank: int, min_agreement: float) -> tuple[str, float, str]:
    """Precision, agreement of the layer alone, and the reason."""
    reason = f"harm {rank}: alone it keeps {_percent(alone)} of the labels"
    if in_float:
        return "fp32", alone, f"{reason}; with those that do less harm, fewer than {_percent(min_agreement)} would stay"
    return "int8", alone, reason


def _rank(
    reference: Engine, layers: Sequence[Layer], build: Build, samples: Samples, progress: Progress | None
) -> list[tuple[float, float]]:
    """Of each layer in INT8 alone: share of equal labels, and how near the logits are, as the negative mean difference.

    Smaller is worse. The logits tell layers apart that change no label of these few tiles.
    """
    exact = [reference.predict(image) for image, _ in samples]
    found: list[tuple[float, float]] = []
    for layer in layers:
        candidate = next(build([layer]))
        said = [candidate.predict(image) for image, _ in samples]
        agreement, _ = _equal(exact, said, [valid for _, valid in samples])
        error = np.mean([np.abs(one.logits - other.logits).mean() for one, other in zip(exact, said, strict=True)])
        found.append((agreement, -float(error)))
        if progress:
            progress("comparing layers", len(found), len(layers))
    return found


def _agreement(candidate: Engine, labels: Sequence[NDArray[np.uint8]], samples: Samples) -> tuple[float, int]:
    """Share of equal labels where there is data, and the number of labels that were compared."""
    equal = pixels = 0
    for expected, (image, valid) in zip(labels, samples, strict=True):
        equal += int(np.count_nonzero((candidate.label(image) == expected)[0][valid]))
        pixels += int(np.count_nonzero(valid))
    return equal / pixels, pixels


def _equal(exact: Sequence[Prediction], said: Sequence[Prediction], valid: Sequence[NDArray[np.bool_]]) -> tuple[float, int]:
    equal = [
        int(np.count_nonzero((one.labels == other.labels)[0][data]))
        for one, other, data in zip(exact, said, valid, strict=True)
    ]
    pixels = sum(int(np.count_nonzero(data)) for data in valid)
    return sum(equal) / pixels, pixels


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
