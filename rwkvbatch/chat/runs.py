"""Continues a conversation of a run in a chat, and exports a conversation as a script that `run` replays."""

from __future__ import annotations

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
from rwkvbatch.config.names import option_name
from rwkvbatch.engine.request import FinishReason, closed_history
from rwkvbatch.errors import RunDirectoryError, UsageError, listed
from rwkvbatch.files import save_file, user_path
from rwkvbatch.hashes import sha256_of_file
from rwkvbatch.prompt.escaping import one_line
from rwkvbatch.prompt.templates import PRELUDES, load_prelude, template_path
from rwkvbatch.replay.planning.plan import with_params
from rwkvbatch.results.manifest import GIVEN_FOR_ALL, read_manifest, system_of
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import Row
from rwkvbatch.results.script_copy import read_script
from rwkvbatch.script.records import Conversation
from rwkvbatch.script.shape import SEED
from rwkvbatch.script.tools import with_tools
from rwkvbatch.targets import RESULTS_NAME, FileKind, check_target, file_head


@dataclass(frozen=True)
class RunPoint:
    """A turn of a run from which a chat continues.

    Attributes:
        directory: the run directory.
        rows: the rows of the turns up to this one, oldest first.
        cell: the cell's settings and the hash of its model's weights, from the manifest.
        conversation: the conversation of the script's copy.
        files: names of the cell's files (`model`, `state`, `template`, `prelude`), as far as the manifest has them.
        not_params: settings that the command line or the grid gave, so that the script's params did not apply.
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
        """`settings` with the script's `params`, as far as they applied in the run."""
        used = {name: value for name, value in params.items() if name not in self.not_params and name != SEED}
        return with_params(settings, used, has_tools=bool(self.conversation.tools))

    @property
    def identity(self) -> Identity:
        row = self.rows[-1]
        return Identity(row.seed, row.conversation, row.repeat)


def read_point(name: str, cell: str | None = None, repeat: int = 0) -> RunPoint:
    """The turn that `RUN:CONVERSATION:TURN` names; turns are counted from 0, as in `results.jsonl`.

    Args:
        cell: the grid cell; None for the first one.

    Raises:
        UsageError: `name` does not have that form, or the run has no such turn.
        RunDirectoryError: the run cannot be read.
    """
    directory_name, conversation, turn = _parse(name)
    directory = user_path(directory_name)
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
            hint=f"conversations: {listed(list(conversations))}",
        )
    num_usable = next(n for n in count() if n not in rows or rows[n].finish_reason == "error")
    if turn >= num_usable:
        raise UsageError(f"--from {name}: the turn must be in 0 to {num_usable - 1}, got {turn}")
    path = tuple(rows[number] for number in range(turn + 1))
    about = manifest.get("about", {})
    files, vocab = about.get("files", {}).get(cell, {}), about.get("vocab")
    # The manifest does not have the settings that the grid gave; these are the ones that differ between cells.
    varied = {name for other in cells.values() for name, value in other.items() if value != cells[cell].get(name)}
    given_for_all = manifest["identity"].get(GIVEN_FOR_ALL, [])
    script_conversation = _conversation(manifest, conversation, directory)
    not_params = frozenset(given_for_all) | varied
    return RunPoint(directory, path, cells[cell], script_conversation, files, not_params, vocab)


def replay(session: Session, point: RunPoint) -> None:
    """Add the turns of `point` to a session, which must not have exchanges yet.

    Raises:
        UsageError: the session has another model, vocabulary, prelude or template than the run.
    """
    if point.conversation.greeting is not None:
        problem = f"{point.directory}: the conversation begins with an assistant message, which a chat cannot continue"
        raise UsageError(problem, hint="give it as a --prelude instead, in the run and here")
    if point.conversation.turns[0].plain:
        raise UsageError(f"{point.directory}: the conversation is plain text without a template, and a chat has one")
    _refuse_other_model(session, point)
    # The rows were made with the run's settings. Other settings that the chat was given are for its own replies.
    run_settings = session.settings.replace(**_cell_settings(point))
    run_settings = point.with_params(run_settings, point.conversation.params)
    num_history = len(session.tree.history())
    for row in point.rows:
        row_settings = point.with_params(run_settings, point.conversation.turns[row.turn].params)
        exchange = _exchange_of(session, point, row, row_settings, num_history)
        session.tree.add(exchange)
        num_history += len(exchange.tokens)


def _refuse_other_model(session: Session, point: RunPoint) -> None:
    spec, run_weights = session.engine.model.spec, str(point.cell.get("weights_sha256", ""))
    if spec.weights_sha256 != run_weights:
        raise UsageError(
            f"{point.directory} belongs to another model: expected weights {run_weights[:12]}, "
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


def _exchange_of(session: Session, point: RunPoint, row: Row, settings: CellSettings, num_history: int) -> Exchange:
    """The exchange of `row` at the end of the session's branch, which has `num_history` tokens; raises as `replay`.

    Args:
        settings: those of the turn.
    """
    tree, tokenizer, template = session.tree, session.engine.tokenizer, session.template_of(settings)
    prompt = tuple(tokenizer.encode(template.turn(row.prompt)))
    num_prompt = num_history + len(prompt)
    if num_prompt != row.tokens.prompt:
        raise UsageError(
            f"{point.directory}: the prompt of turn {row.turn} had {row.tokens.prompt} tokens, "
            f"here it has {num_prompt}",
            hint="give the run's --prelude and --template; its script must be unchanged",
        )
    is_gold = point.cell.get("history") == "gold"
    if is_gold and row.reference is not None and row is not point.rows[-1]:
        # In the run, the next turn followed the reference, not this reply.
        prompt = tuple(tokenizer.encode(template.past_turn(row.prompt)))
        after_prompt = tuple(tokenizer.encode(template.reply(row.reference.text)))
        reply, ids, finish_reason = row.reference.text, (), REFERENCE
    else:
        reply, ids, finish_reason = row.reply, row.reply_ids, cast("FinishReason", row.finish_reason)
        history = closed_history(tokenizer, prompt, ids, finish_reason, row.stopped_by, template.closing)
        after_prompt = history[len(prompt) :]
    return Exchange(
        number=len(tree.exchanges),
        parent=None if tree.last is None else tree.last.number,
        opening=tree.head.opening,
        turn=row.turn,
        attempt=0,
        seed=row.seed,
        user=row.prompt,
        prompt=prompt,
        ids=ids,
        rest=after_prompt,
        reply=reply,
        raw=reply,
        finish_reason=finish_reason,
        stopped_by=row.stopped_by,
        settings=turn_values(settings),
        first_token_s=row.timing.first_token_s,
        total_s=row.timing.total_s,
    )


def settings_of(point: RunPoint) -> dict[str, Any]:
    """The settings of the run's replies and its files, by name; None for a file that it does not have."""
    settings = point.with_params(CellSettings.parse(_cell_settings(point)), point.conversation.params)
    values = settings.model_dump(include={*TURN_SETTINGS, "bos"})
    return {**values, **{name: point.files.get(name) for name in _FILES}}


def _cell_settings(point: RunPoint) -> dict[str, Any]:
    return {name: point.cell[name] for name in (*TURN_SETTINGS, "bos") if name in point.cell}


_FILES = ("state", "template", "prelude")


def refuse_other_files(point: RunPoint, settings: CellSettings) -> None:
    """Compare the contents of the files with which a session begins with those of the run.

    Raises:
        UsageError: a file is not the run's, has changed since the run, or is unknown.
        InputError: a file cannot be read.
    """
    for name in _FILES:
        expected, value = point.cell.get(f"{name}_sha256"), getattr(settings, name)
        option, sha256 = f"--{name}", None
        if name == "prelude" and (prelude := load_prelude(value)) is not None:
            sha256 = hashlib.sha256(prelude.encode("utf-8", "surrogatepass")).hexdigest()
        elif name != "prelude" and value is not None:
            sha256 = sha256_of_file(template_path(value) if name == "template" else value, option)
        if sha256 == expected:
            continue
        if sha256 is None:
            message = f"{point.directory} began with {_FILE_KINDS[name]} that its manifest does not name"
            raise UsageError(f"--from: {message}", hint=f"give the file of the run with {option}")
        if expected is None:
            raise UsageError(f"--from: {point.directory} began without {_FILE_KINDS[name]}, got {option} {value}")
        raise UsageError(
            f"--from: {option} {value} is not the file of {point.directory}, or was changed since: expected SHA-256 "
            f"{str(expected)[:12]}, found {sha256[:12]}",
            hint=f"restore the file, or give a copy of the run's with {option}",
        )


_FILE_KINDS = {"state": "an initial state", "template": "a prompt template", "prelude": "a prelude"}


def _parse(name: str) -> tuple[str, str, int]:
    """The directory, the conversation and the turn of `RUN:CONVERSATION:TURN`."""
    run_and_conversation, _, turn = name.rpartition(":")
    pieces = run_and_conversation.split(":")
    # Names of runs and conversations may contain colons. Splits whose run is an existing directory are preferred.
    splits = [(":".join(pieces[:n]), ":".join(pieces[n:])) for n in range(1, len(pieces))]
    splits.sort(key=lambda split: not user_path(split[0]).is_dir())
    if turn.isdecimal() and splits and all(splits[0]):
        return (*splits[0], int(turn))
    raise UsageError(
        f"--from: expected RUN:CONVERSATION:TURN, got {name!r}",
        hint="for example --from runs/first:names-1:0; turns are counted from 0, as in results.jsonl",
    )


def _conversation(manifest: dict[str, Any], conversation: str, directory: Path) -> Conversation:
    """The conversation with this id, from the script's copy."""
    for candidate in read_script(directory, manifest) or ():
        if candidate.id == conversation:
            return candidate
    raise RunDirectoryError(
        f"the system message of conversation {conversation!r} is unknown: the script's copy is missing",
        path=directory,
        hint="the command that made the run, given again, rewrites it",
    )


@dataclass(frozen=True)
class Exported:
    """The command that replays an exported script, and for each group of replies that will differ, the reason."""

    command: str
    caveats: list[str]


COMMAND_SETTINGS = (
    *("model", "adapter", "strategy", "backend", "template"),
    *("endpoint", "endpoint_model", "endpoint_api", "endpoint_body"),
)
"""Settings of the session that the exported command has as options; the others are in the script or the opening."""

SCRIPT = FileKind(
    "a script",
    lambda path: re.match(r'\s*\{[^\n]*"(messages|conversations|turns|defaults)":', file_head(path)) is not None,
)
PRELUDE = FileKind("the initial exchange of an export", lambda path: "\0" not in file_head(path))


def export(session: Session, path: Path, *, replace: bool = False) -> Exported:
    """Write the current branch to `path` as a script of one conversation in the native form.

    Raises:
        UsageError: the branch is empty; or `path` is a file of another kind, or a script and `replace` is not set.
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
        turn_params = {name: value for name, value in _params(exchange).items() if common.get(name) != value}
        messages.append({"role": "user", "content": exchange.user, **({"params": turn_params} if turn_params else {})})
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
    values = {name: getattr(session.settings, name) for name in COMMAND_SETTINGS}
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
    """The reasons why replies of a replay will differ from those of the chat."""
    caveats: list[str] = []
    for finish_reason, reason in (
        ("time", "ended by the time limit, which a replay does not repeat"),
        ("cancelled", "was stopped with Ctrl-C, which a replay does not repeat"),
        (REFERENCE, "is the run's reference, which a replay uses only with --history gold"),
    ):
        if turns := [str(exchange.turn + 1) for exchange in exchanges if exchange.finish_reason == finish_reason]:
            caveats.append(f"the reply of turn {', '.join(turns)} {reason}")
    weights = session.engine.model.spec.weights_sha256
    if turns := [str(exchange.turn + 1) for exchange in exchanges if exchange.weights_sha256 not in ("", weights)]:
        caveats.append(f"the reply of turn {', '.join(turns)} is another model's, and a replay uses one model")
    if session.identity.repeat:
        caveats.append(f"the replies are those of repeat {session.identity.repeat} of the replay")
    return caveats
