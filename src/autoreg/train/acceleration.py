"""How a network is laid out and run in training: what changes its speed and its memory, and not what it learns."""

import logging

import torch
from torch import nn

from autoreg.errors import ConfigError
from autoreg.network.blocks import Block, ResidualBlock, finish

_log = logging.getLogger("autoreg")


def accelerate(module: nn.Module, *, compiler: str | None, checkpointing: bool) -> None:
    """Prepare one network or several, on the device that they will be trained on.

    Their weights, and so their maps, are laid out channels last: tensor cores want that, and on processors a step takes a
    fifth less time.

    Args:
        module: the networks to be trained; their weights keep their names.
        compiler: a backend of ``torch.compile``, which compiles what holds nearly all of the small operations, the ends of
            the residual parts; None for none. What takes an ordering is left as it is: it would be compiled anew for each
            choice of orderings.
        checkpointing: residual parts keep only their input for the backward pass, and are computed again: less memory for a
            third more time.

    Raises:
        ConfigError: nothing can be compiled here.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):  # not whatever a user's backbone has
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    blocks = [layer for layer in module.modules() if isinstance(layer, Block)]
    for block in blocks:
        block.checkpointing = checkpointing
    residual = [block for block in blocks if isinstance(block, ResidualBlock)]
    if compiler and residual:
        _try_compiler(compiler, next(module.parameters()).device)
        compiled = torch.compile(finish, backend=compiler, dynamic=False)
        for block in residual:
            block.finish = compiled
    for wanted, found, name in ((compiler, residual, "compile"), (checkpointing, blocks, "checkpointing")):
        if wanted and not found:
            _log.warning("%s has no effect: this network has no residual blocks that it works on", name)


def _try_compiler(compiler: str, device: torch.device) -> None:
    """Compile something small, which fails at once where the real thing would fail in the first step."""
    try:
        torch.compile(lambda x: x + 1, backend=compiler)(torch.zeros(16, device=device))
    except Exception as error:  # the compiler's own, of many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++, and Python's headers"
        raise ConfigError(
            f"compile is on, but nothing can be compiled for {device.type} here ({lines[0] if lines else error!r}): "
            f"install {needed}, or leave compile out"
        ) from error
