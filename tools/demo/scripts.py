"""The example scripts of `datasets/`: held-out conversations, made by hand-written plans from the families."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from typing import Any

from tools.demo import numbers, spelling, systems, talk
from tools.demo.corpus import Conversation
from tools.demo.exchange import Exchange, Family
from tools.demo.holdout import Key
from tools.demo.memory import SLOTS, fact
from tools.demo.systems import SystemLine

Record = dict[str, Any]

_SMALL_TALK: tuple[Family, ...] = (
    talk.opposite,
    numbers.small_sum,
    talk.category,
    spelling.copy_word,
    talk.capital,
    numbers.compare,
    talk.sound,
    spelling.letter,
    numbers.successor,
    spelling.copy_digits,
)


@dataclass(frozen=True)
class Entry:
    """A conversation of a script with the held-out keys of everything in it."""

    record: Record
    keys: tuple[Key, ...]


def _entry(name: str, tags: Sequence[str], exchanges: Sequence[Exchange], system: SystemLine | None = None) -> Entry:
    ruled = [system.apply(exchange) for exchange in exchanges] if system else list(exchanges)
    return entry_of(Conversation(system, tuple(ruled), "off"), name, tags)


def entry_of(made: Conversation, name: str, tags: Sequence[str]) -> Entry:
    """A conversation of the corpus as a line of a script; references only where one reply alone is right."""
    messages: list[Record] = []
    keys: list[Key] = []
    if made.system is not None:
        messages.append({"role": "system", "content": made.system.text})
        keys += made.system.keys
    for exchange in made.exchanges:
        message: Record = {"role": "user", "content": exchange.user}
        if exchange.expect is not None:
            message["expect"] = [exchange.expect]
        messages.append(message)
        if exchange.one_answer:
            messages.append({"role": "assistant", "content": exchange.reply})
        keys += exchange.keys
    return Entry({"id": name, "tags": list(tags), "messages": messages}, tuple(keys))


def _memory(rng: Random, prefix: str, count: int) -> Iterator[Entry]:
    talks = cycle(_SMALL_TALK)
    for i, slot in zip(range(count), cycle(SLOTS), strict=False):
        gap = i % 11
        told = fact(rng, "held_out", slot)
        between = [family(rng, "held_out") for family in islice(talks, gap)]
        tags = ("memory", slot.name, f"gap-{gap}")
        yield _entry(f"{prefix}-{slot.name}-{i + 1}", tags, [told.told, *between, told.asked])


def _series(rng: Random, prefix: str, tag: str, families: Sequence[Family], count: int, turns: int) -> Iterator[Entry]:
    drawn = cycle(families)
    for i in range(count):
        made = [family(rng, "held_out") for family in islice(drawn, turns)]
        yield _entry(f"{prefix}-{i + 1}", (tag,), made)


_RULES: tuple[Callable[[Random, Any], SystemLine], ...] = (
    systems.upper_case,
    systems.ending,
    systems.persona,
    systems.opening,
)
_RULED: tuple[Family, ...] = (spelling.copy_word, talk.category, numbers.small_sum, talk.opposite, spelling.reverse)


def _ruled(rng: Random, prefix: str, count: int, turns: int) -> Iterator[Entry]:
    families = cycle(_RULED)
    for i, rule in zip(range(count), cycle(_RULES), strict=False):
        line = rule(rng, "held_out")
        made = [*line.asks, *(family(rng, "held_out") for family in islice(families, turns - len(line.asks)))]
        yield _entry(f"{prefix}-{i + 1}", ("system", rule.__name__.replace("_", "-")), made, line)


def demo() -> list[Entry]:
    """Forty short conversations of every family, for a first look."""
    rng = Random("datasets/demo")
    return [
        *_memory(rng, "memory", 11),
        *_series(rng, "sums", "sums", [numbers.small_sum], 4, 3),
        *_series(rng, "copying", "copying", [spelling.copy_word, spelling.copy_digits, spelling.copy_times], 4, 3),
        *_series(rng, "backwards", "backwards", [spelling.reverse], 3, 3),
        *_series(rng, "opposites", "opposites", [talk.opposite], 2, 3),
        *_series(rng, "categories", "categories", [talk.category], 2, 3),
        *_series(rng, "knowledge", "knowledge", [talk.capital, talk.sound], 2, 3),
        *_series(rng, "numbers", "numbers", [numbers.compare, numbers.successor, numbers.count], 2, 3),
        *_series(rng, "letters", "letters", [spelling.letter, spelling.upper], 2, 2),
        *_series(rng, "greetings", "greetings", [talk.greeting, talk.courtesy], 2, 2),
        *_ruled(rng, "system", 6, 3),
    ]


def memory() -> list[Entry]:
    """Facts asked back after 0 to 10 turns of other talk, and conversations with several facts at once."""
    rng = Random("datasets/memory")
    made = list(_memory(rng, "fact", 55))
    for i in range(11):
        slots = rng.sample(SLOTS, 3)
        facts = [fact(rng, "held_out", slot) for slot in slots]
        asked = [one.asked for one in facts]
        rng.shuffle(asked)
        made.append(_entry(f"three-facts-{i + 1}", ("memory", "three-facts"), [*(one.told for one in facts), *asked]))
    return made


def copying() -> list[Entry]:
    """Words, digit strings and repetitions to say again: the first to suffer from penalties and high temperature."""
    rng = Random("datasets/copying")
    return [
        *_series(rng, "words", "copying", [spelling.copy_word], 12, 3),
        *_series(rng, "digits", "copying", [spelling.copy_digits], 16, 3),
        *_series(rng, "times", "copying", [spelling.copy_times], 12, 3),
        *_series(rng, "backwards", "backwards", [spelling.reverse], 12, 3),
    ]


def arithmetic() -> list[Entry]:
    """Small sums, and three-digit sums that need `--think on`."""
    rng = Random("datasets/arithmetic")
    return [
        *_series(rng, "small", "sums", [numbers.small_sum], 24, 3),
        *_series(rng, "long", "long-sums", [numbers.long_sum], 40, 2),
    ]


def styles() -> list[Entry]:
    """Greetings with several right replies, rules to follow, repetitive copying: where sampling settings show."""
    rng = Random("datasets/styles")
    return [
        *_series(rng, "greetings", "greetings", [talk.greeting, talk.courtesy], 16, 3),
        *_ruled(rng, "rules", 16, 4),
        *_series(rng, "repeating", "copying", [spelling.copy_times, spelling.copy_digits], 12, 3),
        *_series(rng, "counting", "numbers", [numbers.count], 8, 2),
    ]


SCRIPTS: dict[str, Callable[[], list[Entry]]] = {
    "demo": demo, "memory": memory, "copying": copying, "arithmetic": arithmetic, "styles": styles,
}  # fmt: skip


def in_forms(entries: Sequence[Entry]) -> dict[str, list[Record]]:
    """The same conversations, without checks, as the native form and four other tools' forms."""
    forms: dict[str, list[Record]] = {
        "native": [],
        "openai-messages": [],
        "openai-batch": [],
        "sharegpt": [],
        "mt-bench": [],
    }
    speakers = {"user": "human", "assistant": "gpt"}
    for entry in entries:
        name, messages = entry.record["id"], entry.record["messages"]
        said = [{"role": m["role"], "content": m["content"]} for m in messages]
        if any(m["role"] == "system" for m in said):
            raise ValueError(f"{name}: MT-Bench has no place for a system message")
        forms["native"].append({"id": name, "messages": said})
        forms["openai-messages"].append({"messages": said})
        body = {"model": "rwkv7-demo", "messages": said}
        request = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        forms["openai-batch"].append(request)
        shared = [{"from": speakers[m["role"]], "value": m["content"]} for m in said]
        forms["sharegpt"].append({"id": name, "conversations": shared})
        forms["mt-bench"].append({"question_id": name, "turns": [m["content"] for m in said if m["role"] == "user"],
                                  "reference": _references(said)})  # fmt: skip
    return forms


def _references(said: Sequence[Record]) -> list[str | None]:
    found: list[str | None] = []
    for message in said:
        if message["role"] == "user":
            found.append(None)
        else:
            found[-1] = message["content"]
    return found
