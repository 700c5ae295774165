"""``autoreg doctor``."""

import json
from typing import TYPE_CHECKING, Any

import click

from autoreg.commands.options import as_json_option, command, require_gpu_option

if TYPE_CHECKING:
    from autoreg.runtime.devices import Device

_FOR_DEVELOPERS = "dev"


@command(epilog="autoreg doctor\nautoreg doctor --json --require-gpu")
@require_gpu_option
@as_json_option
def doctor(require_gpu: bool, as_json: bool) -> None:
    """Print what autoreg finds on this machine.

    Which libraries are installed, which devices can run models, which of them --device auto takes and why, and how to
    install what is missing. For a model that autoreg bench has measured here, auto takes what was fastest: "measured" lists
    the SHA-256 of each such file, and the device.
    """
    from autoreg.errors import AutoregError
    from autoreg.runtime.devices import choose_device

    found = _examine()
    click.echo(json.dumps(found) if as_json else _describe(found))
    if require_gpu:
        try:
            choose_device(require_gpu=True)
        except AutoregError as error:
            raise type(error)(f"there is no GPU to run models on: {error}") from error


def _examine() -> dict[str, Any]:
    """All that is printed, by name; a value that is None is missing."""
    import platform
    import sys

    from autoreg import __version__
    from autoreg.raster.background import count_cores
    from autoreg.runtime.devices import AUTO, DEVICES, find_compute_capabilities, find_gpus
    from autoreg.runtime.measure.fastest import known_here

    problems = {device.name: _problem(device) for device in DEVICES}
    taken = next((device.name for device in DEVICES if device.automatic and problems[device.name] is None), None)
    extras = _extras()
    installed = {name: version for libraries in extras.values() for name, version in libraries.items() if version}
    return {
        "autoreg": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cores": count_cores(),
        "libraries": dict(sorted(installed.items())),
        "providers": _providers(),
        "gpus": find_gpus(),
        "compute": find_compute_capabilities(),
        "devices": {name: problem or "ready" for name, problem in problems.items()},
        AUTO: {"device": taken, "reason": _reason(taken, problems)},
        "measured": known_here(),
        "missing": {
            extra: {"libraries": missing, "install": f"pip install 'autoreg[{extra}]'"}
            for extra, libraries in extras.items()
            if (missing := [name for name, version in libraries.items() if version is None])
        },
    }


def _problem(device: "Device") -> str | None:
    """Why models cannot be run on a device, or None."""
    from autoreg.errors import AutoregError
    from autoreg.runtime.devices import check_device

    try:
        check_device(device)
    except AutoregError as error:
        return str(error)
    return None


def _reason(taken: str | None, problems: dict[str, str | None]) -> str:
    """Why ``auto`` takes the device that it takes."""
    from autoreg.runtime.devices import DEVICES

    order = [device.name for device in DEVICES if device.automatic]
    before = order if taken is None else order[: order.index(taken)]
    if not before:
        return "it comes first, and is there"
    return "; ".join(f"not {name}: {problems[name]}" for name in before)


def _providers() -> list[str]:
    """What ONNX Runtime can run models on, as far as it knows."""
    from autoreg.errors import AutoregError
    from autoreg.runtime.devices import import_library

    try:
        return list(import_library("onnxruntime").get_available_providers())
    except AutoregError:
        return []


def _extras() -> dict[str, dict[str, str | None]]:
    """The libraries of each extra of autoreg, and their versions, None if one is not installed; none is imported."""
    import re
    from importlib.metadata import PackageNotFoundError, requires

    extras: dict[str, dict[str, str | None]] = {}
    try:
        requirements = requires("autoreg") or []
    except PackageNotFoundError:  # run from its sources
        return extras
    for requirement in requirements:
        found = re.fullmatch(r"([\w.-]+).*;\s*extra\s*==\s*[\"'](\w+)[\"']", requirement)
        if found and found[2] != _FOR_DEVELOPERS:
            extras.setdefault(found[2], {})[found[1]] = _version(found[1])
    return extras


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _describe(found: dict[str, Any]) -> str:
    """The same in lines."""
    width = max(map(len, found))
    lines = []
    for name, value in found.items():
        if name == "missing":
            rows = [f"{', '.join(one['libraries'])}: {one['install']}" for one in value.values()]
        elif name == "auto":
            rows = [f"takes {value['device'] or 'nothing'} ({value['reason']})"]
        elif isinstance(value, dict):
            rows = [f"{key} {item}" for key, item in value.items()]
        else:
            rows = [", ".join(value) or "none" if isinstance(value, list | tuple) else str(value)]
        lines += [
            f"{title:<{width}}  {row}" for title, row in zip([name, *[""] * len(rows)], rows or ["none"], strict=False)
        ]
    return "\n".join(lines)
