"""A stateful property test of the row store: any order of operations and power cuts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from rwkvbatch.errors import RunLockedError
from rwkvbatch.results.lock import DirectoryLock
from rwkvbatch.results.row import Row
from tests.memory import memory_folder
from tests.replay.disks import PowerCutFiles
from tests.replay.fakes import make_row
from tests.results.stores import NUM_ROWS, Clock, open_store


class StoreMachine(RuleBasedStateMachine):
    """Durable rows stay, and no row is duplicated or altered, after any operations."""

    numbers = Bundle("numbers")

    @initialize()
    def open_empty(self) -> None:
        self.directory = Path(tempfile.mkdtemp(dir=memory_folder()))
        self.files = PowerCutFiles()
        self.clock = Clock()
        self.written: dict[int, Row] = {}
        self.durable: set[int] = set()
        self.lock = DirectoryLock(self.directory)
        self._open()

    def _open(self) -> None:
        self.store = open_store(self.directory, files=self.files, clock=self.clock, flush_rows=4)
        found = {n for n in range(NUM_ROWS) if self.store.has(n)}
        assert self.durable <= found, "a durable row is missing"
        assert found <= set(self.written)
        for number in found:
            assert self.store.read(number) == self.written[number]
        self.written = {n: self.written[n] for n in found}
        self.durable = found
        assert self.store.num_durable == len(found)

    def _update_durable(self) -> None:
        if self.store.num_durable == len(self.written):
            self.durable = set(self.written)

    @rule(number=st.integers(0, NUM_ROWS - 1), reply=st.text(max_size=8), failed=st.booleans())
    def append(self, number: int, reply: str, failed: bool) -> None:
        row = make_row(str(number), reply=reply, finish_reason="error" if failed else "stop")
        if number in self.written:
            with pytest.raises(ValueError, match="before"):
                self.store.append({number: row})
            return
        self.written[number] = row
        self.store.append({number: row})
        self._update_durable()

    @rule(seconds=st.floats(-10, 10))
    def tick(self, seconds: float) -> None:
        self.clock.now += seconds
        self.store.tick()
        self._update_durable()

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self._update_durable()

    @rule()
    def finalize(self) -> None:
        self.store.finalize()
        self._update_durable()

    @rule()
    def retry_errors(self) -> None:
        failed = [n for n in self.written if self.store.failed(n)]
        self.store.discard(failed)
        for number in failed:
            del self.written[number]
        self.durable -= set(failed)
        if failed:
            self.durable = set(self.written)

    @rule(data=st.data())
    def cut_power(self, data: st.DataObject) -> None:
        self.files.cut_power(lambda maximum: data.draw(st.integers(0, maximum)))
        self.store._descriptor = -1  # pyright: ignore[reportPrivateUsage]  # the descriptor of the dead process
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
