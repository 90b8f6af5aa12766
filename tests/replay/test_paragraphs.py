"""Replies of several paragraphs: in all modes, and in resumed and merged runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.config.sources import resolve_settings
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import RunMismatchError
from rwkvbatch.prompt.tokenizer import world_tokenizer
from rwkvbatch.replay.merge import merge
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.row_index import Shard
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.replay.worker.prompts import PromptEncoder
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import Row
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.records import Conversation, Turn
from tests.chat.scripted_model import VOCAB_SIZE, ScriptedModel
from tests.replay.runs import StopAfter

ANSWER = "First.\n\n- one\n- two\n\nLast."
GOLD = "One.\n\nTwo."
GREEDY = {"temperature": 0.0, "max_tokens": 100}


class ScriptedLoader:
    """Loads a model whose reply is always `ANSWER`."""

    def __init__(self) -> None:
        self._engine = Engine(ScriptedModel(lambda _: ANSWER))

    def specs(self, setups: Any) -> dict[Setup, Any]:
        return dict.fromkeys(setups, self._engine.model.spec)

    def tokenizer(self, _: Any) -> Any:
        return self._engine.tokenizer

    def encoder(self, *_: Any) -> PromptEncoder:
        return PromptEncoder(self._engine.tokenizer)

    def engine(self, *_: Any) -> Engine:
        return self._engine


def conversations() -> list[Conversation]:
    turns = Turn("a", GOLD), Turn("b", GOLD), Turn("c")
    return [Conversation(f"c{n}", None, turns, (), {}, SourceLine("s.jsonl", n)) for n in range(4)]


def run(out: Path | None = None, num_steps: float = math.inf, shard: Shard | None = None, **settings: Any) -> list[Row]:
    """The rows of a run that is stopped after `num_steps` steps."""
    plan = Plan(conversations(), make_cells({}), resolve_settings({**GREEDY, "batch_size": 2, **settings}), shard)
    return list(execute(plan, ScriptedLoader(), RunOptions(out=out, should_stop=StopAfter(num_steps))).rows())  # type: ignore[arg-type]


def num_tokens(text: str) -> int:
    return len(world_tokenizer(VOCAB_SIZE).encode(text))


def without_timing(rows: list[Row]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.as_dict().items() if key != "timing"} for row in rows]


@pytest.mark.parametrize("history", ["own", "gold"])
@pytest.mark.parametrize("think", ["off", "on"])
def test_replies_have_all_their_paragraphs_in_every_mode(think: str, history: str) -> None:
    opening = "<think" if think == "on" else ""
    rows = run(think=think, history=history)
    assert [(row.reply, row.finish_reason, row.stopped_by) for row in rows] == [
        (opening + ANSWER, "stop", "\nUser:")
    ] * len(rows)


def test_turn_end_selects_what_ends_a_reply() -> None:
    assert {row.reply for row in run(turn_end="blank-line")} == {"First."}
    assert {row.reply for row in run(preset="api-demo-chat")} == {"First."}
    assert {row.finish_reason for row in run(turn_end="end-of-text")} == {"length"}


@pytest.mark.parametrize("history", ["own", "gold"])
def test_the_history_has_all_paragraphs_and_one_blank_line_after_them(history: str) -> None:
    rows = run(history=history)
    num_turn = num_tokens("User: a\n\nAssistant:")
    # The tokens that the scripted model generates are bytes.
    num_answer = num_tokens(f" {GOLD}\n\n") if history == "gold" else len(ANSWER) + num_tokens("\n\n")
    assert [row.tokens.prompt for row in rows[:3]] == [num_turn * (n + 1) + num_answer * n for n in range(3)]


def test_all_paragraphs_of_the_reference_are_scored() -> None:
    found = run()[0].reference
    assert found is not None
    assert found.tokens == num_tokens(f" {GOLD}\n\n")


@pytest.mark.parametrize("history", ["own", "gold"])
def test_a_resumed_run_and_merged_parts_have_the_rows_of_the_whole_run(tmp_path: Path, history: str) -> None:
    whole = without_timing(run(history=history))
    num_done = len(run(tmp_path / "resumed", num_steps=60, history=history))
    assert 0 < num_done < len(whole)
    assert without_timing(run(tmp_path / "resumed", history=history)) == whole
    for part in (1, 2):
        run(tmp_path / f"part-{part}", shard=Shard(part, 2), history=history)
    merge([tmp_path / "part-1", tmp_path / "part-2"], tmp_path / "merged")
    assert without_timing(list(read_results(tmp_path / "merged" / "results.jsonl"))) == whole


def test_a_run_with_another_end_of_replies_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "old", num_steps=40, turn_end="blank-line")
    with pytest.raises(RunMismatchError, match=r"turn_end: existing run: \"blank-line\"; this command: \"next-role\""):
        run(tmp_path / "old", turn_end="next-role")
