"""Every exception that autoreg raises on purpose.

A message names the value got, the value expected and the next step, in one sentence. The command line prints it and exits
with 1; a program that embeds autoreg catches ``AutoregError`` or the subclass that it can do something about.
"""


class AutoregError(Exception):
    """Base of all errors below: something that the caller can understand and change."""


class ConfigError(AutoregError):
    """A setting is unknown, of the wrong type or out of range."""


class RasterError(AutoregError):
    """A raster cannot be read or written, or does not have the bands, type or size that is needed."""


class DamagedRasterError(RasterError):
    """GDAL cannot read a raster, or a part of it, though it exists: a training goes on without it."""


class OutputError(AutoregError):
    """An output exists already, or its folder is missing, not writable or full."""


class CheckpointError(AutoregError):
    """A file is not a checkpoint of autoreg, or not one that this version reads."""


class ModelError(AutoregError):
    """A file is not an ONNX model with a valid ModelSpec."""


class ParityError(AutoregError):
    """A converted model does not say what its source says; nothing was written."""


class EngineError(AutoregError):
    """An engine cannot be loaded or failed while it ran."""


class MissingDependencyError(AutoregError, ImportError):
    """An optional library is needed; the message names the pip extra that brings it."""


class RankError(AutoregError):
    """Another process of the same training failed; where it could, it has raised the reason itself."""
