"""In what precision a training step is computed: float32, or 16 bits where that is enough."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from autoreg.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_LEAST_SCALE = 2.0**-10


class Precision:
    """How a step's numbers are kept: the network's in the type asked for, weights and losses in float32 or more.

    The gradients of fp16 would be lost below 6e-8, so they are computed of a multiple of the loss. The multiple adapts: a
    step whose gradients overflow is left out and the multiple halved, which is not a diverged training.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Computing in ``name``: ``fp32``, ``fp16`` or ``bf16``.

        Raises:
            ConfigError: ``device`` cannot.
        """
        _check(name, device)
        self._device, self._type = device.type, PRECISIONS[name]
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def computing(self) -> AbstractContextManager[Any]:
        """Within the block, layers compute in this precision; losses do not (see ``full_precision``)."""
        return torch.autocast(self._device, self._type, enabled=self._type != torch.float32)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, in fp16 that of a multiple of it."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the step, unless its gradients overflowed.

        Raises:
            ConfigError: they overflow whatever they are multiplied by.
        """
        self._scaler.step(optimizer)
        self._scaler.update()
        if self._scaler.is_enabled() and self._scaler.get_scale() < _LEAST_SCALE:
            raise ConfigError("the training diverged: its gradients overflow fp16; use a smaller learning_rate, or fp32")

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; from none, as of another precision, begin anew."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)


def _check(name: str, device: torch.device) -> None:
    if name == "fp16" and device.type == "cpu":
        # Ten times as slow as fp32 where the processor has no instructions for it, and few have.
        raise ConfigError("precision is fp16, which is for GPUs, but the device is cpu: use fp32 or bf16")
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"precision is bf16, which {torch.cuda.get_device_name(device)} does not have: use fp16")


def full_precision(loss: Callable[P, T]) -> Callable[P, T]:
    """Have ``loss`` compute in float32 at least, whatever the precision of the network that gave its arguments."""

    def widen(value: object) -> object:
        narrow = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return cast(Tensor, value).float() if narrow else value

    @functools.wraps(loss)
    def wide(*args: P.args, **kwargs: P.kwargs) -> T:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            return loss(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})  # type: ignore[arg-type]

    return wide
