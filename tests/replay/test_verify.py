"""`--verify-batch`: rows are generated again, alone and in another batch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.engine.request import Reply, Request, Score
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.script.reader import read_scripts
from tests.replay.fakes import FakeEngine, FakeLoader, make_plan, pure_score
from tests.replay.runs import run

PLAIN_CHOICES = {"prompt": "The sky is", "choices": [" blue", " green"]}


class TestVerifying:
    def test_equal_rows_are_reported_as_bitwise(self, tmp_path: Path) -> None:
        result = run(tmp_path / "run", verify_rows=7)
        assert result.verified is not None
        assert result.verified["bitwise"]
        assert json.loads((tmp_path / "run" / "verify.json").read_text()) == result.verified

    def test_tokens_that_depend_on_the_batch_are_reported(self) -> None:
        class BatchDependentLoader(FakeLoader):
            def engine(self, setup: Any, plan: Plan, batch: int) -> Any:
                def change(request: Request, reply: Reply) -> Reply:
                    ids = (*reply.ids[:3], reply.ids[3] % 256 + 1, *reply.ids[4:]) if batch == 1 else reply.ids
                    return replace(reply, ids=ids)

                self.change = change
                return super().engine(setup, plan, batch)

        result = run(None, make_plan(5, batch_size=4), BatchDependentLoader(), verify_rows=5)
        assert result.verified is not None
        assert not result.verified["bitwise"]
        assert {(d["where"], d["first_token"]) for d in result.verified["differences"]} == {("alone", 3)}

    def test_differences_of_log_probabilities_alone_are_reported_with_their_size(self) -> None:
        class RoundingLoader(FakeLoader):
            def engine(self, setup: Any, plan: Plan, batch: int) -> Any:
                self.change = lambda request, reply: replace(
                    reply, logprobs=tuple(p - 1e-6 * batch for p in reply.logprobs)
                )
                return super().engine(setup, plan, batch)

        result = run(None, make_plan(5, batch_size=4), RoundingLoader(), verify_rows=5)
        assert result.verified is not None
        assert result.verified["held"].startswith("tokens of 5 rows; log-probabilities differ by up to")

    def test_scored_rows_are_verified(self, tmp_path: Path) -> None:
        path = tmp_path / "s.jsonl"
        name = {"role": "user", "content": "Name?", "choices": ["Ada", "Bob", "Ada Lovelace"]}
        probe = {"content": "Who?", "choices": ["I", "You"]}
        lines: list[dict[str, Any]] = [
            {"text": "One small text."},
            {"prompt": "The sky is", "continuation": " blue"},
            PLAIN_CHOICES,
            {"messages": [{"role": "user", "content": "Hi", "probes": [probe]}, name]},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = rwkvbatch.run(path, out=tmp_path / "run", verify_rows=100, max_tokens=4, threads=1)
        assert result.verified is not None
        assert (result.verified["rows"], result.verified["bitwise"]) == (7, True)

    @pytest.mark.parametrize(
        ("wrong_batch", "shift", "matched", "found"),
        [
            (1, 1e-3, 0, {("alone", 0), ("alone", 1), ("shuffled", 0), ("shuffled", 1)}),
            (2, 1e-3, 0, {("shuffled", 0), ("shuffled", 1)}),
            (2, math.nan, 0, {("shuffled", 0), ("shuffled", 1)}),
            (1, 0.0, 1, {("alone", 0)}),
        ],
    )
    def test_scores_that_depend_on_the_batch_are_reported(
        self, wrong_batch: int, shift: float, matched: int, found: set[tuple[str, int]], tmp_path: Path
    ) -> None:
        path = tmp_path / "s.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in [{"text": "A text."}, PLAIN_CHOICES]))

        class WrongScores(FakeEngine):
            def submit_score(self, prefix: Any, continuation: Any, root: int = 0, *, cache: bool = True) -> int:
                score = pure_score(prefix, continuation)
                logprobs = [score.logprobs[0] - shift, *score.logprobs[1:]]
                return self._queue(Score(logprobs, score.num_matched + matched), 1)

        class Loader(FakeLoader):
            def engine(self, setup: Any, plan: Plan, batch: int) -> Any:
                return WrongScores(batch) if batch == wrong_batch else super().engine(setup, plan, batch)

        plan = make_plan(conversations=read_scripts([str(path)]).conversations, cells=make_cells({}), batch_size=64)
        result = run(None, plan, Loader(), verify_rows=2)
        assert result.verified is not None
        assert result.verified["rows"] == 2
        assert not result.verified["bitwise"]
        assert {(d["where"], d["row"]) for d in result.verified["differences"]} == found
        gaps = [d["gap"] for d in result.verified["differences"]]
        assert gaps == ([None] * len(found) if math.isnan(shift) else pytest.approx([shift] * len(found)))
        assert {d["first_token"] for d in result.verified["differences"]} == {None}
