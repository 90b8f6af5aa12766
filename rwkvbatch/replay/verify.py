"""Generates finished rows again, alone and in another batch, and compares the results (`--verify-batch`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rwkvbatch.engine.request import Reply, Score
from rwkvbatch.errors import counted
from rwkvbatch.prompt.escaping import finite
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.worker.conversation import ConversationReplay
from rwkvbatch.replay.worker.models import ModelLoader
from rwkvbatch.replay.worker.prompts import PromptEncoder
from rwkvbatch.replay.worker.rows import TurnResults
from rwkvbatch.results.row import Row
from rwkvbatch.results.rows import Rows

if TYPE_CHECKING:
    from rwkvbatch.endpoint.engine import EndpointEngine
    from rwkvbatch.engine.engine import Engine


@dataclass(frozen=True)
class Difference:
    """A row whose results differ when it is generated again.

    Attributes:
        where: `alone` or `shuffled`.
        first_token: position of the reply's first different token; None if only log-probabilities differ, or the number
            of reference tokens that are the likeliest.
        gap: difference of the log-probabilities at that position, or the largest difference if there is no such
            position; in nats.
    """

    row: int
    where: str
    first_token: int | None
    gap: float


def is_verifiable(rows: Rows, number: int) -> bool:
    """Whether a row exists and can be reproduced: it has not failed, and no time limit ended it."""
    return rows.has(number) and not rows.failed(number) and rows.read(number).finish_reason != "time"


def verify_rows(
    plan: Plan, rows: Rows, numbers: Sequence[int], setup: Setup, loader: ModelLoader
) -> Iterator[Difference]:
    """Generate the rows `numbers` again, each alone and all in one batch in reverse order.

    Replies are generated; references and choices are scored.

    Raises:
        RwkvBatchError: the model or its engine cannot be loaded, see `ModelLoader`.
    """
    encoder = loader.encoder(setup, plan)
    turns = [_at_turn(plan, rows, number, encoder) for number in numbers]
    alone = [_results(loader.engine(setup, plan, 1), [turn])[0] for turn in turns]
    shuffled = _results(loader.engine(setup, plan, max(1, len(turns))), turns[::-1])[::-1]
    for number, *results in zip(numbers, alone, shuffled, strict=True):
        for where, result in zip(("alone", "shuffled"), results, strict=True):
            if difference := _compare(number, where, rows.read(number), result, results[0]):
                yield difference


def verdict(num_rows: int, differences: Sequence[Difference]) -> dict[str, Any]:
    """The content of `verify.json`; a `gap` is None where a log-probability is not a number."""
    tokens_differ = [d for d in differences if d.first_token is not None]
    if not differences:
        held = f"bitwise: tokens and log-probabilities of {counted(num_rows, 'row')}, alone and shuffled"
    elif not tokens_differ and (gap := max(d.gap for d in differences)) > 0:
        held = f"tokens of {counted(num_rows, 'row')}; log-probabilities differ by up to {gap:.3g}"
    elif not tokens_differ:
        held = (
            f"tokens and log-probabilities of {counted(num_rows, 'row')}; other tokens of a reference are the likeliest"
        )
    else:
        first = tokens_differ[0]
        held = (
            f"not for {len({d.row for d in tokens_differ})} of {num_rows} rows; first: row {first.row} {first.where}, "
            f"token {first.first_token}, log-probabilities differ by {first.gap:.3g}"
        )
    return finite(
        {"rows": num_rows, "held": held, "bitwise": not differences, "differences": list(map(vars, differences))}
    )


def _at_turn(plan: Plan, rows: Rows, number: int, encoder: PromptEncoder) -> ConversationReplay:
    """The replay of the row's task at the row's turn, after the turns that have rows."""
    task, turn = plan.task_of_row(number)
    replay = ConversationReplay(plan.task(task), encoder)
    while replay.turn != turn:
        replay.skip_turn(rows.read(replay.task.first_row + replay.turn))
    return replay


def _results(engine: Engine | EndpointEngine, turns: Sequence[ConversationReplay]) -> list[TurnResults]:
    """The engine's results for all `turns` in one batch, in the order of `turns`."""
    index_of: dict[int, int] = {}
    for index, turn in enumerate(turns):
        turn.submit(engine)
        index_of |= dict.fromkeys(turn.pending, index)
    results_of: dict[int, TurnResults] = {}
    while len(results_of) < len(turns):
        for request_id, result in engine.step():
            index = index_of.pop(request_id)
            turn = turns[index]
            if (results := turn.collect(request_id, result)) is not None:
                results_of[index] = results
            else:
                turn.submit_more(engine)
                index_of |= dict.fromkeys(turn.pending, index)
    return [results_of[index] for index in range(len(turns))]


def _compare(number: int, where: str, row: Row, new: TurnResults, alone: TurnResults) -> Difference | None:
    """The difference of new results from a row, None for none.

    The row has only sums of log-probabilities. The log-probabilities of single tokens are compared with those of the
    results that were generated `alone`.
    """
    gap = 0.0
    if new.reply is not None and alone.reply is not None:
        gaps = [_gap(one, other) for one, other in zip(new.reply.logprobs, alone.reply.logprobs, strict=False)]
        gap = max([*gaps, _gap(row.logprob.sum, math.fsum(new.reply.logprobs))])
        if (position := _first_different(row, new.reply)) is not None:
            return Difference(number, where, position, gaps[position] if position < len(gaps) else gap)
    gap = max([gap, *_score_gaps(row, new.scores, alone.scores)])
    reference = row.reference
    same_matches = reference is None or reference.matched == new.scores[0].num_matched / reference.tokens
    return None if gap == 0 and same_matches else Difference(number, where, None, gap)


def _score_gaps(row: Row, new: Sequence[Score], alone: Sequence[Score]) -> Iterator[float]:
    """Differences of the new scores from those generated alone, and from the row's."""
    for score, other in zip(new, alone, strict=True):
        yield from map(_gap, score.logprobs, other.logprobs)
    choices = row.choices.scores if row.choices is not None else ()
    num_references = len(new) - len(choices)
    for score, choice in zip(new[num_references:], choices, strict=True):
        yield _gap(choice.logprob, _sum(score))
    reference = row.reference
    if reference is not None and reference.logprob is not None:
        yield _gap(reference.logprob, _sum(new[0]))
    elif reference is not None:
        yield _gap(reference.nll, new[0].nll if new[0].logprobs else math.nan)


def _sum(score: Score) -> float:
    """The log-probability of a text; NaN if a server that scored it before no longer does."""
    return math.fsum(score.logprobs) if score.logprobs else math.nan


def _first_different(row: Row, reply: Reply) -> int | None:
    """The position of the first token of `reply` that is not the row's, None for none."""
    for position, (row_token, new_token) in enumerate(zip_longest(row.reply_ids, reply.ids)):
        if row_token != new_token:
            return position
    return None


def _gap(one: float, other: float) -> float:
    """The difference of two log-probabilities; infinite if one is not a number."""
    gap = abs(one - other)
    return math.inf if math.isnan(gap) else gap
