"""A dialogue as JSON values, and back: what was read is a dialogue only if all its numbers fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rwkvbatch.chat.dialogue import Dialogue, Exchange, Opening, Point


def dialogue_values(dialogue: Dialogue) -> dict[str, Any]:
    """All of it, JSON-ready."""
    return {
        "openings": [asdict(opening) for opening in dialogue.openings],
        "exchanges": [asdict(exchange) for exchange in dialogue.exchanges],
        **branch_values(dialogue),
    }


def branch_values(dialogue: Dialogue) -> dict[str, Any]:
    """Where the branches are, JSON-ready."""
    return {
        "branches": {name: asdict(point) for name, point in dialogue.branches.items()},
        "current": dialogue.current,
    }


def read_dialogue(values: Mapping[str, Any]) -> Dialogue:
    """The opposite of `dialogue_values`.

    Raises:
        KeyError, TypeError, ValueError: `values` is not a dialogue's.
    """
    dialogue = Dialogue(
        [_opening(item) for item in values["openings"]],
        [_exchange(item) for item in values["exchanges"]],
        {str(name): Point(**point) for name, point in values["branches"].items()},
        str(values["current"]),
    )
    for place, opening in enumerate(dialogue.openings):
        if opening.number != place:
            raise ValueError(f"opening {place} has the number {opening.number}")
    for place, exchange in enumerate(dialogue.exchanges):
        _check_place(dialogue, place, exchange)
    for point in [*dialogue.branches.values(), dialogue.head]:
        _check_number(dialogue.openings, point.opening)
        if point.exchange is not None:
            _check_number(dialogue.exchanges, point.exchange)
    return dialogue


def _check_place(dialogue: Dialogue, place: int, exchange: Exchange) -> None:
    follows = place if exchange.parent is None else exchange.parent + 1
    if exchange.number != place or not 0 <= follows <= place:
        raise ValueError(f"exchange {place} is out of place")
    if exchange.turn != dialogue.num_turns(dialogue.before(exchange)):
        raise ValueError(f"exchange {place} says that it is turn {exchange.turn}, and it is not")
    _check_number(dialogue.openings, exchange.opening)
    if exchange.parent is not None and dialogue.exchanges[exchange.parent].opening != exchange.opening:
        raise ValueError(f"exchange {place} is of another opening than the one that it follows")


def _opening(values: Mapping[str, Any]) -> Opening:
    plain: dict[str, Any] = {**values, "tokens": _ids(values["tokens"])}
    return Opening(**plain)


def _exchange(values: Mapping[str, Any]) -> Exchange:
    plain: dict[str, Any] = {**values, "settings": dict(values["settings"])}
    for name in ("prompt", "ids", "rest"):
        plain[name] = _ids(values[name])
    plain["logprobs"] = tuple(float(value) for value in values["logprobs"])
    return Exchange(**plain)


def _ids(values: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("token ids must be integers")
    return tuple(values)


def _check_number(items: Sequence[object], number: int) -> None:
    if not 0 <= number < len(items):
        raise ValueError(f"{number} is not the number of one of {len(items)}")
