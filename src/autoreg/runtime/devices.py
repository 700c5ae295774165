"""Which devices can run models here, and which one ``auto`` takes."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from uuid import UUID

from autoreg.errors import ConfigError, EngineError, MissingDependencyError
from autoreg.optional import require

AUTO = "auto"
TENSORRT = "tensorrt"
_CPU_LANES = 8
"""Tiles that are run at once, at most: each needs memory, and so many keep every core busy."""
_GPU_LANES = 2
"""On each GPU: one is computed while another is copied to it or back."""
_CAPABILITY_ATTRIBUTES = 75, 76
"""Major and minor number, in the driver's CUdevice_attribute."""
_UUID_BYTES = 16


@dataclass(frozen=True)
class Device:
    """What a model can be run on.

    Attributes:
        name: how a user asks for it.
        libraries: modules that run the model; the first of them that is installed.
        extra: of the package; it brings the first of them.
        provider: what ONNX Runtime calls the device; None for another library.
        gpu: whether it is one.
        automatic: whether ``auto`` may take it for a model that ``autoreg bench`` has not measured.
    """

    name: str
    libraries: tuple[str, ...]
    extra: str
    provider: str | None
    gpu: bool
    automatic: bool


DEVICES = (
    Device("cuda", ("onnxruntime",), "cuda", "CUDAExecutionProvider", gpu=True, automatic=True),
    Device("cpu", ("onnxruntime",), "run", "CPUExecutionProvider", gpu=False, automatic=True),
    # Which of the two libraries is faster on a CPU differs from machine to machine: this one is for who has measured it.
    Device("openvino", ("openvino",), "openvino", None, gpu=False, automatic=False),
    # It builds an engine first, which takes minutes: this is for who wants it, or has measured it.
    Device(TENSORRT, ("tensorrt", "tensorrt_rtx"), "tensorrt", None, gpu=True, automatic=False),
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
    if name not in DEVICE_NAMES:
        raise ConfigError(f"there is no device {name[:40]!r}, expected one of {', '.join(DEVICE_NAMES)}")
    from autoreg.runtime.measure.fastest import fastest_known  # here, as the command line asks this module for names alone

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
    """Make sure that a device is there; imports its library, or the first of them that is installed.

    Raises:
        MissingDependencyError: its library is not installed.
        EngineError: the library cannot be imported, or has no use of the device, or there is none.
    """
    library = _import_first(device)
    available = () if device.provider is None else library.get_available_providers()
    if device.provider is not None and device.provider not in available:
        raise EngineError(
            f"the installed ONNX Runtime {library.__version__} has no {device.provider} but {' and '.join(available)}; "
            f"pip uninstall onnxruntime, and then pip install 'autoreg[{device.extra}]'"
        )
    if device.gpu and not find_gpus():
        raise EngineError(
            "the NVIDIA driver is not there or shows no GPU; look at what nvidia-smi lists and what CUDA_VISIBLE_DEVICES is"
        )


def _import_first(device: Device) -> ModuleType:
    for name in device.libraries:
        with suppress(MissingDependencyError):
            return import_library(name)
    raise MissingDependencyError(
        f"{' or '.join(device.libraries)} is not installed, and the device {device.name} needs it: "
        f"pip install 'autoreg[{device.extra}]'"
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
        if isinstance(error.__cause__, KeyboardInterrupt):  # which those of pybind11 take for an error of theirs
            raise error.__cause__ from None
        reason = " ".join(str(error).split())
        raise EngineError(f"{name} is installed but cannot be imported ({reason}); install it again") from error


def in_a_line(said: object, most: int = 300) -> str:
    """What a library says, such as its exception: printable, and of at most so many letters."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(said)).split())[:most]


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


def count_lanes(device: Device) -> int:
    """How many tiles are worth running at once on a device."""
    from autoreg.raster.background import count_cores

    return _GPU_LANES * len(alike_gpus()) if device.gpu else min(count_cores(), _CPU_LANES)


def alike_gpus() -> list[int]:
    """The numbers of the GPUs that are what the first one is: others might round otherwise, and so give other labels."""
    names = find_gpus()
    return [number for number, name in enumerate(names) if name == names[0]]


def find_gpus() -> tuple[str, ...]:
    """Names of the GPUs that the NVIDIA driver lets this process use, in the order of CUDA; none without a driver."""

    def name_of(driver: ctypes.CDLL, device: ctypes.c_int) -> str | None:
        name = ctypes.create_string_buffer(256)
        return None if driver.cuDeviceGetName(name, len(name), device) else name.value.decode(errors="replace")

    return _ask_gpus(name_of)


def find_compute_capabilities() -> tuple[str, ...]:
    """The compute capability, such as 8.6, of each of ``find_gpus``: programs for one mostly do not run on another."""

    def capability_of(driver: ctypes.CDLL, device: ctypes.c_int) -> str | None:
        parts = [ctypes.c_int() for _ in _CAPABILITY_ATTRIBUTES]
        for attribute, part in zip(_CAPABILITY_ATTRIBUTES, parts, strict=True):
            if driver.cuDeviceGetAttribute(ctypes.byref(part), attribute, device):
                return None
        return ".".join(str(part.value) for part in parts)

    return _ask_gpus(capability_of)


def find_uuids() -> tuple[str, ...]:
    """The UUID of each of ``find_gpus``: what CUDA lists as the first need not be the first for other libraries."""

    def uuid_of(driver: ctypes.CDLL, device: ctypes.c_int) -> str | None:
        raw = ctypes.create_string_buffer(_UUID_BYTES)
        return None if driver.cuDeviceGetUuid(raw, device) else str(UUID(bytes=raw.raw))

    return _ask_gpus(uuid_of)


def _ask_gpus(ask: Callable[[ctypes.CDLL, ctypes.c_int], str | None]) -> tuple[str, ...]:
    """What the driver answers of each GPU; nothing if it fails for one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    answers = []
    for ordinal in range(count.value):
        device = ctypes.c_int()
        answer = None if driver.cuDeviceGet(ctypes.byref(device), ordinal) else ask(driver, device)
        if answer is None:
            return ()
        answers.append(answer)
    return tuple(answers)
