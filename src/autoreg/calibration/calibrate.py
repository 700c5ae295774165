"""Calibrate: a float32 model to an INT8 one that keeps its labels, or none."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from autoreg import __version__
from autoreg.calibration.budget import LayerChoice, Progress, choose_layers
from autoreg.calibration.histogram import Histogram
from autoreg.calibration.layers import Layer, find_layers
from autoreg.calibration.observe import observe
from autoreg.calibration.quantize import check_layout, quantize_model
from autoreg.calibration.ranges import METHODS
from autoreg.calibration.samples import DEFAULT_TILE_PX, Samples, choose_samples
from autoreg.calibration.saved import load_ranges, save_ranges
from autoreg.errors import ConfigError, ModelError, ParityError
from autoreg.output import atomic_output, check_output
from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine
from autoreg.runtime.parity import PARITY_KEY, Parity, Tile, compare_engines
from autoreg.spec import CALIBRATION_KEY, METADATA_KEY, ModelSpec

MIN_AGREEMENT = 0.994
"""On scenes that a model was not calibrated on, it keeps some tenths of a percent less, and is to keep 0.99 there."""

_TILE_LIMIT_PX = 4096
_TILES_LIMIT = 100_000


@dataclass(frozen=True)
class Calibrated:
    """What ``calibrate_model`` wrote.

    Attributes:
        spec: of the model.
        parity: with the float32 model, on the held-out tiles.
        method: how ranges were chosen, a key of ``ranges.METHODS``.
        tiles: how many were calibrated on.
        held_out_tiles: how many it was checked with.
        tile_px: side of a tile.
        min_agreement: the budget.
        layers: what was decided about each.
        bytes: size of the file.
    """

    spec: ModelSpec
    parity: Parity
    method: str
    tiles: int
    held_out_tiles: int
    tile_px: int
    min_agreement: float
    layers: tuple[LayerChoice, ...]
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, as JSON can hold them, without spec and parity, which have entries of their own."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("spec", "parity", "bytes")}


def calibrate_model(
    model: Path,
    rasters: Sequence[Path],
    output: Path,
    *,
    method: str = "mse",
    tiles: int = 128,
    tile_px: int | None = None,
    min_agreement: float = MIN_AGREEMENT,
    ranges: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Calibrated:
    """Write an INT8 model that gives the labels of a float32 one, as far as tiles show that neither ranges nor truths saw.

    Convolutions compute in INT8, but for those that would break the budget. The file runs in ONNX Runtime, TensorRT and
    OpenVINO. It is checked by ``onnx.checker``, and compared with the float32 model by running both in ONNX Runtime, before
    it appears.

    Args:
        model: from ``autoreg export``, in float32.
        rasters: unlabelled imagery, such as the model will see.
        output: the model to write, ``.onnx``.
        method: how the range of an activation follows from its values, a key of ``ranges.METHODS``.
        tiles: how many to calibrate on, at most; a quarter as many more are held out.
        tile_px: side of a tile, a multiple of the stride; if None, 256, or for a model that looks at its whole tile, the
            crops of its training.
        min_agreement: least share of labels, 0..1, that have to be equal on the held-out tiles; on other scenes it is less.
        ranges: a file that keeps what was measured; used if it is there, written if not.
        overwrite: replace an existing ``output``.
        progress: see ``budget.Progress``.

    Raises:
        ConfigError: a setting is out of range, or ``ranges`` is of another model or other tiles.
        ModelError: ``model`` is not one, or not in float32, or has nothing to quantise.
        RasterError: a raster cannot be read or does not fit the model, or there are too few tiles with data.
        ParityError: the budget cannot be met; nothing is written but ``ranges``.
        OutputError: ``output`` exists or cannot be written.
    """
    check_output(output, overwrite=overwrite)
    if ranges:
        check_output(ranges, overwrite=True)  # it stays as it is if it is there
    reference = OnnxRuntimeEngine.from_file(model)
    spec = reference.spec
    side = _check_settings(spec, method, tiles, tile_px, min_agreement, rasters)
    if spec.precision != "fp32":
        raise ModelError(
            f"{model} computes in {spec.precision}, expected fp32, as autoreg export writes it without --fp16 or --bf16"
        )
    content = onnx.load_model_from_string(model.read_bytes())
    layers = find_layers(content.graph)
    if not layers:
        raise ModelError(f"{model} has no convolutions, so there is nothing to compute in INT8; use it as it is")
    calibration, held_out = choose_samples(list(dict.fromkeys(rasters)), spec, tiles=tiles, tile_px=side)
    histograms = _histograms(content, layers, calibration, reference.model_digest, ranges, progress)
    limits = {name: METHODS[method](histogram) for name, histogram in histograms.items()}

    def build(chosen: Sequence[Layer]) -> Iterator[OnnxRuntimeEngine]:
        return _both_forms(quantize_model(content, chosen, limits).SerializeToString())

    choice = choose_layers(
        reference,
        layers,
        build,
        calibration=calibration,
        held_out=held_out,
        min_agreement=min_agreement,
        progress=progress,
    )
    quantised = quantize_model(content, choice.quantised, limits)
    parity = _prove(reference, quantised.SerializeToString(), held_out, min_agreement)
    spec = dataclasses.replace(spec, precision="int8", agreement=parity.agreement, autoreg_version=__version__)
    result = Calibrated(spec, parity, method, len(calibration), len(held_out), side, min_agreement, choice.layers, bytes=0)
    size = _write(quantised, result, output, overwrite=overwrite)
    return dataclasses.replace(result, bytes=size)


def _check_settings(
    spec: ModelSpec, method: str, tiles: int, tile_px: int | None, min_agreement: float, rasters: Sequence[Path]
) -> int:
    """The side of a tile."""
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    if not 1 <= tiles <= _TILES_LIMIT:
        raise ConfigError(f"tiles is {tiles}, expected 1 to {_TILES_LIMIT}")
    if not 0 < min_agreement <= 1:
        raise ConfigError(f"min_agreement is {min_agreement:g}, expected a share above 0, at most 1, such as 0.99")
    if not rasters:
        raise ConfigError("there are no rasters, expected at least one to calibrate on")
    if tile_px is None:
        default = spec.crop_px if spec.receptive_field_px is None else DEFAULT_TILE_PX
        return -(-default // spec.stride) * spec.stride
    if not spec.stride <= tile_px <= _TILE_LIMIT_PX or tile_px % spec.stride:
        raise ConfigError(
            f"tile_px is {tile_px}, expected {spec.stride} to {_TILE_LIMIT_PX}, "
            f"a multiple of the model's stride, {spec.stride}"
        )
    return tile_px


def _histograms(
    content: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Samples,
    model_digest: str,
    ranges: Path | None,
    progress: Progress | None,
) -> Mapping[str, Histogram]:
    """Of the activations of all layers: measured, or as they were kept."""
    names = list(dict.fromkeys(name for layer in layers for name in layer.activations))
    data_digest = samples.digest() if ranges else ""
    if ranges and ranges.exists():
        kept = load_ranges(ranges, model_digest=model_digest, data_digest=data_digest)
        if missing := set(names) - kept.keys():
            raise ConfigError(f"{ranges} has no range of {min(missing)}; give --ranges a new name, or remove the file")
        return {name: kept[name] for name in names}
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress("measuring", done, 2 * len(samples))

    found = observe(content, names, samples, advance)
    if ranges:
        save_ranges(ranges, found, model_digest=model_digest, data_digest=data_digest)
    return found


def _both_forms(candidate: bytes) -> Iterator[OnnxRuntimeEngine]:
    """What the file says, as other engines compute it, and what ONNX Runtime makes of it."""
    for as_stored in (True, False):
        yield OnnxRuntimeEngine(candidate, "the INT8 model", as_stored=as_stored)


def _prove(reference: OnnxRuntimeEngine, candidate: bytes, held_out: Samples, min_agreement: float) -> Parity:
    """Compare both forms with the float32 model; the worse of the two."""
    found: list[Parity] = []
    for engine in _both_forms(candidate):
        tiles = (Tile("a held-out tile", image[0], valid) for image, valid in held_out)
        found.append(compare_engines(reference, engine, tiles).parity)
    worse = min(found, key=lambda parity: parity.agreement)
    if not all(parity.reaches(min_agreement) for parity in found):
        raise ParityError(
            f"the INT8 model does not say in ONNX Runtime what the float32 model says: {worse}; expected at least "
            f"{100 * min_agreement:.2f} % equal; try --method min-max"
        )
    return worse


def _write(model: onnx.ModelProto, result: Calibrated, output: Path, *, overwrite: bool) -> int:
    """Check a model and write it with what was found of it; its size in bytes."""
    entries = {
        METADATA_KEY: result.spec.to_json(),
        PARITY_KEY: result.parity.to_json(),
        CALIBRATION_KEY: json.dumps(result.as_dict()),
    }
    model.producer_version = __version__
    onnx.helper.set_model_props(model, entries)
    onnx.checker.check_model(model, full_check=True)
    check_layout(model)
    data = model.SerializeToString()
    with atomic_output(output, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return len(data)
