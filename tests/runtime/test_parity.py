import numpy as np
import pytest

from autoreg.errors import ParityError
from autoreg.runtime.engine import Prediction
from autoreg.runtime.parity import compare, require_parity


def prediction(seed: int = 0) -> Prediction:
    rng = np.random.default_rng(seed)
    return Prediction(
        rng.integers(0, 3, (1, 200, 100)).astype(np.uint8), rng.normal(size=(1, 3, 100, 50)).astype(np.float32)
    )


def test_equal_predictions_pass() -> None:
    parity = compare(prediction(), prediction(), 2)
    assert (parity.agreement, parity.max_probability_difference, parity.pixels) == (1.0, 0.0, 20_000)
    require_parity(parity, "fp32")


def test_three_labels_of_twenty_thousand_are_too_many_in_fp32_but_not_in_fp16() -> None:
    changed = prediction()
    changed.labels.reshape(-1)[:3] ^= 1
    parity = compare(prediction(), changed, 2)
    assert parity.agreement == pytest.approx(1 - 3 / 20_000)
    with pytest.raises(ParityError, match=r"99\.9850 % of 20000 labels equal.*expected at least 99\.99 %"):
        require_parity(parity, "fp32")
    require_parity(parity, "fp16")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nan_never_passes(precision: str) -> None:
    broken = prediction()
    broken.logits[0, 0, 0, 0] = np.nan
    with pytest.raises(ParityError):
        require_parity(compare(prediction(), broken, 2), precision)


def test_a_probability_that_is_off_by_a_little_fails_in_fp32() -> None:
    changed = prediction()
    changed.logits[0, 0, 5, 5] += 1e-3
    with pytest.raises(ParityError, match=r"at most 1\.0e-05"):
        require_parity(compare(prediction(), changed, 2), "fp32")


def test_a_source_that_rounds_more_than_the_limit_is_no_reason_to_refuse() -> None:
    changed = prediction()
    changed.logits[0, 0, 5, 5] += 1e-3
    parity = compare(prediction(), changed, 2)
    require_parity(parity, "fp32", rounding=parity.max_probability_difference)
    with pytest.raises(ParityError):
        require_parity(parity, "fp32", rounding=parity.max_probability_difference / 3)
