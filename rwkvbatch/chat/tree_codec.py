"""The tree of a chat as JSON values, as sessions and transcripts have it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from rwkvbatch.chat.tree import ConversationTree, Position
from rwkvbatch.fields import read_record


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
    stored = {name: values[name] for name in ("openings", "exchanges", "branches", "current")}
    tree = read_record(ConversationTree, stored)
    texts = chain((o.tokens for o in tree.openings), ((*e.prompt, *e.ids, *e.rest) for e in tree.exchanges))
    if max(chain.from_iterable(texts), default=0) >= vocab_size:
        raise ValueError(f"token ids must be integers in 0 to {vocab_size - 1}")
    for number, opening in enumerate(tree.openings):
        if opening.number != number:
            raise ValueError(f"opening {number} has the number {opening.number}")
    for number, exchange in enumerate(tree.exchanges):
        if exchange.number != number or (exchange.parent is not None and exchange.parent >= number):
            raise ValueError(f"exchange {number} is out of order")
        _check_position(tree, Position(exchange.opening, exchange.parent))
        turn = tree.num_turns(tree.before(exchange))
        if exchange.turn != turn:
            raise ValueError(f"exchange {number} must have turn {turn}, got {exchange.turn}")
    for position in [*tree.branches.values(), tree.head]:
        _check_position(tree, position)
    return tree


def _check_position(tree: ConversationTree, position: Position) -> None:
    opening, number = position.opening, position.exchange
    if opening >= len(tree.openings):
        raise ValueError(f"an opening must be in 0 to {len(tree.openings) - 1}, got {opening}")
    if number is not None:
        if number >= len(tree.exchanges):
            raise ValueError(f"an exchange must be in 0 to {len(tree.exchanges) - 1}, got {number}")
        if tree.exchanges[number].opening != opening:
            raise ValueError(f"exchange {number} belongs to another opening than {opening}")
