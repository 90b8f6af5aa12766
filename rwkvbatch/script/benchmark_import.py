"""Makes scripts from the files of published benchmarks."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from rwkvbatch.errors import ScriptError, UsageError, error_text
from rwkvbatch.files import save_file
from rwkvbatch.script.benchmarks import BENCHMARKS, NOT_IMPORTED, BadRecordError, Benchmark, Question
from rwkvbatch.script.choices import NORMALIZE, Normalize
from rwkvbatch.script.data_files import data_files
from rwkvbatch.script.forms import read_conversation
from rwkvbatch.script.lines import SourceLine, refuse
from rwkvbatch.script.tables import Record, read_records
from rwkvbatch.targets import FileKind, check_target, file_head

MAX_SHOTS = 100

SCRIPT = FileKind(
    "a script",
    lambda path: (
        re.match(r'\s*\{[^\n]*"(messages|conversations|turns|defaults|text|prompt)":', file_head(path)) is not None
    ),
)


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
        conversations: number of lines of the script.
        left_out: for each record that was left out, an error message.
    """

    benchmark: str
    style: str
    conversations: int
    left_out: tuple[str, ...] = ()


def import_benchmark(
    name: str,
    files: Sequence[str],
    out: Path,
    *,
    style: str | None = None,
    shots: int = 0,
    dev: Sequence[str] = (),
    normalize: Normalize = "none",
    skip_bad: bool = False,
    replace: bool = False,
) -> Imported:
    """Write a script of the questions in a benchmark's files.

    Args:
        files: files, or folders of them (`data_files`).
        style: one of the benchmark's styles; None for its first.
        shots: number of examples before each question: the first ones of its group (subject) in the `dev` files.
        normalize: what the likelihoods of choices are divided by before they are compared.
        skip_bad: leave out records that cannot be used, instead of raising.
        replace: whether an existing script `out` may be replaced.

    Raises:
        UsageError: the benchmark or style is unknown, or the style has no examples or no choices to normalize.
        ScriptError: a file cannot be read, or a record is not of the benchmark's form.
        MissingExtraError: a file or a check needs an optional dependency that is not installed.
    """
    benchmark = benchmark_named(name)
    style = next(iter(benchmark.styles)) if style is None else style
    if style not in benchmark.styles:
        raise UsageError(f"{name} has no style {style!r}", hint=f"its styles: {', '.join(benchmark.styles)}")
    if normalize not in NORMALIZE:
        raise UsageError(f"--normalize must be one of {', '.join(NORMALIZE)}, got {normalize!r}")
    examples = _examples(name, benchmark, style, shots, dev)
    paths = data_files(files)
    check_target(out, SCRIPT, option="--out", replace=replace, how="--force replaces it")
    lines: list[bytes] = []
    left_out: list[str] = []
    source_of: dict[str, SourceLine] = {}
    for record in chain.from_iterable(read_records(path, benchmark.form) for path in paths):
        try:
            question = _read(benchmark, record, name)
            line = benchmark.styles[style].write(question, _examples_for(question, examples, record.source, shots))
            if normalize != "none":
                _normalize_choices(line, normalize, f"{name} in the style {style!r}")
            conversation_id = read_conversation(line, record.source, "").id
            if (earlier := source_of.setdefault(conversation_id, record.source)) is not record.source:
                problem = f"the id {conversation_id!r} was already used at {earlier}"
                refuse(record.source, problem, "import the files separately")
        except ScriptError as error:
            if not skip_bad:
                error.hint = "\n  ".join(filter(None, (error.hint, "--skip-bad leaves such records out")))
                raise
            left_out.append(str(error))
        else:
            lines.append(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    if not lines:
        raise ScriptError(f"contains no usable question; the first problem: {left_out[0]}", path=paths[0])
    save_file(out, lines)
    return Imported(name, style, len(lines), tuple(left_out))


def _normalize_choices(line: dict[str, Any], normalize: Normalize, benchmark: str) -> None:
    """Set how the check of a line's choices compares their likelihoods; raises `UsageError` if there is none."""
    if "choice" not in line.get("expect", {}):
        raise UsageError(f"{benchmark} compares no likelihoods of choices", hint="leave --normalize out")
    line["expect"]["normalize"] = normalize


def benchmark_named(name: str) -> Benchmark:
    """The benchmark with a name; raises `UsageError`."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if (known := name.lower()) in NOT_IMPORTED:
        hint = "serve the model (rwkvbatch serve) to a program that runs code in a sandbox; see docs/scripts.md"
        raise UsageError(f"{known} is not imported: {NOT_IMPORTED[known]}", hint=hint)
    matches = get_close_matches(known.replace("_", "-"), BENCHMARKS, n=1)
    meant = f"did you mean {matches[0]!r}? " if matches else ""
    raise UsageError(f"unknown benchmark {name!r}", hint=f"{meant}known ones: {', '.join(BENCHMARKS)}")


def _read(benchmark: Benchmark, record: Record, name: str) -> Question:
    """The question of a record; raises `ScriptError`."""
    try:
        return benchmark.read(record)
    except (BadRecordError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        keys = ", ".join(list(record.values)[:12])
        match error:
            case BadRecordError():
                problem = str(error)
            case KeyError():
                problem = f"lacks {error}"
            case ValueError():
                problem = f"has a value of another form ({error_text(error, None)})"
            case _:
                problem = "has a value of another type"
        refuse(
            record.source,
            f"is not a record of {name}: {problem}",
            f"its columns are {keys}; docs/scripts.md has the form",
        )


def _examples(
    name: str, benchmark: Benchmark, style: str, shots: int, dev: Sequence[str]
) -> Mapping[str, Sequence[Question]]:
    """By group, the questions of the dev files; raises `UsageError` if the style has no examples."""
    if not 0 <= shots <= MAX_SHOTS:
        raise UsageError(f"--shots must be a whole number in [0, {MAX_SHOTS}], got {shots}")
    if shots and not benchmark.styles[style].shots:
        with_shots = [other for other, other_style in benchmark.styles.items() if other_style.shots]
        hint = f"--style {with_shots[0]} has some" if with_shots else "leave --shots out"
        raise UsageError(f"{name} in the style {style!r} has no examples before a question", hint=hint)
    if bool(shots) != bool(dev):
        missing = "--dev FILE" if shots else "--shots N"
        raise UsageError("--shots and --dev belong together", hint=f"add {missing}, the examples come from a dev file")
    groups: dict[str, list[Question]] = defaultdict(list)
    for path in data_files(dev):
        for record in read_records(path, benchmark.form):
            question = _read(benchmark, record, name)
            groups[question.group].append(question)
    return groups


def _examples_for(
    question: Question, examples: Mapping[str, Sequence[Question]], source: SourceLine, shots: int
) -> Sequence[Question]:
    """The first `shots` examples of the question's group, without the question itself."""
    chosen = [example for example in examples.get(question.group, ()) if example.text != question.text][:shots]
    if len(chosen) < shots:
        about = f" about {question.group!r}" if question.group else ""
        refuse(source, f"needs {shots} examples{about}, and the dev files have {len(chosen)}", "add a --dev file")
    return chosen
