"""The lock of a run directory: one writer."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from rwkvbatch.errors import RunDirectoryError, RunLockedError
from rwkvbatch.results.lock import DirectoryLock


class TestLock:
    def test_a_second_writer_is_refused_with_the_process_and_command_of_the_first(self, tmp_path: Path) -> None:
        lock = DirectoryLock(tmp_path, "rwkvbatch run x.jsonl")
        with pytest.raises(RunLockedError, match=rf"process {os.getpid()} on .*rwkvbatch run x\.jsonl"):
            DirectoryLock(tmp_path)
        lock.release()
        DirectoryLock(tmp_path).release()

    def test_the_lock_file_of_a_dead_process_does_not_lock(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text('{"pid": 1, "host": "h", "command": "c"}')
        lock = DirectoryLock(tmp_path, "rwkvbatch run x.jsonl")
        assert "rwkvbatch run x.jsonl" in (tmp_path / ".lock").read_text()
        lock.release()

    def test_a_file_in_place_of_the_directory_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(RunDirectoryError, match="cannot be written to"):
            DirectoryLock(tmp_path / "file")

    @pytest.mark.parametrize("of_directory", [True, False])
    def test_locks_of_directories_are_optional_and_those_of_files_required(
        self, of_directory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flock = fcntl.flock

        def lacking(descriptor: int, operation: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) == of_directory:
                raise OSError(errno.ENOLCK, "No locks available")
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", lacking)
        if of_directory:
            lock = DirectoryLock(tmp_path)
            with pytest.raises(RunLockedError):
                DirectoryLock(tmp_path)
            lock.release()
        else:
            with pytest.raises(RunDirectoryError, match="cannot be written to: No locks available"):
                DirectoryLock(tmp_path)
