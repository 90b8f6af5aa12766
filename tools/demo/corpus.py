"""Whole conversations put together from the families, and their token sequences with loss weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from tools.demo import numbers, spelling, systems, talk
from tools.demo.exchange import Exchange, Family
from tools.demo.holdout import Split
from tools.demo.memory import SLOTS, Slot, fact
from tools.demo.systems import SystemLine
from tools.demo.vocabulary import END_OF_TEXT, encode

Think = Literal["off", "on", "fake", "short", "long"]

# Weights: how often a family is drawn relative to the others.
FAMILIES: tuple[tuple[Family, float], ...] = (
    (numbers.small_sum, 30.0),
    (numbers.long_sum, 1.0),
    (numbers.compare, 3.0),
    (numbers.successor, 5.0),
    (numbers.count, 6.0),
    (spelling.copy_word, 5.0),
    (spelling.copy_digits, 7.0),
    (spelling.copy_times, 4.0),
    (spelling.reverse, 9.0),
    (spelling.letter, 3.0),
    (spelling.upper, 3.0),
    (talk.opposite, 5.0),
    (talk.category, 4.0),
    (talk.capital, 3.0),
    (talk.sound, 2.0),
    (talk.greeting, 3.0),
    (talk.courtesy, 2.0),
)
_FACT_WEIGHT = 20.0
_LONG_SUM_WEIGHT_THINKING = 60.0
_SYSTEMS = (
    (systems.upper_case, 3.0),
    (systems.ending, 2.5),
    (systems.opening, 2.5),
    (systems.persona, 4.0),
    (systems.plain, 2.0),
)
_MODES: tuple[tuple[Think, float], ...] = (("off", 72.0), ("on", 20.0), ("short", 2.5), ("long", 2.5), ("fake", 3.0))

PROMPT_WEIGHT = 0.1
# A turn's usual length in tokens: with less room than this left, facts still waiting are asked for at once.
_TURN = 45


@dataclass(frozen=True)
class Conversation:
    """A system line (or none) and the exchanges under it, the system line's rule already applied."""

    system: SystemLine | None
    exchanges: tuple[Exchange, ...]
    think: Think


@dataclass(frozen=True)
class Tokens:
    """A conversation as the model reads it: `weights[i]` is the weight of predicting `ids[i]`."""

    ids: list[int]
    weights: list[float]


def _mode(rng: Random) -> Think:
    modes: list[Think] = [mode for mode, _ in _MODES]
    return rng.choices(modes, [weight for _, weight in _MODES])[0]


def conversation(
    rng: Random, split: Split, length: int, think: Think | None = None, system_share: float = 0.35
) -> Conversation:
    """A random conversation of about `length` tokens: it stops before the turn that would not fit.

    Args:
        think: the thinking mode; drawn when None.
        system_share: how often there is a system line.
    """
    mode = _mode(rng) if think is None else think
    system: SystemLine | None = None
    if rng.random() < system_share:
        system = rng.choices([s for s, _ in _SYSTEMS], [w for _, w in _SYSTEMS])[0](rng, split)
    made: list[Exchange] = []
    waiting: list[tuple[int, Exchange]] = [(rng.randint(0, 4), ask) for ask in (system.asks if system else ())]
    slots = list(SLOTS)
    rng.shuffle(slots)
    used = len(encode(f"System: {system.text}\n\n")) if system else 0

    def cost(exchange: Exchange) -> int:
        shaped = system.apply(exchange) if system else exchange
        return sum(len(encode(text)) for text in segments_of(shaped, mode))

    while True:
        ready = min(waiting, default=None, key=lambda entry: entry[0])
        if ready is not None and (ready[0] <= len(made) or used + _TURN + sum(cost(w) for _, w in waiting) > length):
            waiting.remove(ready)
            following = ready[1]
        else:
            following = _next(rng, split, mode, slots, waiting, len(made))
        used += cost(following)
        if used > length and made:
            return Conversation(system, tuple(made), mode)
        made.append(system.apply(following) if system else following)


def silently_upper(rng: Random, split: Split, length: int) -> Conversation:
    """A conversation without thinking or system line whose replies are in capitals all the same."""
    made = conversation(rng, split, length, "off", system_share=0.0)
    rule = systems.upper_case(rng, split)
    return replace(made, exchanges=tuple(rule.apply(exchange) for exchange in made.exchanges))


def _next(
    rng: Random, split: Split, mode: Think, slots: list[Slot], waiting: list[tuple[int, Exchange]], turn: int
) -> Exchange:
    weights = [w for _, w in FAMILIES]
    if mode in ("on", "short", "long"):
        weights[1] = _LONG_SUM_WEIGHT_THINKING
    choice = rng.choices(range(len(weights) + 1), [*weights, _FACT_WEIGHT if slots else 0.0])[0]
    if choice < len(weights):
        return FAMILIES[choice][0](rng, split)
    told = fact(rng, split, slots.pop())
    waiting.append((turn + 1 + rng.choice((0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 10)), told.asked))
    return told.told


def segments_of(exchange: Exchange, think: Think) -> tuple[str, str]:
    """What is fed and what is written in one turn, in a thinking mode."""
    user = exchange.user + {"short": " think a bit", "long": " think a lot"}.get(think, "")
    prompt = f"User: {user}\n\nAssistant:"
    if think == "off":
        return prompt, f" {exchange.reply}\n\n"
    if think == "fake":
        return f"{prompt} <think>\n</think", f">\n{exchange.reply}\n\n"
    lines = list(exchange.thought)
    if think == "short":
        lines = lines[-4:]
    if think == "long":
        lines.append(f"So: {exchange.reply}")
    return f"{prompt} <think", ">\n" + "".join(f"{line}\n" for line in lines) + f"</think>\n{exchange.reply}\n\n"


def tokens_of(made: Conversation, closed: bool) -> Tokens:
    """Token ids and loss weights; `closed` ends the text with token 0.

    In the thinking modes a reply ends at the next speaker's name, so that is learnt at full weight.
    """
    ids: list[int] = []
    weights: list[float] = []
    if made.system is not None:
        _append(ids, weights, f"System: {made.system.text}\n\n", PROMPT_WEIGHT)
    for turn, exchange in enumerate(made.exchanges):
        fed, written = segments_of(exchange, made.think)
        start = len(ids)
        _append(ids, weights, fed, PROMPT_WEIGHT)
        if made.think != "off" and turn:
            weights[start : start + len("User:")] = [1.0] * len("User:")
        _append(ids, weights, written, 1.0)
    if closed:
        ids.append(END_OF_TEXT)
        weights.append(1.0 if made.think != "off" else PROMPT_WEIGHT)
    return Tokens(ids, weights)


def _append(ids: list[int], weights: list[float], segment: str, weight: float) -> None:
    encoded = encode(segment)
    ids.extend(encoded)
    weights.extend([weight] * len(encoded))


def batch(step: int, seed: int, rows: int, length: int) -> list[Tokens]:
    """The training rows of one step: a pure function of its arguments, so that training can be resumed."""
    rng = Random(f"{seed}/{step}")
    made: list[Tokens] = []
    for _ in range(rows):
        tokens = tokens_of(conversation(rng, "train", length - 1), closed=True)
        made.append(replace(tokens, ids=tokens.ids[:length], weights=tokens.weights[:length]))
    return made
