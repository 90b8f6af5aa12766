"""What a plan would do, told without loading a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rwkvbatch.replay.conversation import ConversationReplay, PromptEncoder
from rwkvbatch.replay.plan import Plan


@dataclass(frozen=True)
class Preview:
    """The size of a plan, or of the part of it that is run.

    Attributes:
        rows, dialogues, conversations, cells, repeats: how many.
        first_prompt_tokens: in the first turns' prompts of all dialogues.
        first_prompt_distinct: how many of them have to be read when shared prefixes are read once.
        later_turn_tokens: what the script adds in later turns, without the replies.
        max_reply_tokens: what all replies together have at most.
    """

    rows: int
    dialogues: int
    conversations: int
    cells: tuple[str, ...]
    repeats: int
    first_prompt_tokens: int
    first_prompt_distinct: int
    later_turn_tokens: int
    max_reply_tokens: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def preview(plan: Plan, desk: PromptEncoder) -> Preview:
    """Count a plan's work; initial states need not be known to `desk`."""
    first = later = replies = 0
    prompts: set[tuple[str, tuple[int, ...]]] = set()
    per_cell = plan.repeats
    first_repeats = [
        plan.number_of(conversation, cell, 0) for conversation in plan.chosen for cell in range(len(plan.cells))
    ]
    rows = 0
    for number in first_repeats:
        dialogue = plan.dialogue(number)
        rows += per_cell * len(dialogue.conversation.turns)
        active = ConversationReplay(dialogue, desk)
        prompt = active.prompt()
        # States of different models and initial states cannot be shared.
        prompts.add((f"{dialogue.settings.model}\0{dialogue.settings.state}", prompt))
        first += per_cell * len(prompt)
        template = desk.template(dialogue.settings)
        later += per_cell * sum(len(desk.encode(template.turn(t.user))) for t in dialogue.conversation.turns[1:])
        replies += per_cell * sum(
            dialogue.of_turn(turn).settings.max_tokens for turn in range(len(dialogue.conversation.turns))
        )
    return Preview(
        rows=rows,
        dialogues=per_cell * len(first_repeats),
        conversations=len(plan.chosen),
        cells=tuple(cell.name for cell in plan.cells),
        repeats=plan.repeats,
        first_prompt_tokens=first,
        first_prompt_distinct=_num_distinct(prompts),
        later_turn_tokens=later,
        max_reply_tokens=replies,
    )


def _num_distinct(prompts: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Nodes of the prompts' prefix tree: in sorted order, each adds what it does not share with the one before."""
    count = 0
    before: tuple[str, tuple[int, ...]] = ("", ())
    for world, tokens in sorted(prompts):
        count += len(tokens) - (_num_shared(before[1], tokens) if before[0] == world else 0)
        before = (world, tokens)
    return count


def _num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    shared = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        shared += 1
    return shared
