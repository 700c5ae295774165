"""autoreg: unlabelled satellite and aerial imagery to fast, deployable segmentation.

This is the runtime API; it needs numpy and one engine, and never loads torch::

    engine = autoreg.load_engine("model.onnx")
    labels = autoreg.segment_array(engine, image)
    autoreg.segment_raster(engine, "tile.tif", "map.tif")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoreg.errors import AutoregError
    from autoreg.runtime.engine import Engine, load_engine
    from autoreg.runtime.pipeline import Outputs
    from autoreg.runtime.segment import TilingOptions, segment_array, segment_raster
    from autoreg.spec import ModelSpec

__version__ = "0.1.0"

__all__ = [
    "AutoregError",
    "Engine",
    "ModelSpec",
    "Outputs",
    "TilingOptions",
    "load_engine",
    "segment_array",
    "segment_raster",
]

_HOMES = {
    "AutoregError": "autoreg.errors",
    "Engine": "autoreg.runtime.engine",
    "ModelSpec": "autoreg.spec",
    "Outputs": "autoreg.runtime.pipeline",
    "TilingOptions": "autoreg.runtime.segment",
    "load_engine": "autoreg.runtime.engine",
    "segment_array": "autoreg.runtime.segment",
    "segment_raster": "autoreg.runtime.segment",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: ``autoreg --help`` should not wait for numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
