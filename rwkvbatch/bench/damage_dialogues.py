"""The dialogues of a script as texts for `damage`: its reference replies, each after the dialogue before it."""

from __future__ import annotations

from collections.abc import Sequence

from rwkvbatch.bench.damage import Say, ScoredPart, ScoredText
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.replay.conversation import ConversationReplay
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.prompts import PromptEncoder


def texts_of_dialogues(engine: Engine, plan: Plan, weights_sha256: str, say: Say = lambda _: None) -> list[ScoredText]:
    """The reference replies of a plan's conversations, of one cell, with references as history.

    A turn without a reference is answered by the engine's model, greedily if the plan says so, and its reply does not
    count, so that both models of a comparison read the same dialogue. A dialogue ends where nothing that counts
    follows, and at a turn of choices without a reference.

    Args:
        weights_sha256: of the model whose turn end is used where the settings say `auto`.

    Raises:
        UsageError: no conversation has a reference that can be scored.
        RwkvBatchError: as `Engine.generate`.
    """
    encoder = PromptEncoder(engine.tokenizer, None, None, weights_sha256)
    replays = [ConversationReplay(plan.task(number), encoder) for number in range(plan.num_tasks)]
    parts: list[list[ScoredPart]] = [[] for _ in replays]
    waiting = list(range(len(replays)))
    while waiting:
        for number in waiting:
            given = replays[number].take_references()
            parts[number] += [ScoredPart(tuple(before), tuple(scored)) for before, scored in given if before and scored]
        waiting = [number for number in waiting if _goes_on(replays[number])]
        if waiting:
            say(f"replies to {counted(len(waiting), 'turn')} without a reference")
            replies = engine.generate([replays[number].request() for number in waiting])
            for number, reply in zip(waiting, replies, strict=True):
                replays[number].take_reply(reply)
    found = _texts(replays, parts)
    if not found:
        raise UsageError(
            "the script has no reference replies that could be scored", hint="add assistant messages, or use --texts"
        )
    return found


def _goes_on(replay: ConversationReplay) -> bool:
    """Whether the next turn has to be answered because a reference comes later."""
    if replay.over:
        return False
    turns = replay.task.conversation.turns
    return turns[replay.turn].generate and any(turns[later].reference is not None for later in replay.turns_after)


def _texts(replays: Sequence[ConversationReplay], parts: Sequence[list[ScoredPart]]) -> list[ScoredText]:
    return [
        ScoredText(replay.task.conversation.id, tuple(own)) for replay, own in zip(replays, parts, strict=True) if own
    ]
