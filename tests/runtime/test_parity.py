import numpy as np
import pytest

from autoreg.errors import ModelError, ParityError
from autoreg.runtime.engine import Prediction
from autoreg.runtime.parity import CLEAR_MARGIN, PARITY_KEY, compare, read_parity, require_parity
from autoreg.runtime.probabilities import probabilities


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


def test_figures_are_those_of_their_definitions() -> None:
    one, other = prediction(0), prediction(1)
    parity = compare(one, other, 2)
    probs, others = (probabilities(part.logits, 2) for part in (one, other))
    ascending = np.sort(probs, axis=1)
    clear = ascending[:, -1] - ascending[:, -2] > CLEAR_MARGIN
    assert parity.clear_pixels == clear.sum() < parity.pixels
    assert parity.clear_agreement == pytest.approx((one.labels == other.labels)[clear].mean())
    assert parity.mean_probability_difference == pytest.approx(np.abs(probs - others).mean(), rel=1e-5)
    assert parity.max_probability_difference == np.abs(probs - others).max()
    for cluster, iou in enumerate(parity.iou):
        shared = (one.labels == cluster) & (other.labels == cluster)
        assert iou == shared.sum() / ((one.labels == cluster) | (other.labels == cluster)).sum()


def test_several_images_add_up_to_one_that_holds_them_all() -> None:
    def stacked(*parts: Prediction) -> Prediction:
        return Prediction(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    both = compare(stacked(prediction(0), prediction(1)), stacked(prediction(1), prediction(1)), 2)
    first = compare(prediction(0), prediction(1), 2)
    assert both.agreement == (first.agreement + 1) / 2
    assert both.max_probability_difference == first.max_probability_difference
    assert both.mean_probability_difference == pytest.approx(first.mean_probability_difference / 2)


def test_a_cluster_that_neither_gives_has_no_iou_and_where_nothing_is_clear_nothing_is_said() -> None:
    flat = Prediction(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 3, 2, 2), np.float32))
    parity = compare(flat, flat, 2)
    assert (parity.iou, parity.clear_agreement, parity.clear_pixels) == ((1.0, None, None), None, 0)


def test_figures_survive_the_file() -> None:
    parity = compare(prediction(0), prediction(1), 2)
    assert read_parity({PARITY_KEY: parity.to_json()}) == parity
    assert read_parity({}) is None
    for text in ("none", "[]", "{}", '{"iou": [1]}'):
        with pytest.raises(ModelError, match=r"autoreg\.parity is not valid .* export the model again"):
            read_parity({PARITY_KEY: text})


def test_nan_is_null_in_json() -> None:
    broken = prediction()
    broken.logits[0, 0, 0, 0] = np.nan
    parity = compare(prediction(), broken, 2)
    assert not parity.reaches(0.0)
    assert parity.as_dict()["max_probability_difference"] is None
