"""The checkpoint of a command: the given one, or one made with random weights."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rwkvbatch.cli.exits import message
from rwkvbatch.errors import UsageError


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
            raise UsageError("--sparsity applies to random weights: give --random LAYERSxWIDTH too")
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
