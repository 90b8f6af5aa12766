"""Tokens of prompts and scored references: token 0, reply prefixes, thinking, tools."""

from __future__ import annotations

from typing import Any

import pytest

from rwkvbatch.config.sources import resolve_settings
from rwkvbatch.engine.request import Request
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.planning.grid import Cell, make_cells
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.worker.conversation import ConversationReplay
from rwkvbatch.replay.worker.prompts import PromptEncoder
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.records import Conversation, Turn
from tests.replay.fakes import ByteTokenizer, pure_reply, pure_score


class Recorder:
    """An engine that records its requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.scored: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def submit(self, request: Request) -> int:
        self.requests.append(request)
        return 2 * len(self.requests)

    def submit_score(
        self, prefix: tuple[int, ...], continuation: tuple[int, ...], root: int = 0, *, cache: bool = True
    ) -> int:
        self.scored.append((prefix, continuation))
        return 2 * len(self.scored) + 1


def text_of(tokens: tuple[int, ...]) -> str:
    """The text of tokens, with `|` for token 0."""
    return "".join("|" if token == 0 else ByteTokenizer().decode([token]) for token in tokens)


def replayed(*turns: Turn, params: dict[str, Any] | None = None, **settings: Any) -> tuple[Recorder, list[str]]:
    """The engine with the requests of a conversation, and its replies as shown."""
    conversation = Conversation("c", "s", turns, (), params or {}, SourceLine("s.jsonl", 1))
    task = Plan([conversation], [Cell("base", {})], resolve_settings(settings)).task(0)
    engine, replay, shown = Recorder(), ConversationReplay(task, PromptEncoder(ByteTokenizer())), list[str]()
    while not replay.over:
        replay.submit(engine)  # type: ignore[arg-type]
        row = None
        for number in sorted(replay.pending, reverse=True):
            request = engine.requests[-1]
            row = replay.take_result(number, pure_score(*engine.scored[-1]) if number % 2 else pure_reply(request))
        assert row is not None
        shown.append(row.reply)
    return engine, shown


TOOL = {"name": "f", "description": "Do it"}
SYSTEM_WITH_TOOLS = (
    'System: s\nTools:\n[\n{"name":"f","description":"Do it","arguments":{}}\n]\nReturn only a JSON function call.\n\n'
)


@pytest.mark.parametrize(
    ("settings", "end"),
    [
        ({}, "Assistant: ```json"),
        ({"reply_prefix": ""}, "Assistant:"),
        ({"think": "on"}, "Assistant: <think"),
        ({"think": "fake"}, "Assistant: <think>\n</think>\n```json"),
    ],
)
def test_tools_are_listed_and_the_reply_prefix_gives_way_to_open_thinking(settings: dict[str, Any], end: str) -> None:
    turn = Turn("a", params={"reply_prefix": "```json"})
    conversation = Conversation("c", "s", (turn,), (), {}, SourceLine("s.jsonl", 1), (TOOL,))
    task = Plan([conversation], [Cell("base", {})], resolve_settings(settings)).task(0)
    replay = ConversationReplay(task, PromptEncoder(ByteTokenizer()))
    assert text_of(replay.prompt()) == f"{SYSTEM_WITH_TOOLS}User: a\n\n{end}"


def test_with_bos_token_0_is_read_once_at_the_start() -> None:
    engine, _ = replayed(Turn("a"), Turn("b"), bos="on")
    first, second = (text_of(request.tokens) for request in engine.requests)
    assert first == "|System: s\n\nUser: a\n\nAssistant:"
    assert second.startswith(first)
    assert second.count("|") == 1


@pytest.mark.parametrize(
    ("settings", "params", "expected"),
    [
        ({}, {}, False),
        ({}, {"bos": "on"}, True),
        ({"bos": "off"}, {"bos": "on"}, False),
        ({"bos": "auto"}, {"bos": "on"}, False),
        ({"bos": True}, {}, True),
    ],
)
def test_chats_begin_with_token_0_only_by_setting_or_params(
    settings: dict[str, Any], params: dict[str, Any], expected: bool
) -> None:
    engine, _ = replayed(Turn("a"), params=params, **settings)
    assert text_of(engine.requests[0].tokens).startswith("|") == expected


def test_a_reply_prefix_is_read_with_the_prompt_and_shown_with_the_reply() -> None:
    engine, shown = replayed(Turn("a", params={"reply_prefix": "The answer is"}), Turn("b"))
    first, second = (text_of(request.tokens) for request in engine.requests)
    assert first.endswith("\n\nAssistant: The answer is")
    assert second.startswith(first)
    assert second.endswith("\n\nAssistant:")
    assert shown[0].startswith("The answer is ")
    assert not shown[1].startswith("The answer is ")


def test_a_reply_prefix_is_not_scored() -> None:
    engine, _ = replayed(Turn("a", "The answer is 42."), Turn("b", "Not so."), reply_prefix="The answer is")
    (first_prefix, first_text), (second_prefix, second_text) = (tuple(map(text_of, part)) for part in engine.scored)
    assert (first_prefix[-26:], first_text) == ("\n\nAssistant: The answer is", " 42.\n\n")
    # A reference that does not begin with the prefix is scored without it.
    assert (second_prefix[-12:], second_text) == ("\n\nAssistant:", " Not so.\n\n")


def test_the_gold_history_is_the_same_with_and_without_a_reply_prefix() -> None:
    turns = Turn("a", "The answer is 42."), Turn("b")
    second = [replayed(*turns, history="gold", **more)[0].requests[1] for more in ({}, {"reply_prefix": "The answer"})]
    assert text_of(second[1].tokens) == text_of(second[0].tokens) + " The answer"


def test_a_reply_prefix_follows_the_empty_thinking_part() -> None:
    engine, shown = replayed(Turn("a"), reply_prefix="```json\n", think="fake")
    assert text_of(engine.requests[0].tokens).endswith("\n\nAssistant: <think>\n</think>\n```json\n")
    assert shown[0].startswith("<think>\n</think>\n```json\n")


@pytest.mark.parametrize("params", [{"think": "on"}, {"reply_prefix": "x"}])
def test_a_reply_prefix_with_open_thinking_is_refused(params: dict[str, Any]) -> None:
    other = {"reply_prefix": "x"} if "think" in params else {"think": "on"}
    with pytest.raises(UsageError, match=r"s\.jsonl:1: params of turn 0: --reply-prefix .* --think on"):
        replayed(Turn("a", params=params), **other)
    with pytest.raises(UsageError, match=r"--reply-prefix .* --think on"):
        replayed(Turn("a"), **params, **other)


def test_a_grid_over_reply_prefixes_names_cells_by_their_first_words() -> None:
    prefixes = ["", "The answer, as I see it, is", "The answer, as I see it, isn't", "1", "1.0", "日本"]
    names = [cell.name.removeprefix("reply_prefix=") for cell in make_cells({"reply_prefix": prefixes})]
    assert names == ["none", "The_answer_as_I_see_it", "The_answer_as_I_see_it-2", "1", "1.0", "日本"]
