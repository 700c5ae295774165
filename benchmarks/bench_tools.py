"""The same segmentation job by ``autoreg segment`` and by public tools: speed, memory, and labels that the tiling changed.

One landscape, one network, four programs. Each tool runs in a virtual environment of its own, which is made if it is not
there, with the library versions of ``constraints.txt``. The command that runs it is timed as a process, from file to map
file. A label is wrong if it is not that of one pass over the whole raster. What a tool cannot read is translated for it,
and the translation is checked: the adapted models say what the model says.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnx
import onnxruntime
import rasterio
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.utils import Extractor
from scipy import ndimage
from torch import Tensor, nn

from autoreg.demo import COVERS, write_scene
from autoreg.export import export_onnx
from autoreg.export.strip import strip
from autoreg.network.checkpoint import load_checkpoint
from autoreg.raster.tiling import round_up
from autoreg.raster.window import Window
from autoreg.spec import METADATA_KEY, ModelSpec
from autoreg.train import TrainConfig, train_network
from launch import Run, launch
from record import record

HEIGHT, WIDTH = 3071, 3069  # no multiple of the stride
SMALL = 1024  # what a run on this costs is mostly the start
ROUNDS = 3
STEPS = 100  # enough for maps with all classes
EDGE_PX = 64
RESOLUTION_CM = 50  # of the landscape
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

# Their documented installation. habitat-mapper asks for onnxruntime-gpu with 3 GB of CUDA, which does the same on a CPU.
INSTALLATION: dict[str, list[list[str]]] = {
    "geodeep": [["geodeep==0.9.13"]],
    "habitat-mapper": [
        ["--no-deps", "habitat-mapper==0.16.2"],
        [
            *("cyclopts", "defusedxml", "deprecation", "humanize", "loguru", "numba", "numpy", "onnxruntime"),
            *("opencv-python-headless", "platformdirs", "pydantic", "rasterio", "requests", "rich", "rioxarray"),
            *("xarray", "xarray-spatial"),
        ],
    ],
    "geo-inference": [["geo-inference==3.2.4"]],
}

# Its command line takes the models of its own registry alone; the options are the defaults of `hab segment`.
HABITAT_MAPPER = """
import sys
from habitat_mapper.model import ONNXModel

config, source, target, crop_px = sys.argv[1:]
model = ONNXModel.from_json_config(config)
model.process(source, target, crop_size=int(crop_px) or None, batch_size=1, blur_kernel_size=0, quiet=True)
"""

# As in its README; it chooses the name of the map itself.
GEO_INFERENCE = """
import os, sys
from geo_inference.geo_inference import GeoInference

model, source, target, patch_px, classes = sys.argv[1:]
infer = GeoInference(model=model, work_dir=os.path.dirname(target), device="cpu", num_classes=int(classes))
name = infer(inference_input=source, bands_requested=["1", "2", "3"], patch_size=int(patch_px))
os.replace(os.path.join(os.path.dirname(target), name), target)
"""

Labels = NDArray[np.uint8]
Command = Callable[[Path, Path], list[str]]
"""From a raster and the map to write to a command line."""


@dataclass
class Candidate:
    """A tool with its settings, and what was measured of it."""

    tool: str
    settings: str
    command: Command
    small: list[Run] = field(default_factory=list)
    whole: list[Run] = field(default_factory=list)
    labels: Labels | None = None
    error: str | None = None


class Materials(NamedTuple):
    """The rasters and the model, as each tool wants them."""

    scene: Path
    small: Path
    model: Path
    geodeep: dict[int, Path]
    habitat_mapper: Path
    geo_inference: Path


class Probabilities(nn.Module):
    """The network as geo-inference wants it: raw bytes in, probabilities of every pixel out."""

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network, self.stride = network, stride

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, K, H, W)."""
        logits = self.network(image.float())[1]
        return nn.functional.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False).softmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(tempfile.gettempdir()) / "autoreg_bench_tools"
    parser.add_argument("--venvs", type=Path, default=default, help=f"where the virtual environments are kept ({default})")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    pythons = {tool: install(tool, arguments.venvs.absolute()) for tool in INSTALLATION}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        materials = prepare(folder)
        reference = label_whole(materials.model, read_image(materials.scene))
        adapted = check_adapted(materials)
        candidates = list_candidates(materials, pythons)
        load = os.getloadavg()[0]
        measure(candidates, materials, folder, arguments.rounds)
        rows = [summarise(candidate, reference) for candidate in candidates]
    record(
        "tools",
        {
            "raster": f"{HEIGHT} x {WIDTH} px, 3 bands uint8, deflate, tiled, no nodata",
            "small_raster": f"{SMALL} x {SMALL} px",
            "network": f"size tiny, {len(COVERS)} classes, {STEPS} steps",
            "formats": {"autoreg": "ONNX", "geodeep": "ONNX", "habitat-mapper": "ONNX", "geo-inference": "TorchScript"},
            "rounds": arguments.rounds,
            "load_average_before": round(load, 2),
            "threads": "each tool's own default, all cores",
            "labels_by_class": np.bincount(reference.ravel(), minlength=len(COVERS)).tolist(),
            "adapted_models_differing_labels_of_small_raster": adapted,
            "versions": {tool: read_versions(python, tool) for tool, python in pythons.items()},
            "rows": rows,
        },
    )


def install(tool: str, folder: Path) -> Path:
    """The Python of the tool's virtual environment, made if it is not there."""
    place = folder / tool
    python, complete = place / "bin" / "python", place / "complete"
    wanted = json.dumps(INSTALLATION[tool])
    if complete.exists() and complete.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {tool} into {place}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
    for packages in INSTALLATION[tool]:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, *packages], check=True)
    complete.write_text(wanted, encoding="utf-8")
    return python


def read_versions(python: Path, tool: str) -> dict[str, str]:
    """What the tool's environment holds of the libraries that do the work."""
    code = "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    output = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    versions: dict[str, str] = json.loads(output)
    wanted = (tool, "numpy", "onnxruntime", "rasterio", "scipy", "torch")
    return {library: versions[library] for library in wanted if library in versions}


def prepare(folder: Path) -> Materials:
    """Landscapes, a network trained briefly, and the model in the forms that the tools read."""
    scene, small, model, checkpoint = (folder / name for name in ("scene.tif", "small.tif", "model.onnx", "checkpoint.pt"))
    write_rgb(0, HEIGHT, WIDTH, scene)
    write_rgb(1, SMALL, SMALL, small)
    settings = TrainConfig(
        classes=len(COVERS), stride=2, steps=STEPS, batch_size=16, crop_px=64, learning_rate=1e-3, ensemble=1, device="cpu"
    )
    train_network([small], checkpoint, settings)
    export_onnx(checkpoint, model)

    adapted = {overlap: folder / f"geodeep_{overlap}.onnx" for overlap in (5, 25)}  # 5 % is its own default
    for overlap, path in adapted.items():
        write_geodeep(model, overlap, path)
    config, traced = folder / "habitat_mapper.json", folder / "geo_inference.pt"
    write_habitat_mapper(model, config)
    write_geo_inference(checkpoint, traced)
    return Materials(scene, small, model, adapted, config, traced)


def write_geodeep(model: Path, overlap: int, path: Path) -> None:
    """The model for geodeep, with tiles of 512 px that overlap by ``overlap`` percent."""
    adapted = adapt(model, tile_px=512)
    metadata = {
        "model_type": json.dumps("Segmentor"),
        "class_names": json.dumps({str(label): name for label, name in enumerate(COVERS)}),
        "resolution": str(RESOLUTION_CM),
        "tiles_overlap": str(overlap),
        "seg_thresh": "0",  # each pixel has a class here, so nothing may be dropped
        "seg_small_segment": "0",
    }
    helper.set_model_props(adapted, metadata)
    path.write_bytes(adapted.SerializeToString())


def write_habitat_mapper(model: Path, path: Path) -> None:
    """The model for habitat-mapper, and the file that describes it."""
    probabilities = path.with_suffix(".onnx")
    probabilities.write_bytes(adapt(model).SerializeToString())
    config = {
        "name": "benchmark",
        "revision": "20260101",
        "dependencies": [str(probabilities)],
        "model_filename": probabilities.name,
        "input_channels": 3,
        "normalization": None,
        "activation": None,
    }
    path.write_text(json.dumps(config), encoding="utf-8")


def write_geo_inference(checkpoint: Path, path: Path) -> None:
    """The network for geo-inference, which reads TorchScript alone."""
    loaded = load_checkpoint(checkpoint)
    network = Probabilities(strip(loaded.build_network()), loaded.network.stride).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that it takes for constant, and of TorchScript's age
        traced: Any = torch.jit.trace(network, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))  # type: ignore[no-untyped-call]
    torch.jit.freeze(traced).save(str(path))


def write_rgb(seed: int, height: int, width: int, path: Path) -> None:
    """A landscape in red, green and blue, all of it data: the tools treat nodata each in their own way."""
    rows = -(-height * 5 // 4)  # the corner without data is in the first fifth of the rows
    everything = path.with_suffix(".all.tif")
    write_scene(seed, rows, width, everything)
    with rasterio.open(everything) as dataset:
        window = rasterio.windows.Window(0, rows - height, width, height)
        image, profile, transform = dataset.read([1, 2, 3], window=window), dataset.profile, dataset.window_transform(window)
    everything.unlink()
    profile.update(height=height, width=width, count=3, nodata=None, transform=transform, photometric="RGB")
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(image)


def adapt(path: Path, tile_px: int | None = None) -> onnx.ModelProto:
    """The model for tools that scale bytes to 0..1 before it and want probabilities of every pixel after it.

    The bytes are restored exactly, so it computes the same function.
    """
    model = Extractor(onnx.load(path)).extract_model(["image"], ["logits"])
    spec = read_spec(path)
    graph = model.graph
    constants = {"byte": 255.0, "scales": [1.0, 1.0, float(spec.stride), float(spec.stride)]}
    for name, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), f"adapted_{name}"))
    before = [
        helper.make_node("Mul", ["scaled", "adapted_byte"], ["adapted_bytes"]),
        helper.make_node("Round", ["adapted_bytes"], ["image"]),
    ]
    after = [
        helper.make_node("Resize", ["logits", "", "adapted_scales"], ["adapted_logits"], mode="linear"),
        helper.make_node("Softmax", ["adapted_logits"], ["probabilities"], axis=1),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:], model.metadata_props[:]
    graph.node.extend(nodes)
    sides = ["height", "width"] if tile_px is None else [tile_px, tile_px]
    batch = "batch" if tile_px is None else 1
    for values, name, channels in ((graph.input, "scaled", len(spec.bands)), (graph.output, "probabilities", len(COVERS))):
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, *sides]))
    onnx.checker.check_model(model, full_check=True)
    return model


def read_spec(path: Path) -> ModelSpec:
    """The spec of a model of autoreg."""
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return ModelSpec.from_json(metadata[METADATA_KEY])


def read_image(path: Path) -> NDArray[np.uint8]:
    """All bands."""
    with rasterio.open(path) as dataset:
        return cast(NDArray[np.uint8], dataset.read())


def label_whole(model: Path, image: NDArray[np.uint8]) -> Labels:
    """The labels of one pass over the whole raster, extended to a multiple of the stride by its last row and column."""
    height, width = image.shape[1:]
    stride = read_spec(model).stride
    extended = Window(0, 0, round_up(height, stride), round_up(width, stride)).extend(image.astype(np.float32))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return cast(Labels, session.run(["labels"], {"image": extended[None]})[0][0, :height, :width])


def check_adapted(materials: Materials) -> dict[str, int]:
    """How many labels of one pass over the small raster the adapted models change: no more than rounding explains."""
    image = read_image(materials.small)
    reference = label_whole(materials.model, image)
    adapted = adapt(materials.model).SerializeToString()
    session = onnxruntime.InferenceSession(adapted, providers=["CPUExecutionProvider"])
    scaled = (image / 255.0).astype(np.float32)  # as geodeep does it
    probabilities = session.run(None, {"scaled": scaled[None]})[0]
    with torch.no_grad():
        network: Any = torch.jit.load(str(materials.geo_inference))  # type: ignore[no-untyped-call]
        traced = network(torch.from_numpy(image[None])).numpy()
    differing = {
        "onnx": int((probabilities[0].argmax(axis=0) != reference).sum()),
        "torchscript": int((traced[0].argmax(axis=0) != reference).sum()),
    }
    if max(differing.values()) > 1e-5 * reference.size:
        raise SystemExit(f"the adapted models compute something else: {differing} of {reference.size} labels differ")
    return differing


def list_candidates(materials: Materials, pythons: dict[str, Path]) -> list[Candidate]:
    """Every tool with its defaults, and with what its options allow for better labels or a comparable tile."""

    def autoreg(*options: str) -> Command:
        def command(source: Path, target: Path) -> list[str]:
            head = [sys.executable, "-m", "autoreg", "segment", str(source), "-m", str(materials.model)]
            return [*head, "-o", str(target.parent), "--overwrite", "--quiet", *options]

        return command

    def geodeep(overlap: int) -> Command:
        program = pythons["geodeep"].with_name("geodeep")

        def command(source: Path, target: Path) -> list[str]:
            return [str(program), str(source), str(materials.geodeep[overlap]), "-t", "mask", "-o", str(target), "-q"]

        return command

    def habitat_mapper(crop_px: int) -> Command:
        head = [str(pythons["habitat-mapper"]), "-c", HABITAT_MAPPER, str(materials.habitat_mapper)]
        return lambda source, target: [*head, str(source), str(target), str(crop_px)]

    def geo_inference(patch_px: int) -> Command:
        head = [str(pythons["geo-inference"]), "-c", GEO_INFERENCE, str(materials.geo_inference)]
        return lambda source, target: [*head, str(source), str(target), str(patch_px), str(len(COVERS))]

    return [
        Candidate("autoreg", "defaults", autoreg()),
        Candidate("autoreg", "--tile-px 1024", autoreg("--tile-px", "1024")),
        Candidate("geodeep", "defaults: tile 512, overlap 5 %", geodeep(5)),
        Candidate("geodeep", "tile 512, overlap 25 %", geodeep(25)),
        Candidate("habitat-mapper", "defaults: tile 1024, overlap 50 %", habitat_mapper(0)),
        Candidate("habitat-mapper", "tile 512, overlap 50 %", habitat_mapper(512)),
        Candidate("geo-inference", "defaults: tile 1024, overlap 50 %", geo_inference(1024)),
    ]


def measure(candidates: list[Candidate], materials: Materials, folder: Path, rounds: int) -> None:
    """Run all of them in turns, so that what else the machine does meets them all."""
    for number in range(rounds):
        for index, candidate in enumerate(candidates):
            for source, runs in ((materials.small, candidate.small), (materials.scene, candidate.whole)):
                if candidate.error:
                    continue
                place = folder / f"out_{index}"
                place.mkdir(exist_ok=True)
                target = place / source.name
                target.unlink(missing_ok=True)
                log = folder / "log.txt"
                run = launch(candidate.command(source, target), log, folder)
                if run is None or not target.exists():
                    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    candidate.error = lines[-1] if lines else "no output"
                    print(f"{candidate.tool}, {candidate.settings}: {candidate.error}", file=sys.stderr)
                    continue
                runs.append(run)
                if source == materials.scene:
                    with rasterio.open(target) as dataset:
                        candidate.labels = dataset.read(1)
            seconds = candidate.whole[-1].seconds if candidate.whole else float("nan")
            print(f"round {number}: {candidate.tool}, {candidate.settings}: {seconds:.1f} s", file=sys.stderr)


def summarise(candidate: Candidate, reference: Labels) -> dict[str, Any]:
    """A row of the record."""
    row: dict[str, Any] = {"tool": candidate.tool, "settings": candidate.settings}
    if candidate.error or candidate.labels is None:
        return row | {"error": candidate.error}
    seconds, small_seconds = (statistics.median(run.seconds for run in runs) for runs in (candidate.whole, candidate.small))
    pixels, small_pixels = HEIGHT * WIDTH, SMALL * SMALL
    row |= {
        "seconds": round(seconds, 2),
        "seconds_of_each_run": [round(run.seconds, 2) for run in candidate.whole],
        "mpx_s": round(pixels / 1e6 / seconds, 3),
        "small_raster_seconds": round(small_seconds, 2),
        "mpx_s_without_start": round((pixels - small_pixels) / 1e6 / (seconds - small_seconds), 3),
        "cpu_seconds": round(statistics.median(run.cpu_seconds for run in candidate.whole), 2),
        "peak_memory_mb": round(statistics.median(run.peak_mb for run in candidate.whole)),
    }
    if candidate.labels.shape != reference.shape:
        return row | {"error": f"the map has shape {candidate.labels.shape}, expected {reference.shape}"}
    row["wrong"] = count_wrong(candidate.labels, reference)
    if candidate.tool == "geodeep":  # it smooths every map by a median of 5 x 5 label numbers
        row["wrong_beside_its_median"] = count_wrong(candidate.labels, ndimage.median_filter(reference, 5, mode="nearest"))
    return row


def count_wrong(labels: Labels, reference: Labels) -> dict[str, float]:
    """How many labels differ, which percentage that is, and which far from the edges, where tools extend as they like."""
    wrong = labels != reference
    inside = wrong[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX]
    shares = {
        "percent": round(100 * wrong.mean(), 4),
        f"percent_beyond_{EDGE_PX}_px_of_edges": round(100 * inside.mean(), 4),
    }
    return {"labels": int(wrong.sum()), **shares}


if __name__ == "__main__":
    main()
