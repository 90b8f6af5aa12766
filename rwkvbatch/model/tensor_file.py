"""Files of named tensors: the table of forms, and `open_tensors`.

Opening reads only the table of contents; each tensor is read when it is asked for. The claims of a table of contents
are checked against the size of the file before anything of that size is allocated. The first bytes of a file decide its
form, not its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model import pth, safetensors
from rwkvbatch.model.tensor_source import Contents, TensorFile, TensorSource, open_regular

MAX_OVERLAP = 4
"""Tensors may share storage (tied weights), but together have at most this many times the file's size."""


@dataclass(frozen=True)
class Form:
    """A form of checkpoint file.

    Attributes:
        kind: its name.
        suffix: the usual end of file names, tried when a model is named without it.
        matches: whether a file that begins with these 16 bytes has this form.
        read: the table of contents of an open file; raises `CheckpointError`.
    """

    kind: str
    suffix: str
    matches: Callable[[bytes], bool]
    read: Callable[[int, Path], Contents]


FORMS = (
    Form("pth", ".pth", pth.is_zip, pth.read_zip),
    Form("legacy pth", ".pth", pth.is_legacy, pth.read_legacy),
    Form("safetensors", ".safetensors", safetensors.is_safetensors, safetensors.read_header),
)
SUFFIXES = tuple(dict.fromkeys(form.suffix for form in FORMS))


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorSource]:
    """Open a checkpoint or state file of any form.

    Raises:
        CheckpointError: there is no such file, it has no known form, or its table of contents cannot be right.
    """
    descriptor = open_regular(path)
    try:
        head = os.pread(descriptor, 16, 0)
        form = next((form for form in FORMS if form.matches(head)), None)
        if form is None:
            raise CheckpointError(
                "not a checkpoint: neither a .pth file (torch.save) nor .safetensors, by its first bytes",
                path=path,
                hint="is it a download's error page, or a Git LFS pointer?" if head.isascii() and head else None,
            )
        contents = form.read(descriptor, path)
        _check_sizes(contents, os.fstat(descriptor).st_size, path)
        file = TensorFile(path, descriptor, contents, form.kind)
    except BaseException:  # nothing else would close the descriptor
        os.close(descriptor)
        raise
    try:
        yield file
    finally:
        file.close()


def _check_sizes(contents: Contents, file_size: int, path: Path) -> None:
    total = 0
    for name, entry in contents.entries.items():
        if entry.start + entry.span > file_size:
            raise CheckpointError(f"the tensor {name!r} lies beyond the end of the file; cut off?", path=path)
        total += max(entry.num_bytes, entry.span)
        if total > MAX_OVERLAP * file_size:
            raise CheckpointError(
                f"its tensors are said to have more than {MAX_OVERLAP} times as many bytes as the file itself",
                path=path,
            )
