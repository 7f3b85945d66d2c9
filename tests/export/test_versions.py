"""Version numbers: never twice, never half a version, one export at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tf_infer.errors import ConfigError, ExportError
from tf_infer.export import versions


def put(base_dir: Path, *names: str) -> None:
    for name in names:
        (base_dir / name).mkdir(parents=True)


def write(base_dir: Path, wanted: int | None = None) -> Path:
    with versions.staging(base_dir, wanted) as stage:
        (stage.folder / "file").write_text("content")
        return stage.publish()


def test_folders_with_a_number_are_versions_and_nothing_else_is(tmp_path: Path) -> None:
    put(tmp_path, "10", "9", "007", ".tmp-11", "1a", "-3", "٣")
    (tmp_path / "12").write_text("a file")
    assert versions.list_versions(tmp_path) == (7, 9, 10)
    assert versions.list_versions(tmp_path / "none") == ()


@pytest.mark.parametrize(("existing", "last", "wanted", "expected"), [
    ((), 0, None, 1), ((1, 3), 0, None, 4), ((1, 3), 8, None, 9), ((), 0, 7, 7), ((3,), 2, 9, 9)])
def test_the_next_version_is_above_all_that_ever_were(
        existing: tuple[int, ...], last: int, wanted: int | None, expected: int) -> None:
    assert versions.plan_version(existing, last, wanted) == expected


@pytest.mark.parametrize(("existing", "last", "wanted"), [((3,), 0, 3), ((3,), 0, 2), ((), 5, 5)])
def test_a_number_is_never_used_twice(
        existing: tuple[int, ...], last: int, wanted: int) -> None:
    with pytest.raises(ExportError, match=f"expected a number above .*, got {wanted}"):
        versions.plan_version(existing, last, wanted)


def test_a_deleted_version_does_not_come_back(tmp_path: Path) -> None:
    base_dir = tmp_path / "saved" / "model"
    assert write(base_dir) == base_dir / "1"
    assert write(base_dir, 5) == base_dir / "5"
    os.remove(base_dir / "5" / "file")
    (base_dir / "5").rmdir()
    assert write(base_dir) == base_dir / "6"
    assert versions.list_versions(base_dir) == (1, 6)


def test_a_half_written_version_keeps_its_number(tmp_path: Path) -> None:
    put(tmp_path, "4/variables")
    assert write(tmp_path).name == "5"


def test_a_stage_is_invisible_and_its_parent_can_be_served(tmp_path: Path) -> None:
    with versions.staging(tmp_path) as stage:
        assert versions.list_versions(tmp_path) == ()
        assert versions.list_versions(stage.folder.parent) == (1,)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_stage_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), versions.staging(tmp_path) as stage:
        (stage.folder / "half").write_text("x")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == [versions.RECORD_FILE]
    assert write(tmp_path).name == "1"


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    put(tmp_path, ".tmp-3/3/variables", ".tmp-removed-1/assets")
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [versions.RECORD_FILE, "1"]


def test_what_a_killed_export_left_goes_without_another_one_too(tmp_path: Path) -> None:
    put(tmp_path, ".tmp-3/3/variables", "2/file")
    versions.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [versions.RECORD_FILE, "2"]
    versions.clear(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with versions.staging(tmp_path) as stage:
        with pytest.raises(ExportError, match="no other export under way"):
            versions.clear(tmp_path)
        assert stage.folder.is_dir()


def test_a_second_export_at_the_same_time_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with versions.staging(tmp_path) as stage:
        with pytest.raises(ExportError, match="no other export under way"):
            write(tmp_path)
        assert stage.folder.is_dir()
        (stage.folder / "file").write_text("content")
        assert stage.publish().name == "1"


def test_a_rename_never_replaces_a_version(tmp_path: Path) -> None:
    with versions.staging(tmp_path) as stage:
        (stage.folder / "file").write_text("new")
        put(tmp_path, "1")
        (tmp_path / "1" / "file").write_text("old")
        with pytest.raises(OSError, match="not empty"):
            stage.publish()
    assert (tmp_path / "1" / "file").read_text() == "old"


def test_pruning_keeps_the_newest_and_their_numbers(tmp_path: Path) -> None:
    for _ in range(4):
        write(tmp_path)
    assert versions.prune(tmp_path, keep=2) == (1, 2)
    assert versions.list_versions(tmp_path) == (3, 4)
    assert versions.prune(tmp_path, keep=2) == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == [versions.RECORD_FILE, "3", "4"]
    assert write(tmp_path).name == "5"
    with pytest.raises(ConfigError, match=r"prune\.keep: expected >= 1"):
        versions.prune(tmp_path, keep=0)


def test_pruning_folders_of_another_writer_records_their_numbers(tmp_path: Path) -> None:
    put(tmp_path, "7", "8")
    assert versions.prune(tmp_path, keep=1) == (7,)
    (tmp_path / "8").rmdir()
    assert write(tmp_path).name == "9"


@pytest.mark.parametrize("content", [b"9 \x00", b"\xff9", b"nine\n", b"-3", b"9" * 5_000])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / versions.RECORD_FILE).write_bytes(content)
    with pytest.raises(ExportError, match=r"\.last_version: expected .* Write that number into"):
        write(tmp_path)
    with pytest.raises(ExportError, match=r"\.last_version: expected"):
        versions.prune(tmp_path, keep=1)
    assert (tmp_path / versions.RECORD_FILE).read_bytes() == content
    (tmp_path / versions.RECORD_FILE).write_text("9")
    assert write(tmp_path).name == "10"


def test_pruning_removes_folders_by_their_own_names(tmp_path: Path) -> None:
    put(tmp_path, "007", "7", "08", "9")
    assert versions.prune(tmp_path, keep=2) == (7,)
    assert sorted(path.name for path in tmp_path.iterdir()) == [versions.RECORD_FILE, "08", "9"]


def test_pruning_counts_the_versions_that_stand_once_it_has_the_lock(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "1", "2")
    lock = versions._lock

    def late(base_dir: Path) -> object:
        (base_dir / "1").rmdir()  # by another who had the lock before
        return lock(base_dir)

    monkeypatch.setattr(versions, "_lock", late)
    assert versions.prune(tmp_path, keep=1) == ()


def test_a_fault_after_the_rename_says_that_the_version_is_there(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = versions.sync_folder

    def broken(path: Path) -> None:
        if Path(path) == tmp_path:
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(versions, "sync_folder", broken)
    with pytest.raises(ExportError, match=r"/1: .*Input/output error\. The version is complete"):
        write(tmp_path)
    assert (tmp_path / "1" / "file").exists()
