"""A user's own backbone, found by its name."""

import importlib

from torch import nn

from autoreg.errors import ConfigError


def load_backbone(name: str | None, bands: int) -> nn.Module | None:
    """The module that the user's function makes; None if there is no ``name``.

    This imports and runs the user's code, so ``name`` has to come from the user, never from a file that somebody else made.

    Args:
        name: ``package.module:function``, importable from here.
        bands: of the rasters; the function's argument.

    Raises:
        ConfigError: there is no such function, or it does not return a torch module.
    """
    if not name:
        return None
    where, _, function = name.partition(":")
    if not where or not function:
        raise ConfigError(f"the backbone is {name!r}, expected package.module:function")
    try:
        make = getattr(importlib.import_module(where), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the backbone {name} was not found: {error}; is its folder on PYTHONPATH?") from error
    module = make(bands)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the backbone {name} made a {type(module).__name__}, expected a torch.nn.Module")
    return module
