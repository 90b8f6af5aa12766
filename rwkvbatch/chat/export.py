"""A dialogue as a script that `run` replays, and as the words that make it do so."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvbatch.chat.dialogue import REFERENCE, Exchange
from rwkvbatch.chat.files import write_private
from rwkvbatch.chat.session import Session
from rwkvbatch.errors import UsageError
from rwkvbatch.text.preludes import PRELUDES


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        command: the command line that replays it.
        caveats: why some replies will not be the same, one sentence each.
    """

    command: str
    caveats: tuple[str, ...]


def export(session: Session, path: Path) -> Exported:
    """Write the current branch to `path` as one conversation of the native form.

    Raises:
        UsageError: nothing was said yet.
        StorageError: it could not be written.
    """
    dialogue = session.dialogue
    exchanges = dialogue.path()
    if not exchanges:
        raise UsageError("/export needs something that was said, and there is nothing yet")
    opening = dialogue.openings[dialogue.head.opening]
    common = _params(exchanges[0])
    messages: list[dict[str, Any]] = []
    if opening.system:
        messages.append({"role": "system", "content": opening.system})
    for exchange in exchanges:
        own = {name: value for name, value in _params(exchange).items() if common.get(name) != value}
        messages.append({"role": "user", "content": exchange.user, **({"params": own} if own else {})})
        if exchange.reply.strip():
            messages.append({"role": "assistant", "content": exchange.reply})
    record = {"id": session.identity.conversation, "tags": ["chat"], "messages": messages, "params": common}
    write_private(path, json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    options: list[str] = ["rwkvbatch", "run", str(path)]
    settings = session.settings
    named = next((name for name, text in PRELUDES.items() if text == opening.prelude), None)
    if named is not None:
        options += ["--prelude", named]
    elif opening.prelude:
        prelude = path.with_name(path.name + ".prelude.txt")
        write_private(prelude, opening.prelude.encode("utf-8", "backslashreplace"))
        options += ["--prelude", str(prelude)]
    think = str(exchanges[0].settings["think"])
    for option, value, default in (
        ("--think", think, "off"),
        ("--model", settings.model, None),
        ("--strategy", settings.strategy, "auto"),
        ("--backend", settings.backend, "auto"),
        ("--state", opening.state, None),
        ("--template", settings.template, None),
    ):
        if value is not None and value != default:
            options += [option, str(value)]
    if session.identity.repeat:
        options += ["--repeats", str(session.identity.repeat + 1)]
    return Exported(shlex.join(options), tuple(_caveats(session, exchanges)))


def _params(exchange: Exchange) -> dict[str, Any]:
    """The exchange's settings as a script may give them."""
    values = {
        name: value for name, value in exchange.settings.items() if name != "think" and value is not None
    }
    return {**values, "seed": exchange.seed}


def _caveats(session: Session, exchanges: Sequence[Exchange]) -> list[str]:
    caveats: list[str] = []
    for finish, why in (
        ("time", "ended by the time limit; a replay goes on to its end"),
        ("cancelled", "was stopped by hand; a replay goes on to its end"),
        (REFERENCE, "is the run's reference, which a replay follows with --history gold alone"),
    ):
        turns = [str(exchange.turn + 1) for exchange in exchanges if exchange.finish == finish]
        if turns:
            caveats.append(f"the reply of turn {', '.join(turns)} {why}")
    weights = session.engine.model.spec.weights_sha256
    turns = [str(exchange.turn + 1) for exchange in exchanges if exchange.weights_sha256 not in ("", weights)]
    if turns:
        caveats.append(f"the reply of turn {', '.join(turns)} is another model's; a replay has one model")
    if len({str(exchange.settings["think"]) for exchange in exchanges}) > 1:
        caveats.append("the thinking mode changed on the way; a replay keeps the first one")
    if session.identity.repeat:
        caveats.append(f"the replies are those of repeat {session.identity.repeat}")
    return caveats
