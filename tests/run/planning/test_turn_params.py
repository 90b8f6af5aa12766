"""Which settings a turn with params of its own is generated with."""

from __future__ import annotations

from typing import Any

import pytest

from rwkvbatch.errors import UsageError
from rwkvbatch.run.planning.grid import Cell
from rwkvbatch.run.planning.plan import Plan
from rwkvbatch.run.planning.settings import layer_settings
from rwkvbatch.script.records import Conversation, SourceLine, Turn


def settings_of(
    turn: int, given: dict[str, Any] | None = None, cell: dict[str, Any] | None = None
) -> tuple[float, int]:
    conversation = Conversation(
        "c",
        None,
        (Turn("a"), Turn("b", params={"temperature": 0.25, "seed": 9})),
        (),
        {"temperature": 0.5, "seed": 8},
        SourceLine("s.jsonl", 1),
    )
    plan = Plan([conversation], [Cell("base", cell or {})], layer_settings(given or {}))
    found = plan.dialogue(0).of_turn(turn)
    return found.settings.temperature, found.seed


def test_a_turns_params_win_over_the_conversations() -> None:
    assert settings_of(0) == (0.5, 8)
    assert settings_of(1) == (0.25, 9)


def test_the_command_line_and_the_grid_win_over_both() -> None:
    assert settings_of(1, given={"temperature": 0.75}) == (0.75, 9)
    assert settings_of(1, cell={"temperature": 0.875}) == (0.875, 9)


def test_values_that_cannot_be_are_refused_with_their_turn() -> None:
    conversation = Conversation(
        "c", None, (Turn("a", params={"top_p": 7}),), (), {}, SourceLine("s.jsonl", 3)
    )
    with pytest.raises(UsageError, match=r"s\.jsonl:3: params of turn 0"):
        Plan([conversation], [Cell("base", {})], layer_settings({}))
