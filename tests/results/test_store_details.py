"""The row store in detail: error messages, times of flushes, descriptors, failed rows."""

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
from rwkvbatch.results.row_codec import BadLineError, decode_row, encode_row
from tests.replay.disks import CountedFiles, FailingFiles
from tests.replay.fakes import make_row
from tests.replay.runs import results
from tests.results.stores import Clock, fill, open_store

HINT = "1 row is safe; make room or repair the disk, then run the same command again to continue"


class TestFlushesAndDescriptors:
    def test_early_ticks_do_not_flush(self, tmp_path: Path) -> None:
        clock = Clock()
        store = open_store(tmp_path, flush_seconds=2.0, clock=clock)
        store.append({0: make_row("0")})
        for now in (100.0, 100.25, 100.5, 101.0):
            clock.now = now
            store.tick()
            assert store.num_durable == 0

    def test_a_tick_flushes_a_row_that_would_be_too_old_at_the_next_tick(self, tmp_path: Path) -> None:
        clock = Clock()
        store = open_store(tmp_path, flush_seconds=2.0, clock=clock)
        store.append({0: make_row("0")})
        clock.now = 101.0  # the row and the last tick are a second old
        store.tick()
        assert store.num_durable == 1

    def test_a_flush_without_rows_makes_no_call(self, tmp_path: Path) -> None:
        files = CountedFiles()
        store = open_store(tmp_path, files=files)
        files.calls.clear()
        store.flush()
        assert files.calls == []

    @pytest.mark.parametrize("failing", ["opening", "rewriting", "nothing"])
    def test_each_opened_descriptor_is_closed_once(self, tmp_path: Path, failing: str) -> None:
        class RecordingFiles(Files):
            fails = False
            opened: ClassVar[list[int]] = []
            closed: ClassVar[list[int]] = []

            def open_append(self, path: Path, at: int | None = None) -> int:
                if self.fails:
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

        files = RecordingFiles()
        files.opened.clear()
        files.closed.clear()
        files.fails = failing == "opening"
        with contextlib.suppress(StorageError, RunDirectoryError):
            store = open_store(tmp_path, files=files)
            store.append({1: make_row("1")})
            store.append({0: make_row("0")})
            files.fails = failing == "rewriting"
            with contextlib.suppress(StorageError):
                store.finalize()
            store.close()
            store.close()
        assert sorted(files.closed) == sorted(files.opened)

    def test_closing_twice_flushes_once(self, tmp_path: Path) -> None:
        files = CountedFiles()
        store = open_store(tmp_path, files=files)
        store.append({0: make_row("0")})
        store.read(0)
        files.calls.clear()
        store.close()
        store.close()
        assert files.calls == ["sync"]


class TestFailedRows:
    def test_an_opened_store_knows_which_rows_failed(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append({3: make_row("3", finish_reason="error")})
        store.append({1: make_row("1")})
        store.close()
        store = open_store(tmp_path)
        assert [store.failed(number) for number in range(4)] == [False, False, False, True]

    def test_a_rewrite_keeps_the_failures_of_the_remaining_rows(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        for number, finish_reason in ((3, "error"), (2, "error"), (1, "stop")):
            store.append({number: make_row(str(number), finish_reason=finish_reason)})
        store.discard([2])
        store.finalize()
        assert [store.failed(number) for number in range(4)] == [False, False, False, True]


class TestMessages:
    @pytest.mark.parametrize(
        ("conversation", "problem"),
        [
            ("elsewhere", "its conversation, cell, repeat or turn is not in this run"),
            ("0", "an earlier line has the same turn"),
        ],
    )
    def test_the_message_for_a_foreign_or_duplicated_row(self, tmp_path: Path, conversation: str, problem: str) -> None:
        fill(tmp_path, range(2))
        with (tmp_path / "results.jsonl").open("ab") as file:
            file.write(2 * encode_row(make_row(conversation)))
        with pytest.raises(RunDamagedError) as caught:
            open_store(tmp_path)
        path = tmp_path / "results.jsonl"
        assert str(caught.value) == f"{path}:3: the row is damaged: {problem} (and 1 more)"
        assert caught.value.hint == ("give --repair to set damaged rows aside in results.damaged and run them again")

    @pytest.mark.parametrize(("count", "more"), [(1, ""), (3, " (and 2 more)")])
    def test_the_message_names_the_first_damaged_line_and_counts_others(
        self, tmp_path: Path, count: int, more: str
    ) -> None:
        fill(tmp_path, range(2))
        path = tmp_path / "results.jsonl"
        path.write_bytes(count * b"x\n" + results(tmp_path))
        with pytest.raises(RunDamagedError) as caught:
            open_store(tmp_path)
        assert str(caught.value) == f"{path}:1: the row is damaged: it does not end in a checksum{more}"

    def test_the_message_for_a_directory_in_place_of_the_results(self, tmp_path: Path) -> None:
        path = tmp_path / "results.jsonl"
        path.mkdir()
        with pytest.raises(RunDirectoryError) as caught:
            open_store(tmp_path)
        assert str(caught.value) == f"{path}: cannot be opened for writing: Is a directory"

    def test_the_message_for_a_failed_repair(self, tmp_path: Path) -> None:
        class FullDisk(CountedFiles):
            def create(self, path: Path, mode: int = FILE_MODE, at: int | None = None) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        fill(tmp_path, range(1))
        path = tmp_path / "results.jsonl"
        path.write_bytes(results(tmp_path) + b"torn")
        with pytest.raises(StorageError) as caught:
            open_store(tmp_path, files=FullDisk())
        assert str(caught.value) == f"{path}: repair failed: No space left on device"
        assert results(tmp_path).endswith(b"torn")

    def test_the_messages_for_invalid_lines(self) -> None:
        def with_checksum(content: bytes) -> bytes:
            return b'%s,"crc":"%08x"}\n' % (content[:-1], zlib.crc32(content))

        whole = encode_row(make_row("1"))
        for line, problem in (
            (whole[:-1], "it does not end in a checksum"),
            (whole.replace(b"hello", b"hallo"), "its checksum does not match"),
            (with_checksum(b'{"turn":0}'), "it is not a row of this version (conversation is missing)"),
        ):
            with pytest.raises(BadLineError) as caught:
                decode_row(line)
            assert str(caught.value) == problem

    def test_the_message_for_reading_a_damaged_line(self, tmp_path: Path) -> None:
        fill(tmp_path, range(3))
        path = tmp_path / "results.jsonl"
        path.write_bytes(b"x\n" + results(tmp_path))
        with pytest.raises(RunDamagedError) as caught:
            list(read_results(path))
        assert str(caught.value) == f"{path}:1: the row is damaged: it does not end in a checksum"
        assert caught.value.hint == ("continue the run with --repair to set damaged rows aside and run them again")

    def test_the_message_for_reading_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(RunDirectoryError) as caught:
            list(read_results(tmp_path / "none"))
        assert str(caught.value) == f"{tmp_path / 'none'}: cannot be read: No such file or directory"

    def test_the_message_for_a_row_changed_on_disk(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append({0: make_row("0")})
        path = tmp_path / "results.jsonl"
        path.write_bytes(results(tmp_path).replace(b"hello", b"hallo"))
        with pytest.raises(RunDamagedError) as caught:
            store.read(0)
        assert str(caught.value) == f"{path}: a row changed on the disk during the run: its checksum does not match"

    def test_messages_of_failed_writes_have_the_cause_and_the_number_of_safe_rows(self, tmp_path: Path) -> None:
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
        class FailingSyncs(FailingFiles):
            def sync(self, descriptor: int) -> None:
                if self.at >= 0:
                    raise OSError(errno.EIO, "Input/output error")

        files = FailingSyncs(-1)
        store = open_store(tmp_path, files=files)
        store.append({0: make_row("0")})
        files.at = len(files.calls)
        with pytest.raises(StorageError, match="write failed: No space left"):
            store.append({1: make_row("1")})
        assert store.num_durable == 0

    def test_a_rewrite_that_cannot_open_the_new_file_can_still_be_closed(self, tmp_path: Path) -> None:
        class FailingOpen(CountedFiles):
            fails = False

            def open_append(self, path: Path, at: int | None = None) -> int:
                if self.fails:
                    raise OSError(errno.EMFILE, "Too many open files")
                return super().open_append(path, at)

        files = FailingOpen()
        store = open_store(tmp_path, files=files)
        store.append({1: make_row("1")})
        store.append({0: make_row("0")})
        files.fails = True
        with pytest.raises(StorageError) as caught:
            store.finalize()
        assert str(caught.value) == f"{tmp_path / 'results.jsonl'}: rewrite failed: Too many open files"
        store.close()


def test_only_the_start_of_an_endless_line_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of zeros as large as the disk must not be read into memory."""
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
