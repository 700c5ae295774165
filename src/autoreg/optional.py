"""Import an optional library, or say which pip extra brings it."""

import importlib
from types import ModuleType

from autoreg.errors import MissingDependencyError

EXTRAS = {
    "cuda": "tensorrt",
    "onnx": "train",
    "onnxconverter_common": "train",
    "onnxruntime": "run",
    "onnxscript": "train",
    "openvino": "openvino",
    "pyarrow": "vector",
    "pyogrio": "vector",
    "rasterio": "run",
    "scipy": "run",
    "shapely": "vector",
    "tensorboard": "tensorboard",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "torch": "train",
}
"""The extra of the package that brings each library."""


def require(module: str) -> ModuleType:
    """Return the imported ``module``, whose top level is a key of ``EXTRAS``.

    Raises:
        MissingDependencyError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise explain_missing(error) from error


def explain_missing(error: ModuleNotFoundError) -> ImportError:
    """The error to show for a failed import: how to install the library, or ``error`` itself if it is none of ours."""
    library = (error.name or "").split(".")[0]
    if library not in EXTRAS:
        return error
    return MissingDependencyError(f"{library} is not installed, and this needs it: pip install 'autoreg[{EXTRAS[library]}]'")
