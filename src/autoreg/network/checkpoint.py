"""Checkpoint: what training writes and export reads."""

import dataclasses
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoreg.errors import CheckpointError, ConfigError
from autoreg.network.config import NetworkConfig
from autoreg.network.network import Network
from autoreg.output import atomic_output
from autoreg.spec import DTYPES

FORMAT = "autoreg.checkpoint"
VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and all that is needed to use them or to go on training.

    Attributes:
        network: layers of the network.
        weights: state of the network, normalisation included.
        bands: names of the input bands.
        dtype: type of the rasters that it was trained on.
        samples: raw crops of the training rasters, float32 (N, bands, H, W), nodata filled, rescaled if ``normalisation`` is
            ``scene``; export proves parity on them.
        settings: of the training, by name; plain values.
        loop: what ``--resume`` needs: ``step``, the states of the ``optimizer`` and of the ``objective``, and more.
        fitted: whether the decoder's clusters have been found; of a training that finds them at its end, a checkpoint from
            its midst has none yet.
    """

    network: NetworkConfig
    weights: dict[str, Tensor]
    bands: tuple[str, ...]
    dtype: str
    samples: Tensor
    settings: dict[str, Any]
    loop: dict[str, Any]
    fitted: bool = True

    @property
    def normalisation(self) -> str:
        """What the network's mean and deviation are those of: of all scenes, ``global``, or of each ``scene``."""
        return str(self.settings.get("normalisation", "global"))

    def build_network(self, extractor: nn.Module | None = None) -> Network:
        """The trained network, in evaluation mode.

        Args:
            extractor: the user's own backbone, where it was trained with one; the file does not say how to make it.

        Raises:
            CheckpointError: the weights do not fit the layers.
            ConfigError: ``extractor`` is missing, or given and not wanted.
        """
        name = self.settings.get("backbone")
        if self.network.extractor == "custom" and extractor is None and name:
            raise ConfigError(f"this checkpoint was trained on the backbone {name}; if you trust it, give --backbone {name}")
        with torch.device("meta"):  # without memory: what the file claims may be larger than what it holds
            layers = Network(self.network, extractor).state_dict()
        if {key: value.shape for key, value in layers.items()} != {key: value.shape for key, value in self.weights.items()}:
            raise CheckpointError("the weights of the checkpoint do not fit its layers; train again")
        network = Network(self.network, extractor)
        network.load_state_dict(self.weights)
        return network.eval()


def save_checkpoint(checkpoint: Checkpoint, path: Path, *, overwrite: bool) -> None:
    """Write ``checkpoint``; the file appears whole or not at all.

    Raises:
        OutputError: see ``autoreg.output.atomic_output``.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    content |= {"format": FORMAT, "version": VERSION, "network": dataclasses.asdict(checkpoint.network)}
    with atomic_output(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch covers what the system said
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Nothing in the file is executed, and it cannot claim more memory than its size.

    Raises:
        CheckpointError: no such file, or not a checkpoint of this version.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; make one with autoreg train")
    if not _is_plain_archive(path):
        raise CheckpointError(f"{path} is not a checkpoint that autoreg train wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its parser stumbles over
        raise CheckpointError(
            f"{path} is damaged, or not a checkpoint that autoreg train wrote; it was not executed"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint that autoreg train wrote")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {content.get('version')}, and this autoreg reads {VERSION}")
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path} is a checkpoint, but not a valid one: {error}") from error


def check_fitted(checkpoint: Checkpoint, path: Path) -> None:
    """Make sure that a checkpoint can be deployed.

    Raises:
        CheckpointError: it is from the midst of a training that finds its clusters at its end.
    """
    if not checkpoint.fitted:
        raise CheckpointError(
            f"{path} has no clusters yet, because they are found when its training ends; "
            f"go on with autoreg train -o {path} --resume"
        )


def digest_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain_archive(path: Path) -> bool:
    """Whether a file is a zip archive without compression, as torch writes it; so it cannot unpack to more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _parse(content: dict[str, Any]) -> Checkpoint:
    network = NetworkConfig(**{**content["network"], "widths": tuple(content["network"]["widths"])})
    checkpoint = Checkpoint(
        network=network,
        weights=content["weights"],
        bands=tuple(str(name) for name in content["bands"]),
        dtype=content["dtype"],
        samples=content["samples"],
        settings=content["settings"],
        loop=content["loop"],
        fitted=content.get("fitted", True) is True,
    )
    if len(checkpoint.bands) != network.bands:
        raise ValueError(f"it names {len(checkpoint.bands)} bands for a network of {network.bands}")
    if checkpoint.dtype not in DTYPES:
        raise ValueError(f"its dtype is {checkpoint.dtype!r}, expected one of {', '.join(DTYPES)}")
    samples = checkpoint.samples
    if not (isinstance(samples, Tensor) and samples.dtype == torch.float32 and samples.ndim == 4):
        raise TypeError("its samples are not a float32 tensor of four axes")
    if samples.shape[1] != network.bands or len(samples) < 1:
        raise ValueError(f"its samples have shape {tuple(samples.shape)}")
    for name in ("weights", "settings", "loop"):
        if not isinstance(content[name], dict):
            raise TypeError(f"its {name} are not a table")
    if not all(isinstance(value, Tensor) for value in cast(dict[str, Any], content["weights"]).values()):
        raise TypeError("its weights are not tensors")
    return checkpoint
