"""Reads the records of published data sets from JSON Lines, JSON arrays, CSV, Parquet and Arrow files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rwkvbatch.errors import MissingExtraError, ScriptError, counted, error_text
from rwkvbatch.files import open_file
from rwkvbatch.script.lines import (
    NotStrictError,
    SourceLine,
    check_value,
    is_array,
    is_object,
    load_with_faults,
    parse_columns,
    refuse,
    shown,
    type_name,
)

MAX_BYTES = 2**31
_MAX_FIELD = 2**24

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".arrow")
"""File name suffixes of the formats that can be read."""

COMPRESSED = {
    ".gz": "gunzip -k", ".zst": "unzstd", ".xz": "unxz -k", ".bz2": "bunzip2 -k", ".tgz": "tar xf", ".tar": "tar xf",
    ".zip": "unzip", ".7z": "7z x",
}  # fmt: skip
"""By file name suffix of compressed files and archives, the command that unpacks them."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        values: by column name; in a CSV file without a header, the names are the column numbers "0", "1", ...
        number: 1-based number in the file.
        source: file and line; in Parquet and Arrow files the line is the number, and an array in JSON has items.
    """

    values: Mapping[str, Any]
    number: int
    source: SourceLine


class Columns(Mapping[str, Any]):
    """The values of a record. Reading a column raises `ScriptError` if its value is not strict JSON.

    Published files may have NaN, for example, in columns that nobody reads.
    """

    def __init__(self, values: Mapping[str, Any], source: SourceLine) -> None:
        self._values = values
        self._source = source

    def __getitem__(self, column: str) -> Any:
        value = self._values[column]
        try:
            check_value(value)
        except NotStrictError as error:
            refuse(self._source, f"{error}, in the column {shown(column)}", error.hint)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class TableForm:
    """The form of a data set's files beyond their format.

    Attributes:
        header: of files that may lack a header, the columns by which it is recognised; empty for those that have one.
        inside: the key of a JSON object whose array has the records.
        label: the column whose values are in `NAME-labels.lst`, one a line, if the records of `NAME.jsonl` lack it.
    """

    header: frozenset[str] = frozenset()
    inside: str = ""
    label: str = ""


NO_FORM = TableForm()


def read_records(path: str, form: TableForm = NO_FORM) -> Iterator[Record]:
    """The records of a file, whose format is known by its suffix.

    Raises:
        ScriptError: the file cannot be read, or a record is damaged.
        MissingExtraError: the file has the format Parquet or Arrow, and `pyarrow` is not installed.
    """
    readers = {
        ".csv": _csv,
        ".parquet": _parquet,
        ".arrow": _arrow,
        ".json": _json,
        ".jsonl": _lines,
        ".ndjson": _lines,
    }
    ending = Path(path).suffix.lower()
    if ending in COMPRESSED:
        command = "tar xf" if Path(path).stem.endswith(".tar") else COMPRESSED[ending]
        raise ScriptError("is compressed or an archive", path=path, hint=f"unpack it first: {command} {path}")
    if ending not in readers:
        hint = "the format is known by the ending; give the file one"
        raise ScriptError(f"must be a file that ends in {', '.join(ENDINGS)}", path=path, hint=hint)
    number = 0
    try:
        _refuse_lfs_pointer(path)
        labels = _labels(path, form.label)
        for number, (source, values) in enumerate(readers[ending](path, form), 1):
            if labels is not None:
                values = _labelled(values, form.label, labels, number, source)
            yield Record(Columns(values, source), number, source)
    except OSError as error:
        raise ScriptError(f"cannot be read: {error.strerror or error_text(error, None)}", path=path) from None
    if not number:
        raise ScriptError("contains no record", path=path, hint="is it the right file?")
    if labels is not None and len(labels) != number:
        problem = f"has {counted(len(labels), 'line')}, and {path} has {counted(number, 'record')}"
        raise ScriptError(problem, path=_labels_path(path), hint="take the labels of the same file")


def _refuse_lfs_pointer(path: str) -> None:
    with open_file(Path(path), MAX_BYTES) as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            hint = "`git lfs pull` in its folder fetches the file"
            raise ScriptError("is a Git LFS pointer, not the file", path=path, hint=hint)


def _labels_path(path: str) -> str:
    return str(Path(path).with_name(f"{Path(path).stem}-labels.lst"))


def _labels(path: str, column: str) -> list[str] | None:
    """The labels of a `.jsonl` file that are in a file next to it, one a line; None without such a file."""
    labels_path = Path(_labels_path(path))
    if not column or Path(path).suffix.lower() not in (".jsonl", ".ndjson") or not labels_path.is_file():
        return None
    with open_file(labels_path, MAX_BYTES) as file:
        return file.read().decode("utf-8", "replace").split()


def _labelled(
    values: Mapping[str, Any], column: str, labels: Sequence[str], number: int, source: SourceLine
) -> Mapping[str, Any]:
    """The values of a record, with its label if the record has no label of its own."""
    if column in values:
        return values
    if number > len(labels):
        problem = f"has no label: {_labels_path(source.path)} has {counted(len(labels), 'line')}"
        refuse(source, problem, "take the labels of the same file")
    return {**values, column: labels[number - 1]}


_SourcedValues = Iterator[tuple[SourceLine, Mapping[str, Any]]]
"""The source and the values of each record."""


def _lines(path: str, _: TableForm) -> _SourcedValues:
    with open_file(Path(path), MAX_BYTES) as file:
        for line, data in enumerate(file, 1):
            source = SourceLine(path, line)
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                refuse(source, f"not UTF-8: byte 0x{data[error.start]:02x}", "save the file as UTF-8")
            if line == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                yield source, parse_columns(text, source)


def _json(path: str, form: TableForm) -> _SourcedValues:
    """An array of objects, one object, an object with an array of them, or JSON Lines in spite of the suffix."""
    with open_file(Path(path), MAX_BYTES) as file:
        data = file.read()
    try:
        value = load_with_faults(data.decode(json.detect_encoding(data)))
    except (ValueError, RecursionError):
        yield from _lines(path, form)
        return
    if form.inside and is_object(value):
        inside = value.get(form.inside)
        if isinstance(inside, NotStrictError):
            refuse(SourceLine(path, 1), str(inside), inside.hint)
        value = inside if is_array(inside) else value
    if is_object(value):
        yield SourceLine(path, 1), value
        return
    for number, item in enumerate(value if is_array(value) else [value], 1):
        source = SourceLine(path, 1, number)
        if not is_object(item):
            refuse(source, f"must be an object, got {type_name(item)}")
        yield source, item


class CsvError(Exception):
    """A line that is not CSV; the text says what is wrong."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


def csv_rows(path: Path | str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file with the line on which each begins, without empty lines.

    Raises:
        CsvError: a line is not CSV or not UTF-8.
        OSError: the file cannot be read.
    """
    csv.field_size_limit(_MAX_FIELD)
    line = 1
    with open_file(path, MAX_BYTES) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            for row in reader:
                row_line, line = line, reader.line_num + 1
                if row:
                    yield row_line, row
        except csv.Error as error:
            raise CsvError(f"is not a line of CSV: {error}", line) from None
        except UnicodeDecodeError as error:  # its place is one in a block of the file
            line, byte = _not_utf8(path) or (line, error.object[error.start])
            raise CsvError(f"not UTF-8: byte 0x{byte:02x}", line) from None


def _not_utf8(path: Path | str) -> tuple[int, int] | None:
    """The line and the value of the first byte of a file that is not UTF-8."""
    with open_file(path, MAX_BYTES) as file:
        for line, data in enumerate(file, 1):
            try:
                data.decode()
            except UnicodeDecodeError as error:
                return line, data[error.start]
    return None


def _csv(path: str, form: TableForm) -> _SourcedValues:
    names: list[str] | None = None
    try:
        for line, row in csv_rows(path):
            if names is None:
                is_header = form.header <= set(row)
                names = row if is_header else [str(column) for column in range(len(row))]
                if is_header:
                    continue
            if len(row) != len(names):
                refuse(SourceLine(path, line), f"has {len(row)} columns, and the first line has {len(names)}")
            yield SourceLine(path, line), dict(zip(names, row, strict=True))
    except CsvError as error:
        hint = "save the file as UTF-8" if "UTF-8" in str(error) else None
        raise ScriptError(str(error), path=path, line=error.line, hint=hint) from None


def _arrow_library(path: str) -> Any:
    try:
        for name in ("pyarrow.ipc", "pyarrow.parquet"):
            import_module(name)
    except ImportError:
        raise MissingExtraError(f"{path}: reading Parquet and Arrow files needs pyarrow", extra="parquet") from None
    return import_module("pyarrow")


def _parquet(path: str, _: TableForm) -> _SourcedValues:
    library = _arrow_library(path)
    try:
        with open_file(Path(path), MAX_BYTES) as file:
            yield from _batches(path, library.parquet.ParquetFile(file).iter_batches())
    except (ValueError, library.ArrowException) as error:  # for example names that are not UTF-8
        raise ScriptError(f"is not a Parquet file: {error_text(error, None)}", path=path) from None


def _arrow(path: str, _: TableForm) -> _SourcedValues:
    """Both formats of Arrow's IPC: the stream format, which the `datasets` library writes, and the file format."""
    library = _arrow_library(path)
    try:
        with open_file(Path(path), MAX_BYTES) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file:
                reader = library.ipc.open_file(file)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
                yield from _batches(path, batches)
            else:
                yield from _batches(path, library.ipc.open_stream(file))
    except (ValueError, library.ArrowException) as error:  # for example names that are not UTF-8
        raise ScriptError(f"is not an Arrow file: {error_text(error, None)}", path=path) from None


def _batches(path: str, batches: Any) -> _SourcedValues:
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            yield SourceLine(path, number), record
