"""Reuses the rows of a run directory for another command: keeps rows of the same content, judges changed checks again.

A row is identified by what it was made from (`replay.continuing.row_digests`), not by its run. For each row in the
directory, `adopt` looks for the plan's row of the same content. Rows that the plan has are kept, and judged again if
their checks changed. The others are set aside in `kept.jsonl`. Rows that an earlier command set aside there and that
the plan has are taken back. The run then generates the rows that are missing.

A crash loses nothing: rows are set aside durably before `results.jsonl` is replaced atomically. While the manifest has
the entry `former`, the next command repeats all of this, with the same result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from rwkvbatch.errors import RunDamagedError, RunDirectoryError
from rwkvbatch.replay.continuing.adaptation import Adaptation, Reuse
from rwkvbatch.replay.continuing.row_digests import RowDigests
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.results.directory import RunDirectory
from rwkvbatch.results.manifest import FORMER, GIVEN_FOR_ALL, JsonObject, is_same_run, refuse_other_run
from rwkvbatch.results.recovery import read_lines
from rwkvbatch.results.row_codec import BadLineError, decode_row, digest_of
from rwkvbatch.results.script_copy import has_intact_script, read_script, write_script
from rwkvbatch.targets import RESULTS_NAME

_IN_MEMORY_BYTES = 2**26


def check_rows_of_plan(directory: RunDirectory, plan: Plan, digests: RowDigests, identity: JsonObject) -> None:
    """Check that a directory with a damaged manifest holds the run of `plan`: every row and the script's copy.

    Raises:
        RunDamagedError: a row belongs to another run, or the script's copy is missing or belongs to another run.
    """
    assert directory.damage is not None
    hint = "give the settings and the script that the run was started with, or another directory with --out"
    try:
        copy = read_script(directory.path, {"identity": identity})
    except RunDirectoryError as error:
        error.hint = hint
        raise
    if copy is None:
        raise RunDamagedError(
            f"{directory.damage.message}; there is no copy of the script to repair it from", hint=hint
        )
    with directory.reading(RESULTS_NAME) as reader:
        for line in read_lines(reader):
            try:
                number, digest = plan.row_number(decode_row(line.data).key), digest_of(line.data)
            except BadLineError:
                continue  # the store reports and repairs it
            if number is None or digest.content != digests.of_row(number).content:
                problem = f"{directory.damage.message}; and this row is not of this command's run"
                raise RunDamagedError(problem, path=directory.path / RESULTS_NAME, line=line.number, hint=hint)


def adopt(
    directory: RunDirectory,
    plan: Plan,
    digests: RowDigests,
    identity: JsonObject,
    make_about: Callable[[], JsonObject],
    shard: JsonObject | None,
    announce: Callable[[int], None],
) -> Reuse | None:
    """Reuse the rows of `directory` for `plan`, and replace its manifest and its copy of the script.

    Args:
        announce: writes the total of `plan` to `status.json`, given the number of rows that it has. It is called before
            the manifest says that the rows are adapted: readers use the total from then on.

    Returns:
        The counts, with 0 rows to generate; None if the directory already holds the run of `plan`.

    Raises:
        RunMismatchError: a setting of the whole run or of a cell differs, or nothing is in common.
        RunDirectoryError: the rows cannot be read.
        StorageError: a write failed; every row is still in its old file or already in its new one.
    """
    manifest = directory.manifest
    assert manifest is not None
    if is_same_run(manifest, identity, shard) and FORMER not in manifest:
        if not has_intact_script(directory.path, manifest):  # it was removed or changed
            write_script(directory.folder, plan.conversations)
        return None
    about = make_about()
    refuse_other_run(directory.path, manifest, identity, shard, about=about, extend=True)
    _refuse_other_params(directory.path, manifest, identity)
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as new_lines:
        adaptation = Adaptation(directory, manifest, plan, digests, cast("BinaryIO", new_lines))
        adaptation.decide()
        about = {**about, "created": _created(manifest) or about.get("created")}
        directory.begin_change(identity, about, shard)
        adaptation.write()
    write_script(directory.folder, plan.conversations)
    announce(adaptation.counts.kept + adaptation.counts.judged_again)
    directory.end_change(identity, about, shard)
    return adaptation.counts


def _refuse_other_params(path: Path, manifest: JsonObject, identity: JsonObject) -> None:
    """Raise `RunMismatchError` if the command line overrides other params of the conversations than before."""
    before = {"script": identity["script"], GIVEN_FOR_ALL: manifest["identity"].get(GIVEN_FOR_ALL, [])}
    refuse_other_run(path, {"identity": before}, {name: identity[name] for name in before})


def _created(manifest: JsonObject) -> Any:
    about = manifest.get("about")
    return cast("dict[str, Any]", about).get("created") if isinstance(about, dict) else None


def missing_rows(plan: Plan, tasks: Iterator[int], has: Callable[[int], bool]) -> int:
    """The number of rows of `tasks` that do not exist; `has` tells whether a row number exists."""
    return sum(not has(row) for task in tasks for row in range(*plan.rows_of(task)))
