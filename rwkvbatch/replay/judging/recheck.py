"""Judges the replies of a run again, by the checks of its script's copy or of another script, without generating any.

Checks that a judge answers use the verdicts in the directory; a given judge is first asked the open questions.

The new rows are written to another file, which replaces the old one atomically when all rows are judged. While the
manifest has the entry `former`, the same command repeats this, with the same result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from rwkvbatch.config import ScriptLimits
from rwkvbatch.errors import RowError, RunDamagedError, RunDirectoryError, RunLockedError, RunMismatchError, shown_json
from rwkvbatch.files import OS_FILES, Files, read_spans
from rwkvbatch.judges.questions import VoteRequest
from rwkvbatch.replay.judging.checks import judging_digest
from rwkvbatch.replay.judging.rubrics import RubricJudge, rubrics_of, turns_with_rubrics, vote_requests_of
from rwkvbatch.replay.judging.verdicts import opened_answers
from rwkvbatch.results.answers import AnswerStore
from rwkvbatch.results.directory import RunDirectory
from rwkvbatch.results.manifest import FORMER, read_manifest
from rwkvbatch.results.recovery import read_lines
from rwkvbatch.results.row import Row, RowKey
from rwkvbatch.results.row_codec import (
    BadLineError,
    RowDigest,
    WrongValuesError,
    decode_row,
    digest_of,
    encode_row,
    with_digest,
)
from rwkvbatch.results.script_copy import read_script, script_sha256, write_script
from rwkvbatch.results.status import planned_rows
from rwkvbatch.results.summary import FORMER_VERDICTS, Summary, Tallies, read_part, write_summary
from rwkvbatch.script.checks import kinds_of_functions
from rwkvbatch.script.checks.functions import CODE, Functions, using_functions
from rwkvbatch.script.forms import read_conversation
from rwkvbatch.script.native import native_record
from rwkvbatch.script.reader import read_scripts
from rwkvbatch.script.records import Conversation
from rwkvbatch.targets import RESULTS_NAME

if TYPE_CHECKING:
    from rwkvbatch.judges.source import JudgeSource

BY_CHECK = "check"
"""Value of `by` in a manifest's `former` while this module changes verdicts."""


@dataclass(frozen=True)
class Rechecked:
    """Result of judging a run again.

    Attributes:
        rows: number of rows of the run.
        judged: rows that now have checks, except error rows.
        changed: rows with a changed verdict, check or tag.
        now_pass: rows that failed a check before and now pass all.
        now_fail: rows that passed all checks before and now fail one.
        now_judged: rows that lacked a verdict before and now have all.
        unjudged: error rows with checks; these count as failed, before and now.
        summary: the run's figures with the new verdicts.
        left_out: conversations of the given script that the run does not have.
        notes: remarks for display.
    """

    directory: Path
    rows: int
    judged: int
    changed: int
    now_pass: int
    now_fail: int
    now_judged: int
    unjudged: int
    summary: Summary
    left_out: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "directory": str(self.directory), "summary": self.summary.as_dict()}


def recheck(
    path: Path,
    scripts: Sequence[str] = (),
    *,
    judge: JudgeSource | None = None,
    command: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
    asking: Callable[[int, int], None] = lambda done, total: None,
    limits: ScriptLimits | None = None,
    files: Files = OS_FILES,
    checks: Functions | None = None,
) -> Rechecked:
    """Judge the replies of the run at `path` again.

    Args:
        scripts: scripts with the checks and tags to judge by; their conversations must otherwise be those of the run.
            Without any, the script's copy in the directory is used.
        judge: answers the checks of type `judge`; None uses the verdicts in the directory.
        command: this command, for messages to other processes that try to lock the directory.
        progress: is called with the number of bytes done and of all bytes.
        asking: is called with the number of the judge's answers and of all questions.
        limits: the limits of `scripts`.
        checks: functions that the scripts name, as in `rwkvbatch.run`.

    Raises:
        RunDirectoryError: there is no run, it is locked, or another command was interrupted while it changed it.
        RunMismatchError: a script's conversation is not the one that was replayed.
        RunDamagedError: a row or the script's copy is damaged.
        ScriptError, MissingExtraError: a script cannot be read.
        RowError: a check raised an exception; nothing was changed.
        StorageError: a write failed; the rows have their old verdicts.
    """
    if read_manifest(path) is None:
        hint = "`rwkvbatch run SCRIPT --out DIR` makes one"
        raise RunDirectoryError("contains no run" if path.is_dir() else "there is no such run", path=path, hint=hint)
    try:
        directory = RunDirectory(path, command, files)
    except RunDirectoryError as error:  # the hints of a new run name --out, which this command does not have
        if isinstance(error, RunLockedError):
            error.hint = "wait until it ends, or stop it"
        elif not isinstance(error, RunDamagedError):
            error.hint = "make it writable, or judge a copy of it"
        raise
    with closing(directory):
        with using_functions(kinds_of_functions(checks)):
            rechecking = _Recheck(directory, scripts, limits, progress)
        return rechecking.run(judge, asking)


class _Recheck:
    def __init__(
        self,
        directory: RunDirectory,
        scripts: Sequence[str],
        limits: ScriptLimits | None,
        progress: Callable[[int, int], None],
    ) -> None:
        manifest = directory.manifest
        assert manifest is not None
        self._directory = directory
        self._manifest: Mapping[str, Any] = manifest
        self._progress = progress
        former = manifest.get(FORMER)
        if former is not None and former.get("by") != BY_CHECK:
            raise RunDirectoryError(
                "the last `rwkvbatch run` in it was interrupted while it adapted the rows",
                path=directory.path,
                hint=f"run it again first: {manifest.get('about', {}).get('command') or 'rwkvbatch run ...'}",
            )
        script_copy = read_script(directory.path, manifest)
        if script_copy is None:
            raise RunDirectoryError(
                "has no copy of its script",
                path=directory.path,
                hint="run its command again, with the script as it was: this keeps all rows and adds the copy",
            )
        self._conversations, self._num_left_out = (), 0
        if scripts:
            given = {c.id: c for c in read_scripts(scripts, limits=limits).conversations}
            self._conversations = tuple(self._same_conversation(c, given.get(c.id)) for c in script_copy)
            self._num_left_out = len(given) - len(script_copy)
        else:
            self._conversations = tuple(map(_with_functions, script_copy))
        self._by_id = {c.id: c for c in self._conversations}
        self._digests: dict[tuple[str, int], str] = {}
        self._has_new_score = False
        self._turns = turns_with_rubrics(self._conversations)
        self._rubric_judge = RubricJudge(None, None, lambda row, turn: None, self._is_gold)

    def run(self, judge: JudgeSource | None, asking: Callable[[int, int], None]) -> Rechecked:
        if not self._turns:
            return self._run()
        with ExitStack() as stack:
            known = stack.enter_context(opened_answers(judge, AnswerStore(self._directory.folder)))
            rows = stack.enter_context(self._directory.reading(RESULTS_NAME))
            self._rubric_judge = RubricJudge(known.answers, known.judge, self._row_finder(rows), self._is_gold)
            if known.answers is not None:
                known.answers.ask_missing(self._vote_requests, asking)
            result = self._run()
            if known.drop_unused is not None:
                known.drop_unused()
            return result

    def _row_finder(self, reader: BinaryIO) -> Callable[[Row, int], Row | None]:
        """A function that gives the row of another turn of a dialogue; indexes the file only if a rubric needs it."""
        spans: dict[RowKey, tuple[int, int]] = {}
        rubrics = (r for c in self._conversations for turn in range(len(c.turns)) for r in rubrics_of(c, turn))
        if any(rubric.context == "dialogue" for rubric in rubrics):
            spans = {row.key: span for row, span in self._undamaged_rows() if row.conversation in self._turns}

        def row_of(row: Row, turn: int) -> Row | None:
            span = spans.get(replace(row.key, turn=turn))
            return None if span is None else decode_row(b"".join(read_spans(reader, [span])))

        return row_of

    def _undamaged_rows(self) -> Iterator[tuple[Row, tuple[int, int]]]:
        """The undamaged rows, with start and end in the file; `_lines` reports the damaged ones."""
        with self._directory.reading(RESULTS_NAME) as reader:
            for line in read_lines(reader):
                with suppress(BadLineError):
                    yield decode_row(line.data), (line.start, line.end)

    def _vote_requests(self) -> Iterator[VoteRequest]:
        return vote_requests_of(
            self._rubric_judge, (row for row, _ in self._undamaged_rows()), self._by_id, self._turns
        )

    def _is_gold(self, cell: str) -> bool:
        cells = self._manifest["identity"].get("cells")
        return isinstance(cells, dict) and cast("dict[str, Any]", cells).get(cell, {}).get("history") == "gold"

    def _run(self) -> Rechecked:
        """Write the rows with new verdicts, the script's copy, the summary and the manifest."""
        directory, manifest = self._directory, self._manifest
        notes: list[str] = []
        identity = json.loads(json.dumps(manifest["identity"]))
        identity["script"] = {**identity.get("script", {}), "sha256": script_sha256(self._conversations)}
        about, shard = manifest.get("about", {}), manifest.get("shard")
        counts = {"rows": 0, "judged": 0, "changed": 0, "now_pass": 0, "now_fail": 0, "now_judged": 0, "unjudged": 0}
        tallies = Tallies(identity.get("cells", {}))
        planned = planned_rows(directory.path)
        with directory.reading(RESULTS_NAME) as scanned, directory.reading(RESULTS_NAME) as copied:
            lines = self._lines(scanned, copied, tallies, counts)
            directory.begin_change(identity, about, shard, by=BY_CHECK)
            try:
                directory.replace_rows(lines)
            except (RowError, RunDamagedError):  # nothing was replaced yet: restore the manifest
                if FORMER not in manifest:
                    directory.end_change(manifest["identity"], about, shard)
                raise
        write_script(directory.folder, self._conversations)
        summary = tallies.summary(counts["rows"] if planned is None else max(planned, counts["rows"]))
        race = read_part(directory.path, "race")
        if self._has_new_score and (identity.get("race") is not None or identity.get("until_ci") is not None):
            notes.append("the former verdicts decided which rows the run has; run its command again to update the rows")
            race = {**race, FORMER_VERDICTS: True} if race else {}
        write_summary(directory.folder, summary, read_part(directory.path, "session"), race)
        directory.end_change(identity, about, shard)
        return Rechecked(directory.path, **counts, summary=summary, left_out=self._num_left_out, notes=tuple(notes))

    def _same_conversation(self, old: Conversation, new: Conversation | None) -> Conversation:
        """`new`, which has the checks and tags to judge by.

        Raises:
            RunMismatchError: `new` is None, or differs from the replayed conversation `old` in more than these.
        """
        hint = "`rwkvbatch run` with this script generates what is missing and judges the rest again"
        if new is None:
            problem = f"the script has no conversation {old.id!r}, of which the run has rows"
            raise RunMismatchError(problem, path=self._directory.path, hint=hint)
        for name, old_value, new_value in _compared_values(old, new):
            if old_value != new_value:
                shown = f"replayed: {shown_json(old_value)}; the script: {shown_json(new_value)}"
                problem = f"conversation {old.id}: {name}: {shown}"
                if name.endswith(", normalize"):
                    # The reply of such a row is the choice that `normalize` selected.
                    measures = "the metrics acc (sums), acc_norm (per character) and acc_bytes (per byte)"
                    hint = f"`rwkvbatch compare` has {measures} of the existing rows; {hint}"
                raise RunMismatchError(problem, path=self._directory.path, hint=hint)
        return new

    def _lines(self, scanned: BinaryIO, copied: BinaryIO, tallies: Tallies, counts: dict[str, int]) -> Iterator[bytes]:
        """The lines with the new verdicts; damaged lines at the end of the file stay as they are.

        Raises:
            RunDamagedError: a damaged line precedes an undamaged one, or a whole line is not a row of the run.
        """
        num_bytes = scanned.seek(0, 2)
        scanned.seek(0)
        first_bad: tuple[int, BadLineError] | None = None
        for line in read_lines(scanned):
            try:
                row, digest = decode_row(line.data), digest_of(line.data)
                if row.cell not in self._manifest["identity"]["cells"]:
                    raise WrongValuesError(f"it is of {row.key.in_words()}, and the run has no such cell")
            except BadLineError as error:
                first_bad = first_bad or (line.number, error)
                if isinstance(error, WrongValuesError):
                    raise self._damaged(*first_bad) from None
                yield from read_spans(copied, [(line.start, line.end)])
                continue
            if first_bad is not None:
                raise self._damaged(*first_bad)
            yield self._judged(row, digest, tallies, counts)
            self._progress(line.end, num_bytes)

    def _damaged(self, line: int, error: BadLineError) -> RunDamagedError:
        hint = "continue the run with --repair to set damaged rows aside and run them again"
        path = self._directory.path / RESULTS_NAME
        return RunDamagedError(f"the row is damaged: {error}", path=path, line=line, hint=hint)

    def _judged(self, row: Row, digest: RowDigest, tallies: Tallies, counts: dict[str, int]) -> bytes:
        """The new line of a row; adds the row to `tallies` and `counts`."""
        conversation = self._by_id.get(row.conversation)
        if conversation is None or row.turn >= len(conversation.turns):
            problem = f"a row is of {row.key.in_words()}, which the script's copy does not have"
            raise RunDamagedError(problem, path=self._directory.path)
        new = self._rubric_judge.judged(row, conversation)
        if new.finish_reason == "error" and row.finish_reason != "error":
            raise RowError(
                f"{self._directory.path}: {row.key.in_words()}: {new.error}; nothing was changed",
                hint="fix the check, or its value in the script",
            )
        tallies.add(new)
        counts["rows"] += 1
        counts["judged"] += bool(new.checks) and new.error is None
        counts["unjudged"] += bool(new.checks) and new.error is not None
        counts["changed"] += (new.checks, new.tags) != (row.checks, row.tags)
        self._has_new_score |= new.score != row.score
        counts["now_judged"] += bool(row.unjudged_checks) and bool(new.checks) and not new.unjudged_checks
        if row.checks and new.checks and row.error is None and not row.unjudged_checks and not new.unjudged_checks:
            counts["now_pass"] += bool(row.failed_checks) and not new.failed_checks
            counts["now_fail"] += not row.failed_checks and bool(new.failed_checks)
        return with_digest(encode_row(new), replace(digest, judging=self._judging_digest(conversation, row.turn)))

    def _judging_digest(self, conversation: Conversation, turn: int) -> str:
        key = conversation.id, turn
        if key not in self._digests:
            self._digests[key] = judging_digest(conversation, turn)
        return self._digests[key]


def _with_functions(conversation: Conversation) -> Conversation:
    """A conversation of the script's copy, with the functions that are given now; raises `ScriptError` without one."""
    if not any(CODE in check.options for turn in conversation.turns for check in turn.checks):
        return conversation
    line = json.loads(json.dumps(native_record(conversation)))
    return read_conversation(line, conversation.source, conversation.id)


def _compared_values(old: Conversation, new: Conversation) -> Iterator[tuple[str, Any, Any]]:
    """Everything on which the replies of a conversation depend: a name, the value in `old`, and that in `new`."""
    yield "params", dict(old.params), dict(new.params)
    for key in dict.fromkeys([*old.row_context, *new.row_context]):
        yield key, old.row_context.get(key), new.row_context.get(key)
    for turn, (old_contents, new_contents) in enumerate(zip(old.row_contents, new.row_contents, strict=False)):
        for key in dict.fromkeys([*old_contents, *new_contents]):
            yield f"turn {turn}, {key}", old_contents.get(key), new_contents.get(key)
        yield f"turn {turn}, params", dict(old.turns[turn].params), dict(new.turns[turn].params)
    yield "turns", len(old.turns), len(new.turns)
