"""Decides which rows of a run directory stay, are judged again or are set aside, and rewrites its files."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from rwkvbatch.errors import RunMismatchError, counted
from rwkvbatch.files import read_spans
from rwkvbatch.replay.continuing.row_digests import RowDigests
from rwkvbatch.replay.judging.checks import judged_again
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.results.directory import KEPT_NAME, RunDirectory
from rwkvbatch.results.manifest import FORMER, equal_cells
from rwkvbatch.results.recovery import read_lines
from rwkvbatch.results.row import Row
from rwkvbatch.results.row_codec import BadLineError, RowDigest, decode_row, digest_of, encode_row, with_digest
from rwkvbatch.targets import RESULTS_NAME

_SHOWN = 3


@dataclass(frozen=True)
class Reuse:
    """Counts of rows when a command continues or extends a run directory.

    Attributes:
        kept: existing rows that stay as they are.
        judged_again: existing rows whose checks or tags changed.
        to_generate: missing rows; with `--until-ci` and `--race`, those of the first round.
        set_aside: rows that this command does not have, moved to `kept.jsonl`.
        taken_back: rows from `kept.jsonl`, which are also counted as kept or judged again.
    """

    kept: int
    judged_again: int = 0
    to_generate: int = 0
    set_aside: int = 0
    taken_back: int = 0

    def in_words(self, directory: Path) -> str:
        text = (
            f"{directory}: {counted(self.to_generate, 'row')} to generate, {self.judged_again:,} judged again, "
            f"{self.kept:,} kept"
        )
        if self.taken_back:
            text += f" ({self.taken_back:,} of them taken back from {KEPT_NAME})"
        if self.set_aside:
            text += (
                f"; {self.set_aside:,} not in this command, moved to {KEPT_NAME} (the earlier command takes them back)"
            )
        return text


class _Action(IntEnum):
    """What to do with a line of `results.jsonl`."""

    STAY = 0
    REWRITE = 1
    JUDGE_AGAIN = 2
    SET_ASIDE = 3


@dataclass(frozen=True)
class _TakenBack:
    """A row that is taken back from `kept.jsonl`.

    Attributes:
        number: its row number in the plan.
        span: start and length of its new line in `Adaptation._new_lines`.
        action: REWRITE, JUDGE_AGAIN, or STAY for the same line as in `kept.jsonl`.
        replaces: line index of the error row in `results.jsonl` that it replaces, if any.
    """

    number: int
    span: tuple[int, int]
    action: _Action
    replaces: int | None


class Adaptation:
    """Decides for each line of a directory's `results.jsonl` what to do with it (`decide`), then does it (`write`).

    Lines that are not valid rows stay as they are; the store reports or repairs them.

    Args:
        new_lines: a temporary file for the lines that change.
    """

    def __init__(
        self, directory: RunDirectory, manifest: Mapping[str, Any], plan: Plan, digests: RowDigests, new_lines: BinaryIO
    ) -> None:
        self._directory = directory
        self._path = directory.path
        self._plan = plan
        self._digests = digests
        self._new_lines = new_lines
        former: Mapping[str, Any] = manifest.get(FORMER) or manifest
        plan_cells = {cell.name: values for cell, values in zip(plan.cells, digests.cells, strict=True)}
        self._cell_numbers = {name: number for number, name in enumerate(plan_cells)}
        self._renamed_cells = equal_cells(former["identity"].get("cells", {}), plan_cells)
        self._conversation_numbers = {c.id: number for number, c in enumerate(plan.conversations)}
        self._cells_of_content = lru_cache(maxsize=64)(self._find_cells_of_content)
        # By line of `results.jsonl`: what to do with it, and its row number in the plan, -1 for none.
        self._actions = bytearray()
        self._row_numbers = array("q")
        # By line that changes: start and length of the new line in `new_lines`.
        self._new_spans: dict[int, tuple[int, int]] = {}
        self._taken_back_spans: list[tuple[int, int]] = []
        self._has_row = bytearray(plan.num_rows)
        # Rows that a new check makes error rows, and their lines; the former lines are set aside. By task, the position
        # of the first such row.
        self._broken_rows: set[int] = set()
        self._broken_lines: set[int] = set()
        self._first_broken: dict[int, int] = {}
        # By row number, the line of an existing error row.
        self._error_lines: dict[int, int] = {}
        self._foreign_rows: list[str] = []
        self.counts = Reuse(0)

    def decide(self) -> None:
        """Decide what to do with each line; writes nothing.

        Raises:
            RunMismatchError: the directory and the plan have no conversation in a common cell.
        """
        any_row = in_common = False
        for data in self._read_lines(RESULTS_NAME):
            action, number = _Action.STAY, None
            if (decoded := _decoded(data)) is not None:
                any_row, (row, digest) = True, decoded
                in_common |= row.conversation in self._conversation_numbers and self._has_cell(row.cell)
                number = self._find_row_number(row, digest)
                if number is None:
                    action = _Action.SET_ASIDE
                    if len(self._foreign_rows) < _SHOWN:
                        self._foreign_rows.append(row.key.in_words())
                elif self._has_row[number]:  # a duplicate, which the store reports
                    number = None
                else:
                    action = self._decide_row(row, digest, number)
            self._actions.append(action)
            self._row_numbers.append(-1 if number is None else number)
        if any_row and not in_common:
            raise RunMismatchError(
                f"contains another run: none of its conversations is one of this command's; the first rows in it: "
                f"{'; '.join(self._foreign_rows)}",
                path=self._path,
                hint="give the script that the run was started with, or another directory with --out",
            )
        taken_back = self._take_back()
        for line, number in enumerate(self._row_numbers if self._first_broken else ()):
            if number >= 0 and self._is_after_broken(number):
                self._actions[line] = _Action.SET_ASIDE
        actions = [action for action, number in zip(self._actions, self._row_numbers, strict=True) if number >= 0]
        actions += [taken.action for taken in taken_back]
        self.counts = Reuse(
            kept=actions.count(_Action.STAY) + actions.count(_Action.REWRITE),
            judged_again=actions.count(_Action.JUDGE_AGAIN),
            set_aside=self._actions.count(_Action.SET_ASIDE),
            taken_back=len(taken_back),
        )

    def write(self) -> None:
        """Set rows aside, then replace `results.jsonl`; raises `StorageError`."""
        if _Action.SET_ASIDE in self._actions or self._broken_lines:
            self._directory.set_aside(self._set_aside_lines())
        if any(self._actions) or self._taken_back_spans:
            with self._directory.reading(RESULTS_NAME) as scanned, self._directory.reading(RESULTS_NAME) as copied:
                self._directory.replace_rows(self._adapted_lines(scanned, copied))

    def _decide_row(self, row: Row, digest: RowDigest, number: int) -> _Action:
        """Decide about the next line of `results.jsonl`, which has row `number` of the plan."""
        self._has_row[number] = 1
        line = len(self._actions)
        new, action = self._renewed(row, digest, number)
        if new is not None:
            self._new_spans[line] = self._add_new_line(new)
        if row.finish_reason == "error":
            self._error_lines[number] = line
        elif number in self._broken_rows:
            self._broken_lines.add(line)
        return action

    def _has_cell(self, name: str) -> bool:
        return name in self._cell_numbers or name in self._renamed_cells

    def _find_row_number(self, row: Row, digest: RowDigest) -> int | None:
        """The row's number in the plan; None if the plan has no row of the same content."""
        conversation = self._conversation_numbers.get(row.conversation)
        if conversation is None or row.turn >= len(self._plan.conversations[conversation].turns):
            return None
        cell = self._cell_numbers.get(row.cell)
        if cell is not None and self._digests.contents(conversation, cell)[row.turn] == digest.content:
            return self._plan.row_number(row.key)
        for name in self._cells_of_content(conversation).get((row.turn, digest.content), ()):
            number = self._plan.row_number(replace(row.key, cell=name))
            if number is not None and not self._has_row[number]:
                return number
        return None

    def _find_cells_of_content(self, conversation: int) -> dict[tuple[int, str], list[str]]:
        """By turn and content digest of a conversation's rows, the names of the cells that have such a row."""
        cells: dict[tuple[int, str], list[str]] = {}
        for name, cell in self._cell_numbers.items():
            for turn, content in enumerate(self._digests.contents(conversation, cell)):
                cells.setdefault((turn, content), []).append(name)
        return cells

    def _renewed(self, row: Row, old_digest: RowDigest, number: int) -> tuple[bytes | None, _Action]:
        """The new line of row `number`, None if it stays as it is, and what to do with the old one."""
        new_digest, key = self._digests.of_row(number), self._plan.key(number)
        if old_digest == new_digest and row.cell == key.cell:
            return None, _Action.STAY
        task, turn = self._plan.task_of_row(number)
        conversation = self._plan.conversations[self._plan.conversation_of(task)]
        renewed, action = replace(row, cell=key.cell), _Action.REWRITE
        if old_digest.judging != new_digest.judging:
            renewed, action = judged_again(renewed, conversation), _Action.JUDGE_AGAIN
            if renewed.finish_reason == "error" and row.finish_reason != "error":
                self._broken_rows.add(number)
                if conversation.turns[turn].probe is None:  # a failed probe does not end the dialogue
                    position = self._position_in_task(number)
                    self._first_broken[task] = min(position, self._first_broken.get(task, position))
        return with_digest(encode_row(renewed), new_digest), action

    def _take_back(self) -> list[_TakenBack]:
        """Find the rows in `kept.jsonl` that the plan has and the directory lacks.

        A row whose check raised an exception has an error row in the directory. It is taken back too, because its
        checks may have changed since.
        """
        candidates: list[_TakenBack] = []
        for data in self._read_lines(KEPT_NAME):
            if (decoded := _decoded(data)) is None:
                continue
            row, digest = decoded
            number = self._find_row_number(row, digest)
            if number is None:
                continue
            replaced = self._error_lines.pop(number, None) if row.finish_reason != "error" else None
            if self._has_row[number] and replaced is None:
                continue
            self._has_row[number] = 1
            new, action = self._renewed(row, digest, number)
            candidates.append(_TakenBack(number, self._add_new_line(data if new is None else new), action, replaced))
        taken_back = [taken for taken in candidates if not self._is_after_broken(taken.number)]
        for taken in taken_back:
            if taken.replaces is not None:
                self._actions[taken.replaces] = _Action.SET_ASIDE
        self._taken_back_spans = [taken.span for taken in taken_back]
        return taken_back

    def _is_after_broken(self, number: int) -> bool:
        """Whether a row comes after one that a new check made an error row: a new run does not reach its turn."""
        return self._position_in_task(number) > self._first_broken.get(self._plan.task_of_row(number)[0], math.inf)

    def _position_in_task(self, number: int) -> int:
        """The position of a row among those of its task, in the order in which they are made."""
        task, turn = self._plan.task_of_row(number)
        return self._plan.conversations[self._plan.conversation_of(task)].order.index(turn)

    def _set_aside_lines(self) -> Iterator[bytes]:
        """The lines to set aside, without those that `kept.jsonl` already has."""
        kept = {_identity_of(data) for data in self._read_lines(KEPT_NAME)}
        for line, data in enumerate(self._read_lines(RESULTS_NAME)):
            is_set_aside = self._actions[line] == _Action.SET_ASIDE or line in self._broken_lines
            if is_set_aside and _identity_of(data) not in kept:
                yield data

    def _adapted_lines(self, scanned: BinaryIO, copied: BinaryIO) -> Iterator[bytes]:
        """The content of the new `results.jsonl`; `scanned` and `copied` read the old one independently."""
        # Rows that are taken back come first, because a torn last line would corrupt a row after it.
        yield from map(self._read_new_line, self._taken_back_spans)
        for line, old in enumerate(read_lines(scanned)):
            if (span := self._new_spans.get(line)) is not None and self._actions[line] != _Action.SET_ASIDE:
                yield self._read_new_line(span)
            elif self._actions[line] == _Action.STAY:
                yield from read_spans(copied, [(old.start, old.end)])

    def _read_lines(self, name: str) -> Iterator[bytes]:
        """The lines of a file of rows, none if there is no file; raises `RunDirectoryError`."""
        with self._directory.reading(name) as reader:
            for line in read_lines(reader):
                yield line.data

    def _add_new_line(self, line: bytes) -> tuple[int, int]:
        """Write a line to `new_lines`. Returns its start and length there."""
        start = self._new_lines.seek(0, 2)
        self._new_lines.write(line)
        return start, len(line)

    def _read_new_line(self, span: tuple[int, int]) -> bytes:
        self._new_lines.seek(span[0])
        return self._new_lines.read(span[1])


def _decoded(data: bytes) -> tuple[Row, RowDigest] | None:
    try:
        return decode_row(data), digest_of(data)
    except BadLineError:
        return None


def _identity_of(data: bytes) -> tuple[object, ...] | None:
    """The key and content digest that identify a row in `kept.jsonl`; None for a line that is not a row."""
    decoded = _decoded(data)
    return None if decoded is None else (decoded[0].key, decoded[1].content)
