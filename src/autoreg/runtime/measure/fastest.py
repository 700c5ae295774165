"""Which device ``autoreg bench`` found fastest for a model on this machine: a small file in the user's cache."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from autoreg.output import temporary_beside
from autoreg.runtime.measure.machine import describe_machine

_LIMIT_BYTES = 2**20
_MOST_MACHINES, _MOST_MODELS = 16, 100
_log = logging.getLogger("autoreg")

Devices = dict[str, str]
"""Name of the fastest device by model digest, the latest last."""


def fastest_known(model_digest: str) -> str | None:
    """The device that was fastest for a model, by its name for ``load_engine``; None if it was never measured here.

    What was measured on another machine, or with other versions of the libraries, does not count.

    Args:
        model_digest: ``Engine.model_digest``.
    """
    return known_here().get(model_digest)


def known_here() -> Devices:
    """The fastest device of each model that was measured on this machine, as it is now."""
    machines = _read()
    return machines.get(describe_machine().key, {}) if machines else {}


def remember_fastest(devices: Devices) -> None:
    """Keep the fastest device of each model. A cache that cannot be written is a warning, not an error."""
    machines = _read()
    key = describe_machine().key
    machines[key] = _add(machines.pop(key, {}), devices)
    try:
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(path) as temporary:
            content = {"machines": dict(list(machines.items())[-_MOST_MACHINES:])}
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
            temporary.replace(path)
    except (OSError, RuntimeError) as error:
        _log.warning("the fastest device is not remembered, because its file in the cache cannot be written: %s", error)


def _add(known: Devices, devices: Devices) -> Devices:
    """The latest last, and the oldest forgotten."""
    kept = {digest: device for digest, device in known.items() if digest not in devices} | devices
    return dict(list(kept.items())[-_MOST_MODELS:])


def _path() -> Path:
    """The file, in the folder that the XDG base directory specification names; a relative one is to be ignored."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = named if named.is_absolute() else Path("~/.cache").expanduser()
    return folder / "autoreg" / "bench.json"


def _read() -> dict[str, Devices]:
    """Fastest devices by machine; none if the file is missing or anything else than what was written."""
    try:
        with _path().open("rb") as file:
            content: Any = json.loads(file.read(_LIMIT_BYTES))
    except (OSError, ValueError, RuntimeError):  # the last: no home, or brackets too deep
        return {}
    machines = content.get("machines") if isinstance(content, dict) else None
    if not isinstance(machines, dict):
        return {}
    return {
        machine: {digest: device for digest, device in devices.items() if isinstance(device, str)}
        for machine, devices in machines.items()
        if isinstance(devices, dict)
    }
