"""Engine files: what a library compiled for a GPU, and beside it, in a file of its own, what that is.

An engine is code: whoever loads one runs what is in it. So it is given to a library only if it is, byte for byte, the one
that ``autoreg build`` described in the sidecar, ``model.engine.json`` beside ``model.engine``. That keeps out what is
damaged or mixed up, but not who can write both files: trust an engine as far as a program from the same source.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoreg.errors import EngineError, ModelError
from autoreg.output import atomic_output
from autoreg.runtime.engines.tensorrt.library import FLAVOUR_NAMES
from autoreg.runtime.parity import Parity
from autoreg.spec import ModelSpec, parse_value

LAYOUT = 2
_LIMIT_BYTES = 8 * 2**20
"""Of a sidecar: nearly all of it is the spec, which has a limit of its own."""
_DIGEST, _CAPABILITY = re.compile(r"[0-9a-f]{64}"), re.compile(r"\d{1,2}\.\d")
_MOST_LETTERS = 256
MOST_PX, MOST_BATCH = 65536, 65536
"""Of a side of a tile, and of tiles at once."""


@dataclass(frozen=True)
class EngineFile:
    """What an engine is, and what it was made of.

    Attributes:
        flavour: the module of the library that built it, and alone runs it; one of ``FLAVOUR_NAMES``.
        version: of that library; no other one runs it.
        compute_capabilities: of the GPUs that it was built for, such as 8.6.
        gpu: name of the GPU that it was measured on, and is for; None if it is for all of those capabilities.
        tile_shape: height and width of the tiles that it is fast on, halo included.
        batch_size: how many of them it takes at once.
        uint8_input: whether it takes the pixels as bytes.
        tf32: whether float32 may be rounded to 10 bits where it is multiplied.
        model: name of the ONNX file that it was built from; it is looked for beside the engine.
        model_digest: SHA-256 of that file, hexadecimal.
        graph_digest: likewise, of what was compiled of it: names of classes may change, and the engine holds.
        engine_digest: likewise, of the engine.
        spec: of the model.
        parity: with ONNX Runtime on the CPU, on noise; None if it was built where it cannot run.
        lane_bytes: memory of the GPU that each lane takes, besides the weights, which count as the size of the engine; None
            likewise, as only an engine that was loaded says how much.
        autoreg_version: version that wrote the file.
        layout: version of this layout.
    """

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    tile_shape: tuple[int, int]
    batch_size: int
    uint8_input: bool
    tf32: bool
    model: str
    model_digest: str
    graph_digest: str
    engine_digest: str
    spec: ModelSpec
    parity: Parity | None
    lane_bytes: int | None
    autoreg_version: str
    layout: int = LAYOUT

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ValueError(problem)

    def _problem(self) -> str | None:
        if self.flavour not in FLAVOUR_NAMES:
            return f"its library is {self.flavour[:40]!r}, expected one of {', '.join(FLAVOUR_NAMES)}"
        if not self.compute_capabilities or not all(map(_CAPABILITY.fullmatch, self.compute_capabilities)):
            return f"it is for the compute capabilities {self.compute_capabilities!s:.80}, expected some such as 8.6"
        if self.gpu is not None and not (self.gpu.isprintable() and 0 < len(self.gpu) <= _MOST_LETTERS):
            return f"its GPU is {self.gpu[:80]!r}, expected a name"
        sides = self.tile_shape
        if len(sides) != 2 or not all(0 < side <= MOST_PX and side % self.spec.stride == 0 for side in sides):
            return f"its tiles are {sides!s:.80}, expected two multiples of {self.spec.stride}"
        if not 1 <= self.batch_size <= MOST_BATCH:
            return f"its batch is {self.batch_size}, expected 1 to {MOST_BATCH}"
        if self.uint8_input and not self.spec.takes_uint8:
            return "it takes bytes, and its model does not"
        # A path could lead anywhere.
        if self.model in ("", "..") or Path(self.model).name != self.model or not self.model.isprintable():
            return f"its model is {self.model[:80]!r}, expected the name of a file beside it"
        if not all(map(_DIGEST.fullmatch, (self.model_digest, self.graph_digest, self.engine_digest))):
            return "one of its digests is no SHA-256"
        if self.lane_bytes is not None and self.lane_bytes < 1:
            return f"a lane of it takes {self.lane_bytes} bytes, expected 1 or more"
        return None

    def facts(self) -> dict[str, Any]:
        """What a user is told of it, by name, as JSON can hold it; what is in the spec is not repeated."""
        return {
            "library": self.flavour,
            "version": self.version,
            "compute_capabilities": self.compute_capabilities,
            "gpu": self.gpu,
            "precision": self.spec.precision,
            "tile_shape": self.tile_shape,
            "batch_size": self.batch_size,
            "uint8_input": self.uint8_input,
            "tf32": self.tf32,
            "lane_bytes": self.lane_bytes,
            "parity": None if self.parity is None else self.parity.as_dict(),
        }

    def to_json(self) -> str:
        """The attributes as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> "EngineFile":
        """Read what ``to_json`` wrote.

        Raises:
            EngineError: it is anything else, as the end of a sentence.
        """
        try:
            values = json.loads(text)
            layout = parse_value(int, values["layout"])
            if layout != LAYOUT:
                raise ValueError(f"it has layout {layout}, and this autoreg reads {LAYOUT}")
            described: EngineFile = parse_value(cls, values)
        except (ModelError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise EngineError(f"is not what autoreg build writes ({error!s:.200}); build the engine again") from error
        return described


def sidecar_path(engine: Path) -> Path:
    """Where it is written what an engine is: ``model.engine.json`` for ``model.engine``."""
    return engine.with_name(f"{engine.name}.json")


def read_engine_file(engine: Path) -> EngineFile:
    """What an engine is; the engine itself is not looked at.

    Raises:
        EngineError: there is no such engine, or nothing that says what it is.
    """
    path = sidecar_path(engine)
    if not engine.is_file():
        raise EngineError(f"there is no engine {engine}; make one with autoreg build")
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise EngineError(
            f"{path}, which says what {engine.name} is, cannot be read ({error.strerror}), so the engine is not loaded; "
            f"build it again with autoreg build"
        ) from error
    if len(content) > _LIMIT_BYTES:
        raise EngineError(
            f"{path} is larger than {_LIMIT_BYTES} bytes, so it is not what autoreg build writes; build it again"
        )
    try:
        return EngineFile.from_json(content)
    except EngineError as error:
        raise EngineError(f"{path} {error}") from error


def load_plan(engine: Path, described: EngineFile) -> bytes:
    """The bytes of an engine, for a library to load.

    Raises:
        EngineError: it cannot be read, or it is not the engine that was described.
    """
    try:
        plan = engine.read_bytes()
    except OSError as error:
        raise EngineError(f"the engine {engine} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(plan).hexdigest()
    if digest != described.engine_digest:
        raise EngineError(
            f"{engine} is not the engine that {sidecar_path(engine).name} describes (its SHA-256 is {digest[:12]}, expected "
            f"{described.engine_digest[:12]}), and an engine is code, so it is not loaded; build it again with autoreg build"
        )
    return plan


def write_engine(engine: Path, plan: bytes, described: EngineFile, *, overwrite: bool) -> None:
    """Write an engine, and then what it is: whatever moment this ends at, no engine is taken for another.

    Raises:
        OutputError: one of the two exists and ``overwrite`` is not set, or cannot be written.
    """
    with (
        atomic_output(sidecar_path(engine), overwrite=overwrite) as sidecar,
        atomic_output(engine, overwrite=overwrite) as temporary,  # leaves first, so it is there first
    ):
        temporary.write_bytes(plan)
        sidecar.write_text(described.to_json() + "\n", encoding="utf-8")
