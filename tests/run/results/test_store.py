from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunLockedError, StorageError
from rwkvbatch.run.directory.lock import DirectoryLock
from rwkvbatch.run.results.files import Files
from rwkvbatch.run.results.lines import BadLineError, EncodedRow, RowHead, decode_head, decode_row, encode_row
from rwkvbatch.run.results.rows import Row, RowKey
from rwkvbatch.run.results.scan import read_results
from rwkvbatch.run.results.store import RowStore
from tests.run.fakes import CountedFiles, FailingFiles, PowerCutFiles, make_row

NUM_ROWS = 200


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def place(key: RowKey) -> int | None:
    number = int(key.conversation) if key.conversation.isdigit() else -1
    return number if 0 <= number < NUM_ROWS else None


def open_store(directory: Path, **options: Any) -> RowStore:
    return RowStore(directory, NUM_ROWS, place, **options)


def fill(directory: Path, numbers: range | list[int], **options: Any) -> None:
    store = open_store(directory, **options)
    for number in numbers:
        store.append(number, make_row(str(number)))
    store.close()


def results(directory: Path) -> bytes:
    return (directory / "results.jsonl").read_bytes()


class TestLines:
    @given(reply=st.text(), prompt=st.text(st.characters()), ids=st.lists(st.integers(0, 2**31)))
    def test_a_row_comes_back_from_its_line(self, reply: str, prompt: str, ids: list[int]) -> None:
        row = make_row("1", reply=reply, prompt=prompt, reply_ids=tuple(ids))
        line = encode_row(row)
        assert line.count(b"\n") == 1
        assert decode_row(line) == row

    def test_a_lone_surrogate_is_kept(self) -> None:
        row = make_row("1", prompt="\ud800 and 树")
        assert decode_row(encode_row(row)) == row

    @given(
        prompt=st.text(st.characters()),
        finish=st.sampled_from(["stop", "error"]),
        ids=st.lists(st.integers()),
        change=st.none() | st.tuples(st.integers(0, 10_000), st.integers(1, 255)),
    )
    def test_the_head_alone_is_that_of_the_whole_row_and_as_easily_refused(
        self, prompt: str, finish: str, ids: list[int], change: tuple[int, int] | None
    ) -> None:
        line = bytearray(encode_row(make_row("1", 3, finish=finish, prompt=prompt, reply_ids=tuple(ids))))
        if change is not None:
            line[change[0] % len(line)] ^= change[1]

        def outcome(decode: Callable[[bytes], Row | RowHead]) -> tuple[RowKey, str] | str:
            try:
                found = decode(bytes(line))
            except BadLineError as error:
                return str(error)
            return found.key, found.finish

        assert outcome(decode_head) == outcome(decode_row)

    @pytest.mark.parametrize(
        "body", ["[]", "null", '{"conversation":["a"],"cell":"b"}', "[" * 5000 + "]" * 5000]
    )
    def test_a_head_of_something_else_is_refused(self, body: str) -> None:
        import zlib

        text = body[:-1] + "}"
        line = f'{body[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()
        with pytest.raises(BadLineError, match="not a row of this version"):
            decode_head(line)

    def test_the_checksum_is_that_of_the_line_without_it(self) -> None:
        import zlib

        line = encode_row(make_row("1"))
        text, _, tail = line.decode().rpartition(',"crc":"')
        assert tail == f'{zlib.crc32((text + "}").encode()):08x}"}}\n'
        assert list(json.loads(line))[-1] == "crc"

    @given(data=st.data())
    def test_any_changed_byte_is_noticed(self, data: st.DataObject) -> None:
        line = bytearray(encode_row(make_row("1", reply="größe")))
        at = data.draw(st.integers(0, len(line) - 1))
        line[at] ^= data.draw(st.integers(1, 255))
        with pytest.raises(BadLineError):
            decode_row(bytes(line))

    @given(cut=st.integers(0, 10_000))
    def test_any_cut_line_is_noticed(self, cut: int) -> None:
        line = encode_row(make_row("1"))
        with pytest.raises(BadLineError):
            decode_row(line[: cut % len(line)])

    def test_infinity_is_refused(self) -> None:
        from rwkvbatch.run.results.rows import Logprob

        with pytest.raises(ValueError, match="not JSON compliant"):
            encode_row(make_row("1", logprob=Logprob(float("inf"), 0.0)))


class TestFlushing:
    def test_a_row_is_written_in_one_call(self, tmp_path: Path) -> None:
        files = CountedFiles()
        store = open_store(tmp_path, files=files)
        files.calls.clear()
        store.append(0, make_row("0"))
        assert files.calls == ["write"]

    def test_rows_count_as_durable_after_the_flush_and_not_before(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append(0, make_row("0"))
        assert (store.num_rows, store.num_durable) == (1, 0)
        store.flush()
        assert store.num_durable == 1

    def test_no_more_rows_than_allowed_are_at_risk(self, tmp_path: Path) -> None:
        store = open_store(tmp_path, flush_rows=5)
        for number in range(23):
            store.append(number, make_row(str(number)))
            assert store.num_rows - store.num_durable < 5
        assert store.num_durable == 20

    def test_a_row_gets_no_older_than_allowed(self, tmp_path: Path) -> None:
        clock = Clock()
        store = open_store(tmp_path, flush_seconds=2.0, clock=clock)
        for number in range(100):
            store.append(number, make_row(str(number)))
            written_s = clock.now
            while store.num_durable < store.num_rows:
                clock.now += 0.3
                store.tick()
            assert clock.now - written_s <= 2.0

    def test_a_tick_without_rows_does_nothing(self, tmp_path: Path) -> None:
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
        store.append(0, make_row("0"))
        clock.now += jump
        store.tick()
        assert store.num_durable == 1

    def test_closing_flushes(self, tmp_path: Path) -> None:
        files = CountedFiles()
        store = open_store(tmp_path, files=files)
        store.append(0, make_row("0"))
        files.calls.clear()
        store.close()
        assert files.calls == ["sync"]


class TestOpening:
    def test_rows_are_there_again(self, tmp_path: Path) -> None:
        fill(tmp_path, [3, 1, 2])
        store = open_store(tmp_path)
        assert [row.conversation for row in store.rows()] == ["1", "2", "3"]
        assert store.opening.rows == store.num_durable == 3
        assert not store.has(0)
        with pytest.raises(KeyError):
            store.read(0)

    @given(cut=st.integers(1, 10_000), garbage=st.binary(max_size=30))
    @settings(max_examples=40)
    def test_a_torn_tail_is_cut_off_and_kept(self, cut: int, garbage: bytes) -> None:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            fill(directory, range(3))
            whole = results(directory)
            last = whole[whole.rindex(b"\n", 0, -1) + 1 :]
            torn = last[: -1 - cut % (len(last) - 1)] + garbage
            (directory / "results.jsonl").write_bytes(whole[: -len(last)] + torn)
            store = open_store(directory)
            assert store.num_rows == 2
            assert results(directory) == whole[: -len(last)]
            if torn:
                assert (directory / "results.torn-1").read_bytes() == torn
            assert store.opening.torn_bytes == len(torn)
            store.append(2, make_row("2"))
            store.close()
            assert results(directory) == whole

    def test_every_torn_tail_is_kept_under_a_name_of_its_own(self, tmp_path: Path) -> None:
        for count in range(1, 4):
            with (tmp_path / "results.jsonl").open("ab") as file:
                file.write(b"torn %d" % count)
            open_store(tmp_path).close()
        assert [(tmp_path / f"results.torn-{n}").read_bytes() for n in (1, 2, 3)] == [
            b"torn 1",
            b"torn 2",
            b"torn 3",
        ]

    def test_damage_in_the_middle_is_refused_with_its_line(self, tmp_path: Path) -> None:
        fill(tmp_path, range(5))
        lines = results(tmp_path).splitlines(keepends=True)
        lines[2] = lines[2].replace(b"hello", b"hellu")
        (tmp_path / "results.jsonl").write_bytes(b"".join(lines))
        with pytest.raises(RunDamagedError, match=r"results\.jsonl:3: .*checksum") as caught:
            open_store(tmp_path)
        assert caught.value.hint is not None
        assert "--repair" in caught.value.hint
        assert results(tmp_path) == b"".join(lines)
        with pytest.raises(RunDamagedError, match=r":3:"):
            list(read_results(tmp_path / "results.jsonl"))

    def test_repair_sets_damaged_rows_aside(self, tmp_path: Path) -> None:
        fill(tmp_path, range(5))
        lines = results(tmp_path).splitlines(keepends=True)
        bad = [b"not a row\n", lines[3][:-30] + b"\n"]
        (tmp_path / "results.jsonl").write_bytes(
            b"".join([lines[0], bad[0], lines[2], bad[1], lines[4], b"torn"])
        )
        store = open_store(tmp_path, repair=True)
        assert [row.conversation for row in store.rows()] == ["0", "2", "4"]
        assert store.opening.repaired_lines == 2
        assert (tmp_path / "results.damaged").read_bytes() == b"".join(bad)
        store.append(1, make_row("1"))
        store.close()
        assert results(tmp_path) == b"".join([lines[0], lines[2], lines[4], lines[1]])

    @pytest.mark.parametrize("row", [make_row("elsewhere"), make_row("1")])
    def test_a_row_of_no_place_and_a_second_one_are_damage_even_at_the_end(
        self, tmp_path: Path, row: Row
    ) -> None:
        fill(tmp_path, range(3))
        with (tmp_path / "results.jsonl").open("ab") as file:
            file.write(encode_row(row))
        with pytest.raises(RunDamagedError, match=":4:"):
            open_store(tmp_path)
        assert open_store(tmp_path, repair=True).num_rows == 3

    def test_a_directory_in_the_file_s_place_is_an_error_with_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "results.jsonl").mkdir()
        with pytest.raises(RunDirectoryError, match=r"results\.jsonl"):
            open_store(tmp_path)


class TestRewriting:
    def test_finalizing_brings_rows_into_the_plan_s_order(self, tmp_path: Path) -> None:
        ordered, shuffled = tmp_path / "a", tmp_path / "b"
        for directory, numbers in ((ordered, [0, 1, 2, 3]), (shuffled, [2, 0, 3, 1])):
            directory.mkdir()
            store = open_store(directory)
            for number in numbers:
                store.append(number, make_row(str(number)))
            store.finalize()
            assert [store.read(n).conversation for n in range(4)] == ["0", "1", "2", "3"]
            store.close()
        assert results(ordered) == results(shuffled)

    def test_rows_can_be_appended_after_finalizing(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append(5, make_row("5"))
        store.append(2, make_row("2"))
        store.finalize()
        store.append(3, make_row("3"))
        store.close()
        assert [row.conversation for row in read_results(tmp_path / "results.jsonl")] == ["2", "5", "3"]

    def test_discarded_rows_are_gone_and_can_be_written_again(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append(0, make_row("0"))
        store.append(1, make_row("1", finish="error"))
        assert [store.failed(n) for n in (0, 1)] == [False, True]
        store.discard([1])
        assert not store.has(1)
        store.append(1, make_row("1"))
        store.close()
        assert [row.finish for row in read_results(tmp_path / "results.jsonl")] == ["stop", "stop"]

    def test_a_row_cannot_be_written_twice(self, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.append(0, make_row("0"))
        with pytest.raises(ValueError, match="before"):
            store.append(0, make_row("0"))


class TestFailures:
    @pytest.mark.parametrize("short", [False, True])
    def test_after_a_failed_write_nothing_more_is_promised_and_nothing_half_stays(
        self, tmp_path: Path, short: bool
    ) -> None:
        files = FailingFiles(-1, short=short)
        store = open_store(tmp_path, files=files)
        store.append(0, make_row("0"))
        files.at = len(files.calls)
        with pytest.raises(StorageError, match="No space left"):
            store.append(1, make_row("1"))
        assert store.num_durable == 1
        with pytest.raises(StorageError):
            store.append(2, make_row("2"))
        with pytest.raises(StorageError):
            store.flush()
        store.close()
        assert [row.conversation for row in read_results(tmp_path / "results.jsonl")] == ["0"]
        assert results(tmp_path).endswith(b"\n")

    def test_a_failed_flush_is_never_tried_again(self, tmp_path: Path) -> None:
        files = FailingFiles(-1, errno.EIO)
        store = open_store(tmp_path, files=files)
        store.append(0, make_row("0"))
        files.at = len(files.calls)
        with pytest.raises(StorageError, match="flush failed"):
            store.flush()
        syncs = files.calls.count("sync")
        with pytest.raises(StorageError):
            store.flush()
        store.close()
        assert files.calls.count("sync") == syncs
        assert store.num_durable == 0

    def test_every_failing_call_of_a_rewrite_leaves_the_old_rows_or_the_new(self, tmp_path: Path) -> None:
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
            def open_append(self, path: Path) -> int:
                path.touch()
                return os.open("/dev/full", os.O_WRONLY | os.O_APPEND)

            def sync(self, descriptor: int) -> None: ...

            def truncate(self, descriptor: int, size: int) -> None:
                raise OSError(errno.EINVAL, "a device has no size")

        store = open_store(tmp_path, files=FullDevice())
        with pytest.raises(StorageError, match="No space left"):
            store.append(0, make_row("0"))
        assert store.num_durable == 0


class TestLock:
    def test_a_second_writer_is_told_who_is_there(self, tmp_path: Path) -> None:
        lock = DirectoryLock(tmp_path, "rwkvbatch run x.jsonl")
        with pytest.raises(RunLockedError, match=rf"process {os.getpid()} on .*rwkvbatch run x\.jsonl"):
            DirectoryLock(tmp_path)
        lock.release()
        DirectoryLock(tmp_path).release()

    def test_a_lock_left_behind_by_a_dead_process_does_not_lock(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text('{"pid": 1, "host": "h", "command": "c"}')
        DirectoryLock(tmp_path).release()

    def test_a_file_in_place_of_the_directory_is_one_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(RunDirectoryError, match="cannot be written to"):
            DirectoryLock(tmp_path / "file")


class StoreMachine(RuleBasedStateMachine):
    """Whatever is appended, flushed, cut off and reopened: a durable row stays, no row is there twice or altered."""

    numbers = Bundle("numbers")

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.files = PowerCutFiles()
        self.clock = Clock()
        self.written: dict[int, Row] = {}
        self.durable: set[int] = set()
        self.lock = DirectoryLock(self.directory)
        self._open()

    def _open(self) -> None:
        self.store = open_store(self.directory, files=self.files, clock=self.clock, flush_rows=4)
        found = {n for n in range(NUM_ROWS) if self.store.has(n)}
        assert self.durable <= found, "a row that was reported as done is gone"
        assert found <= set(self.written)
        for number in found:
            assert self.store.read(number) == self.written[number]
        self.written = {n: self.written[n] for n in found}
        self.durable = found
        assert self.store.num_durable == len(found)

    def _note(self) -> None:
        if self.store.num_durable == len(self.written):
            self.durable = set(self.written)

    @rule(number=st.integers(0, NUM_ROWS - 1), reply=st.text(max_size=8), failed=st.booleans())
    def append(self, number: int, reply: str, failed: bool) -> None:
        row = make_row(str(number), reply=reply, finish="error" if failed else "stop")
        if number in self.written:
            with pytest.raises(ValueError, match="before"):
                self.store.append(number, row)
            return
        self.written[number] = row
        self.store.append(number, row)
        self._note()

    @rule(seconds=st.floats(-10, 10))
    def tick(self, seconds: float) -> None:
        self.clock.now += seconds
        self.store.tick()
        self._note()

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self._note()

    @rule()
    def finalize(self) -> None:
        self.store.finalize()
        self._note()

    @rule()
    def retry_errors(self) -> None:
        gone = [n for n in self.written if self.store.failed(n)]
        self.store.discard(gone)
        for number in gone:
            del self.written[number]
        self.durable -= set(gone)
        if gone:
            self.durable = set(self.written)

    @rule(data=st.data())
    def cut_power(self, data: st.DataObject) -> None:
        self.files.cut_power(lambda most: data.draw(st.integers(0, most)))
        self.store._descriptor = -1  # pyright: ignore[reportPrivateUsage]  # the dead process's
        self.lock.release()
        self.lock = DirectoryLock(self.directory)
        self._open()

    @rule()
    def close_and_open(self) -> None:
        self.store.close()
        self.durable = set(self.written)
        self._open()

    @rule()
    def second_writer(self) -> None:
        with pytest.raises(RunLockedError):
            DirectoryLock(self.directory)

    @invariant()
    @precondition(lambda self: hasattr(self, "store"))
    def counts_agree(self) -> None:
        assert self.store.num_rows == len(self.written)
        assert len(self.durable) <= self.store.num_durable <= len(self.written)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.lock.release()
            shutil.rmtree(self.directory)


StoreMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestStoreMachine = StoreMachine.TestCase


def test_rows_that_come_together_put_no_more_at_risk_than_allowed(tmp_path: Path) -> None:
    def group(first: int) -> list[EncodedRow]:
        return [EncodedRow(n, encode_row(make_row(f"c{n}")), False) for n in range(first, first + 5)]

    store = open_store(tmp_path, flush_rows=8)
    store.append_all(group(0))
    assert (store.num_rows, store.num_durable) == (5, 0)
    store.append_all(group(5))
    assert (store.num_rows, store.num_durable) == (10, 5)
    store.close()
