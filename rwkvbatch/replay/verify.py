"""`--verify-batch`: whether rows come out the same alone and in a shuffled batch as they did in the run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvbatch.engine.request import Reply, Request, Score
from rwkvbatch.files import Files, save_file
from rwkvbatch.replay.conversation import ConversationReplay, PromptEncoder
from rwkvbatch.replay.models import TurnEngine
from rwkvbatch.replay.plan import Plan
from rwkvbatch.results.row import Row
from rwkvbatch.results.store import Rows

VERIFY_NAME = "verify.json"


@dataclass(frozen=True)
class Difference:
    """A row that came out otherwise.

    Attributes:
        where: `alone` or `shuffled`.
        first_token: the first place in the reply with another token; None when only log-probabilities differ.
        gap: the difference of log-probabilities there (without such a place, the largest one), in nats.
    """

    row: int
    where: str
    first_token: int | None
    gap: float


def choose_rows(rows: Rows, candidates: Sequence[int], count: int) -> list[int]:
    """`count` of the finished rows among `candidates`, always the same ones for the same plan."""
    finished = [n for n in candidates if rows.has(n) and not rows.failed(n) and rows.read(n).finish_reason != "time"]
    return sorted(finished, key=lambda n: hashlib.blake2b(b"%d" % n).digest())[:count]


def verify_rows(
    plan: Plan, rows: Rows, numbers: Sequence[int], desk: PromptEncoder, make_engine: Callable[[int], TurnEngine]
) -> list[Difference]:
    """Generate the rows `numbers` again, each alone and all in one batch in another order."""
    requests = [_request(plan, rows, number, desk) for number in numbers]
    differences: list[Difference] = []
    lone = [_generate(make_engine(1), [request])[0] for request in requests]
    together = _generate(make_engine(max(1, len(requests))), requests[::-1])[::-1]
    for number, alone, shuffled in zip(numbers, lone, together, strict=True):
        row = rows.read(number)
        for where, reply in (("alone", alone), ("shuffled", shuffled)):
            found = _compare(number, where, row, reply, alone)
            if found is not None:
                differences.append(found)
    return differences


def verdict(num_rows: int, differences: Sequence[Difference]) -> dict[str, Any]:
    """The content of `verify.json`."""
    tokens_differ = [d for d in differences if d.first_token is not None]
    if not differences:
        held = f"bitwise: tokens and log-probabilities of {num_rows} rows, alone and shuffled"
    elif not tokens_differ:
        held = f"tokens of {num_rows} rows; log-probabilities differ by up to {max(d.gap for d in differences):.3g}"
    else:
        first = tokens_differ[0]
        held = (
            f"not for {len({d.row for d in tokens_differ})} of {num_rows} rows; first: row {first.row} {first.where}, "
            f"token {first.first_token}, log-probabilities differ by {first.gap:.3g}"
        )
    return {
        "rows": num_rows,
        "held": held,
        "bitwise": not differences,
        "differences": [vars(difference) for difference in differences],
    }


def write_verdict(files: Files, directory: Path, content: dict[str, Any]) -> None:
    """Replace `verify.json`; the manifest is written once, before there is anything to verify.

    Raises:
        StorageError: it could not be written.
    """
    save_file(directory / VERIFY_NAME, [json.dumps(content, indent=2).encode(), b"\n"], files=files)


def _request(plan: Plan, rows: Rows, number: int, desk: PromptEncoder) -> Request:
    dialogue_number, turn = plan.dialogue_of_row(number)
    active = ConversationReplay(plan.dialogue(dialogue_number), desk)
    while active.turn < turn:
        active.replay(rows.read(active.row_number))
    return active.request()


def _generate(engine: TurnEngine, requests: Sequence[Request]) -> list[Reply]:
    ids = [engine.submit(request) for request in requests]
    results: dict[int, Reply | Score] = {}
    while len(results) < len(ids):
        results.update(engine.step())
    return [reply for number in ids if isinstance(reply := results[number], Reply)]


def _compare(number: int, where: str, row: Row, reply: Reply, alone: Reply) -> Difference | None:
    """The run kept the sum of a row's log-probabilities; one by one they are compared with the lone reply's."""
    gaps = [abs(one - other) for one, other in zip(reply.logprobs, alone.logprobs, strict=False)]
    gap = max([*gaps, abs(row.logprob.sum - math.fsum(reply.logprobs))])
    for place, (there, here) in enumerate(_pairs(row.reply_ids, reply.ids)):
        if there != here:
            return Difference(number, where, place, gaps[place] if place < len(gaps) else gap)
    return Difference(number, where, None, gap) if gap > 0 else None


def _pairs(left: Sequence[int], right: Sequence[int]) -> Iterator[tuple[int, int]]:
    for place in range(max(len(left), len(right))):
        yield left[place] if place < len(left) else -1, right[place] if place < len(right) else -1
