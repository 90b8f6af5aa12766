"""Sessions over a hash model, chats without a terminal, and exchanges, for tests of several parts of the chat."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

from rwkvbatch.chat.app import Chat
from rwkvbatch.chat.commands import handle_line
from rwkvbatch.chat.pipe import PlainView
from rwkvbatch.chat.session import Identity, Session
from rwkvbatch.chat.storage import Transcript
from rwkvbatch.chat.tree import Exchange
from rwkvbatch.config import CellSettings, Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.model.base import ModelSpec
from tests.chat.scripted_model import ScriptedModel
from tests.engine.hash_model import HashModel

SAMPLED = CellSettings(**{**dict(Sampling(temperature=1.0, top_p=0.9, banned_token_ids=(0,))), "max_tokens": 12})
GREEDY = CellSettings(temperature=0.0, top_p=0.0, max_tokens=200)


@dataclass
class NamedModel(HashModel):
    """A model with a chosen hash of its weights."""

    weights_sha256: str = "a"

    @property
    def spec(self) -> ModelSpec:
        return replace(super().spec, weights_sha256=self.weights_sha256)


def new_session(model: HashModel | None = None, *, prelude: str | None = "User: hi\n\nAssistant: Hi.\n\n") -> Session:
    session = Session(Engine(model or HashModel()), SAMPLED, Identity(seed=5))
    session.begin(prelude=prelude)
    return session


@dataclass
class PipeChat:
    """A chat with its output streams."""

    chat: Chat
    out: io.StringIO
    err: io.StringIO

    def send(self, line: str) -> str:
        """The output of `line`, on both streams."""
        for stream in (self.out, self.err):
            stream.seek(0)
            stream.truncate()
        self.success = handle_line(self.chat, line)
        return self.out.getvalue() + self.err.getvalue()


def new_chat(transcript: Path | None = None) -> PipeChat:
    """A chat with a scripted model."""
    out, err = io.StringIO(), io.StringIO()
    session = Session(Engine(ScriptedModel()), GREEDY)
    session.begin()
    chat = Chat(session, PlainView(out, err), Transcript(transcript), lambda _: Engine(ScriptedModel(str.upper)))
    chat.transcript.start(session)
    return PipeChat(chat, out, err)


def exchange(reply: str) -> Exchange:
    return Exchange(0, None, 0, 0, 0, 0, "hi", (1,), (2,), (2,), reply, reply, "stop", None, {})
