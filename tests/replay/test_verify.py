"""`--verify-batch`: rows made again, alone and in another batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.replay.plan import Plan
from tests.replay.fakes import FakeLoader, make_plan
from tests.replay.runs import run


class TestVerifying:
    def test_rows_that_come_out_the_same_are_called_bitwise(self, tmp_path: Path) -> None:
        result = run(tmp_path / "run", verify_rows=7)
        assert result.verified is not None
        assert result.verified["bitwise"]
        assert json.loads((tmp_path / "run" / "verify.json").read_text()) == result.verified

    def test_a_backend_that_depends_on_the_batch_is_found_out(self) -> None:
        class Careless(FakeLoader):
            def engine(self, setup: Any, plan: Plan, batch: int) -> Any:
                def change(request: Request, reply: Reply) -> Reply:
                    ids = (*reply.ids[:3], reply.ids[3] % 256 + 1, *reply.ids[4:]) if batch == 1 else reply.ids
                    return replace(reply, ids=ids)

                self.change = change
                return super().engine(setup, plan, batch)

        result = run(None, make_plan(5, batch_size=4), Careless(), verify_rows=5)
        assert result.verified is not None
        assert not result.verified["bitwise"]
        assert {(d["where"], d["first_token"]) for d in result.verified["differences"]} == {("alone", 3)}

    def test_log_probabilities_alone_may_differ(self) -> None:
        class Rounding(FakeLoader):
            def engine(self, setup: Any, plan: Plan, batch: int) -> Any:
                self.change = lambda request, reply: replace(
                    reply, logprobs=tuple(p - 1e-6 * batch for p in reply.logprobs)
                )
                return super().engine(setup, plan, batch)

        result = run(None, make_plan(5, batch_size=4), Rounding(), verify_rows=5)
        assert result.verified is not None
        assert result.verified["held"].startswith("tokens of 5 rows; log-probabilities differ by up to")
