"""Run a command and measure its process, from a process so small that its own memory is not what is measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# A child reports at least its parent's peak of resident memory, as a fork has it for a moment: hence a bare interpreter.
_LAUNCHER = """
import json, os, subprocess, sys, time
log, *command = sys.argv[1:]
with open(log, "wb") as output:
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=output, stderr=output)
    status, usage = os.wait4(child.pid, 0)[1:]
seconds = time.perf_counter() - start
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


class Run(NamedTuple):
    """What a process took: wall-clock and processor time, and its peak of resident memory."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def launch(command: list[str], log: Path, home: Path) -> Run | None:
    """Run a command with its output in ``log`` and its caches in ``home``; None if it failed."""
    environment = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home), "ORT_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCHER, log, *command], check=True, capture_output=True, text=True, env=environment
    )
    code, *figures = json.loads(result.stdout)
    return Run(*figures) if code == 0 else None
