"""Takes over the rows of a run directory into another command: what is the same is kept, what changed is judged again.

A row belongs to what it was made from (`replay.identity.RowDigests`), not to the run as a whole. `adopt` finds the
plan's row for every row, judges again those whose checks changed, sets the others aside in `kept.jsonl`, and takes rows
back from there that an earlier command had and this one has again. What is missing then is for the run to generate.

A crash loses nothing: rows are set aside, durably, before `results.jsonl` is replaced, which is done at once; and while
the manifest has its `former`, the next command does all of it again, with the same result.
"""

from __future__ import annotations

import math
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from rwkvbatch.errors import RunDamagedError, RunMismatchError, counted
from rwkvbatch.files import read_spans
from rwkvbatch.replay.former_script import FormerScript
from rwkvbatch.replay.identity import RowDigests
from rwkvbatch.replay.judging import judged_again
from rwkvbatch.replay.plan import Plan
from rwkvbatch.results.directory import KEPT_NAME, RunDirectory
from rwkvbatch.results.manifest import FORMER, GIVEN_FOR_ALL, JsonObject, equal_cells, is_same_run, refuse_other_run
from rwkvbatch.results.recovery import read_lines
from rwkvbatch.results.row import BadLineError, Row, RowDigest, decode_row, digest_of, encode_row, with_digest
from rwkvbatch.results.script_copy import has_script, read_script
from rwkvbatch.results.store import RESULTS_NAME

_IN_MEMORY_BYTES = 2**26
_SHOWN = 3


@dataclass(frozen=True)
class Reuse:
    """What became of the rows of a directory when a command continued or extended it.

    Attributes:
        kept: rows that are there and stay as they are. judged_again: rows whose checks or tags changed.
        to_generate: rows that are missing; with `--until-ci` and `--race`, of the first round.
        set_aside: rows that this command does not have, moved to `kept.jsonl`.
        taken_back: of those kept or judged again, the ones that were in `kept.jsonl`.
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
            text += f"; {self.set_aside:,} that this command does not have set aside in {KEPT_NAME}"
        return text


def check_rows_of_plan(directory: RunDirectory, plan: Plan, digests: RowDigests, identity: JsonObject) -> None:
    """Raise unless every row of a directory whose manifest is damaged is one of `plan`, and so is the script's copy.

    Raises:
        RunDamagedError: a row is of another run, or of an earlier version, whose rows do not say what they were made
            from; or the script's copy is missing or of another run.
    """
    assert directory.damage is not None
    hint = "give the settings and the script that the run was started with, or another directory with --out"
    if read_script(directory.path, {"identity": identity}) is None:
        raise RunDamagedError(
            f"{directory.damage.message}; there is no copy of the script to repair it from", hint=hint
        )
    with directory.reading(RESULTS_NAME) as reader:
        for line in read_lines(reader):
            try:
                number = plan.row_number(decode_row(line.data).key)
            except BadLineError:
                continue  # the store reports and repairs it
            digest = digest_of(line.data)
            if number is None or digest is None or digest.content != digests.of_row(number).content:
                problem = f"{directory.damage.message}; and this row is not of this command's run"
                raise RunDamagedError(problem, path=directory.path / RESULTS_NAME, line=line.number, hint=hint)


def adopt(
    directory: RunDirectory,
    plan: Plan,
    digests: RowDigests,
    identity: JsonObject,
    make_about: Callable[[], JsonObject],
    shard: JsonObject | None,
) -> Reuse | None:
    """Make the rows of `directory` those of `plan`, as far as they are; the manifest and the script's copy too.

    Returns:
        The counts, without the rows to generate; None where the directory holds this very run.

    Raises:
        RunMismatchError: a setting of the whole run or of a cell differs, or nothing is in common.
        RunDirectoryError: the rows cannot be read.
        StorageError: a write failed; every row is where it was, or in its new place.
    """
    manifest = directory.manifest
    assert manifest is not None
    if is_same_run(manifest, identity, shard) and FORMER not in manifest:
        if not has_script(directory.path):  # of an earlier version
            directory.write_script(plan.conversations)
        return None
    about = make_about()
    refuse_other_run(directory.path, manifest, identity, shard, about=about, extend=True)
    _refuse_other_params(directory.path, manifest, identity, plan)
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as rewritten:
        adapting = _Adapting(directory, manifest, plan, digests, cast("BinaryIO", rewritten))
        adapting.look_through()
        about = {**about, "created": _created(manifest) or about.get("created")}
        directory.begin_change(identity, about, shard)
        adapting.write()
    directory.write_script(plan.conversations)
    directory.end_change(identity, about, shard)
    return adapting.counts


def _refuse_other_params(path: Path, manifest: JsonObject, identity: JsonObject, plan: Plan) -> None:
    """Refuse when the command line takes the place of other settings of conversations than before."""
    before, now = manifest["identity"].get(GIVEN_FOR_ALL, []), list(identity[GIVEN_FOR_ALL])
    differing = set(before) ^ set(now)
    params = {name for c in plan.conversations for p in (c.params, *(turn.params for turn in c.turns)) for name in p}
    if differing & params:
        there, wanted = {GIVEN_FOR_ALL: before}, {GIVEN_FOR_ALL: now}
        refuse_other_run(path, {"identity": there}, wanted)


def _created(manifest: JsonObject) -> Any:
    about = manifest.get("about")
    return cast("dict[str, Any]", about).get("created") if isinstance(about, dict) else None


class _Move(IntEnum):
    """What becomes of a line of `results.jsonl`."""

    STAY = 0
    REWRITE = 1
    JUDGE_AGAIN = 2
    SET_ASIDE = 3


@dataclass(frozen=True)
class _TakenBack:
    """Row `number` from `kept.jsonl`: the place of its new line, and the line of the error row that it replaces."""

    number: int
    span: tuple[int, int]
    move: _Move
    replaces: int | None


class _Adapting:
    """Decides line by line what becomes of the rows of a directory, then writes it.

    Lines that are not whole rows stay as they are, for the store to report or repair.
    """

    def __init__(
        self, directory: RunDirectory, manifest: Mapping[str, Any], plan: Plan, digests: RowDigests, rewritten: BinaryIO
    ) -> None:
        self._directory = directory
        self._path = directory.path
        self._plan = plan
        self._digests = digests
        self._rewritten = rewritten
        former: Mapping[str, Any] = manifest.get(FORMER) or manifest
        self._cells = {name: number for number, name in enumerate(cell.name for cell in plan.cells)}
        self._same_cells = equal_cells(former["identity"].get("cells", {}), _named(plan, digests))
        self._numbers = {c.id: number for number, c in enumerate(plan.conversations)}
        self._former_script = FormerScript(plan, former, directory.path)
        self._cells_of_content = lru_cache(maxsize=64)(self._find_cells_of_content)
        # By line: what becomes of it, and its row in the plan, -1 for none.
        self._moves = bytearray()
        self._rows = array("q")
        # By line that is written anew: its place in `rewritten`.
        self._spans: dict[int, tuple[int, int]] = {}
        self._taken_back: list[tuple[int, int]] = []  # places in `rewritten`
        self._there = bytearray(plan.num_rows)
        # By task: the place of the first turn that a new check makes an error row. Rows as they were are set aside.
        self._broken_at: dict[int, int] = {}
        self._broken_rows: set[int] = set()
        self._broken_lines: set[int] = set()
        self._error_lines: dict[int, int] = {}
        self._others: list[str] = []
        self.counts = Reuse(0)

    def look_through(self) -> None:
        """Decide; writes nothing. Raises `RunMismatchError` when no conversation and cell is in common."""
        any_row = in_common = False
        for data in self._lines(RESULTS_NAME):
            row, move, number = _decoded(data), _Move.STAY, -1
            if row is not None:
                any_row = True
                in_common |= row.conversation in self._numbers and self._has_cell(row.cell)
                found = self._place(row, digest_of(data))
                if found is None:
                    move = _Move.SET_ASIDE
                    if len(self._others) < _SHOWN:
                        self._others.append(row.key.in_words())
                elif not self._there[found]:  # else the store reports that it is there twice
                    number = found
                    self._there[number] = 1
                    new, move = self._renewed(row, data, number)
                    line = len(self._moves)
                    if new is not None:
                        self._spans[line] = self._keep(new)
                    if row.finish_reason == "error":
                        self._error_lines[number] = line
                    elif number in self._broken_rows:
                        self._broken_lines.add(line)
            self._moves.append(move)
            self._rows.append(number)
        if any_row and not in_common:
            raise RunMismatchError(
                f"holds another run: none of its conversations is one of this command's; the first rows in it: "
                f"{'; '.join(self._others)}",
                path=self._path,
                hint="give the script that the run was started with, or another directory with --out",
            )
        back, back_judged = self._take_back()
        for line, row in enumerate(self._rows if self._broken_at else ()):
            if row >= 0 and self._is_after_broken(row):
                self._moves[line] = _Move.SET_ASIDE
        of_plan = [move for move, row in zip(self._moves, self._rows, strict=True) if row >= 0]
        self.counts = Reuse(
            kept=of_plan.count(_Move.STAY) + of_plan.count(_Move.REWRITE) + back - back_judged,
            judged_again=of_plan.count(_Move.JUDGE_AGAIN) + back_judged,
            set_aside=self._moves.count(_Move.SET_ASIDE),
            taken_back=back,
        )

    def write(self) -> None:
        """Set rows aside, then replace `results.jsonl`; raises `StorageError`."""
        if _Move.SET_ASIDE in self._moves or self._broken_lines:
            self._directory.set_aside(self._set_aside_lines())
        if any(self._moves) or self._taken_back:
            with self._directory.reading(RESULTS_NAME) as scanned, self._directory.reading(RESULTS_NAME) as copied:
                self._directory.replace_rows(self._new_lines(scanned, copied))

    def _has_cell(self, name: str) -> bool:
        return name in self._cells or name in self._same_cells

    def _place(self, row: Row, digest: RowDigest | None) -> int | None:
        """The row's number in the plan; None if the plan has no row of the same content."""
        number = self._numbers.get(row.conversation)
        if number is None or row.turn >= len(self._plan.conversations[number].turns):
            return None
        if digest is None:
            cell = row.cell if row.cell in self._cells else self._same_cells.get(row.cell)
            if cell is None or not self._former_script.is_unchanged(number, row):
                return None
            return self._plan.row_number(replace(row.key, cell=cell))
        at = self._cells.get(row.cell)
        if at is not None and self._digests.contents(number, at)[row.turn] == digest.content:
            return self._plan.row_number(row.key)
        for cell in self._cells_of_content(number).get((row.turn, digest.content), ()):
            found = self._plan.row_number(replace(row.key, cell=cell))
            if found is not None and not self._there[found]:
                return found
        return None

    def _find_cells_of_content(self, conversation: int) -> dict[tuple[int, str], list[str]]:
        found: dict[tuple[int, str], list[str]] = {}
        for name, cell in self._cells.items():
            for turn, content in enumerate(self._digests.contents(conversation, cell)):
                found.setdefault((turn, content), []).append(name)
        return found

    def _renewed(self, row: Row, data: bytes, number: int) -> tuple[bytes | None, _Move]:
        """The new line of row `number`, None if it stays as it is, and what becomes of the old one."""
        digest, now, key = digest_of(data), self._digests.of_row(number), self._plan.key(number)
        if digest == now and row.cell == key.cell:
            return None, _Move.STAY
        task, turn = self._plan.task_of_row(number)
        conversation = self._plan.conversations[self._plan.conversation_of(task)]
        renewed, move = replace(row, cell=key.cell), _Move.REWRITE
        if digest is None:
            then = self._former_script.conversations[row.conversation]
            was_judged_so = then.judging(turn) == conversation.judging(turn)
        else:
            was_judged_so = digest.judging == now.judging
        if not was_judged_so:
            renewed, move = judged_again(renewed, conversation), _Move.JUDGE_AGAIN
            if renewed.finish_reason == "error" and row.finish_reason != "error":
                self._broken_rows.add(number)
                if conversation.turns[turn].probe is None:  # without a probe the dialogue goes on
                    place = self._place_in_dialogue(number)
                    self._broken_at[task] = min(place, self._broken_at.get(task, place))
        return with_digest(encode_row(renewed), now), move

    def _keep(self, line: bytes) -> tuple[int, int]:
        start = self._rewritten.seek(0, 2)
        self._rewritten.write(line)
        return start, len(line)

    def _take_back(self) -> tuple[int, int]:
        """Find rows in `kept.jsonl` that the plan has and the directory lacks; how many, and how many judged again.

        A row that broke a check is found too, where its error row is to be judged by others now.
        """
        found: list[_TakenBack] = []
        for data in self._lines(KEPT_NAME):
            row, digest = _decoded(data), digest_of(data)
            number = None if row is None or digest is None else self._place(row, digest)
            if row is None or number is None:
                continue
            replaced = self._error_lines.pop(number, None) if row.finish_reason != "error" else None
            if self._there[number] and replaced is None:
                continue
            self._there[number] = 1
            new, move = self._renewed(row, data, number)
            found.append(_TakenBack(number, self._keep(data if new is None else new), move, replaced))
        found = [taken for taken in found if not self._is_after_broken(taken.number)]
        for taken in found:
            if taken.replaces is not None:
                self._moves[taken.replaces] = _Move.SET_ASIDE
        self._taken_back = [taken.span for taken in found]
        return len(found), sum(taken.move == _Move.JUDGE_AGAIN for taken in found)

    def _is_after_broken(self, row: int) -> bool:
        """Whether it comes after a row that a new check made an error row: in a new run its turn is not reached."""
        return self._place_in_dialogue(row) > self._broken_at.get(self._plan.task_of_row(row)[0], math.inf)

    def _place_in_dialogue(self, row: int) -> int:
        """The place of a row among those of its task, in the order in which they are made."""
        task, turn = self._plan.task_of_row(row)
        return self._plan.conversations[self._plan.conversation_of(task)].order.index(turn)

    def _set_aside_lines(self) -> Iterator[bytes]:
        """The lines to set aside, without those that are in `kept.jsonl` already."""
        there = {_name_of(data) for data in self._lines(KEPT_NAME)}
        for line, data in enumerate(self._lines(RESULTS_NAME)):
            is_aside = self._moves[line] == _Move.SET_ASIDE or line in self._broken_lines
            if is_aside and _name_of(data) not in there:
                yield data

    def _new_lines(self, scanned: BinaryIO, copied: BinaryIO) -> Iterator[bytes]:
        """The content of the new file; `scanned` and `copied` are the old one, with positions of their own."""
        # Rows that are taken back come first: after a torn tail they would be a part of it.
        yield from map(self._read_kept, self._taken_back)
        for line, old in enumerate(read_lines(scanned)):
            if (span := self._spans.get(line)) is not None and self._moves[line] != _Move.SET_ASIDE:
                yield self._read_kept(span)
            elif self._moves[line] == _Move.STAY:
                yield from read_spans(copied, [(old.start, old.end)])

    def _lines(self, name: str) -> Iterator[bytes]:
        """The lines of a file of rows, none where there is no file; raises `RunDirectoryError`."""
        with self._directory.reading(name) as reader:
            for line in read_lines(reader):
                yield line.data

    def _read_kept(self, span: tuple[int, int]) -> bytes:
        self._rewritten.seek(span[0])
        return self._rewritten.read(span[1])


def _named(plan: Plan, digests: RowDigests) -> dict[str, Mapping[str, Any]]:
    return {cell.name: values for cell, values in zip(plan.cells, digests.cells, strict=True)}


def _decoded(data: bytes) -> Row | None:
    try:
        return decode_row(data)
    except BadLineError:
        return None


def _name_of(data: bytes) -> tuple[object, ...] | None:
    """What identifies a row in `kept.jsonl`."""
    row, digest = _decoded(data), digest_of(data)
    return None if row is None else (row.key, None if digest is None else digest.content)


def missing_rows(plan: Plan, tasks: Iterator[int], has: Callable[[int], bool]) -> int:
    """The number of rows of `tasks` that are not there."""
    return sum(not has(row) for task in tasks for row in range(*plan.rows_of(task)))
