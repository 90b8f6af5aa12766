"""Fixtures and hooks for all tests: isolation from the user's files, one thread per process, the order of the files."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from itertools import zip_longest
from pathlib import Path

# Applies to numpy, to torch, and to all programs that the tests start. With two test processes on two cores, further
# threads mostly wait for each other in busy loops.
os.environ["OMP_NUM_THREADS"] = "1"
# Without bytecode files, each of these programs and each run of the tests would compile all modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Until all tests are collected: the imported modules are never freed, and scanning them takes longer each time.
gc.disable()

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("rwkvbatch", deadline=None, max_examples=60)
settings.load_profile("rwkvbatch")


WAITING = [
    Path(__file__).with_name("replay") / "pools" / "test_ray.py",
    Path(__file__).with_name("replay") / "pools" / "test_ray_local.py",
    Path(__file__).with_name("replay") / "test_endings.py",
    Path(__file__).with_name("chat") / "test_tmux.py",
]
"""Files whose tests mostly wait for other processes, in order of decreasing duration."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files so that two test processes end at about the same time.

    Files with slow tests come first. Files in `WAITING` alternate with others, because they leave the processor to the
    other test process and to the type checker of `make test`.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    files = list(dict.fromkeys(item.path for item in sorted(items, key=lambda item: item.path not in slow)))
    waiting = [path for path in WAITING if path in files]
    others = [path for path in files if path not in waiting]
    order = [path for pair in zip_longest(waiting, others) for path in pair if path is not None]
    index_of = {path: index for index, path in enumerate(order)}
    items.sort(key=lambda item: index_of[item.path])


def pytest_configure(config: pytest.Config) -> None:
    """End the processes of pytest-xdist without freeing their modules, for which the others would wait two seconds."""
    if hasattr(config, "workerinput"):
        atexit.register(os._exit, 0)


def pytest_collection_finish() -> None:
    """Exclude the modules of all tests from garbage collection, which takes 0.3 s with them."""
    gc.collect()
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # native modules report objects that are never collected as leaked


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Handle SIGINT: the programs that tests start inherit this, and background jobs of a shell would ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_user_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the state, cache and settings of the user who runs the tests."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name in [name for name in os.environ if name.startswith(("RWKVBATCH_", "GITHUB_"))]:
        monkeypatch.delenv(name)
    # The small models of the tests have parts of the World vocabulary, which a `.pth` cannot declare.
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
