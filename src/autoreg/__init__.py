"""autoreg: unlabelled satellite and aerial imagery to fast, deployable segmentation.

This is the runtime API; it needs numpy and one engine, and never loads torch::

    engine = autoreg.load_engine("model.onnx")
    labels = autoreg.segment_array(engine, image)
    autoreg.segment_raster(engine, "tile.tif", "map.tif")
"""

from autoreg.errors import AutoregError
from autoreg.runtime.engine import Engine, load_engine
from autoreg.runtime.segment import TilingOptions, segment_array, segment_raster
from autoreg.spec import ModelSpec

__version__ = "0.1.0"

__all__ = ["AutoregError", "Engine", "ModelSpec", "TilingOptions", "load_engine", "segment_array", "segment_raster"]
