"""File systems that count calls, kill the process, fail, or lose unflushed data in a power cut."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkvbatch.files import FILE_MODE, Files


class CountedFiles(Files):
    """Counts the calls that change the disk; `at_call` performs each."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def at_call(self, name: str, perform: Callable[[], Any], data: bytes = b"", descriptor: int = -1) -> Any:
        return perform()

    def _call(self, name: str, perform: Callable[[], Any], data: bytes = b"", descriptor: int = -1) -> Any:
        self.calls.append(name)
        return self.at_call(name, perform, data, descriptor)

    def open_append(self, path: Path, at: int | None = None) -> int:
        return self._call("open", lambda: super(CountedFiles, self).open_append(path, at))

    def create(self, path: Path, mode: int = FILE_MODE, at: int | None = None) -> int:
        return self._call("create", lambda: super(CountedFiles, self).create(path, mode, at))

    def write(self, descriptor: int, data: bytes) -> int:
        return self._call("write", lambda: os.write(descriptor, data), data, descriptor)

    def sync(self, descriptor: int) -> None:
        self._call("sync", lambda: os.fsync(descriptor))

    def truncate(self, descriptor: int, size: int) -> None:
        self._call("truncate", lambda: os.ftruncate(descriptor, size))

    def rename(self, source: Path, target: Path, at: int | None = None) -> None:
        self._call("rename", lambda: super(CountedFiles, self).rename(source, target, at))

    def sync_directory(self, directory: Path, at: int | None = None) -> None:
        self._call("sync directory", lambda: super(CountedFiles, self).sync_directory(directory, at))


class KillingFiles(CountedFiles):
    """Kills the process at call number `at` (from 0): in the middle of its write (`half`), or `after` it."""

    def __init__(self, at: int, moment: str) -> None:
        super().__init__()
        self.at = at
        self.moment = moment

    def at_call(self, name: str, perform: Callable[[], Any], data: bytes = b"", descriptor: int = -1) -> Any:
        if len(self.calls) - 1 != self.at:
            return perform()
        if self.moment == "half" and data:
            os.write(descriptor, data[: len(data) // 2])
        else:
            perform()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class FailingFiles(CountedFiles):
    """Fails call number `at` with error `code`, and all later calls if `forever`.

    `short` writes half of the data before the error.
    """

    def __init__(self, at: int, code: int = errno.ENOSPC, *, forever: bool = False, short: bool = False) -> None:
        super().__init__()
        self.at = at
        self.code = code
        self.forever = forever
        self.short = short

    def at_call(self, name: str, perform: Callable[[], Any], data: bytes = b"", descriptor: int = -1) -> Any:
        number = len(self.calls) - 1
        if number == self.at or (self.forever and number > self.at):
            if self.short and len(data) > 1:
                os.write(descriptor, data[: len(data) // 2])
            raise OSError(self.code, os.strerror(self.code))
        return perform()


@dataclass
class _Inode:
    path: Path
    synced: bytes = b""


@dataclass
class PowerCutFiles(Files):
    """Real files that a power cut reduces to what was synced and any part of the rest."""

    names: dict[Path, _Inode] = field(default_factory=dict[Path, _Inode])
    durable_names: dict[Path, _Inode] = field(default_factory=dict[Path, _Inode])
    open_files: dict[int, _Inode] = field(default_factory=dict[int, _Inode])

    def open_append(self, path: Path, at: int | None = None) -> int:
        return self._opened(super().open_append(path, at), path)

    def create(self, path: Path, mode: int = FILE_MODE, at: int | None = None) -> int:
        self.names.pop(path, None)
        return self._opened(super().create(path, mode, at), path)

    def _opened(self, descriptor: int, path: Path) -> int:
        self.open_files[descriptor] = self.names.setdefault(path, _Inode(path))
        return descriptor

    def sync(self, descriptor: int) -> None:
        inode = self.open_files[descriptor]
        inode.synced = inode.path.read_bytes()

    def close(self, descriptor: int) -> None:
        del self.open_files[descriptor]
        super().close(descriptor)

    def rename(self, source: Path, target: Path, at: int | None = None) -> None:
        super().rename(source, target, at)
        inode = self.names.pop(source)
        inode.path = target
        self.names[target] = inode

    def sync_directory(self, directory: Path, at: int | None = None) -> None:
        self.durable_names = dict(self.names)

    def cut_power(self, choose: Callable[[int], int]) -> None:
        """Leave on the disk what a power cut may leave; `choose(n)` returns a number from 0 to n."""
        names = self.names if choose(1) else self.durable_names
        current = {id(inode): path.read_bytes() for path, inode in self.names.items()}
        contents: dict[Path, bytes] = {}
        for path, inode in names.items():
            now = current.get(id(inode), inode.synced)
            if now.startswith(inode.synced):
                extra = now[len(inode.synced) :]
                kept = choose(len(extra))
                lost = b"\0" * (len(extra) - kept) if choose(1) else b""
                contents[path] = inode.synced + extra[:kept] + lost
            else:
                contents[path] = now if choose(1) else inode.synced
        for path in {*self.names, *self.durable_names}:
            path.unlink(missing_ok=True)
        self.names, self.durable_names = {}, {}
        for descriptor in list(self.open_files):
            self.close(descriptor)
        for path, content in contents.items():
            path.write_bytes(content)
            self.names[path] = self.durable_names[path] = _Inode(path, content)
