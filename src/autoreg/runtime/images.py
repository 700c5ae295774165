"""What engines are shown: pixels of the type that the model takes, and its fill where there is no data."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import EngineError
from autoreg.runtime.engine import Images
from autoreg.spec import ModelSpec


def image_type(pixels: NDArray[Any], spec: ModelSpec) -> np.dtype[Any]:
    """Of the images that hold these pixels: uint8 where they are that and the model takes it, else float32."""
    return np.dtype(np.uint8 if spec.takes_uint8 and pixels.dtype == np.uint8 else np.float32)


def to_image(pixels: NDArray[Any], valid: NDArray[np.bool_], spec: ModelSpec, out: Images | None = None) -> Images:
    """Pixels as a model is to see them.

    Args:
        pixels: (bands, height, width), as they are read, or rescaled.
        valid: (height, width), True where a pixel is data. What is no data says nothing: 0 after normalisation, or nearly.
        spec: of the model.
        out: where to write the image, of the shape of ``pixels`` and of ``image_type``; a new array if None.
    """
    image = np.empty(pixels.shape, image_type(pixels, spec)) if out is None else out
    image[...] = pixels
    if not valid.all():
        np.copyto(image, np.asarray(spec.fill, image.dtype)[:, None, None], where=~valid)
    return image


def to_uint8(images: Images) -> NDArray[np.uint8]:
    """Images for what takes no other type: those of float32 that hold whole numbers of 0 .. 255 are converted.

    Raises:
        EngineError: they hold others.
    """
    if images.dtype == np.uint8:
        return images.astype(np.uint8, copy=False)
    with np.errstate(invalid="ignore"):  # of what NaN becomes, which is not equal to it
        converted = images.astype(np.uint8)
    if not np.array_equal(converted, images):
        raise EngineError(
            "the engine got images of float32 with values other than 0, 1 .. 255, and on a GPU a model of uint8 "
            "imagery takes nothing else; round them, and fill what is no data with the spec's fill"
        )
    return converted
