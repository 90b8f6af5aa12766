"""The weights file that a name means: a file, a file without its ending, a directory, or the bundled model."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rwkvbatch.errors import CheckpointError
from rwkvbatch.files import user_path
from rwkvbatch.model.weights.containers import is_model_directory

READ_SUFFIXES = (".pth", ".safetensors", ".st", ".gguf")
"""Endings that a model's name may omit, in the order in which they are tried."""

MODEL_VARIABLE = "RWKVBATCH_MODEL"
"""The environment variable with the default model file."""

BUNDLED_MODEL = Path(__file__).parent.parent / "demo" / "rwkv7-demo.safetensors"


class SeveralFilesWarning(UserWarning):
    """Several files have the given name with different endings; one of them is read."""


@dataclass(frozen=True)
class ResolvedModel:
    """A weights file.

    Attributes:
        bundled: whether it is the bundled model.
        others: files that have the given name with another ending.
    """

    path: Path
    bundled: bool
    others: tuple[Path, ...] = ()

    @property
    def ambiguity(self) -> str | None:
        """Says which of several files of the given name is read; None if there is one file only."""
        if not self.others:
            return None
        names = " and ".join(other.name for other in self.others)
        return f"{self.path} is read, and not {names}; give the name with its ending"


def is_bundled(path: str | os.PathLike[str] | None) -> bool:
    """Whether `path` means the bundled model: it is None, and the environment names no model. Looks at no file."""
    return path is None and not os.environ.get(MODEL_VARIABLE)


def resolve_model_path(path: str | os.PathLike[str] | None = None) -> ResolvedModel:
    """The weights file that `path` names, with or without its suffix (`READ_SUFFIXES`).

    None means the environment variable `RWKVBATCH_MODEL`, and without that the bundled model.

    Raises:
        CheckpointError: there is no such file.
    """
    with naming_origin(path):
        return _resolve(path)


def model_file(path: str | os.PathLike[str] | None = None) -> Path:
    """The weights file that `resolve_model_path` finds. Warns of other files that have the same name without ending.

    A command that reads a file several times calls this once, and then names the file by the path that it returns.
    """
    resolved = resolve_model_path(path)
    if resolved.ambiguity is not None:
        warnings.warn(resolved.ambiguity, SeveralFilesWarning, stacklevel=4)
    return resolved.path


def _resolve(path: str | os.PathLike[str] | None) -> ResolvedModel:
    if is_bundled(path):
        if not BUNDLED_MODEL.is_file():
            raise CheckpointError(
                "the bundled model is missing from the package", path=BUNDLED_MODEL, hint="give one with --model FILE"
            )
        return ResolvedModel(BUNDLED_MODEL, bundled=True)
    name = os.environ[MODEL_VARIABLE] if path is None else os.fspath(path)
    if not name:
        raise CheckpointError("the name of the model is empty")
    file = user_path(name)
    candidates = [file, *(Path(f"{file}{suffix}") for suffix in READ_SUFFIXES)]
    try:
        if file.is_file() or is_model_directory(file):
            return ResolvedModel(file, bundled=False)
        if files := [candidate for candidate in candidates[1:] if candidate.is_file()]:
            return ResolvedModel(files[0], bundled=False, others=tuple(files[1:]))
        if os.path.lexists(file):
            # A directory, a pipe or a dangling link: opening it raises the right error.
            return ResolvedModel(file, bundled=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"not a usable file name: {error}", path=name[:200]) from error
    hint = f"no {', '.join(repr(candidate.name) for candidate in candidates)} in {str(file.parent)!r}"
    similar = _similar_names(file)
    raise CheckpointError("there is no such file", path=file, hint=f"{hint}; is it {similar}?" if similar else hint)


@contextmanager
def naming_origin(path: object) -> Generator[None]:
    """Name the environment variable in errors about the model's file, if the file name comes from it."""
    try:
        yield
    except CheckpointError as error:
        if path is None and os.environ.get(MODEL_VARIABLE) and MODEL_VARIABLE not in error.message:
            error.add_origin(f"from {MODEL_VARIABLE}")
        raise


def _similar_names(file: Path) -> str:
    """Up to two checkpoints in the missing `file`'s directory with similar names, or names that begin with its name."""
    try:
        names = [entry.name for entry in os.scandir(file.parent) if entry.name.endswith(READ_SUFFIXES)]
    except OSError:
        return ""
    # Releases have a date and a context length after the name: rwkv7-g1k-1.5b-20260930-ctx25600.pth.
    stem = file.name.removesuffix(file.suffix) if file.suffix in READ_SUFFIXES else file.name
    longer = sorted((name for name in names if name.startswith(stem)), reverse=True)
    similar = longer or difflib.get_close_matches(file.name, names, n=2)
    return " or ".join(repr(name) for name in similar[:2])
