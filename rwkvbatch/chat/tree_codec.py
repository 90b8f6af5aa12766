"""The tree of a chat as JSON values, as sessions and transcripts have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rwkvbatch.chat.tree import ConversationTree, Exchange, Opening, Position


def tree_values(tree: ConversationTree, first_opening: int = 0, first_exchange: int = 0) -> dict[str, Any]:
    """The tree as JSON values, with the openings and exchanges from the given numbers on."""
    return {
        "openings": [dict(vars(opening)) for opening in tree.openings[first_opening:]],
        "exchanges": [dict(vars(exchange)) for exchange in tree.exchanges[first_exchange:]],
        "branches": {name: dict(vars(position)) for name, position in tree.branches.items()},
        "current": tree.current,
    }


def read_tree(values: Mapping[str, Any], vocab_size: int) -> ConversationTree:
    """The inverse of `tree_values`.

    Args:
        vocab_size: vocabulary size of the model, which limits the token ids.

    Raises:
        KeyError, TypeError, ValueError: `values` is not a consistent tree.
    """
    tree = ConversationTree(
        [_opening(item, vocab_size) for item in values["openings"]],
        [_exchange(item, vocab_size) for item in values["exchanges"]],
        {str(name): Position(**position) for name, position in values["branches"].items()},
        str(values["current"]),
    )
    for number, opening in enumerate(tree.openings):
        if opening.number != number:
            raise ValueError(f"opening {number} has the number {opening.number}")
    for number, exchange in enumerate(tree.exchanges):
        if exchange.number != number or (exchange.parent is not None and not 0 <= exchange.parent < number):
            raise ValueError(f"exchange {number} is out of order")
        _check_position(tree, Position(exchange.opening, exchange.parent))
        turn = tree.num_turns(tree.before(exchange))
        if exchange.turn != turn:
            raise ValueError(f"exchange {number} must have turn {turn}, got {exchange.turn}")
    for position in [*tree.branches.values(), tree.head]:
        _check_position(tree, position)
    return tree


_STRING_FIELDS = ("user", "reply", "raw", "finish_reason")
_NULLABLE_STRING_FIELDS = ("system", "prelude", "state", "state_sha256", "stopped_by")
_COUNT_FIELDS = ("number", "opening", "turn", "attempt", "seed", "num_read", "num_cached")


def _check_types(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in _STRING_FIELDS and not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {value!r:.60}")
        if name in _NULLABLE_STRING_FIELDS and not isinstance(value, str | None):
            raise TypeError(f"{name} must be a string or null, got {value!r:.60}")
        if name in _COUNT_FIELDS and not (type(value) is int and 0 <= value < 2**64):
            raise TypeError(f"{name} must be an integer that is not negative, got {value!r:.60}")


def _opening(values: Mapping[str, Any], vocab_size: int) -> Opening:
    _check_types(values)
    return Opening(**_with_token_ids(values, vocab_size, "tokens"))


def _exchange(values: Mapping[str, Any], vocab_size: int) -> Exchange:
    _check_types(values)
    checked = _with_token_ids(values, vocab_size, "prompt", "ids", "rest")
    checked["settings"] = dict(values["settings"])
    checked["logprobs"] = tuple(float(value) for value in values["logprobs"])
    return Exchange(**checked)


def _with_token_ids(values: Mapping[str, Any], vocab_size: int, *names: str) -> dict[str, Any]:
    """`values` with checked token ids under `names`."""
    if not all(type(value) is int and 0 <= value < vocab_size for name in names for value in values[name]):
        raise ValueError(f"token ids must be integers in 0 to {vocab_size - 1}")
    return {**values, **{name: tuple(values[name]) for name in names}}


def _check_position(tree: ConversationTree, position: Position) -> None:
    opening, number = position.opening, position.exchange
    if not 0 <= opening < len(tree.openings):
        raise ValueError(f"an opening must be in 0 to {len(tree.openings) - 1}, got {opening}")
    if number is not None:
        if not 0 <= number < len(tree.exchanges):
            raise ValueError(f"an exchange must be in 0 to {len(tree.exchanges) - 1}, got {number}")
        if tree.exchanges[number].opening != opening:
            raise ValueError(f"exchange {number} belongs to another opening than {opening}")
