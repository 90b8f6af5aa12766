"""Writing tensor files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from rwkvbatch.errors import StorageError, UsageError

SUFFIXES = (".pth", ".safetensors")


def save_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    replace: bool = False,
) -> None:
    """Write `.pth` or `.safetensors`, as the name ends, so that the file is there complete or not at all.

    Args:
        metadata: texts for the header of a `.safetensors` file.
        replace: whether an existing file may be replaced.

    Raises:
        UsageError: the name ends otherwise, or the file is there and may not be replaced.
        StorageError: it could not be written.
    """
    check_target(path, replace=replace)
    with _replacing(path) as temporary:
        if path.suffix == ".safetensors":
            # That format has no views and no shared storage.
            plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(plain, temporary, dict(metadata) if metadata else None)
        else:
            torch.save({name: _own_storage(tensor) for name, tensor in tensors.items()}, temporary)


def check_target(path: Path, *, replace: bool) -> None:
    """Raise `UsageError` unless `path` may be written."""
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"the name of the file to write must end in {' or '.join(SUFFIXES)}, got {str(path)!r}"
        )
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {str(path.parent)!r} to write {path.name!r} in")
    if os.path.lexists(path) and not (replace and path.is_file()):
        raise UsageError(
            f"{str(path)!r} is already there", hint=None if path.is_dir() else "--force replaces it"
        )


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """`torch.save` writes the whole storage that a view looks at."""
    whole = (
        tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    )
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends well."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise StorageError(f"cannot write in {str(path.parent)!r}: {error.strerror}") from error
    temporary = Path(name)
    os.close(descriptor)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _flush(path.parent)
    except (OSError, RuntimeError) as error:
        # torch and safetensors report a full disk as a RuntimeError of their own.
        reason = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else " ".join(str(error).split())[:200]
        )
        raise StorageError(f"cannot write {str(path)!r}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
