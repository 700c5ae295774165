"""Keep the histograms of a calibration in a file, to try another method or budget without running the model again."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autoreg.calibration.histogram import BINS, Histogram
from autoreg.errors import ConfigError
from autoreg.output import atomic_output

_VERSION = 1


def save_ranges(path: Path, histograms: Mapping[str, Histogram], *, model_digest: str, data_digest: str) -> None:
    """Write histograms by activation.

    Args:
        path: a JSON file, which is replaced if it exists.
        histograms: by activation.
        model_digest: SHA-256 of the float32 model, hexadecimal.
        data_digest: SHA-256 of the tiles, hexadecimal.

    Raises:
        OutputError: it cannot be written.
    """
    content = {
        "version": _VERSION,
        "model": model_digest,
        "data": data_digest,
        "activations": {
            name: {"maximum": item.maximum, "counts": item.counts.tolist()} for name, item in histograms.items()
        },
    }
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content))


def load_ranges(path: Path, *, model_digest: str, data_digest: str) -> dict[str, Histogram]:
    """Read what ``save_ranges`` wrote of the same model and tiles.

    Raises:
        ConfigError: it cannot be read, or is of something else.
    """
    try:
        content = json.loads(path.read_text())
        version, of_model, of_data = (content[key] for key in ("version", "model", "data"))
        histograms = {name: _histogram(item) for name, item in content["activations"].items()}
        if version != _VERSION:
            raise ValueError(f"it has version {version}, expected {_VERSION}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no ranges of autoreg calibrate ({error}); give --ranges a new name") from error
    for what, found, expected in (("model", of_model, model_digest), ("tiles", of_data, data_digest)):
        if found != expected:
            raise ConfigError(
                f"the ranges in {path} are of another {'model' if what == 'model' else 'choice of tiles'} "
                f"({what} {str(found)[:12]}, expected {expected[:12]}); give --ranges a new name, or remove the file"
            )
    return histograms


def _histogram(item: Mapping[str, object]) -> Histogram:
    maximum, counts = float(str(item["maximum"])), np.asarray(item["counts"])
    if counts.shape != (BINS,) or counts.dtype != np.int64 or not (np.isfinite(maximum) and maximum >= 0):
        raise ValueError(f"expected a maximum and {BINS} counts for each activation")
    return Histogram(maximum, counts)
