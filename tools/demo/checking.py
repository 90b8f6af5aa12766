"""Whether a reply passes an `expect` entry, judged as `rwkvbatch run` judges it."""

from __future__ import annotations

from typing import Any

from rwkvbatch.script.checks import judge_all, parse_checks
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.records import ReplyFacts

_NOWHERE = SourceLine("corpus", 1)


def passes(reply: str, expect: dict[str, Any]) -> bool:
    """Whether the reply, with any thinking part left out, meets every kind in `expect`."""
    facts = ReplyFacts(reply.strip(), "stop", 0)
    return judge_all(parse_checks(expect, _NOWHERE), facts).passed
