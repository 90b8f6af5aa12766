"""A fake judge that answers immediately and records the questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rwkvbatch.judges.answers import JudgeAnswer
from rwkvbatch.judges.questions import VoteRequest


def reply_in(text: str, name: str = "reply") -> str:
    """A reply that a question shows."""
    found = re.search(rf"<{name}>\n(.*?)\n</{name}>", text, re.DOTALL)
    assert found is not None
    return found[1]


def mentions_elm(ask: VoteRequest) -> JudgeAnswer:
    return JudgeAnswer(0.9 if "elm" in reply_in(ask.question.text) else 0.1)


@dataclass
class FakeJudge:
    """Answers by `says`; it raises an exception after `stop_after` answers."""

    says: Callable[[VoteRequest], JudgeAnswer] = mentions_elm
    name: str = "fake"
    version: int = 1
    stop_after: int | None = None
    asked: list[VoteRequest] = field(default_factory=list[VoteRequest])

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "fake", "version": self.version}

    def answers(self, requests: Iterator[VoteRequest]) -> Iterator[tuple[VoteRequest, JudgeAnswer] | None]:
        for ask in requests:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(ask)
            yield ask, self.says(ask)
            yield None


@dataclass
class FakeSource:
    """Opens a judge."""

    judge: FakeJudge = field(default_factory=FakeJudge)
    is_local: bool = False
    num_opened: int = 0

    def open(self) -> FakeJudge:
        self.num_opened += 1
        return self.judge
