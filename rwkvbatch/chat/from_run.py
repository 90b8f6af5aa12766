"""Opening a point of a batch run: its history, token for token, and its settings, to go on from by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rwkvbatch.chat.dialogue import REFERENCE, Exchange
from rwkvbatch.chat.session import KEPT_SETTINGS, Session
from rwkvbatch.engine.history import closed_history
from rwkvbatch.engine.request import Finish
from rwkvbatch.errors import RunDirectoryError, RwkvBatchError, UsageError
from rwkvbatch.run.directory.manifest import read_manifest
from rwkvbatch.run.results.rows import Row
from rwkvbatch.run.results.scan import read_results
from rwkvbatch.run.results.store import RESULTS_NAME
from rwkvbatch.script.reader import read_scripts


@dataclass(frozen=True)
class RunPoint:
    """A point of a run.

    Attributes:
        rows: the turns up to the point, first one first.
        cell: the settings of the cell, by their names, as the manifest has them.
        weights_sha256: of the model that made the replies.
        system: the conversation's system message.
    """

    directory: Path
    rows: tuple[Row, ...]
    cell: dict[str, Any]
    weights_sha256: str
    system: str | None


def read_point(place: str, cell: str | None = None, repeat: int = 0) -> RunPoint:
    """The point that `RUN:CONVERSATION:TURN` names; turns count from 0, as in `results.jsonl`.

    Args:
        cell: the grid cell; None for the run's first one.

    Raises:
        UsageError: `place` is not of that form, or the run has no such turn.
        RunDirectoryError: the run cannot be read.
    """
    directory_name, conversation, turn = _parse(place)
    directory = Path(directory_name).expanduser()
    manifest = read_manifest(directory)
    if manifest is None:
        raise RunDirectoryError("is not a run: it has no manifest", path=directory)
    cells = cast("dict[str, Any]", manifest["identity"].get("cells", {}))
    wanted_cell = cell if cell is not None else next(iter(cells), "")
    if wanted_cell not in cells:
        raise UsageError(f"--cell must be one of {', '.join(cells)}; got {wanted_cell!r}")
    rows: dict[int, Row] = {}
    conversations: dict[str, None] = {}
    for row in read_results(directory / RESULTS_NAME):
        conversations[row.conversation] = None
        if (row.conversation, row.cell, row.repeat) == (conversation, wanted_cell, repeat):
            rows[row.turn] = row
    if not rows:
        some = ", ".join(list(conversations)[:8])
        raise UsageError(
            f"--from {place}: the run has no rows of conversation {conversation!r}, "
            f"cell {wanted_cell!r}, repeat {repeat}",
            hint=f"conversations: {some}" + (", ..." if len(conversations) > 8 else ""),
        )
    path = [rows[number] for number in range(turn + 1) if number in rows]
    if len(path) <= turn or any(row.finish == "error" for row in path):
        good = 0
        while good in rows and rows[good].finish != "error":
            good += 1
        raise UsageError(f"--from {place}: turn must be in 0 to {good - 1}, got {turn}")
    identity = cast("dict[str, Any]", cells[wanted_cell])
    return RunPoint(
        directory,
        tuple(path),
        identity,
        str(identity.get("weights_sha256", "")),
        _system(manifest, conversation, directory),
    )


def replay(session: Session, point: RunPoint) -> None:
    """Put the turns of `point` into a session that has just begun.

    Raises:
        UsageError: the session's model is not the run's.
    """
    spec = session.engine.model.spec
    if spec.weights_sha256 != point.weights_sha256:
        raise UsageError(
            f"{point.directory} was run with the weights {point.weights_sha256[:12]}, "
            f"those here are {spec.weights_sha256[:12]} ({spec.path})",
            hint="give the run's model with --model",
        )
    tokenizer, template = session.engine.tokenizer, session.template
    settings = session.kept_settings()
    gold = point.cell.get("history") == "gold"
    num_history = len(session.dialogue.history())
    for row in point.rows:
        prompt = tuple(tokenizer.encode(template.turn(row.prompt)))
        if num_history + len(prompt) != row.tokens.prompt:
            raise UsageError(
                f"turn {row.turn} of the run followed {row.tokens.prompt} tokens, here it would follow "
                f"{num_history + len(prompt)}",
                hint="give the --prelude, --template and --think that the run had; its script must be as it was",
            )
        if gold and row.reference is not None and row is not point.rows[-1]:
            # The next turn of the run followed the reference, not this reply.
            prompt = tuple(tokenizer.encode(template.past_turn(row.prompt)))
            rest = tuple(tokenizer.encode(template.reply(row.reference.text)))
            reply, ids, finish = row.reference.text, (), REFERENCE
        else:
            closed = closed_history(
                tokenizer,
                prompt,
                row.reply_ids,
                cast("Finish", row.finish),
                row.stopped_by,
                template.closing,
            )
            rest, reply, ids, finish = closed[len(prompt) :], row.reply, row.reply_ids, row.finish
        num_history += len(prompt) + len(rest)
        last = session.dialogue.last
        session.dialogue.add(
            Exchange(
                number=len(session.dialogue.exchanges),
                parent=None if last is None else last.number,
                opening=session.dialogue.head.opening,
                turn=row.turn,
                attempt=0,
                seed=row.seed,
                user=row.prompt,
                prompt=prompt,
                ids=ids,
                rest=rest,
                reply=reply,
                raw=reply,
                finish=finish,
                stopped_by=row.stopped_by,
                settings=settings,
                first_token_s=row.timing.first_token_s,
                total_s=row.timing.total_s,
            )
        )


def settings_of(point: RunPoint) -> dict[str, Any]:
    """The settings that the run's replies were made with, by their names."""
    return {name: point.cell[name] for name in KEPT_SETTINGS if name in point.cell}


def _parse(place: str) -> tuple[str, str, int]:
    rest, _, turn = place.rpartition(":")
    pieces = rest.split(":")
    # Names of runs and of conversations may hold colons: the run is what is a directory.
    splits = [(":".join(pieces[:at]), ":".join(pieces[at:])) for at in range(1, len(pieces))]
    splits.sort(key=lambda split: not Path(split[0]).expanduser().is_dir())
    if turn.isdecimal() and splits and all(splits[0]):
        return (*splits[0], int(turn))
    raise UsageError(
        f"--from must be RUN:CONVERSATION:TURN, got {place!r}",
        hint="for example --from runs/first:names-1:0; turns count from 0, as in results.jsonl",
    )


def _system(manifest: dict[str, Any], conversation: str, directory: Path) -> str | None:
    """The conversation's system message, out of the run's scripts.

    Raises:
        RunDirectoryError: they are not what they were, so nobody knows.
    """
    names = [str(name) for name in cast("dict[str, Any]", manifest.get("about", {})).get("scripts", [])]
    try:
        script = read_scripts(names, skip_bad=True) if names and "-" not in names else None
    except RwkvBatchError:
        script = None
    found = [c for c in script.conversations if c.id == conversation] if script is not None else []
    if not found:
        raise RunDirectoryError(
            f"the script that conversation {conversation!r} comes from is not there any more "
            f"({', '.join(names) or 'unknown'}), so its system message is unknown",
            path=directory,
            hint="start where the run was started, with its script in place",
        )
    return found[0].system
