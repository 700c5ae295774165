import dataclasses
from pathlib import Path

import pytest
import torch

from autoreg.errors import ConfigError
from autoreg.network.checkpoint import load_checkpoint
from autoreg.train import TrainConfig, precision, resume_training, train_network
from autoreg.train.losses import joint_distribution, joint_per_displacement, mutual_information, widen_logits
from autoreg.train.precision import Precision

CPU = torch.device("cpu")
SHORT = TrainConfig(classes=4, stride=2, steps=4, batch_size=4, crop_px=32, displacement_px=2, device="cpu")


@pytest.fixture
def _fp16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a processor compute in fp16: slow, but the same code."""
    monkeypatch.setattr(precision, "_check", lambda *_: None)


@pytest.mark.usefixtures("_fp16_everywhere")
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_16_bits_train_and_resume_exactly(name: str, scenes: list[Path], tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, precision=name, checkpoint_steps=0)
    whole, parts, full = (tmp_path / f"{part}.pt" for part in ("whole", "parts", "full"))
    train_network(scenes, whole, config)
    train_network(scenes, parts, config, should_stop=iter([False, True]).__next__)
    assert resume_training(scenes, parts).step == 4
    train_network(scenes, full, dataclasses.replace(config, precision="fp32"))
    first, second, third = (load_checkpoint(path) for path in (whole, parts, full))
    assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)
    assert first.loop["precision"] == second.loop["precision"]
    assert bool(first.loop["precision"]) == (name == "fp16")
    # Weights are kept in float32, and move as they would have in float32, but not quite.
    moved = [checkpoint.weights["masked.0.look.weight"] for checkpoint in (first, third)]
    assert moved[0].dtype == torch.float32
    assert not torch.equal(*moved)
    torch.testing.assert_close(*moved, rtol=0, atol=5 * SHORT.learning_rate)


def test_a_training_may_go_on_in_another_precision(scenes: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    train_network(scenes, path, dataclasses.replace(SHORT, steps=2))
    assert resume_training(scenes, path, {"steps": 3, "precision": "bf16"}).step == 3
    assert load_checkpoint(path).settings["precision"] == "bf16"


def test_fp16_is_refused_on_a_processor(scenes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision is fp16, which is for GPUs, but the device is cpu: use fp32 or bf16"):
        train_network(scenes, tmp_path / "c.pt", dataclasses.replace(SHORT, precision="fp16"))
    with pytest.raises(ConfigError, match="precision is 'fp8', expected one of fp32, fp16, bf16"):
        dataclasses.replace(SHORT, precision="fp8")


@pytest.mark.usefixtures("_fp16_everywhere")
def test_a_step_that_overflows_is_left_out_and_the_next_one_scaled_less() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    fp16 = Precision("fp16", CPU)
    fp16.backward((weight * torch.tensor([torch.inf, 1.0])).sum())
    fp16.update(optimizer)
    assert weight.tolist() == [1, 1]
    scale = fp16.state_dict()["scale"]
    again = Precision("fp16", CPU)
    again.load_state_dict(fp16.state_dict())
    for each in (fp16, again):
        optimizer.zero_grad()
        each.backward(weight.sum())
        assert weight.grad is not None
        assert weight.grad.tolist() == [scale, scale]
    again.update(optimizer)
    assert weight.tolist() == [0, 0]
    with pytest.raises(ConfigError, match="its gradients overflow fp16"):
        for _ in range(40):
            optimizer.zero_grad()
            fp16.backward((weight * torch.inf).sum())
            fp16.update(optimizer)


@pytest.mark.parametrize("joints", [joint_distribution, joint_per_displacement])
def test_a_loss_is_computed_in_full_precision_wherever_it_is_called(joints: object) -> None:
    assert callable(joints)
    logits = torch.randn(2, 2, 5, 16, 16, generator=torch.Generator().manual_seed(0))

    def information() -> torch.Tensor:
        first, second = (widen_logits(part).softmax(dim=1) for part in logits)
        return mutual_information(joints(first, second, 2)).value

    expected = information()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(information(), expected)
        first, second = (part.bfloat16().softmax(dim=1, dtype=torch.bfloat16) for part in logits)
        assert joints(first, second, 2).dtype == torch.float64


def test_gradients_too_small_to_move_a_weight_become_zero() -> None:
    leaf = torch.zeros(3, requires_grad=True)
    (widen_logits(leaf * 1) * torch.tensor([1e-40, 1e-31, 1e-20])).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0, 0, pytest.approx(1e-20)]
