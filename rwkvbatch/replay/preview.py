"""The numbers of rows and tokens of a plan, counted without a model (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import takewhile

from rwkvbatch.replay.conversation import ConversationReplay
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.prompts import PromptEncoder


@dataclass(frozen=True)
class Preview:
    """Numbers of rows, tasks and tokens of a plan (`--dry-run`), or of its shard.

    Attributes:
        dialogues: tasks.
        first_prompt_tokens: in the first turns' prompts of all tasks.
        first_prompt_distinct: those of them to compute when shared prefixes are computed once.
        later_turn_tokens: tokens of the later turns' user messages, without the replies.
        max_reply_tokens: upper bound of all replies together.
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

    as_dict = asdict


def preview(plan: Plan, encoder: PromptEncoder) -> Preview:
    """Count a plan's work without a model, of a race at most; `encoder` needs no initial states."""
    times = plan.times_played()
    first = later = replies = rows = dialogues = 0
    prompts: set[tuple[str, tuple[int, ...]]] = set()
    numbers = [plan.number_of(conversation, cell, 0) for conversation in times for cell in range(len(plan.cells))]
    for task in map(plan.task, numbers):
        turns, played = task.conversation.turns, times[plan.conversation_of(task.number)]
        dialogues += played
        rows += played * len(turns)
        prompt = ConversationReplay(task, encoder).prompt()
        # Prompts of different models or initial states share no cached state.
        prompts.add((f"{task.settings.model}\0{task.settings.state}", prompt))
        first += played * len(prompt)
        for number, turn in enumerate(turns[1:], start=1):
            later += played * len(encoder.encode(encoder.template(task.of_turn(number).settings).turn(turn.user)))
        replies += played * sum(task.of_turn(turn).settings.max_tokens for turn in range(len(turns)))
    return Preview(
        rows=rows if plan.settings.race_rows is None else min(rows, plan.settings.race_rows),
        dialogues=dialogues,
        conversations=len(times),
        cells=tuple(cell.name for cell in plan.cells),
        repeats=plan.settings.repeats if plan.settings.race else plan.repeats,
        first_prompt_tokens=first,
        first_prompt_distinct=_num_distinct(prompts),
        later_turn_tokens=later,
        max_reply_tokens=replies,
    )


def _num_distinct(prompts: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Nodes of the prompts' prefix tree: in sorted order, each prompt adds the tokens that its predecessor lacks."""
    count, previous = 0, ("", ())
    for key, tokens in sorted(prompts):
        pairs = zip(previous[1], tokens, strict=False) if previous[0] == key else ()
        count += len(tokens) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        previous = (key, tokens)
    return count
