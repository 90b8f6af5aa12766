"""The row store: flushes, rewriting in order, discarding, failing calls."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rwkvbatch.errors import RunDirectoryError, StorageError
from rwkvbatch.files import Files
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row_codec import EncodedRow
from tests.replay.disks import CountedFiles, FailingFiles
from tests.replay.fakes import make_row
from tests.replay.runs import results
from tests.results.stores import Clock, fill, open_store


class TestFlushing:
    def test_a_row_is_written_in_one_call(self, tmp_path: Path) -> None:
        files = CountedFiles()
        store = open_store(tmp_path, files=files)
        files.calls.clear()
        store.append({0: make_row("0")})
        assert files.calls == ["write"]

    def test_rows_are_durable_after_the_flush(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append({0: make_row("0")})
        assert (store.num_rows, store.num_durable) == (1, 0)
        store.flush()
        assert store.num_durable == 1

    def test_at_most_flush_rows_are_not_durable(self, tmp_path: Path) -> None:
        store = open_store(tmp_path, flush_rows=5)
        for number in range(23):
            store.append({number: make_row(str(number))})
            assert store.num_rows - store.num_durable < 5
        assert store.num_durable == 20

    def test_rows_are_durable_within_flush_seconds(self, tmp_path: Path) -> None:
        clock = Clock()
        store = open_store(tmp_path, flush_seconds=2.0, clock=clock)
        for number in range(100):
            store.append({number: make_row(str(number))})
            written_s = clock.now
            while store.num_durable < store.num_rows:
                clock.now += 0.3
                store.tick()
            assert clock.now - written_s <= 2.0

    def test_a_tick_without_rows_makes_no_call(self, tmp_path: Path) -> None:
        files, clock = CountedFiles(), Clock()
        store = open_store(tmp_path, files=files, clock=clock)
        files.calls.clear()
        clock.now += 1000
        store.tick()
        assert files.calls == []

    @pytest.mark.parametrize("jump", [-1e9, 1e9])
    def test_a_clock_that_jumps_flushes_at_once(self, tmp_path: Path, jump: float) -> None:
        clock = Clock()
        store = open_store(tmp_path, clock=clock)
        store.append({0: make_row("0")})
        clock.now += jump
        store.tick()
        assert store.num_durable == 1

    def test_closing_flushes(self, tmp_path: Path) -> None:
        files = CountedFiles()
        store = open_store(tmp_path, files=files)
        store.append({0: make_row("0")})
        files.calls.clear()
        store.close()
        assert files.calls == ["sync"]


class TestRewriting:
    def test_finalizing_sorts_rows_by_number(self, tmp_path: Path) -> None:
        ordered, shuffled = tmp_path / "a", tmp_path / "b"
        for directory, numbers in ((ordered, [0, 1, 2, 3]), (shuffled, [2, 0, 3, 1])):
            directory.mkdir()
            store = open_store(directory)
            for number in numbers:
                store.append({number: make_row(str(number))})
            store.finalize()
            assert [store.read(n).conversation for n in range(4)] == ["0", "1", "2", "3"]
            store.close()
        assert results(ordered) == results(shuffled)

    def test_rows_can_be_appended_after_finalizing(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append({5: make_row("5")})
        store.append({2: make_row("2")})
        store.finalize()
        store.append({3: make_row("3")})
        store.close()
        assert [row.conversation for row in read_results(tmp_path / "results.jsonl")] == ["2", "5", "3"]

    def test_discarded_rows_can_be_written_again(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append({0: make_row("0")})
        store.append({1: make_row("1", finish_reason="error")})
        assert [store.failed(n) for n in (0, 1)] == [False, True]
        store.discard([1])
        assert not store.has(1)
        store.append({1: make_row("1")})
        store.close()
        assert [row.finish_reason for row in read_results(tmp_path / "results.jsonl")] == ["stop", "stop"]

    def test_a_second_row_of_a_number_is_refused(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append({0: make_row("0")})
        with pytest.raises(ValueError, match="before"):
            store.append({0: make_row("0")})


class TestFailures:
    @pytest.mark.parametrize("short", [False, True])
    def test_after_a_failed_write_calls_are_refused_and_the_partial_row_is_removed(
        self, tmp_path: Path, short: bool
    ) -> None:
        files = FailingFiles(-1, short=short)
        store = open_store(tmp_path, files=files)
        store.append({0: make_row("0")})
        files.at = len(files.calls)
        with pytest.raises(StorageError, match="No space left"):
            store.append({1: make_row("1")})
        assert store.num_durable == 1
        with pytest.raises(StorageError):
            store.append({2: make_row("2")})
        with pytest.raises(StorageError):
            store.flush()
        store.close()
        assert [row.conversation for row in read_results(tmp_path / "results.jsonl")] == ["0"]
        assert results(tmp_path).endswith(b"\n")

    def test_a_failed_flush_is_not_repeated(self, tmp_path: Path) -> None:
        files = FailingFiles(-1, errno.EIO)
        store = open_store(tmp_path, files=files)
        store.append({0: make_row("0")})
        files.at = len(files.calls)
        with pytest.raises(StorageError, match="flush failed"):
            store.flush()
        num_syncs = files.calls.count("sync")
        with pytest.raises(StorageError):
            store.flush()
        store.close()
        assert files.calls.count("sync") == num_syncs
        assert store.num_durable == 0

    def test_a_failure_of_any_call_of_a_rewrite_loses_no_row(self, tmp_path: Path) -> None:
        counted = CountedFiles()
        for at in range(40):
            directory = tmp_path / str(at)
            directory.mkdir()
            fill(directory, [3, 1, 2, 0])
            old = sorted(results(directory).splitlines())
            files = FailingFiles(at) if at else counted
            try:
                store = open_store(directory, files=files)
                store.finalize()
                store.close()
            except (StorageError, RunDirectoryError):
                pass
            assert sorted(results(directory).splitlines()) == old
        assert len(counted.calls) > 5

    def test_the_full_device_stops_the_store(self, tmp_path: Path) -> None:
        class FullDevice(Files):
            def write(self, descriptor: int, data: bytes) -> int:
                full = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
                try:
                    return os.write(full, data)
                finally:
                    os.close(full)

        store = open_store(tmp_path, files=FullDevice())
        with pytest.raises(StorageError, match="No space left"):
            store.append({0: make_row("0")})
        assert store.num_durable == 0


def test_appending_several_rows_flushes_before_flush_rows_is_exceeded(tmp_path: Path) -> None:
    def group(first: int) -> list[EncodedRow]:
        return [EncodedRow.of(n, make_row(f"c{n}")) for n in range(first, first + 5)]

    store = open_store(tmp_path, flush_rows=8)
    store.append_encoded(group(0))
    assert (store.num_rows, store.num_durable) == (5, 0)
    store.append_encoded(group(5))
    assert (store.num_rows, store.num_durable) == (10, 5)
    store.close()


def test_appending_no_rows_writes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append({})
    store.append({1: make_row("1")})
    before = (tmp_path / "results.jsonl").read_bytes()
    store.append({})
    assert (tmp_path / "results.jsonl").read_bytes() == before
    store.close()
