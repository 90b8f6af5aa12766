"""What all tests share: nothing of the user's is read or written, and libraries leave the other core alone."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from itertools import zip_longest
from pathlib import Path

# For numpy, for torch, and for all programs that the tests start: threads of two test processes on two cores mostly
# wait for each other, at full speed.
os.environ["OMP_NUM_THREADS"] = "1"
# An environment that forbids bytecode files makes each of these programs, and each run of the tests, compile all anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
gc.disable()  # until all is collected: the modules stay, and each look at them takes longer than the one before

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("rwkvbatch", deadline=None, max_examples=60)
settings.load_profile("rwkvbatch")


WAITING = [
    Path(__file__).with_name("replay") / "test_ray.py",
    Path(__file__).with_name("replay") / "test_ray_local.py",
    Path(__file__).with_name("replay") / "test_endings.py",
    Path(__file__).with_name("chat") / "test_tmux.py",
]
"""Files whose tests mostly wait for other processes, longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: of two processes, none is left alone with a long file at the end.

    Of these, every other one waits, as long as there are such files: the processor is for the other process then, and
    for the type checker of `make test`.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    files = list(dict.fromkeys(item.path for item in sorted(items, key=lambda item: item.path not in slow)))
    waiting = [path for path in WAITING if path in files]
    others = [path for path in files if path not in waiting]
    order = [path for pair in zip_longest(waiting, others) for path in pair if path is not None]
    places = {path: place for place, path in enumerate(order)}
    items.sort(key=lambda item: places[item.path])


def pytest_configure(config: pytest.Config) -> None:
    """A process of pytest-xdist does not take apart all modules, which takes it two seconds in which others wait."""
    if hasattr(config, "workerinput"):
        atexit.register(os._exit, 0)


def pytest_collection_finish() -> None:
    """Collecting garbage takes a third of a second with all modules of all tests loaded; they stay anyway."""
    gc.collect()
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # native modules report what is never collected as leaked


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Programs that the tests start and interrupt inherit this: a shell's background jobs ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_user_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """State, cache and settings of the user who runs the tests must not matter, nor be touched."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name in [name for name in os.environ if name.startswith(("RWKVBATCH_", "GITHUB_"))]:
        monkeypatch.delenv(name)
    # The tests' small models have cut World vocabularies, which a `.pth` cannot declare.
    monkeypatch.setenv("RWKVBATCH_VOCAB", "world")
    for variable, folder in {
        "HOME": "",
        "XDG_STATE_HOME": "state",
        "XDG_CONFIG_HOME": "config",
        "XDG_CACHE_HOME": "cache",
        "XDG_DATA_HOME": "data",
    }.items():
        monkeypatch.setenv(variable, str(Path(home) / folder))
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)
