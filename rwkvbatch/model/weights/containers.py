"""`open_tensors`: the tensors of a file or directory of any kind, under the names in the file.

Opening reads only tables of contents; each tensor is read when it is accessed. The sizes in a table of contents are
checked against the size of the file before any memory is allocated for them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rwkvbatch.errors import CheckpointError, error_text
from rwkvbatch.model.weights import foreign, gguf, pth, quantised, safetensors
from rwkvbatch.model.weights.named_tensors import NamedTensors, named_tensors
from rwkvbatch.model.weights.tensor_file import Contents, TensorFile, open_weights


@dataclass(frozen=True)
class Kind:
    """A file format.

    Attributes:
        name: the name that `model info` shows.
        matches: whether a file that begins with these `HEAD_BYTES` bytes is of this kind.
        read: reads the table of contents; raises `CheckpointError`.
    """

    name: str
    matches: Callable[[bytes], bool]
    read: Callable[[int, Path], Contents]


def _read_safetensors(descriptor: int, path: Path) -> Contents:
    return quantised.unpacked(safetensors.read_header(descriptor, path), path)


KINDS = (
    Kind("pth", lambda head: head.startswith(pth.ZIP_MAGIC), pth.read_zip),
    Kind("gguf", gguf.is_gguf, gguf.read_contents),
    Kind("safetensors", safetensors.is_safetensors, _read_safetensors),
)

HEAD_BYTES = 512

MAX_OVERLAP = 4
"""Tensors may share storage (tied weights), but their total size is at most this many times the file's size."""

MAX_JSON_BYTES = 16 << 20

CONFIG = "config.json"
INDEX_ENDING = ".index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
VOCABULARY = "rwkv_vocab_v20230424.txt"
"""The World vocabulary in Hugging Face directories of RWKV models."""

WEIGHTS_ENDINGS = (".safetensors", ".pth", ".bin", ".pt", ".ckpt")
"""Endings of a directory's weights files. The files with the first ending that occurs are used."""

CONVENTIONAL = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights file of a Hugging Face directory without shards; other files in it are ignored."""

_SHARD = re.compile(r"(.+)-(\d{1,6})-of-(\d{1,6})(\.\w+)")


@contextmanager
def open_tensors(path: Path) -> Iterator[NamedTensors]:
    """Open a checkpoint or state: a file of any kind, a Hugging Face directory, or the index of its shards.

    Raises:
        CheckpointError: there is no such file, its format is unknown, or its table of contents is damaged.
    """
    with ExitStack() as stack:
        if _is_true(path.is_dir):
            yield _open_directory(path, stack)
        elif path.name.endswith(".json") and _is_true(path.is_file):
            yield _open_index(path, path, stack)
        else:
            yield named_tensors(path, [_open_file(path, stack)])


def _is_true(test: Callable[[], bool]) -> bool:
    """The result of a test of a path; False if the system reports an error, as for names that are too long."""
    try:
        return test()
    except (OSError, ValueError):
        return False


def _open_file(path: Path, stack: ExitStack) -> TensorFile:
    descriptor = open_weights(path)
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
        kind = next((kind for kind in KINDS if kind.matches(head)), None)
        if kind is None:
            foreign.refuse_kind(head, path)
            raise CheckpointError(
                "not a checkpoint: neither a .pth file (torch.save) nor .safetensors nor GGUF, by its first bytes",
                path=path,
            )
        contents = kind.read(descriptor, path)
        _check_sizes(contents, os.fstat(descriptor).st_size, path)
        file = TensorFile(path, descriptor, contents, kind.name)
    except BaseException:  # nothing else would close the descriptor
        os.close(descriptor)
        raise
    stack.callback(file.close)
    return file


def _check_sizes(contents: Contents, file_size: int, path: Path) -> None:
    total = 0
    for name, entry in contents.entries.items():
        if entry.start + entry.span > file_size:
            raise CheckpointError(f"the tensor {name!r} lies beyond the end of the file; cut off?", path=path)
        # A decoded tensor has at most eight times the bytes of its span.
        total += max(entry.num_bytes, entry.span) if entry.decode is None else entry.span
        if total > MAX_OVERLAP * file_size:
            raise CheckpointError(
                f"by its table of contents, its tensors have more than {MAX_OVERLAP} times the bytes of the file",
                path=path,
            )


def is_model_directory(path: Path) -> bool:
    """Whether a directory has a file that Hugging Face directories of a model have; not that it can be loaded."""
    try:
        names = [entry.name for entry in os.scandir(path)]
    except OSError:
        return False
    return any(name in (CONFIG, *CONVENTIONAL) or name.endswith(INDEX_ENDING) for name in names)


def _open_directory(path: Path, stack: ExitStack) -> NamedTensors:
    """A Hugging Face directory: an index and its shards, or one weights file, next to `config.json`."""
    try:
        names = sorted(entry.name for entry in os.scandir(path))
    except OSError as error:
        raise CheckpointError(f"cannot read the directory: {error.strerror}", path=path) from error
    weights = next((matches for ending in WEIGHTS_ENDINGS if (matches := _with_ending(names, ending))), [])
    indexes = [name for name in _with_ending(names, INDEX_ENDING) if Path(name.removesuffix(INDEX_ENDING)).suffix]
    indexes = [name for name in indexes if _is_index_of(name, weights)] or indexes
    if len(indexes) == 1:
        return _open_index(path / indexes[0], path, stack)
    _refuse_training_directory(names, path)
    weights = [name for name in weights if name in CONVENTIONAL] or weights
    if not weights:
        shown = ", ".join(repr(name[:60]) for name in names[:4]) or "nothing"
        raise CheckpointError(
            f"this directory has no weights: expected a file ending in {', '.join(WEIGHTS_ENDINGS)}, found {shown}",
            path=path,
            hint="give the checkpoint's own file or directory",
        )
    shards = [match for name in weights if (match := _SHARD.fullmatch(name))]
    if len(shards) == len(weights) and len({(match[1], match[3]) for match in shards}) == 1:
        expected = int(shards[0][3])
        if len(shards) != expected:
            raise CheckpointError(f"expected {expected} shards, found {len(shards)}", path=path)
    elif len(weights) > 1:
        shown = ", ".join(repr(name[:60]) for name in weights[:4])
        raise CheckpointError(
            f"this directory has {len(weights)} weights files ({shown}) and no index of shards",
            path=path,
            hint=f"give one of them, such as --model {path / weights[0]}",
        )
    return _with_directory(named_tensors(path, [_open_file(path / name, stack) for name in weights]), path)


def _refuse_training_directory(names: Sequence[str], path: Path) -> None:
    """Raise `CheckpointError` for directories in which a training program has split each tensor over many files."""
    if set(names) & set(CONVENTIONAL):
        return
    if any(name == "zero_to_fp32.py" or name.endswith("_optim_states.pt") for name in names):
        raise CheckpointError(
            "a DeepSpeed ZeRO checkpoint, whose weights are spread over one file per process",
            path=path,
            hint=pth.ZERO.replace("DIRECTORY", str(path.parent if path.name.startswith("global_step") else path)),
        )
    if any(name.endswith(".distcp") for name in names):
        raise CheckpointError(
            "a torch.distributed checkpoint, whose weights are spread over one file per process",
            path=path,
            hint=f"merge it first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} merged.pth",
        )


def _with_ending(names: Sequence[str], ending: str) -> list[str]:
    return [name for name in names if name.endswith(ending) and not name.startswith(".")]


def _is_index_of(index: str, weights: Sequence[str]) -> bool:
    """Whether the name of an index contains the ending of `weights`, as in `model.safetensors.index.json`."""
    return bool(weights) and Path(weights[0]).suffix == Path(index.removesuffix(INDEX_ENDING)).suffix


def _open_index(index: Path, path: Path, stack: ExitStack) -> NamedTensors:
    """Open the shards of an index: a JSON object whose `weight_map` gives the file of each tensor (transformers).

    Args:
        path: the path for error messages: the index or its directory.
    """
    folder = index.parent
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        hint = f"give the directory, --model {folder}" if index.name == CONFIG else None
        raise CheckpointError("not an index of shards: it has no 'weight_map'", path=index, hint=hint)
    file_of = cast("dict[str, Any]", weight_map)
    for name in file_of.values():
        # A path to another directory could make the program read any file.
        if not isinstance(name, str) or Path(name).name != name or not name:
            raise CheckpointError(
                f"the index must name files in its own directory, it names {str(name)[:80]!r}", path=index
            )
    missing = sorted(name for name in set(file_of.values()) if not _is_true((folder / name).exists))
    if missing:
        shown = ", ".join(repr(name[:80]) for name in missing[:4])
        raise CheckpointError(
            f"{len(missing)} of {len(set(file_of.values()))} shards that the index names are missing: {shown}",
            path=index,
            hint="download them too",
        )
    files = {name: _open_file(folder / name, stack) for name in sorted(set(file_of.values()))}
    for tensor, name in file_of.items():
        if tensor not in files[name].entries:
            raise CheckpointError(f"the tensor {tensor[:80]!r} is not in {name!r}, as the index says", path=index)
    return _with_directory(named_tensors(path, list(files.values())), folder)


def _with_directory(tensors: NamedTensors, folder: Path) -> NamedTensors:
    """Add the configuration and the vocabulary of the directory."""
    config = read_json(folder / CONFIG) if _is_true((folder / CONFIG).is_file) else {}
    vocabulary = folder / VOCABULARY
    return replace(tensors, config=config, vocabulary_file=vocabulary if _is_true(vocabulary.is_file) else None)


def chat_template_file(folder: Path) -> Path | None:
    """The file of a Hugging Face directory that has a chat template, which prompts are not made with; None without one.

    Raises:
        CheckpointError: `tokenizer_config.json` cannot be read, or is not a JSON object.
    """
    for name in CHAT_TEMPLATES:
        if _is_true((folder / name).is_file):
            return folder / name
    settings = folder / TOKENIZER_CONFIG
    return settings if _is_true(settings.is_file) and read_json(settings).get("chat_template") else None


def read_json(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: it is not one, or has more than `MAX_JSON_BYTES`.
    """
    descriptor = open_weights(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"it has {size:,} bytes, at most {MAX_JSON_BYTES:,} are read", path=path)
        value = json.loads(os.pread(descriptor, MAX_JSON_BYTES, 0))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"not JSON ({error_text(error)})", path=path) from error
    finally:
        os.close(descriptor)
    if not isinstance(value, dict):
        raise CheckpointError(f"expected a JSON object, found {type(value).__name__}", path=path)
    return cast("dict[str, Any]", value)
