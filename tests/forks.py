"""Processes forked from one that has imported the libraries already, which takes longer than most of what a test runs."""

import os
import resource
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from autoreg.cli import main

FORKS = get_context("forkserver")
# Not ONNX Runtime: its import starts a thread, and a process of several threads had better not be forked.
FORKS.set_forkserver_preload(["autoreg.export.onnx", "autoreg.naming", "autoreg.train", "hypothesis", "pytest", "rasterio"])


class Finished(subprocess.CompletedProcess[str]):
    """A command that has ended.

    Attributes:
        peak_kib: the most memory that its process took, what it shares with others included; 0 if it was killed.
    """

    peak_kib = 0


def autoreg(*words: object, cwd: Path | None = None) -> Finished:
    """Run a command in a process of its own."""
    command = [str(word) for word in words]
    with TemporaryDirectory() as folder:
        out, err, peak = (Path(folder) / name for name in ("out", "err", "peak"))
        process = FORKS.Process(target=_run, args=(command, cwd, out, err, peak))
        process.start()
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, 300, out.read_text(), err.read_text())
        finished = Finished(command, process.exitcode, out.read_text(), err.read_text())
        if peak.exists():
            finished.peak_kib = int(peak.read_text())
        return finished


def _run(command: list[str], cwd: Path | None, out: Path, err: Path, peak: Path) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    if cwd:
        os.chdir(cwd)
    sys.argv = ["autoreg", *command]
    try:
        main()
    finally:
        peak.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
