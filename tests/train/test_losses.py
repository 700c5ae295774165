import math

import pytest
import torch
from torch import Tensor

import naive
from autoreg.train import losses
from autoreg.train.losses import joint_distribution, joint_per_displacement, mutual_information

CASES = [(1, 3, 5, 7, 0), (2, 4, 6, 5, 1), (2, 3, 4, 6, 2), (3, 2, 3, 4, 5)]  # the last T exceeds the image


def views(batch: int, classes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * classes)
    shape = (2, batch, classes, height, width)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    first, second = logits.requires_grad_().softmax(dim=2)
    first.retain_grad()
    second.retain_grad()
    return first, second


def assert_same_gradient(
    fast: tuple[Tensor, tuple[Tensor, Tensor]], slow: tuple[Tensor, tuple[Tensor, Tensor]], *, rtol: float, atol: float
) -> None:
    """Both values, each with the views that it was computed from, have the same gradient with respect to these."""
    for value, _ in (fast, slow):
        value.backward()  # type: ignore[no-untyped-call]
    for quick, plain in zip(fast[1], slow[1], strict=True):
        assert quick.grad is not None
        torch.testing.assert_close(quick.grad, plain.grad, rtol=rtol, atol=atol)


@pytest.mark.parametrize("most_products", [2**26, 1])
@pytest.mark.parametrize("case", CASES)
def test_the_box_form_equals_the_definition_in_value_and_gradient(
    case: tuple[int, int, int, int, int], most_products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_MOST_PRODUCTS", most_products)
    *shape, displacement_px = case
    fast_views, slow_views = views(*shape), views(*shape)
    fast = mutual_information(joint_distribution(*fast_views, displacement_px)).value
    slow = naive.mutual_information(naive.joint_distribution(*slow_views, displacement_px))
    assert abs(fast.item() - slow.item()) <= 1e-14
    assert_same_gradient((fast, fast_views), (slow, slow_views), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("case", [case for case in CASES if case[-1] < min(case[2:4])])
def test_the_fft_form_equals_the_definition_in_value_and_gradient(case: tuple[int, int, int, int, int]) -> None:
    *shape, displacement_px = case
    fast_views, slow_views = views(*shape), views(*shape)
    joints = joint_per_displacement(*fast_views, displacement_px)
    terms = naive.joint_per_displacement(*slow_views, displacement_px)
    torch.testing.assert_close(joints, torch.stack(terms), rtol=0, atol=1e-12)
    torch.testing.assert_close(joints.sum(0), joint_distribution(*fast_views, displacement_px), rtol=0, atol=1e-11)
    fast = mutual_information(joints).value
    slow = torch.stack([naive.mutual_information(term) for term in terms]).mean()
    assert abs(fast.item() - slow.item()) <= 1e-13
    assert_same_gradient((fast, fast_views), (slow, slow_views), rtol=1e-8, atol=1e-14)


def test_a_displacement_beyond_the_image_meets_nothing_and_stays_finite() -> None:
    first, second = views(1, 3, 4, 4)
    joints = joint_per_displacement(first, second, 6)
    assert joints.shape == (169, 3, 3)
    assert joints[0].abs().max() < 1e-12
    assert mutual_information(joints).value.isfinite()


def test_a_masked_pixel_counts_for_nothing() -> None:
    first, second = views(1, 3, 6, 6)
    valid = torch.ones(6, 6, dtype=torch.float64)
    valid[2:4, 1:5] = 0
    changed = torch.where(valid.bool(), first, first.roll(1, dims=1))
    expected = joint_distribution(first * valid, second * valid, 2)
    torch.testing.assert_close(joint_distribution(changed * valid, second * valid, 2), expected, rtol=0, atol=0)


def test_mutual_information_of_equal_clusters_is_log_k() -> None:
    information = mutual_information(torch.eye(5))
    assert information.value.item() == pytest.approx(math.log(5), abs=1e-12)
    assert information.entropy_y.item() == pytest.approx(math.log(5), abs=1e-12)


def test_independent_clusters_have_none_and_a_dead_cluster_has_a_finite_gradient() -> None:
    joint = torch.outer(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.2, 0.8, 0.0])).double().requires_grad_()
    information = mutual_information(joint)
    information.value.backward()  # type: ignore[no-untyped-call]
    assert abs(information.value.item()) <= 1e-15
    assert joint.grad is not None
    assert joint.grad.isfinite().all()


def test_near_uniform_predictions_keep_their_gradient_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 0.3 * torch.randn(2, 4, 6, 64, 64, generator=generator)

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = logits.to(dtype).requires_grad_()
        first, second = leaf.softmax(dim=2)
        mutual_information(joint_distribution(first, second, 5)).value.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad.double()

    truth = gradient(torch.float64)
    error = (gradient(torch.float32) - truth).norm() / truth.norm()
    assert error < 5e-3
