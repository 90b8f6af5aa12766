"""System lines, and what each does to every reply of its conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tools.demo.exchange import Exchange
from tools.demo.holdout import Key, Split, draw
from tools.demo.words import NAMES, any_word, proper


@dataclass(frozen=True)
class SystemLine:
    """A system message and the rule it sets for replies."""

    text: str
    keys: tuple[Key, ...]
    apply: Callable[[Exchange], Exchange]
    asks: tuple[Exchange, ...] = ()
    changes_replies: bool = True


def _changed(kinds: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Checks of exact text, changed as the reply was; others as they are."""
    made = dict(kinds)
    if "equals" in made:
        made["equals"] = change(made["equals"])
    if "one_of" in made:
        made["one_of"] = [change(item) for item in made["one_of"]]
    return made


def _rewrite(change: Callable[[str], str], rule: dict[str, Any]) -> Callable[[Exchange], Exchange]:
    """What changes a reply; `rule` is the check that the change was made, wherever exact text does not say so."""

    def apply(exchange: Exchange) -> Exchange:
        expect = _changed(exchange.expect or {}, change)
        if not {"equals", "one_of"} & expect.keys():
            expect |= rule
        return replace(exchange, reply=change(exchange.reply), expect=expect or None)

    return apply


def _capitals(exchange: Exchange) -> Exchange:
    expect: dict[str, Any] = _changed(exchange.expect or {}, str.upper) | {"not": {"regex": "[a-z]"}}
    if "contains" in expect:
        expect["contains"] = expect["contains"].upper()
    return replace(exchange, reply=exchange.reply.upper(), expect=expect)


_UPPER = ("Answer in upper case.", "Use capital letters only.", "Shout.", "Write every answer in capitals.")
_ENDING = ("End every answer with {}.", "Always finish with the word {}.", "Put {} at the end of each answer.")
_OPENING = ("Start every answer with {}.", "Begin each answer with the word {}.", "Always say {} first.")
_PERSONA = ("Your name is {}.", "You are {}.", "You are called {}.", "You are an assistant named {}.")
_ASK_PERSONA = ("What is your name?", "Who are you?", "What are you called?")
_PLAIN = ("You are a helpful assistant.", "Be brief.", "Answer the questions.", "You are kind.", "Talk with the user.")


def upper_case(rng: Random, split: Split) -> SystemLine:
    """Every reply in capitals (checks of exact text are changed along)."""
    return SystemLine(rng.choice(_UPPER), (), _capitals)


def ending(rng: Random, split: Split) -> SystemLine:
    """Every reply ends with a given word."""
    word, key = draw(rng, split, lambda r: any_word(r, 3, 6), lambda made: ("word", made))
    change = _rewrite(lambda reply: f"{reply} {word}", {"regex": f" {word}$"})
    return SystemLine(rng.choice(_ENDING).format(word), (key,), change)


def opening(rng: Random, split: Split) -> SystemLine:
    """Every reply begins with a given word and a comma."""
    word, key = draw(rng, split, lambda r: any_word(r, 3, 6), lambda made: ("word", made))
    change = _rewrite(lambda reply: f"{word}, {reply}", {"starts_with": f"{word}, "})
    return SystemLine(rng.choice(_OPENING).format(word), (key,), change)


def persona(rng: Random, split: Split) -> SystemLine:
    """The assistant has a name, and may be asked for it."""
    name, key = draw(rng, split, lambda r: proper(r, NAMES), lambda made: ("persona", made))
    asked = Exchange(
        "system", rng.choice(_ASK_PERSONA), f"My name is {name}.", {"contains": name}, (key,), thought=(f"me: {name}",)
    )
    return SystemLine(rng.choice(_PERSONA).format(name), (key,), lambda exchange: exchange, (asked,), False)


def plain(rng: Random, split: Split) -> SystemLine:
    """A line that changes nothing."""
    return SystemLine(rng.choice(_PLAIN), (), lambda exchange: exchange, (), False)
