"""What runs on the nodes of a Ray cluster in tests: loaders, changes of replies, an actor that takes processors."""

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
from rwkvbatch.errors import CheckpointError
from tests.replay.fakes import FakeLoader, FakeSpec, Slow


@dataclass(frozen=True)
class Together:
    """Holds every reply back until `count` processes reply; then makes it take a moment."""

    meeting: Path
    count: int
    seconds: float

    def __call__(self, request: Request, reply: Reply) -> Reply:
        (self.meeting / str(os.getpid())).touch()
        deadline = time.monotonic() + 120
        while len(list(self.meeting.iterdir())) < self.count and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(self.seconds)
        return reply


@dataclass(frozen=True)
class FailsOnce:
    """At the first reply, once in all processes together, kills its process or raises."""

    mark: Path
    error: Exception | None = None

    def __call__(self, request: Request, reply: Reply) -> Reply:
        try:
            self.mark.touch(exist_ok=False)
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
    """Finds other weights in every process but the first that asks."""

    mark: Path

    def __call__(self, settings: RunSettings) -> FakeLoader:
        del settings
        try:
            with self.mark.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return FakeLoader(FakeSpec(weights_sha256="e" * 64))
        return FakeLoader(change=Slow(0.5))


class NoModel(FakeLoader):
    def specs(self, setups: Any) -> Any:
        raise CheckpointError("there is no such file", path="weights.pth", hint="put it there")


def no_model(settings: RunSettings) -> FakeLoader:
    del settings
    return NoModel()


@dataclass(frozen=True)
class OnlyHere:
    """A loader that can be pickled, but not unpickled: a node without the plug-in."""

    def __call__(self, settings: RunSettings) -> FakeLoader:
        return FakeLoader()

    def __reduce__(self) -> Any:
        return importlib.import_module, ("no_such_plugin",)


class Holder:
    """An actor that takes processors away."""

    def here(self) -> bool:
        return True


class Recorder(FakeLoader):
    """Writes where it runs to a file whose path is relative to the driver's directory."""

    def specs(self, setups: Any) -> Any:
        Path("found.txt").write_text("\n".join(name for name in os.environ if name.startswith("RWKVBATCH_OF_")))
        return super().specs(setups)


def recorder(settings: RunSettings) -> FakeLoader:
    del settings
    return Recorder()


class WarningLoader(FakeLoader):
    """Warns where the model is loaded, and where an engine is made."""

    def specs(self, setups: Any) -> Any:
        warnings.warn("the model is slow", UserWarning, stacklevel=2)
        return super().specs(setups)

    def engine(self, setup: Any, plan: Any, batch: int) -> Any:
        warnings.warn("the engine is slow", UserWarning, stacklevel=2)
        return super().engine(setup, plan, batch)


def warning_loader(settings: RunSettings) -> FakeLoader:
    del settings
    return WarningLoader()
