"""The checkpoint of a command: read ahead while libraries are imported, or made with random weights."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rwkvbatch.cli.exits import message
from rwkvbatch.errors import UsageError
from rwkvbatch.files import user_path
from rwkvbatch.model import MODEL_VARIABLE, READ_SUFFIXES

_READ_AHEAD_BYTES = 8 << 20
_LOADED_ELSEWHERE = {"endpoint", "workers", "devices", "ray"}
"""Settings with which another process loads the model."""


def read_ahead(settings: Mapping[str, Any]) -> threading.Thread | None:
    """Make the system read a command's checkpoint into its page cache while the program imports its libraries.

    This only saves time. Returns the thread that requests it; None if this process will not load a file.
    """
    name = settings.get("model") or os.environ.get(MODEL_VARIABLE)
    if not isinstance(name, str) or settings.keys() & _LOADED_ELSEWHERE or not hasattr(os, "posix_fadvise"):
        return None
    try:
        candidates = (user_path(f"{name}{suffix}") for suffix in ("", *READ_SUFFIXES))
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
    except (OSError, ValueError, RuntimeError):  # not a valid file name; loading reports it
        return None
    if path is None:
        return None
    thread = threading.Thread(target=_request_pages, args=(path,), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _request_pages(path: Path) -> None:
    with suppress(OSError), path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        # A file that takes more than half of the memory could evict its own first pages.
        if 2 * size <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            for start in range(0, size, _READ_AHEAD_BYTES):
                os.posix_fadvise(file.fileno(), start, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


@contextmanager
def model_path(
    model: str | None, random: str | None, *, named: str, quiet: bool, sparsity: float | None = None
) -> Generator[str | None]:
    """The path of the checkpoint `model`, or of a temporary one with random weights of the shape `random`.

    Args:
        named: name of the option or argument of `model` in errors.
        sparsity: share of zeros in the channel mix's hidden layer, with `random` only; None for about a half.

    Raises:
        UsageError: both are given, or the shape or sparsity is wrong.
    """
    if sparsity is not None:
        if random is None:
            raise UsageError("--sparsity is of random weights: give --random LAYERSxWIDTH too")
        if not 0 <= sparsity < 1:
            raise UsageError(f"--sparsity must be in [0, 1), got {sparsity:g}")
    if random is None:
        yield model
        return
    if model is not None:
        raise UsageError(f"--random makes its own checkpoint: it cannot be given together with {named}")
    from rwkvbatch.bench.measure import write_random

    with tempfile.TemporaryDirectory(prefix="rwkvbatch-random-") as folder:
        message(f"making a random checkpoint, {random}", quiet=quiet)
        yield str(write_random(random, Path(folder), sparsity))
