from pathlib import Path

import pytest

from autoreg.errors import OutputError
from autoreg.output import atomic_output, check_output, remove_leftovers


def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with atomic_output(target, overwrite=False) as temporary:
        temporary.write_text("done")
        assert not target.exists()
        assert temporary.suffix == ".txt"
    assert target.read_text() == "done"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_output(target, overwrite=True) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_one_sentence() -> None:
    full = Path("/dev/full")
    with (
        pytest.raises(OutputError, match="No space left on device"),
        atomic_output(Path("/tmp/autoreg-full"), overwrite=True),
    ):
        full.write_bytes(b"x" * 100)
    assert not Path("/tmp/autoreg-full").exists()


def test_what_cannot_be_written_is_named_before_any_work(tmp_path: Path) -> None:
    existing = tmp_path / "a.txt"
    existing.touch()
    for path, message in (
        (existing, r"a\.txt exists; use --overwrite"),
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "a.txt", "there is no folder .*none; make it first"),
        (Path("/proc/a.txt"), "cannot be written"),
    ):
        with pytest.raises(OutputError, match=message):
            check_output(path, overwrite=False)


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    target = tmp_path / "a[1].pt"
    others = [tmp_path / ".b.0123abcd.part.pt", tmp_path / ".a1.0123abcd.part.pt", tmp_path / ".a[1].long0123abcd.part.pt"]
    for path in (tmp_path / ".a[1].0123abcd.part.pt", *others):
        path.touch()
    with atomic_output(target, overwrite=False) as temporary:
        temporary.write_text("alive")
        remove_leftovers(target)
        assert sorted(tmp_path.iterdir()) == sorted([temporary, *others])
    assert target.read_text() == "alive"
