"""Fakes that run on the nodes of a Ray cluster: loaders, changes of replies, an actor that reserves processors."""

from __future__ import annotations

import importlib
import os
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvbatch.config import RunSettings
from rwkvbatch.engine.request import Reply, Request
from tests.replay.fakes import Delayed, FakeLoader, FakeSpec, NoModel


@dataclass(frozen=True)
class WaitForProcesses:
    """Delays replies until `count` processes have one, and then for `seconds` each."""

    folder: Path
    count: int
    seconds: float

    def __call__(self, request: Request, reply: Reply) -> Reply:
        (self.folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < self.count and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(self.seconds)
        return reply


@dataclass(frozen=True)
class FailsOnce:
    """At the first reply, once in all processes together, kills its process or raises."""

    marker: Path
    error: Exception | None = None

    def __call__(self, request: Request, reply: Reply) -> Reply:
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return reply
        if self.error is not None:
            raise self.error
        os.kill(os.getpid(), signal.SIGKILL)
        return reply


def fake_loader(settings: RunSettings, change: Any = None) -> FakeLoader:
    del settings
    return FakeLoader(change=change)


@dataclass(frozen=True)
class OtherWeights:
    """Loads other weights in every process but the first."""

    marker: Path

    def __call__(self, settings: RunSettings) -> FakeLoader:
        del settings
        try:
            with self.marker.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return FakeLoader(FakeSpec(weights_sha256="e" * 64))
        return FakeLoader(change=Delayed(0.5))


def no_model(settings: RunSettings) -> FakeLoader:
    del settings
    return NoModel()


@dataclass(frozen=True)
class NotOnTheNode:
    """A loader that can be pickled but not unpickled, as on a node without the plug-in."""

    def __call__(self, settings: RunSettings) -> FakeLoader:
        return FakeLoader()

    def __reduce__(self) -> Any:
        return importlib.import_module, ("no_such_plugin",)


class CpuHolder:
    """An actor that reserves processors."""

    def is_ready(self) -> bool:
        return True


class EnvironmentRecorder(FakeLoader):
    """Writes the names of variables to a file whose path is relative to the working directory."""

    def specs(self, setups: Any) -> Any:
        Path("found.txt").write_text("\n".join(name for name in os.environ if name.startswith("RWKVBATCH_OF_")))
        return super().specs(setups)


def environment_recorder(settings: RunSettings) -> FakeLoader:
    del settings
    return EnvironmentRecorder()


class WarningLoader(FakeLoader):
    """Warns when the model is loaded and when an engine is made."""

    def specs(self, setups: Any) -> Any:
        warnings.warn("the model is slow", UserWarning, stacklevel=2)
        return super().specs(setups)

    def engine(self, setup: Any, plan: Any, batch: int) -> Any:
        warnings.warn("the engine is slow", UserWarning, stacklevel=2)
        return super().engine(setup, plan, batch)


def warning_loader(settings: RunSettings) -> FakeLoader:
    del settings
    return WarningLoader()
