"""What a reader of files of other programs is, for hostile files and for the fuzzer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.mutations import Change


@dataclass(frozen=True)
class Reader:
    """One of the readers.

    Attributes:
        file: name of the changed file, such as `model.gguf`.
        read: reads the file at a path; a refusal is a `RwkvBatchError`.
        seeds: makes sound files. changes: what makes hostile ones of them.
        made: hostile files by name, written by hand.
        prepare: writes what lies beside the file into its folder.
        has_file: whether messages must name the file, or its folder.
        words: that such files hold, for the fuzzer.
    """

    file: str
    read: Callable[[Path], object]
    seeds: Callable[[], Sequence[bytes]]
    changes: Sequence[Change]
    made: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    prepare: Callable[[Path], object] = lambda folder: None
    has_file: bool = True
    words: Sequence[str] = ()
