"""A checkpoint of random weights, made in a process of its own so that its memory is not counted here."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path

from rwkvbatch.errors import UsageError

_SIZE = re.compile(r"(\d{1,4})x(\d{1,6})")
HEAD_SIZE = 64


def write_random(size: str, folder: Path) -> Path:
    """Write random bf16 weights of the shape `size` (such as `12x768`) into `folder`; the file's path.

    Raises:
        UsageError: `size` is not LAYERSxWIDTH, or the width is no multiple of 64.
    """
    match = _SIZE.fullmatch(size)
    if match is None or not int(match[1]) or not int(match[2]) or int(match[2]) % HEAD_SIZE:
        raise UsageError(f"--random must be LAYERSxWIDTH with a width that is a multiple of 64, got {size!r}")
    path = folder / f"random-{size}.safetensors"
    process = multiprocessing.get_context("spawn").Process(
        target=_write, args=(path, int(match[1]), int(match[2]))
    )
    process.start()
    process.join()
    if process.exitcode != 0 or not path.is_file():
        raise UsageError(
            f"a random checkpoint of {size} could not be made; is there memory and space enough?"
        )
    return path


def _write(path: Path, num_layers: int, width: int) -> None:
    from rwkvbatch.model.random_checkpoint import random_tensors
    from rwkvbatch.model.tensor_write import save_tensors

    save_tensors(path, random_tensors(num_layers, width))
