import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoreg.errors import EngineError, OutputError, RasterError
from autoreg.raster.cog import BLOCK_PX, Block, compress
from autoreg.raster.journal import Journal, journal_path, open_journal

SHAPES = [(1200, 700, 1), (1200, 700, 3)]
JOB = bytes(range(32))
ROWS, COLS = 3, 2


def blocks(seed: int) -> list[Block]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 9, (BLOCK_PX, BLOCK_PX, bands)).astype(np.uint8) for _, _, bands in SHAPES]


def put(journal: Journal, row: int, col: int) -> None:
    journal.put(row, col, [compress(block) for block in blocks(10 * row + col)], row + col / 4)


def interrupt(folder: Path, places: list[tuple[int, int]]) -> Path:
    """Leave the journal of a map of which the blocks of ``places`` are done."""
    path = folder / "map.tif"
    with (
        pytest.raises(EngineError),
        open_journal(path, JOB, SHAPES, overwrite=False, resume=False) as (journal, begun),
    ):
        assert not begun
        for place in places:
            put(journal, *place)
        raise EngineError
    return journal_path(path)


def replay(path: Path) -> dict[tuple[int, int], tuple[list[Block | None], float]]:
    """Go on from a journal, and be interrupted at once."""
    found = {}
    with (
        pytest.raises(KeyboardInterrupt),
        open_journal(path.with_name("map.tif"), JOB, SHAPES, overwrite=False, resume=True) as (journal, begun),
    ):
        assert begun
        journal.replay(lambda row, col, seen, dependence: found.update({(row, col): (seen, dependence)}))
        for row, col in np.ndindex(ROWS, COLS):
            assert journal.has(row, col) == ((row, col) in found)
            if (row, col) in found:
                for level, block in zip(journal.levels, blocks(10 * row + col), strict=True):
                    assert level.get(row, col) == compress(block)
        raise KeyboardInterrupt
    return found


def test_blocks_are_found_again_by_the_same_job(tmp_path: Path) -> None:
    path = interrupt(tmp_path, [(2, 1), (0, 0)])
    for _ in range(2):  # what is gone on from is kept
        found = replay(path)
        assert list(found) == [(2, 1), (0, 0)]
        for (row, col), (seen, dependence) in found.items():
            assert dependence == row + col / 4
            for block, expected in zip(seen, blocks(10 * row + col), strict=True):
                assert block is not None
                np.testing.assert_array_equal(block, expected)


def test_wherever_a_journal_is_cut_or_damaged_the_whole_records_before_hold(tmp_path: Path) -> None:
    path = interrupt(tmp_path, [(0, 0), (1, 1), (2, 0)])
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    counts = set()
    for place in rng.integers(51, len(content), 40):
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]):
            path.write_bytes(damaged)
            found = replay(path) if len(damaged) > 50 else {}
            counts.add(len(found))
            assert list(found) == [(0, 0), (1, 1), (2, 0)][: len(found)]
            assert path.read_bytes() == content[: path.stat().st_size] if path.exists() else not found
    assert counts == {0, 1, 2}


def test_an_unfinished_map_is_not_thrown_away(tmp_path: Path) -> None:
    path = interrupt(tmp_path, [(0, 0)])
    target, content = tmp_path / "map.tif", path.read_bytes()
    for job, resume, said in ((JOB, False, "use --resume to go on"), (bytes(32), True, "with another input, model")):
        with (
            pytest.raises(OutputError, match=said),
            open_journal(target, job, SHAPES, overwrite=False, resume=resume),
        ):
            pass
        assert path.read_bytes() == content
    with open_journal(target, bytes(32), SHAPES, overwrite=True, resume=True) as (journal, begun):
        assert not begun
        assert journal.is_empty
    assert not path.exists()


@pytest.mark.parametrize("error", [RasterError, None])
def test_nothing_is_left_when_the_map_is_done_or_the_input_is_to_blame(
    tmp_path: Path, error: type[Exception] | None
) -> None:
    def work() -> None:
        with open_journal(tmp_path / "map.tif", JOB, SHAPES, overwrite=False, resume=False) as (journal, _):
            put(journal, 0, 0)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "map.tif"
    script = f"""
import resource
from pathlib import Path
from autoreg.raster.journal import open_journal
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open_journal(Path({str(target)!r}), {JOB!r}, {SHAPES!r}, overwrite=False, resume=False) as (journal, _):
    journal.put(0, 0, [b"x" * 1000, b"y" * 1000], 0.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    journal.put(0, 1, [b"x" * 1000, b"y" * 1000], 0.0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "OSError" in done.stderr
    assert journal_path(target).stat().st_size == 50 + 28 + 2000


def test_two_processes_do_not_write_one_map(tmp_path: Path) -> None:
    target = tmp_path / "map.tif"
    script = f"""
import time
from pathlib import Path
from autoreg.raster.journal import open_journal
with open_journal(Path({str(target)!r}), {JOB!r}, {SHAPES!r}, overwrite=False, resume=False) as (journal, _):
    journal.put(0, 0, [None, None], 0.0)
    print("begun", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for overwrite in (False, True):
            with (
                pytest.raises(OutputError, match=r"map\.tif is being written by another process"),
                open_journal(target, JOB, SHAPES, overwrite=overwrite, resume=True),
            ):
                pass
        os.kill(process.pid, signal.SIGKILL)
    with open_journal(target, JOB, SHAPES, overwrite=False, resume=True) as (_, begun):
        assert begun  # the lock has died with the process
