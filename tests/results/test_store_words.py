"""The small print of the store: its words, the moments of its flushes, what it knows when it is opened again."""

from __future__ import annotations

import contextlib
import errno
import zlib
from pathlib import Path
from typing import ClassVar

import pytest

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, StorageError
from rwkvbatch.files import FILE_MODE, Files
from rwkvbatch.results import recovery as scan
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import BadLineError, decode_row, encode_row
from tests.replay.disks import CountedFiles, FailingFiles
from tests.replay.fakes import make_row
from tests.replay.runs import results
from tests.results.stores import Clock, fill, open_store

HINT = "1 row is safe; make room or repair the disk, then run the same command again to continue"


class TestMoments:
    def test_a_tick_at_once_and_a_tick_soon_after_leave_the_row_to_its_group(self, tmp_path: Path) -> None:
        clock = Clock()
        store = open_store(tmp_path, flush_seconds=2.0, clock=clock)
        store.append({0: make_row("0")})
        for now in (100.0, 100.25, 100.5, 101.0):
            clock.now = now
            store.tick()
            assert store.num_durable == 0

    def test_a_row_that_will_be_exactly_too_old_at_the_next_look_is_flushed(self, tmp_path: Path) -> None:
        clock = Clock()
        store = open_store(tmp_path, flush_seconds=2.0, clock=clock)
        store.append({0: make_row("0")})
        clock.now = 101.0  # a second old, and a second after the last look
        store.tick()
        assert store.num_durable == 1

    def test_a_flush_of_nothing_makes_no_call(self, tmp_path: Path) -> None:
        files = CountedFiles()
        store = open_store(tmp_path, files=files)
        files.calls.clear()
        store.flush()
        assert files.calls == []

    @pytest.mark.parametrize("broken", ["opening", "rewriting", "nothing"])
    def test_only_descriptors_that_are_its_own_are_closed_and_each_once(self, tmp_path: Path, broken: str) -> None:
        class Watched(Files):
            refuse = False
            opened: ClassVar[list[int]] = []
            closed: ClassVar[list[int]] = []

            def open_append(self, path: Path, at: int | None = None) -> int:
                if self.refuse:
                    raise OSError(errno.EMFILE, "Too many open files")
                self.opened.append(super().open_append(path, at))
                return self.opened[-1]

            def create(self, path: Path, mode: int = FILE_MODE, at: int | None = None) -> int:
                self.opened.append(super().create(path, mode, at))
                return self.opened[-1]

            def close(self, descriptor: int) -> None:
                self.closed.append(descriptor)
                if descriptor > 2:
                    super().close(descriptor)

        files = Watched()
        files.opened.clear()
        files.closed.clear()
        files.refuse = broken == "opening"
        with contextlib.suppress(StorageError, RunDirectoryError):
            store = open_store(tmp_path, files=files)
            store.append({1: make_row("1")})
            store.append({0: make_row("0")})
            files.refuse = broken == "rewriting"
            with contextlib.suppress(StorageError):
                store.finalize()
            store.close()
            store.close()
        assert sorted(files.closed) == sorted(files.opened)

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        files = CountedFiles()
        store = open_store(tmp_path, files=files)
        store.append({0: make_row("0")})
        store.read(0)
        files.calls.clear()
        store.close()
        store.close()
        assert files.calls == ["sync"]


class TestFailedRows:
    def test_a_store_that_is_opened_again_knows_which_rows_failed(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append({3: make_row("3", finish_reason="error")})
        store.append({1: make_row("1")})
        store.close()
        store = open_store(tmp_path)
        assert [store.failed(number) for number in range(4)] == [False, False, False, True]

    def test_a_rewrite_keeps_the_failures_of_the_rows_that_stay_and_only_those(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        for number, finish_reason in ((3, "error"), (2, "error"), (1, "stop")):
            store.append({number: make_row(str(number), finish_reason=finish_reason)})
        store.discard([2])
        store.finalize()
        assert [store.failed(number) for number in range(4)] == [False, False, False, True]


class TestWords:
    @pytest.mark.parametrize(
        ("conversation", "problem"),
        [
            ("elsewhere", "its conversation, cell, repeat or turn is not in this run"),
            ("0", "an earlier line has the same turn"),
        ],
    )
    def test_a_row_in_the_wrong_place(self, tmp_path: Path, conversation: str, problem: str) -> None:
        fill(tmp_path, range(2))
        with (tmp_path / "results.jsonl").open("ab") as file:
            file.write(2 * encode_row(make_row(conversation)))
        with pytest.raises(RunDamagedError) as caught:
            open_store(tmp_path)
        path = tmp_path / "results.jsonl"
        assert str(caught.value) == f"{path}:3: the row is damaged: {problem} (and 1 more)"
        assert caught.value.hint == ("give --repair to set damaged rows aside in results.damaged and run them again")

    @pytest.mark.parametrize(("count", "more"), [(1, ""), (3, " (and 2 more)")])
    def test_only_the_first_of_many_damaged_lines_is_told(self, tmp_path: Path, count: int, more: str) -> None:
        fill(tmp_path, range(2))
        path = tmp_path / "results.jsonl"
        path.write_bytes(count * b"x\n" + results(tmp_path))
        with pytest.raises(RunDamagedError) as caught:
            open_store(tmp_path)
        assert str(caught.value) == f"{path}:1: the row is damaged: it does not end in a checksum{more}"

    def test_a_directory_in_the_place_of_the_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "results.jsonl"
        path.mkdir()
        with pytest.raises(RunDirectoryError) as caught:
            open_store(tmp_path)
        assert str(caught.value) == f"{path}: cannot be opened for writing: Is a directory"

    def test_a_repair_that_fails(self, tmp_path: Path) -> None:
        class NoRoom(CountedFiles):
            def create(self, path: Path, mode: int = FILE_MODE, at: int | None = None) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        fill(tmp_path, range(1))
        path = tmp_path / "results.jsonl"
        path.write_bytes(results(tmp_path) + b"torn")
        with pytest.raises(StorageError) as caught:
            open_store(tmp_path, files=NoRoom())
        assert str(caught.value) == f"{path}: repair failed: No space left on device"
        assert results(tmp_path).endswith(b"torn")

    def test_what_can_be_wrong_with_a_line(self) -> None:
        def sealed(content: bytes) -> bytes:
            return b'%s,"crc":"%08x"}\n' % (content[:-1], zlib.crc32(content))

        whole = encode_row(make_row("1"))
        for line, problem in (
            (whole[:-1], "it does not end in a checksum"),
            (whole.replace(b"hello", b"hallo"), "its checksum does not match"),
            (sealed(b'{"turn":0}'), "it is not a row of this version (KeyError: 'conversation')"),
        ):
            with pytest.raises(BadLineError) as caught:
                decode_row(line)
            assert str(caught.value) == problem

    def test_reading_only_names_the_line_and_the_way_out(self, tmp_path: Path) -> None:
        fill(tmp_path, range(3))
        path = tmp_path / "results.jsonl"
        path.write_bytes(b"x\n" + results(tmp_path))
        with pytest.raises(RunDamagedError) as caught:
            list(read_results(path))
        assert str(caught.value) == f"{path}:1: the row is damaged: it does not end in a checksum"
        assert caught.value.hint == ("continue the run with --repair to set damaged rows aside and run them again")

    def test_reading_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RunDirectoryError) as caught:
            list(read_results(tmp_path / "none"))
        assert str(caught.value) == f"{tmp_path / 'none'}: cannot be read: No such file or directory"

    def test_a_row_that_changes_under_the_store(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append({0: make_row("0")})
        path = tmp_path / "results.jsonl"
        path.write_bytes(results(tmp_path).replace(b"hello", b"hallo"))
        with pytest.raises(RunDamagedError) as caught:
            store.read(0)
        assert str(caught.value) == f"{path}: a row changed on the disk during the run: its checksum does not match"

    def test_each_failure_says_what_was_tried_why_not_and_how_many_rows_are_safe(self, tmp_path: Path) -> None:
        files = FailingFiles(-1)
        store = open_store(tmp_path, files=files)
        store.append({1: make_row("1")})
        files.at = len(files.calls)
        path = tmp_path / "results.jsonl"
        with pytest.raises(StorageError) as caught:
            store.append({0: make_row("0")})
        assert (str(caught.value), caught.value.hint) == (f"{path}: write failed: No space left on device", HINT)
        with pytest.raises(StorageError) as caught:
            store.append({0: make_row("0")})
        assert (str(caught.value), caught.value.hint) == (
            f"{path}: earlier write failed: No space left on device",
            HINT,
        )

    def test_a_write_whose_flush_fails_too_is_reported_as_the_write(self, tmp_path: Path) -> None:
        class Broken(FailingFiles):
            def sync(self, descriptor: int) -> None:
                if self.at >= 0:
                    raise OSError(errno.EIO, "Input/output error")

        files = Broken(-1)
        store = open_store(tmp_path, files=files)
        store.append({0: make_row("0")})
        files.at = len(files.calls)
        with pytest.raises(StorageError, match="write failed: No space left"):
            store.append({1: make_row("1")})
        assert store.num_durable == 0

    def test_a_rewrite_that_cannot_open_the_new_file_can_still_be_closed(self, tmp_path: Path) -> None:
        class Once(CountedFiles):
            armed = False

            def open_append(self, path: Path, at: int | None = None) -> int:
                if self.armed:
                    raise OSError(errno.EMFILE, "Too many open files")
                return super().open_append(path, at)

        files = Once()
        store = open_store(tmp_path, files=files)
        store.append({1: make_row("1")})
        store.append({0: make_row("0")})
        files.armed = True
        with pytest.raises(StorageError) as caught:
            store.finalize()
        assert str(caught.value) == f"{tmp_path / 'results.jsonl'}: rewrite failed: Too many open files"
        store.close()


def test_of_a_line_without_an_end_only_the_beginning_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of zeros as large as the disk must not be read into memory at once."""
    fill(tmp_path, range(1))
    end = len(results(tmp_path))
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(bytes(5 * end))
    monkeypatch.setattr(scan, "MAX_LINE_BYTES", end)
    with (tmp_path / "results.jsonl").open("rb") as reader:
        lines = list(scan.scan_lines(reader, lambda key: 0, skip_long=True))
        reader.seek(0)
        kept = [len(line.data) for line in scan.read_lines(reader)]
    assert [line.end - line.start for line in lines] == [end, 5 * end]
    assert kept == [end, 64]
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b"\n" + (results(tmp_path)[:end]))
    with (tmp_path / "results.jsonl").open("rb") as reader:
        lines = list(scan.scan_lines(reader, lambda key: 0, skip_long=True))
    assert [line.end - line.start for line in lines] == [end, 5 * end + 1, end]
    with pytest.raises(RunDamagedError, match="it is longer than"):
        list(read_results(tmp_path / "results.jsonl"))
