"""Continues a conversation of a run in a chat, and exports a conversation as a script that `run` replays."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, cast

from rwkvbatch.chat.session import TURN_SETTINGS, Identity, Session, turn_values
from rwkvbatch.chat.tree import REFERENCE, Exchange
from rwkvbatch.config import CellSettings, RunSettings
from rwkvbatch.engine.request import FinishReason, closed_history
from rwkvbatch.errors import RunDirectoryError, RwkvBatchError, UsageError
from rwkvbatch.files import FileKind, check_target, file_head, save_file
from rwkvbatch.prompt.escaping import one_line
from rwkvbatch.prompt.templates import PRELUDES, load_prelude, template_path
from rwkvbatch.replay.identity import sha256_of_file
from rwkvbatch.replay.plan import with_params
from rwkvbatch.results.manifest import GIVEN_FOR_ALL, read_manifest, system_of
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import Row
from rwkvbatch.results.script_copy import read_script
from rwkvbatch.results.store import RESULTS_NAME
from rwkvbatch.script.reader import read_scripts
from rwkvbatch.script.records import Conversation
from rwkvbatch.script.shape import SEED
from rwkvbatch.script.tools import with_tools
from rwkvbatch.setting_names import option_name


@dataclass(frozen=True)
class RunPoint:
    """A turn of a run, and what led to it.

    Attributes:
        rows: the turns up to this one, oldest first.
        cell: the cell's settings and the hash of its model's weights, from the manifest.
        conversation: as it is in the script's copy.
        files: names of the cell's files (`model`, `state`, `template`, `prelude`), as far as the manifest has them.
        not_params: settings that the command line or the grid gave, in whose place no params of the script stand.
        vocab: the run's `--vocab`.
    """

    directory: Path
    rows: tuple[Row, ...]
    cell: dict[str, Any]
    conversation: Conversation
    files: Mapping[str, str | None] = field(default_factory=dict[str, "str | None"])
    not_params: frozenset[str] = frozenset()
    vocab: str | None = None

    @property
    def system(self) -> str | None:
        """The system message of the cell, with the conversation's tools."""
        return with_tools(system_of(self.cell, self.conversation.system), self.conversation.tools)

    def with_params(self, settings: CellSettings, params: Mapping[str, Any]) -> CellSettings:
        """`settings` with the script's `params`, as far as the run had them."""
        own = {name: value for name, value in params.items() if name not in self.not_params and name != SEED}
        return with_params(settings, own, has_tools=bool(self.conversation.tools))

    @property
    def identity(self) -> Identity:
        row = self.rows[-1]
        return Identity(row.seed, row.conversation, row.repeat)


def read_point(name: str, cell: str | None = None, repeat: int = 0) -> RunPoint:
    """The turn that `RUN:CONVERSATION:TURN` names; turns are counted from 0, as in `results.jsonl`.

    Args:
        cell: the grid cell; None for the first one.

    Raises:
        UsageError: `name` is not of that form, or the run has no such turn.
        RunDirectoryError: the run cannot be read.
    """
    directory_name, conversation, turn = _parse(name)
    directory = Path(directory_name).expanduser()
    manifest = read_manifest(directory)
    if manifest is None:
        raise RunDirectoryError("is not a run directory: it has no manifest", path=directory)
    cells = cast("dict[str, Any]", manifest["identity"].get("cells", {}))
    cell = next(iter(cells), "") if cell is None else cell
    if cell not in cells:
        raise UsageError(f"--cell: expected one of {', '.join(cells)}; got {cell!r}")
    rows: dict[int, Row] = {}
    conversations: dict[str, None] = {}
    for row in read_results(directory / RESULTS_NAME):
        conversations[row.conversation] = None
        if (row.conversation, row.cell, row.repeat) == (conversation, cell, repeat):
            rows[row.turn] = row
    if not rows:
        raise UsageError(
            f"--from {name}: the run has no rows of conversation {conversation!r}, cell {cell!r}, repeat {repeat}",
            hint=f"conversations: {', '.join(list(conversations)[:8])}{', ...' if len(conversations) > 8 else ''}",
        )
    num_good = next(at for at in count() if at not in rows or rows[at].finish_reason == "error")
    if turn >= num_good:
        raise UsageError(f"--from {name}: the turn must be in 0 to {num_good - 1}, got {turn}")
    path = tuple(rows[number] for number in range(turn + 1))
    about = manifest.get("about", {})
    files, vocab = about.get("files", {}).get(cell, {}), about.get("vocab")
    # The manifest does not name what the grid gave; it varied what differs between cells.
    varied = {name for each in cells.values() for name, value in each.items() if value != cells[cell].get(name)}
    given = manifest["identity"].get(GIVEN_FOR_ALL, [])
    found = _conversation(manifest, conversation, directory)
    return RunPoint(directory, path, cells[cell], found, files, frozenset(given) | varied, vocab)


def replay(session: Session, point: RunPoint) -> None:
    """Add the turns of `point` to a session that has no exchanges yet."""
    spec, wanted = session.engine.model.spec, str(point.cell.get("weights_sha256", ""))
    if spec.weights_sha256 != wanted:
        raise UsageError(
            f"{point.directory} belongs to another model: expected weights {wanted[:12]}, "
            f"found {spec.weights_sha256[:12]} ({spec.path})",
            hint="give the run's model with --model, and its adapter with --adapter",
        )
    tokenizer = session.engine.tokenizer
    expected, found = str(point.cell.get("tokenizer_sha256", tokenizer.sha256)), tokenizer.sha256
    if found != expected:
        raise UsageError(
            f"{point.directory} has another vocabulary: expected SHA-256 {expected[:12]}, found {found[:12]}",
            hint="give the run's vocabulary with --vocab",
        )
    # The rows were made with the run's settings; others that the chat was given are those of its own replies.
    of_run = session.settings.replace(**_of_cell(point))
    of_run = point.with_params(of_run, point.conversation.params)
    gold = point.cell.get("history") == "gold"
    num_history = len(session.tree.history())
    for row in point.rows:
        own = point.with_params(of_run, point.conversation.turns[row.turn].params)
        template, settings = session.template_of(own), turn_values(own)
        prompt = tuple(tokenizer.encode(template.turn(row.prompt)))
        if num_history + len(prompt) != row.tokens.prompt:
            raise UsageError(
                f"{point.directory}: the prompt of turn {row.turn} had {row.tokens.prompt} tokens, "
                f"here it has {num_history + len(prompt)}",
                hint="give the run's --prelude and --template; its script must be unchanged",
            )
        if gold and row.reference is not None and row is not point.rows[-1]:
            # The next turn of the run followed the reference, not this reply.
            prompt = tuple(tokenizer.encode(template.past_turn(row.prompt)))
            rest = tuple(tokenizer.encode(template.reply(row.reference.text)))
            reply, ids, finish_reason = row.reference.text, (), REFERENCE
        else:
            reply, ids, finish_reason = row.reply, row.reply_ids, cast("FinishReason", row.finish_reason)
            closed = closed_history(tokenizer, prompt, ids, finish_reason, row.stopped_by, template.closing)
            rest = closed[len(prompt) :]
        num_history += len(prompt) + len(rest)
        last = session.tree.last
        session.tree.add(
            Exchange(
                number=len(session.tree.exchanges),
                parent=None if last is None else last.number,
                opening=session.tree.head.opening,
                turn=row.turn,
                attempt=0,
                seed=row.seed,
                user=row.prompt,
                prompt=prompt,
                ids=ids,
                rest=rest,
                reply=reply,
                raw=reply,
                finish_reason=finish_reason,
                stopped_by=row.stopped_by,
                settings=settings,
                first_token_s=row.timing.first_token_s,
                total_s=row.timing.total_s,
            )
        )


def settings_of(point: RunPoint) -> dict[str, Any]:
    """The settings of the run's replies, by name."""
    own = point.with_params(CellSettings.parse(_of_cell(point)), point.conversation.params)
    found = own.model_dump(include={*TURN_SETTINGS, "bos"})
    return {**found, **{name: point.files[name] for name in _FILES if point.files.get(name) is not None}}


def _of_cell(point: RunPoint) -> dict[str, Any]:
    return {name: point.cell[name] for name in (*TURN_SETTINGS, "bos") if name in point.cell}


_FILES = ("state", "template", "prelude")


def refuse_other_files(point: RunPoint, settings: CellSettings) -> None:
    """Compare the files that a session begins with, by content, with those of the run.

    Raises:
        UsageError: a file is another one than the run's, or was changed since, or is not known.
        InputError: a file cannot be read.
    """
    for name in _FILES:
        wanted, given = point.cell.get(f"{name}_sha256"), getattr(settings, name)
        option, found = f"--{name}", None
        if name == "prelude" and given not in (None, "none"):
            found = hashlib.sha256(load_prelude(given).encode("utf-8", "surrogatepass")).hexdigest()
        elif name != "prelude" and given is not None:
            found = sha256_of_file(template_path(given) if name == "template" else given, option)
        if found == wanted:
            continue
        if found is None:
            message = f"{point.directory} began with {_ARTICLES[name]} that its manifest does not name"
            raise UsageError(f"--from: {message}", hint=f"give the file of the run with {option}")
        if wanted is None:
            raise UsageError(f"--from: {point.directory} began without {_ARTICLES[name]}, got {option} {given}")
        raise UsageError(
            f"--from: {option} {given} is not the file of {point.directory}, or was changed since: expected SHA-256 "
            f"{str(wanted)[:12]}, found {found[:12]}",
            hint=f"restore the file, or give a copy of the run's with {option}",
        )


_ARTICLES = {"state": "an initial state", "template": "a prompt template", "prelude": "a prelude"}


def _parse(name: str) -> tuple[str, str, int]:
    rest, _, turn = name.rpartition(":")
    pieces = rest.split(":")
    # Names of runs and of conversations may contain colons: a split whose run is a directory comes first.
    splits = [(":".join(pieces[:at]), ":".join(pieces[at:])) for at in range(1, len(pieces))]
    splits.sort(key=lambda split: not Path(split[0]).expanduser().is_dir())
    if turn.isdecimal() and splits and all(splits[0]):
        return (*splits[0], int(turn))
    raise UsageError(
        f"--from: expected RUN:CONVERSATION:TURN, got {name!r}",
        hint="for example --from runs/first:names-1:0; turns are counted from 0, as in results.jsonl",
    )


def _conversation(manifest: dict[str, Any], conversation: str, directory: Path) -> Conversation:
    """The conversation, from the script's copy; in runs of earlier versions, from their scripts."""
    for found in read_script(directory, manifest) or ():
        if found.id == conversation:
            return found
    names = [str(name) for name in cast("dict[str, Any]", manifest.get("about", {})).get("scripts", [])]
    if names and "-" not in names:
        with contextlib.suppress(RwkvBatchError):
            for found in read_scripts(names, skip_bad=True).conversations:
                if found.id == conversation:
                    return found
    raise RunDirectoryError(
        f"the system message of conversation {conversation!r} is unknown: its script is missing or has changed "
        f"({', '.join(names) or 'unknown'})",
        path=directory,
        hint="start in the directory where the run was started, with its script in place",
    )


@dataclass(frozen=True)
class Exported:
    """The command that replays a script, and why some replies will differ, one clause each."""

    command: str
    caveats: list[str]


OF_THE_COMMAND = (
    *("model", "adapter", "strategy", "backend", "template"),
    *("endpoint", "endpoint_model", "endpoint_api", "endpoint_body"),
)
"""The session's settings that an exported command names; the others are in the script, or come from the opening."""

SCRIPT = FileKind(
    "a script",
    lambda path: re.match(r'\s*\{[^\n]*"(messages|conversations|turns|defaults)":', file_head(path)) is not None,
)
PRELUDE = FileKind("the initial exchange of an export", lambda path: "\0" not in file_head(path))


def export(session: Session, path: Path, *, replace: bool = False) -> Exported:
    """Write the current branch to `path` as a script of one conversation in the native form.

    Raises:
        UsageError: the branch is empty, or `path` is a file of another kind, or without `replace` a script.
    """
    exchanges, opening = session.tree.path(), session.tree.opening
    if not exchanges:
        raise UsageError("/export: the branch has no messages yet")
    import jsonlines

    named = next((name for name, text in PRELUDES.items() if text == opening.prelude), None)
    prelude = path.with_name(path.name + ".prelude.txt") if opening.prelude and named is None else None
    for target, kind in ((path, SCRIPT), (prelude, PRELUDE)):
        if target is not None:
            check_target(target, kind, option="/export", replace=replace, how=f"/export! {path} replaces it")
    common = {**_params(exchanges[0]), **({"bos": "on"} if opening.bos else {})}
    messages: list[dict[str, Any]] = []
    if opening.system:
        messages.append({"role": "system", "content": opening.system})
    for exchange in exchanges:
        own = {name: value for name, value in _params(exchange).items() if common.get(name) != value}
        messages.append({"role": "user", "content": exchange.user, **({"params": own} if own else {})})
        if exchange.reply.strip():
            messages.append({"role": "assistant", "content": exchange.reply})
    record = {"id": session.identity.conversation, "tags": ["chat"], "messages": messages, "params": common}
    text = io.StringIO()
    with jsonlines.Writer(text) as writer:
        writer.write(record)
    save_file(path, [one_line(text.getvalue()).encode("utf-8", "backslashreplace")], private=True)
    options: list[str] = ["rwkvbatch", "run", str(path)]
    if named is not None:
        options += ["--prelude", named]
    elif prelude is not None and opening.prelude:
        save_file(prelude, [opening.prelude.encode("utf-8", "backslashreplace")], private=True)
        options += ["--prelude", str(prelude)]
    values = {name: getattr(session.settings, name) for name in OF_THE_COMMAND}
    for name, value in {**values, "vocab": session.vocab, "state": opening.state}.items():
        if value is not None and value != RunSettings.model_fields[name].default:
            options += [option_name(name), str(value)]
    if session.identity.repeat:
        options += ["--repeats", str(session.identity.repeat + 1)]
    return Exported(shlex.join(options), _caveats(session, exchanges))


def _params(exchange: Exchange) -> dict[str, Any]:
    """The exchange's settings in the form of a script's `params`."""
    values = {name: exchange.settings[name] for name in TURN_SETTINGS if exchange.settings.get(name) is not None}
    return {**values, "seed": exchange.seed}


def _caveats(session: Session, exchanges: Sequence[Exchange]) -> list[str]:
    caveats: list[str] = []
    for finish_reason, why in (
        ("time", "ended by the time limit, which a replay does not repeat"),
        ("cancelled", "was stopped with Ctrl-C, which a replay does not repeat"),
        (REFERENCE, "is the run's reference, which a replay uses only with --history gold"),
    ):
        if turns := [str(each.turn + 1) for each in exchanges if each.finish_reason == finish_reason]:
            caveats.append(f"the reply of turn {', '.join(turns)} {why}")
    weights = session.engine.model.spec.weights_sha256
    if turns := [str(each.turn + 1) for each in exchanges if each.weights_sha256 not in ("", weights)]:
        caveats.append(f"the reply of turn {', '.join(turns)} is another model's, and a replay uses one model")
    if session.identity.repeat:
        caveats.append(f"the replies are those of repeat {session.identity.repeat} of the replay")
    return caveats
