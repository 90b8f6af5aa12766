"""Run directories that are moved, replaced, edited or linked before or while a run writes to them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkvbatch.errors import RunDirectoryError, RunLockedError, RunReplacedError, StorageError
from rwkvbatch.results.directory import RunDirectory
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.lock import DirectoryLock
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.status import StatusFile
from rwkvbatch.results.store import RowStore
from rwkvbatch.results.summary import summarize, write_summary
from tests.replay.fakes import FakeLoader, make_plan, make_row
from tests.replay.runs import results, run
from tests.results.stores import NUM_ROWS, fill, open_store, row_number


def open_run(path: Path, numbers: range) -> tuple[RunDirectory, RowStore]:
    """A directory and store of a run that has written the rows `numbers` in reverse order."""
    directory = RunDirectory(path, "the first")
    directory.claim({"seed": 1}, dict)
    store = RowStore(directory.folder, NUM_ROWS, row_number)
    for number in reversed(numbers):
        store.append({number: make_row(str(number))})
    store.flush()
    return directory, store


def rows_in(path: Path) -> set[str]:
    return {row.conversation for row in read_results(path)}


def edit_in_place(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"hello", b"hallo", 1))


def replace_by_a_copy(path: Path) -> None:
    """Replace the file by an edited copy, as `sed -i` does."""
    copy = path.with_name("sed")
    copy.write_bytes(path.read_bytes().replace(b"hello", b"bye"))
    copy.replace(path)


class TestMoved:
    def test_rows_of_a_moved_directory_and_of_a_new_one_in_its_place_are_not_mixed(self, tmp_path: Path) -> None:
        first, store = open_run(tmp_path / "x", range(8))
        (tmp_path / "x").rename(tmp_path / "y")
        second, other = open_run(tmp_path / "x", range(20, 30))
        with pytest.raises(RunReplacedError, match=rf"directory was moved.*it is now {tmp_path / 'y'}"):
            store.finalize() or store.append({9: make_row("9")})
        store.close()
        first.close()
        other.finalize()
        other.close()
        second.close()
        assert rows_in(tmp_path / "y" / "results.jsonl") == {str(n) for n in range(8)}
        assert rows_in(tmp_path / "x" / "results.jsonl") == {str(n) for n in range(20, 30)}
        assert not list((tmp_path / "x").glob("*.tmp"))

    def test_a_moved_run_stops_and_leaves_the_files_of_the_next_run_unchanged(self, tmp_path: Path) -> None:
        path, next_files = tmp_path / "x", dict[str, bytes]()

        def move(request: object, reply: object) -> object:
            if not next_files and (path / "results.jsonl").stat().st_size:
                path.rename(tmp_path / "y")
                run(path, make_plan(seed=9))
                next_files.update((file.name, file.read_bytes()) for file in path.iterdir())
            return reply

        with pytest.raises(RunReplacedError, match="moved, removed or replaced"):
            run(path, loader=FakeLoader(change=move))  # type: ignore[arg-type]
        assert {file.name: file.read_bytes() for file in path.iterdir()} == next_files
        assert json.loads((tmp_path / "y" / "status.json").read_text())["state"] == "failed"
        assert rows_in(tmp_path / "y" / "results.jsonl")

    def test_rows_of_a_removed_directory_are_kept_in_a_file_beside_it(self, tmp_path: Path) -> None:
        directory, store = open_run(tmp_path / "x", range(8))
        shutil.rmtree(tmp_path / "x")
        with pytest.raises(RunReplacedError, match=r"its 8 rows can be found in .*x\.results\.aside-1"):
            store.append({9: make_row("9")})
        store.close()
        directory.close()
        assert rows_in(tmp_path / "x.results.aside-1") == {str(n) for n in range(8)}

    def test_no_file_of_a_moved_directory_is_replaced(self, tmp_path: Path) -> None:
        directory, store = open_run(tmp_path / "x", range(2))
        (tmp_path / "x").rename(tmp_path / "y")
        (tmp_path / "x").mkdir()
        with pytest.raises(RunReplacedError, match="the directory was moved"):
            write_summary(directory.folder, summarize([], [], 2), {})
        store.close()
        directory.close()
        assert not [path for path in tmp_path.glob("?/*") if path.name.startswith("summary.json")]


class TestEdited:
    def test_rows_of_a_replaced_file_are_set_aside_and_the_new_file_is_unchanged(self, tmp_path: Path) -> None:
        directory, store = open_run(tmp_path, range(8))
        replace_by_a_copy(tmp_path / "results.jsonl")
        edited = results(tmp_path)
        with pytest.raises(RunReplacedError, match=r"replaced by another file.*its 8 rows can be found"):
            store.append({9: make_row("9")})
        with pytest.raises(StorageError):  # like every later call
            store.finalize()
        store.close()
        directory.close()
        assert results(tmp_path) == edited
        assert rows_in(tmp_path / "results.aside-1") == {str(n) for n in range(8)}

    def test_rows_of_a_replaced_file_are_not_durable(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append({0: make_row("0")})
        replace_by_a_copy(tmp_path / "results.jsonl")
        with pytest.raises(RunReplacedError):
            store.flush()
        assert store.num_durable == 0

    @pytest.mark.parametrize(
        ("edit", "problem"),
        [
            (lambda path: path.write_bytes(b""), "it has 0 bytes"),
            (lambda path: path.write_bytes(path.read_bytes() + b"x\n"), "was changed by another program"),
            (edit_in_place, "line [1-8] was changed on the disk during the run: its checksum does not match"),
            (Path.unlink, "was removed or moved away"),
        ],
    )
    def test_a_file_that_was_changed_in_place_is_not_rewritten(
        self, tmp_path: Path, edit: Callable[[Path], object], problem: str
    ) -> None:
        directory, store = open_run(tmp_path, range(8))
        edit(tmp_path / "results.jsonl")
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"}
        with pytest.raises(RunReplacedError, match=problem):
            store.discard([0])
        store.close()
        directory.close()
        remaining = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"}
        assert remaining.items() >= files.items()
        assert remaining.keys() - files.keys() <= {"results.aside-1"}


class TestLock:
    def test_a_run_whose_lock_was_removed_stops_before_its_next_write(self, tmp_path: Path) -> None:
        directory, store = open_run(tmp_path, range(8))
        (tmp_path / ".lock").unlink()
        before = results(tmp_path)
        with pytest.raises(RunReplacedError, match=r"\.lock was removed or replaced"):
            store.append({9: make_row("9")})
        StatusFile(directory.folder).update({"rows_total": 1})
        store.close()
        directory.close()
        assert results(tmp_path) == before
        assert not (tmp_path / "status.json").exists()

    def test_a_second_writer_is_refused_after_the_lock_file_was_removed(self, tmp_path: Path) -> None:
        lock = DirectoryLock(tmp_path)
        (tmp_path / ".lock").unlink()
        with pytest.raises(RunLockedError):
            DirectoryLock(tmp_path)
        lock.release()

    def test_a_lock_that_is_a_symbolic_link_is_refused_and_its_target_unchanged(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("keep me")
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / ".lock").symlink_to(tmp_path / "precious")
        with pytest.raises(RunDirectoryError, match=r"\.lock: .*symbolic link"):
            RunDirectory(tmp_path / "x", "")
        assert (tmp_path / "precious").read_text() == "keep me"

    def test_a_lock_that_is_a_hard_link_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("keep me")
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / ".lock").hardlink_to(tmp_path / "precious")
        directory = RunDirectory(tmp_path / "x", "")
        with pytest.raises(RunLockedError):
            DirectoryLock(tmp_path / "x")
        assert directory.folder.is_ours
        directory.close()
        assert (tmp_path / "precious").read_text() == "keep me"

    def test_a_lock_that_is_a_fifo_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / ".lock")
        with pytest.raises(RunDirectoryError, match=r"\.lock: cannot be written to"):
            DirectoryLock(tmp_path)


class TestLinks:
    @pytest.mark.parametrize("name", ["manifest.json.tmp", "results.jsonl.tmp", "status.json.tmp", "summary.json.tmp"])
    def test_a_temporary_file_that_is_a_link_is_replaced_and_its_target_unchanged(
        self, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "precious").write_text("keep me")
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / name).symlink_to(tmp_path / "precious")
        run(tmp_path / "x")
        assert (tmp_path / "precious").read_text() == "keep me"
        assert not (tmp_path / "x" / name).exists()

    @pytest.mark.parametrize("name", ["results.jsonl", "results.damaged"])
    def test_rows_are_not_appended_to_the_target_of_a_link(self, tmp_path: Path, name: str) -> None:
        target = tmp_path / "precious"
        fill(tmp_path, range(2))
        if name == "results.jsonl":
            (tmp_path / name).rename(target)
        else:
            target.write_bytes(b"")
            (tmp_path / "results.jsonl").write_bytes(b"x\n" + results(tmp_path))
        (tmp_path / name).symlink_to(target)
        before = target.read_bytes()
        with pytest.raises(Exception, match="symbolic link"):
            open_store(tmp_path, repair=True)
        assert target.read_bytes() == before

    def test_results_that_are_a_hard_link_are_copied_before_rows_are_appended(self, tmp_path: Path) -> None:
        fill(tmp_path, range(2))
        with (tmp_path / "results.jsonl").open("ab") as file:
            file.write(b"torn")
        (tmp_path / "backup").hardlink_to(tmp_path / "results.jsonl")
        before = results(tmp_path)
        fill(tmp_path, [5])
        assert (tmp_path / "backup").read_bytes() == before
        assert rows_in(tmp_path / "results.jsonl") == {"0", "1", "5"}
        assert (tmp_path / "results.torn-1").read_bytes() == b"torn"

    def test_a_status_file_that_is_a_link_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("keep me")
        (tmp_path / "status.json").symlink_to(tmp_path / "precious")
        StatusFile(Folder(tmp_path)).update({"rows_total": 1})
        assert (tmp_path / "precious").read_text() == "keep me"
        assert json.loads((tmp_path / "status.json").read_text())["rows_total"] == 1
