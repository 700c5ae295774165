"""The maps of a raster: which files they are, what they need, what they depend on, and what they say of themselves."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoreg.raster.blending import Blending
from autoreg.raster.tiling import Tiling
from autoreg.runtime.engine import Engine
from autoreg.runtime.pipeline import PROBABILITY_SCALE, Outputs
from autoreg.spec import ModelSpec

if TYPE_CHECKING:
    from autoreg.raster.rasters import Part
    from autoreg.raster.writer import MapFile

_DATA_CELLS = 32
_LABEL_BYTES, _PROBABILITY_BYTES = 0.02, 0.2
"""Of a pixel of a band, compressed: less than in any map that we have seen, so that only what cannot end well is refused."""


def output_paths(target: Path, outputs: Outputs) -> list[Path]:
    """The maps to write for ``target``, ``maps/a.tif``: itself, then ``maps/a.confidence.tif`` and the like."""
    wanted = [name for name, value in dataclasses.asdict(outputs).items() if value]
    return [target, *(target.with_name(f"{target.stem}.{name}{target.suffix}") for name in wanted)]


def map_files(spec: ModelSpec, target: Path, outputs: Outputs) -> "list[MapFile]":
    """The files to write for ``target``, the map of labels first."""
    from autoreg.raster.writer import MapFile

    labels, *further = output_paths(target, outputs)
    bands: list[tuple[str, ...]] = [("confidence",)] if outputs.confidence else []
    bands += [tuple(item.name for item in spec.classes)] if outputs.probabilities else []
    return [
        MapFile(labels, ("class",), colours={item.label: item.rgb for item in spec.classes}),
        *(MapFile(path, names, scale=PROBABILITY_SCALE) for path, names in zip(further, bands, strict=True)),
    ]


def least_bytes(part: "Part", files: "Sequence[MapFile]") -> int:
    """What the maps need on the disk, at the least: twice their blocks, which are in the journal until the map is whole."""
    sides = zip(part.region[2:], part.imagery.block_shape, strict=True)
    cells = part.region.cut(*(max(-(-side // _DATA_CELLS), block) for side, block in sides))
    pixels = sum(cell.height * cell.width for cell in cells if not part.imagery.is_empty(cell))
    per_pixel = _LABEL_BYTES + _PROBABILITY_BYTES * sum(len(file.bands) for file in files[1:])
    return int(2 * pixels * per_pixel)


def job_digest(engine: Engine, part: "Part", plan: Tiling | Blending, outputs: Outputs) -> bytes:
    """Digest of all that a pixel of the maps depends on, 32 bytes; a raster that is too far to be seen changes nothing."""
    from autoreg import __version__
    from autoreg.raster.fingerprint import fingerprint

    reach_px, grid_px = (plan.halo_px, plan.stride) if isinstance(plan, Tiling) else (plan.tile_px, plan.step_px)
    seen = part.around(None if engine.spec.normalisation == "scene" else reach_px)
    job = {
        "version": __version__,
        "model": engine.model_digest,
        "engine": engine.device,
        "sources": [(fingerprint(source), place) for source, place in part.members_in(seen)],
        "seen": seen.within(part.region),
        "size": part.region[2:],
        "on_grid": [start % grid_px for start in part.region[:2]],
        "tile_px": plan.tile_px if isinstance(plan, Blending) else None,
        "outputs": dataclasses.asdict(outputs),
    }
    return hashlib.sha256(json.dumps(job).encode()).digest()


def provenance(engine: Engine, part: "Part") -> dict[str, str]:
    """The tags that say which model made a map, on what, of which raster, and what its labels mean."""
    from autoreg import __version__

    spec = engine.spec
    return {
        "TIFFTAG_SOFTWARE": f"autoreg {__version__}",
        "AUTOREG_MODEL_SHA256": engine.model_digest,
        "AUTOREG_CHECKPOINT_SHA256": spec.checkpoint_digest,
        "AUTOREG_PRECISION": spec.precision,
        "AUTOREG_ENGINE": engine.device,
        "AUTOREG_SOURCE": Path(part.name).name,
        "AUTOREG_CLASSES": json.dumps([dataclasses.asdict(item) for item in spec.classes], ensure_ascii=False),
    }
