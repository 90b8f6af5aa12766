"""The numbers of rows and tokens of a plan, counted without a model (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import takewhile

from rwkvbatch.errors import RowError
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.worker.conversation import ConversationReplay
from rwkvbatch.replay.worker.prompts import PromptEncoder


@dataclass(frozen=True)
class Preview:
    """Numbers of rows, tasks and tokens of a plan or its shard.

    Attributes:
        dialogues: number of tasks.
        first_prompt_tokens: tokens of the first turns' prompts, summed over all tasks.
        first_prompt_distinct: the part of these that is computed, since shared prefixes are computed once.
        later_turn_tokens: tokens of the later turns' user messages, without the replies.
        max_reply_tokens: upper bound on the tokens of all replies.
        first_scored_tokens: tokens of the references, choices and plain texts of the first turns, which are scored.
        checks, references, turns_with_choices: numbers in the script, of its conversations that are run. References
            include plain texts.
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
    first_scored_tokens: int
    checks: int
    references: int
    turns_with_choices: int

    as_dict = asdict


def preview(plan: Plan, encoder: PromptEncoder) -> Preview:
    """Count a plan's work without a model. For a race, the counts are upper bounds.

    Args:
        encoder: needs no initial states.
    """
    replays_of = plan.times_played()
    first_prompt_tokens = first_scored_tokens = later_turn_tokens = max_reply_tokens = rows = dialogues = 0
    prompts: set[tuple[str, tuple[int, ...]]] = set()
    numbers = [plan.number_of(conversation, cell, 0) for conversation in replays_of for cell in range(len(plan.cells))]
    for task in map(plan.task, numbers):
        turns, num_replays = task.conversation.turns, replays_of[plan.conversation_of(task.number)]
        dialogues += num_replays
        rows += num_replays * len(turns)
        prompt, num_scored = _first_turn(ConversationReplay(task, encoder), turns[0].generate)
        # Prompts of different models or initial states share no cached state.
        prompts.add((f"{task.settings.model}\0{task.settings.state}", prompt))
        first_prompt_tokens += num_replays * len(prompt)
        first_scored_tokens += num_replays * num_scored
        for number, turn in enumerate(turns[1:], start=1):
            text = encoder.template(task.of_turn(number).settings).turn(turn.user)
            later_turn_tokens += num_replays * len(encoder.encode(text))
        max_tokens = sum(task.of_turn(n).settings.max_tokens for n, turn in enumerate(turns) if turn.generate)
        max_reply_tokens += num_replays * max_tokens
    script_turns = [turn for number in replays_of for turn in plan.conversations[number].turns]
    return Preview(
        rows=rows if plan.settings.race_rows is None else min(rows, plan.settings.race_rows),
        dialogues=dialogues,
        conversations=len(replays_of),
        cells=tuple(cell.name for cell in plan.cells),
        repeats=plan.settings.repeats if plan.settings.race else plan.repeats,
        first_prompt_tokens=first_prompt_tokens,
        first_prompt_distinct=_num_distinct(prompts),
        later_turn_tokens=later_turn_tokens,
        max_reply_tokens=max_reply_tokens,
        first_scored_tokens=first_scored_tokens,
        checks=sum(len(turn.checks) for turn in script_turns),
        references=sum(turn.reference is not None for turn in script_turns),
        turns_with_choices=sum(bool(turn.choices) for turn in script_turns),
    )


def _first_turn(replay: ConversationReplay, generate: bool) -> tuple[tuple[int, ...], int]:
    """The prompt of a first turn, and the number of tokens of it that are scored.

    The prompt of a turn without a reply is the longest one before a text that is scored.
    """
    try:
        texts = replay.scored_texts()
        prompt = replay.prompt() if generate else tuple(max((prefix for prefix, _ in texts), key=len))
    except RowError:  # the run reports it as the error of the row
        return (), 0
    return prompt, sum(len(tokens) for _, tokens in texts)


def _num_distinct(prompts: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Number of nodes of the prompts' prefix tree.

    In sorted order, each prompt adds its tokens after the common prefix with its predecessor.
    """
    count, previous = 0, ("", ())
    for key, tokens in sorted(prompts):
        pairs = zip(previous[1], tokens, strict=False) if previous[0] == key else ()
        count += len(tokens) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        previous = (key, tokens)
    return count
