"""The machine that a measurement was made on."""

import importlib.metadata
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autoreg.raster.background import count_cores
from autoreg.runtime.devices import find_gpus

_LIBRARIES = ("autoreg", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13", "rasterio")


@dataclass(frozen=True)
class Machine:
    """What a measurement depends on.

    Attributes:
        processor: its name, as the system gives it.
        cores: that this process may use.
        gpus: that the NVIDIA driver lets this process use.
        system: of the machine.
        python: its version.
        libraries: versions of those that are installed, by name.
    """

    processor: str
    cores: int
    gpus: tuple[str, ...]
    system: str
    python: str
    libraries: dict[str, str]

    @property
    def key(self) -> str:
        """One line that is another one wherever something is that measurements depend on."""
        libraries = " ".join(f"{name}={version}" for name, version in self.libraries.items())
        return f"{self.processor}; {self.cores} cores; {', '.join(self.gpus) or 'no GPU'}; {self.system}; {libraries}"


def describe_machine() -> Machine:
    """The machine that this process runs on."""
    versions = find_versions(_LIBRARIES)
    return Machine(_processor(), count_cores(), find_gpus(), platform.system(), platform.python_version(), versions)


def find_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Versions of those libraries that are installed, by name; none is imported."""
    versions = {}
    for library in libraries:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()
