"""The description of a reader of files of other programs, for hostile files and for the fuzzer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.mutations import Change


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file.

    Attributes:
        file: name of the changed file, such as `model.gguf`.
        read: reads the file at a path; a refusal is a `RwkvBatchError`.
        seeds: makes valid files. changes: functions that make hostile files of them.
        written_by_hand: hostile files by name.
        prepare: writes the other files of the folder.
        has_file: whether messages must name the file, or its folder.
        words: words of such files, for the fuzzer.
    """

    file: str
    read: Callable[[Path], object]
    seeds: Callable[[], Sequence[bytes]]
    changes: Sequence[Change]
    written_by_hand: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    prepare: Callable[[Path], object] = lambda folder: None
    has_file: bool = True
    words: Sequence[str] = ()
