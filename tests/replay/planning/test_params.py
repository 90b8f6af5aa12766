"""Settings of conversations and turns that have their own params."""

from __future__ import annotations

from typing import Any

import pytest

from rwkvbatch.config.sources import resolve_settings
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.records import Conversation, Turn
from tests.replay.fakes import make_conversation, make_plan


def settings_of(
    turn: int, explicit: dict[str, Any] | None = None, cell: dict[str, Any] | None = None
) -> tuple[float, int]:
    conversation = Conversation(
        "c",
        None,
        (Turn("a"), Turn("b", params={"temperature": 0.25, "seed": 9})),
        (),
        {"temperature": 0.5, "seed": 8},
        SourceLine("s.jsonl", 1),
    )
    plan = Plan([conversation], [Cell("base", cell or {})], resolve_settings(explicit or {}))
    found = plan.task(0).of_turn(turn)
    return found.settings.temperature, found.seed


def test_params_of_a_conversation_win_unless_the_command_line_or_the_grid_gives_them() -> None:
    conversation = make_conversation("c", 1, params={"temperature": 0.2, "max_tokens": 7, "seed": 99})
    cells = [Cell("base", {})]

    def first(plan: Plan) -> tuple[float, int, int]:
        task = plan.task(0)
        return task.settings.temperature, task.settings.max_tokens, task.seed

    assert first(make_plan(conversations=[conversation], cells=cells)) == (0.2, 7, 99)
    assert first(make_plan(conversations=[conversation], cells=cells, explicit=["max_tokens"])) == (0.2, 256, 99)
    assert first(make_plan(conversations=[conversation], cells=cells, seed=3, explicit=["seed"])) == (0.2, 7, 3)
    swept = make_plan(conversations=[conversation], cells=[Cell("temp=0.9", {"temperature": 0.9})])
    assert first(swept) == (0.9, 7, 99)


def test_params_of_a_turn_win_over_those_of_its_conversation() -> None:
    assert settings_of(0) == (0.5, 8)
    assert settings_of(1) == (0.25, 9)


def test_the_command_line_and_the_grid_win_over_params_of_a_turn() -> None:
    assert settings_of(1, explicit={"temperature": 0.75}) == (0.75, 9)
    assert settings_of(1, cell={"temperature": 0.875}) == (0.875, 9)


def test_invalid_params_of_a_turn_are_refused_with_its_line_and_number() -> None:
    conversation = Conversation("c", None, (Turn("a", params={"top_p": 7}),), (), {}, SourceLine("s.jsonl", 3))
    with pytest.raises(UsageError, match=r"s\.jsonl:3: params of turn 0"):
        Plan([conversation], [Cell("base", {})], resolve_settings({}))
