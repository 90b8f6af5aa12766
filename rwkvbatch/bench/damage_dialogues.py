"""The dialogues of a script as texts for `damage`: the reference replies are scored, each after its dialogue so far."""

from __future__ import annotations

from rwkvbatch.bench.damage import Notify, ScoredPart, ScoredText
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.worker.conversation import ConversationReplay
from rwkvbatch.replay.worker.prompts import PromptEncoder


def texts_of_dialogues(
    engine: Engine, plan: Plan, weights_sha256: str, notify: Notify = lambda _: None
) -> list[ScoredText]:
    """The reference replies of the conversations of a plan with one cell, with references as history.

    The engine's model answers turns without a reference, and these replies are not scored, so that both models of a
    comparison read the same dialogue. A dialogue ends after its last reference, and before a turn of choices without a
    reference.

    Args:
        weights_sha256: hash of the model whose turn end is used if the settings say `auto`.

    Raises:
        UsageError: no conversation has a reference that can be scored.
        RwkvBatchError: see `Engine.generate`.
    """
    encoder = PromptEncoder(engine.tokenizer, None, None, weights_sha256)
    replays = [ConversationReplay(plan.task(number), encoder) for number in range(plan.num_tasks)]
    parts: list[list[ScoredPart]] = [[] for _ in replays]
    unfinished = list(range(len(replays)))
    while unfinished:
        for number in unfinished:
            references = replays[number].take_references()
            parts[number] += [
                ScoredPart(tuple(prefix), tuple(scored)) for prefix, scored in references if prefix and scored
            ]
        unfinished = [number for number in unfinished if _needs_reply(replays[number])]
        if unfinished:
            notify(f"replies to {counted(len(unfinished), 'turn')} without a reference")
            replies = engine.generate([replays[number].request() for number in unfinished])
            for number, reply in zip(unfinished, replies, strict=True):
                replays[number].take_reply(reply)
    texts = [
        ScoredText(replay.task.conversation.id, tuple(replay_parts))
        for replay, replay_parts in zip(replays, parts, strict=True)
        if replay_parts
    ]
    if not texts:
        raise UsageError(
            "the script has no reference replies that could be scored", hint="add assistant messages, or use --texts"
        )
    return texts


def _needs_reply(replay: ConversationReplay) -> bool:
    """Whether the next turn needs a reply because a later turn has a reference."""
    if replay.over:
        return False
    turns = replay.task.conversation.turns
    return turns[replay.turn].generate and any(turns[later].reference is not None for later in replay.turns_after)
