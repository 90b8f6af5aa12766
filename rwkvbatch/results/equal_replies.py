"""Counts of equal replies: among the repetitions of a turn, and between the cells of a grid.

Where nearly all of them are equal, repetitions or a varied setting measure nothing new. A small top-p, for example,
leaves so few tokens that the temperature has no effect.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from rwkvbatch.results.row import SCORED, Row

MAX_REPLIES = 50_000
"""The most replies that are compared; of larger runs, those of some conversations are."""

_Replies = dict[tuple[str, int, int], int]
"""The hash of each reply by conversation, turn and repetition."""


@dataclass(frozen=True)
class EqualReplies:
    """A number of equal replies.

    Attributes:
        equal: how many of `compared` have equal replies.
        compared: number of turns, or of pairs of turns, that have replies to compare.
    """

    equal: int = 0
    compared: int = 0

    @property
    def nearly_all(self) -> bool:
        """Whether at least nine in ten are equal, of ten or more."""
        return self.compared >= 10 and 10 * self.equal >= 9 * self.compared


@dataclass(frozen=True)
class CellEqualReplies:
    """Equal replies of one cell, in large runs of some of the conversations (`MAX_REPLIES`).

    Attributes:
        repeats: of the turns with several repetitions, those whose repetitions all have the same reply.
        first_cell: of the turns that the first cell has, too (conversation, repetition and turn), those with the same
            reply as there.
    """

    repeats: EqualReplies = field(default_factory=EqualReplies)
    first_cell: EqualReplies = field(default_factory=EqualReplies)


class EqualRepliesCounter:
    """Counts equal replies in rows of any order.

    It keeps hashes of at most `MAX_REPLIES` replies: where there are more, those of the conversations whose ids have a
    hash that ends with as many zero bits as it takes. The counts therefore do not depend on the order of the rows.

    Args:
        cells: the names of the cells in order.
    """

    def __init__(self, cells: Iterable[str]) -> None:
        self._replies: dict[str, _Replies] = {name: {} for name in cells}
        self._num_replies = 0
        self._left_out = 0  # bits of the hash of an id that have to be 0

    def add(self, row: Row) -> None:
        """Count a row; those without a generated reply are left out."""
        if row.finish_reason in (SCORED, "error") or not self._is_counted(row.conversation):
            return
        self._replies[row.cell][row.conversation, row.turn, row.repeat] = hash(row.reply)
        self._num_replies += 1
        while self._num_replies > MAX_REPLIES:
            self._left_out = 2 * self._left_out + 1
            for cell, replies in self._replies.items():
                self._replies[cell] = {key: reply for key, reply in replies.items() if self._is_counted(key[0])}
            self._num_replies = sum(map(len, self._replies.values()))

    def _is_counted(self, conversation: str) -> bool:
        return not zlib.crc32(conversation.encode(errors="surrogatepass")) & self._left_out

    def result(self) -> dict[str, CellEqualReplies]:
        """The counts by cell."""
        first = next(iter(self._replies.values()), _Replies())
        return {
            name: CellEqualReplies(
                _among_repeats(replies), EqualReplies() if replies is first else _common(first, replies)
            )
            for name, replies in self._replies.items()
        }


def _among_repeats(replies: _Replies) -> EqualReplies:
    by_turn: dict[tuple[str, int], list[int]] = {}
    for (conversation, turn, _), reply in replies.items():
        by_turn.setdefault((conversation, turn), []).append(reply)
    repeated = [of_turn for of_turn in by_turn.values() if len(of_turn) > 1]
    return EqualReplies(sum(len(set(of_turn)) == 1 for of_turn in repeated), len(repeated))


def _common(first: _Replies, replies: _Replies) -> EqualReplies:
    common = [first[key] == reply for key, reply in replies.items() if key in first]
    return EqualReplies(sum(common), len(common))
