"""Score a network that is in memory, during or after its training, as its exported model would be scored."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoreg import __version__
from autoreg.errors import RasterError
from autoreg.evaluation import confusion_matrix, open_truth
from autoreg.network.network import Network, evaluating, label_pixels
from autoreg.optional import require
from autoreg.raster.palette import unnamed_classes
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from autoreg.runtime.engine import Images, Labels, Prediction
from autoreg.runtime.segment import segment_array
from autoreg.spec import ModelSpec


class TorchEngine:
    """Runs a network without ordering, in evaluation mode; see ``autoreg.runtime.engine.Engine``."""

    model_digest = ""
    lanes = 1

    def __init__(
        self,
        network: Network,
        bands: Sequence[str],
        dtype: str,
        crop_px: int,
        *,
        normalisation: str = "global",
        classes: int | None = None,
    ) -> None:
        """Wrap ``network``, which stays the caller's.

        Args:
            network: its decoder says the labels.
            bands: names of its bands.
            dtype: of the rasters that it was trained on.
            crop_px: side of the crops of its training.
            normalisation: of its training.
            classes: of another decoder than its own, if it was given one.
        """
        self._network = network
        self.device = f"PyTorch {torch.__version__} on {network.mean.device}"
        self.spec = ModelSpec(
            bands=tuple(bands),
            dtype=dtype,
            classes=unnamed_classes(classes or network.config.classes),
            stride=network.config.stride,
            receptive_field_px=network.receptive_field_px,
            crop_px=crop_px,
            mean=tuple(network.mean.tolist()),
            std=tuple(network.std.tolist()),
            precision="fp32",
            checkpoint_digest="",
            agreement=1.0,
            autoreg_version=__version__,
            normalisation=normalisation,
        )

    def label(self, images: Images) -> Labels:
        """Labels of ``images``."""
        return self.predict(images).labels

    @torch.no_grad()
    def predict(self, images: Images) -> Prediction:
        """Labels and logits of ``images``."""
        with evaluating(self._network):
            logits = self._network(torch.from_numpy(images).to(self._network.mean))
        return Prediction(label_pixels(logits, self.spec.stride).cpu().numpy(), logits.cpu().numpy())


def confusion_of_network(engine: TorchEngine, pairs: Iterable[tuple[Path, Path]]) -> NDArray[np.int64]:
    """Pixels by cluster and class, int64 (256, 256), over images and their truths.

    Args:
        engine: with the network.
        pairs: an image and its truth, one band of uint8, 255 where it is not known.

    Raises:
        RasterError: a file cannot be read, or a truth has another size than its image.
    """
    total = np.zeros((256, 256), np.int64)
    for image_path, truth_path in pairs:
        image, valid, truth = read_pair(image_path, truth_path, len(engine.spec.bands))
        total += confusion_matrix(segment_array(engine, image, valid), truth)
    return total


def read_pair(
    image_path: Path, truth_path: Path, bands: int
) -> tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.uint8]]:
    """An image (bands, height, width), which of its pixels are data, and its truth (height, width).

    Raises:
        RasterError: a file cannot be read, or the two do not fit.
    """
    with RasterReader(image_path, bands=bands) as raster, open_truth(truth_path, raster) as dataset:
        pixels, valid = raster.read(Window(0, 0, raster.height, raster.width))
        try:
            truth = dataset.read(1)
        except require("rasterio.errors").RasterioError as error:
            raise RasterError(f"{truth_path} is damaged: {error}") from error
    return pixels, valid, truth
