"""One question with its answer, the unit that every family of the corpus makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.demo.holdout import Key, Split


@dataclass(frozen=True)
class Exchange:
    """A user message and the assistant's reply to it.

    Attributes:
        family: tag under which accuracy is counted.
        user: the message, one line.
        reply: the reply to learn.
        expect: the check a reply must pass (a script's `expect` entry), or None where any reply will do.
        keys: held-out keys of the values in it.
        thought: lines of the scratchpad that thinking modes write before the reply.
        one_answer: whether `reply` is the only right answer, so that data sets may give it as the reference.
    """

    family: str
    user: str
    reply: str
    expect: dict[str, Any] | None
    keys: tuple[Key, ...] = ()
    thought: tuple[str, ...] = ()
    one_answer: bool = True


Family = Callable[[Random, Split], Exchange]


@dataclass(frozen=True)
class Fact:
    """Something told now and asked back later: the two exchanges may have others between them."""

    told: Exchange
    asked: Exchange
