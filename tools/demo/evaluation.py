"""Greedy accuracy by family on held-out conversations, decoded in one batch on the training network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from tools.demo.checking import passes
from tools.demo.corpus import Conversation, Think, conversation, segments_of
from tools.demo.network import LayerState, Network, zero_state
from tools.demo.vocabulary import END_OF_TEXT, decode, encode

_MOST_TOKENS = 160


@dataclass
class Score:
    """Checks passed of checks made."""

    passed: int = 0
    made: int = 0

    @property
    def share(self) -> float:
        """Passed over made; 0 when none was made."""
        return self.passed / self.made if self.made else 0.0


@dataclass
class _Row:
    """One conversation being replayed: tokens still to be fed, and what was written in this turn."""

    conversation: Conversation
    feed: list[int]
    turn: int = 0
    writing: bool = False
    written: list[int] = field(default_factory=list[int])
    replies: list[str] = field(default_factory=list[str])
    done: bool = False


def _start(made: Conversation) -> _Row:
    system = encode(f"System: {made.system.text}\n\n") if made.system else ()
    return _Row(made, [*system, *encode(segments_of(made.exchanges[0], made.think)[0])])


def _finish(row: _Row) -> str | None:
    """The text of the reply when the last token ended it, else None."""
    text = decode([i for i in row.written if i != END_OF_TEXT])
    ended = row.written[-1] == END_OF_TEXT or len(row.written) >= _MOST_TOKENS
    stop = "\n\n" if row.conversation.think == "off" else "\nUser:"
    return text.split(stop)[0] if ended or stop in text else None


def _advance(row: _Row) -> None:
    reply = _finish(row)
    if reply is None:
        row.feed = [row.written[-1]]
        return
    row.replies.append(reply)
    row.turn += 1
    if row.turn == len(row.conversation.exchanges):
        row.done = True
        return
    fed, _ = segments_of(row.conversation.exchanges[row.turn], row.conversation.think)
    if row.conversation.think == "off":
        row.feed = [row.written[-1], *encode(fed)]
    else:
        user = "User:"
        whole = decode(row.written)
        row.feed = [row.written[-1], *encode(fed[len(user) :] if whole.endswith(user) else fed)]
    row.writing, row.written = False, []


def replies_of(
    network: Network,
    made: Sequence[Conversation],
    temperature: float = 0.0,
    seed: int = 0,
    state: list[LayerState] | None = None,
) -> list[list[str]]:
    """The model's replies to each conversation, its own replies as history; `state` is the initial one."""
    rows = [_start(one) for one in made]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        carried = state if state is not None else zero_state(network.shape, len(rows))
        while not all(row.done for row in rows):
            ids = torch.tensor([[row.feed.pop(0) if row.feed else END_OF_TEXT] for row in rows])
            logits, carried = network(ids, carried)
            chosen = _choose(logits[:, 0], temperature, generator)
            for row, token in zip(rows, chosen, strict=True):
                if not row.done and not row.feed:
                    row.written.append(token)
                    _advance(row)
    return [row.replies for row in rows]


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> list[int]:
    if temperature == 0.0:
        return logits.argmax(-1).tolist()
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0].tolist()


def answer_of(reply: str, think: Think) -> str:
    """The reply without its scratchpad."""
    return reply if think == "off" else reply.rpartition("</think>" if think != "fake" else ">\n")[2]


def held_out(count: int, length: int, think: Think, seed: int = 1) -> list[Conversation]:
    """Fresh conversations of values that training never drew."""
    rng = Random(f"evaluation/{seed}/{think}")
    return [conversation(rng, "held_out", length, think) for _ in range(count)]


def family_of(made: Conversation, turn: int) -> str:
    """The family that a turn counts under: `system` wherever a system line changes the replies."""
    ruled = made.system is not None and made.system.changes_replies
    return "system" if ruled else made.exchanges[turn].family


def accuracy(made: Sequence[Conversation], replies: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Scores by family (see `family_of`), and under "all"."""
    scores: dict[str, Score] = defaultdict(Score)
    for one, said in zip(made, replies, strict=True):
        for turn, (exchange, reply) in enumerate(zip(one.exchanges, said, strict=True)):
            if exchange.expect is not None:
                passed = passes(answer_of(reply, one.think), exchange.expect)
                for name in ("all", family_of(one, turn)):
                    scores[name].made += 1
                    scores[name].passed += passed
    return dict(sorted(scores.items()))
