"""Which devices can run models here, and which one ``auto`` takes."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from autoreg.errors import ConfigError, EngineError, MissingDependencyError
from autoreg.optional import require

AUTO = "auto"


@dataclass(frozen=True)
class Device:
    """What a model can be run on.

    Attributes:
        name: how a user asks for it.
        library: the module that runs the model.
        extra: of the package; it brings the library.
        provider: what ONNX Runtime calls the device; None for another library.
        gpu: whether it is one.
        automatic: whether ``auto`` may take it for a model that ``autoreg bench`` has not measured.
    """

    name: str
    library: str
    extra: str
    provider: str | None
    gpu: bool
    automatic: bool


DEVICES = (
    Device("cuda", "onnxruntime", "cuda", "CUDAExecutionProvider", gpu=True, automatic=True),
    Device("cpu", "onnxruntime", "run", "CPUExecutionProvider", gpu=False, automatic=True),
    # Which of the two libraries is faster on a CPU differs from machine to machine: this one is for who has measured it.
    Device("openvino", "openvino", "openvino", None, gpu=False, automatic=False),
)
"""All, in the order in which ``auto`` tries them."""

DEVICE_NAMES = (AUTO, *(device.name for device in DEVICES))


def choose_device(name: str = AUTO, *, model_digest: str | None = None, require_gpu: bool = False) -> Device:
    """The device that a name stands for. One that was asked for and is not there is never replaced by another.

    Args:
        name: one of ``DEVICE_NAMES``.
        model_digest: of the model to run: ``auto`` first tries the device that ``autoreg bench`` found fastest for it here.
        require_gpu: take nothing but a GPU.

    Raises:
        ConfigError: there is no device of this name, or it is no GPU and has to be one.
        MissingDependencyError: its library is not installed.
        EngineError: the library is there, but the device is not.
    """
    if name == "tensorrt":
        raise ConfigError(f"TensorRT cannot run models yet, expected one of {', '.join(DEVICE_NAMES)}; use cuda")
    if name not in DEVICE_NAMES:
        raise ConfigError(f"there is no device {name[:40]!r}, expected one of {', '.join(DEVICE_NAMES)}")
    from autoreg.runtime.fastest import fastest_known  # here, as the command line asks this module for names alone

    known = fastest_known(model_digest) if name == AUTO and model_digest else None
    candidates = [device for device in DEVICES if device.name in (name, known) or (name == AUTO and device.automatic)]
    candidates.sort(key=lambda device: device.name != known)
    if require_gpu:
        candidates = [device for device in candidates if device.gpu]
    problem: Exception = ConfigError(f"the device {name} is no GPU, and one is required; use auto or cuda")
    for device in candidates:
        try:
            check_device(device)
        except (MissingDependencyError, EngineError) as error:
            problem = error
        else:
            return device
    raise problem


def check_device(device: Device) -> None:
    """Make sure that a device is there; imports its library.

    Raises:
        MissingDependencyError: its library is not installed.
        EngineError: the library cannot be imported, or has no use of the device, or there is none.
    """
    try:
        library = import_library(device.library)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"{device.library} is not installed, and the device {device.name} needs it: "
            f"pip install 'autoreg[{device.extra}]'"
        ) from error
    if device.provider is None:
        return
    available = library.get_available_providers()
    if device.provider not in available:
        raise EngineError(
            f"the installed ONNX Runtime {library.__version__} has no {device.provider} but {' and '.join(available)}; "
            f"pip uninstall onnxruntime, and then pip install 'autoreg[{device.extra}]'"
        )
    if device.gpu and not find_gpus():
        raise EngineError(
            "the NVIDIA driver is not there or shows no GPU; look at what nvidia-smi lists and what CUDA_VISIBLE_DEVICES is"
        )


def import_library(name: str) -> ModuleType:
    """An inference library, imported so that it reports nothing to its vendor.

    Raises:
        MissingDependencyError: it is not installed.
        EngineError: it is installed and cannot be imported.
    """
    # Without this, ONNX Runtime reports to its vendor from 1.29 on, and leaves a device id in the user's cache.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with _hidden("openvino_telemetry"):
            return require(name)
    except MissingDependencyError:
        raise
    except (ImportError, OSError) as error:  # such as a library that its own libraries are missing for
        reason = " ".join(str(error).split())
        raise EngineError(f"{name} is installed but cannot be imported ({reason}); install it again") from error


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Let an import find no such module: OpenVINO sends what it does through it, but goes without if it is not there."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # that is how an import is refused
    try:
        yield
    finally:
        sys.modules.pop(module, None)


def find_gpus() -> tuple[str, ...]:
    """Names of the GPUs that the NVIDIA driver lets this process use, in the order of CUDA; none without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    names = []
    for ordinal in range(count.value):
        name = ctypes.create_string_buffer(256)
        device = ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(device), ordinal) or driver.cuDeviceGetName(name, len(name), device):
            return ()
        names.append(name.value.decode(errors="replace"))
    return tuple(names)
