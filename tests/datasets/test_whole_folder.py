from pathlib import Path

import pytest

from autoreg.datasets.whole_folder import atomic_folder
from autoreg.errors import OutputError

ENTRIES = ("a.txt", "b.txt")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_old(folder: Path) -> Path:
    target = folder / "out"
    target.mkdir()
    (target / "a.txt").write_text("old")
    return target


@pytest.mark.parametrize("exists", [False, True])
def test_the_folder_appears_when_it_is_complete(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "out"
    if exists:
        target.mkdir()
    with atomic_folder(target, overwrite=False, entries=ENTRIES) as folder:
        (folder / "a.txt").write_text("new")
        assert not target.exists() or not names(target)
    assert (target / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_replaced_folder_keeps_nothing_of_the_old(tmp_path: Path) -> None:
    target = make_old(tmp_path)
    with atomic_folder(target, overwrite=True, entries=ENTRIES) as folder:
        (folder / "b.txt").write_text("new")
        assert names(target) == ["a.txt"]
    assert names(target) == ["b.txt"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = make_old(tmp_path)
    with pytest.raises(error), atomic_folder(target, overwrite=True, entries=ENTRIES) as folder:
        (folder / "b.txt").write_text("half")
        raise error
    assert (target / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_the_old_folder_is_back_if_the_new_one_cannot_take_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_old(tmp_path)
    rename = Path.rename

    def fail_on_new(self: Path, to: Path) -> Path:
        if self.suffix == ".part":
            raise PermissionError(13, "Permission denied")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_on_new)
    with (
        pytest.raises(OutputError, match="out was not written: Permission denied"),
        atomic_folder(target, overwrite=True, entries=ENTRIES),
    ):
        pass
    assert (target / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="out was not written: No space left on device"),
        atomic_folder(tmp_path / "out", overwrite=False, entries=ENTRIES),
    ):
        Path("/dev/full").write_bytes(b"x" * 100)
    assert names(tmp_path) == []


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    target = make_old(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(target)
    with atomic_folder(link, overwrite=True, entries=ENTRIES) as folder:
        (folder / "b.txt").write_text("new")
    assert link.is_symlink()
    assert names(target) == ["b.txt"]


def test_what_cannot_be_written_is_named_before_any_work(tmp_path: Path) -> None:
    target = make_old(tmp_path)
    foreign = tmp_path / "home"
    foreign.mkdir()
    (foreign / "thesis.doc").touch()
    for path, overwrite, message in (
        (target, False, "out exists and is not empty; use --overwrite"),
        (target / "a.txt", True, "a.txt is a file, expected the name of a folder"),
        (tmp_path / "none" / "out", False, "there is no folder .*none; make it first"),
        (foreign, True, "holds thesis.doc, so it is more than a prepared data set and not replaced"),
        (Path("/proc/out"), False, "out was not written"),
    ):
        with pytest.raises(OutputError, match=message), atomic_folder(path, overwrite=overwrite, entries=ENTRIES):
            pytest.fail("work started")
    assert (foreign / "thesis.doc").exists()
