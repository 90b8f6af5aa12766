"""The official template: cleaning of texts, thinking modes, ends of turns, preludes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rwkvbatch.config import Prompting, ReplyPrompt, ThinkMode, TurnEnd
from rwkvbatch.errors import UsageError
from rwkvbatch.hashes import sha256_of_file
from rwkvbatch.model.load import load_model
from rwkvbatch.model.model_files import BUNDLED_MODEL
from rwkvbatch.prompt.segments import clean
from rwkvbatch.prompt.templates import (
    BUNDLED_SHA256,
    MAX_PRELUDE_BYTES,
    PRELUDES,
    OfficialTemplate,
    load_prelude,
    load_template,
    with_turn_end,
)

THINKING: list[ThinkMode] = ["on", "short", "long", "fake"]


def api_demo_chat_prompt(message: str) -> str:
    """The prompt of API_DEMO_CHAT for one message (the order of its two replacements matters only with \\r)."""
    return "User: " + re.sub(r"\n+", "\n", message.strip()) + "\n\nAssistant:"


@given(text=st.text(st.sampled_from("ab \n\r\té"), max_size=20))
@example(text="a\r\r\nb")
@example(text="a\n\r\n\r\nb")
def test_cleaned_text_has_no_blank_line_and_no_outer_space(text: str) -> None:
    cleaned = clean(text)
    assert "\n\n" not in cleaned
    assert "\r\n" not in cleaned
    assert cleaned == cleaned.strip()
    assert clean(cleaned) == cleaned


def test_cleaning_many_carriage_returns_takes_linear_time() -> None:
    assert clean("a" + "\r" * 1_000_000 + "b") == "a" + "\r" * 1_000_000 + "b"
    assert clean("a" + "\r\r\n" * 100_000 + "b") == "a\nb"


@given(text=st.text(st.characters(exclude_characters="\r")))
def test_a_turn_is_the_prompt_of_api_demo_chat(text: str) -> None:
    assert OfficialTemplate().turn(text) == api_demo_chat_prompt(text)


def test_the_official_template_renders_each_segment() -> None:
    template = load_template(Prompting())
    assert template.opening("Be\r\n\r\nbrief. ", None) == "System: Be\nbrief.\n\n"
    assert template.turn(" Hi\n\n\nthere ") == "User: Hi\nthere\n\nAssistant:"
    assert template.reply("Hello\r\n\r\nyou ") == " Hello\n\nyou\n\n"
    assert (template.closing, template.stops) == ("\n\n", ("\nUser:",))
    assert template.shown_reply(" Hello \n") == "Hello"


@pytest.mark.parametrize(
    ("think", "end"),
    [
        ("off", "User: x\n\nAssistant:"),
        ("on", "User: x\n\nAssistant: <think"),
        ("short", "User: x think a bit\n\nAssistant: <think"),
        ("long", "User: x think a lot\n\nAssistant: <think"),
        ("fake", "User: x\n\nAssistant: <think>\n</think"),
        ("fake-oneline", "User: x\n\nAssistant: <think></think"),
        ("on-parens", "User: x (think)\n\nAssistant: <think"),
        ("short-parens", "User: x (think a bit)\n\nAssistant: <think"),
        ("long-parens", "User: x (think a lot)\n\nAssistant: <think"),
    ],
)
def test_the_thinking_mode_sets_the_end_of_the_prompt(think: ThinkMode, end: str) -> None:
    template = load_template(Prompting(think=think))
    assert template.turn("x") == end
    assert template.past_turn("x") == "User: x\n\nAssistant:"
    assert template.reply("y") == " y\n\n"


@pytest.mark.parametrize(
    ("turn_end", "stops", "reply"),
    [
        ("auto", ("\nUser:",), " a\n\nb\n\n"),
        ("next-role", ("\nUser:",), " a\n\nb\n\n"),
        ("blank-line", ("\n\n",), " a\nb\n\n"),
        ("end-of-text", (), " a\n\nb\n\n"),
    ],
)
@pytest.mark.parametrize("think", ["off", "on", "fake"])
def test_turn_end_sets_stop_strings_independently_of_thinking(
    think: ThinkMode, turn_end: TurnEnd, stops: tuple[str, ...], reply: str
) -> None:
    template = load_template(Prompting(think=think, turn_end=turn_end))
    assert (template.stops, template.reply("a\n\nb")) == (stops, reply)


def test_turn_end_auto_is_blank_line_for_the_bundled_model_without_thinking() -> None:
    assert sha256_of_file(str(BUNDLED_MODEL), "") == BUNDLED_SHA256
    found = [with_turn_end(ReplyPrompt(think=think), BUNDLED_SHA256).turn_end for think in get_args(ThinkMode)]
    assert found == ["blank-line", *["next-role"] * 8]
    tensors_sha256 = load_model(load_file(BUNDLED_MODEL)).spec.weights_sha256
    assert with_turn_end(ReplyPrompt(), tensors_sha256).turn_end == "blank-line"
    assert with_turn_end(ReplyPrompt(), "0" * 64).turn_end == "next-role"
    assert with_turn_end(ReplyPrompt(turn_end="end-of-text"), BUNDLED_SHA256).turn_end == "end-of-text"


@pytest.mark.parametrize("think", THINKING)
def test_thinking_replies_may_hold_blank_lines_and_stop_before_the_next_user(think: ThinkMode) -> None:
    assert load_template(Prompting(think=think)).stops == ("\nUser:",)


def test_a_shown_reply_includes_the_thinking_part_opened_by_the_prompt() -> None:
    assert (
        OfficialTemplate(ReplyPrompt(think="on")).shown_reply(">\n1+1\n</think>\n2\n\n") == "<think>\n1+1\n</think>\n2"
    )
    assert OfficialTemplate(ReplyPrompt(think="fake")).shown_reply(">\n2\n\n") == "<think>\n</think>\n2"


def test_without_system_message_and_prelude_the_opening_is_empty() -> None:
    assert OfficialTemplate().opening(None, None) == ""
    assert OfficialTemplate().opening(" \n", " ") == ""


def test_a_prelude_follows_the_system_message_and_ends_in_one_blank_line() -> None:
    template = OfficialTemplate()
    assert template.opening("s", "\r\nUser: a\r\n\r\nAssistant: b") == "System: s\n\nUser: a\n\nAssistant: b\n\n"
    assert template.opening(None, "User: a\n\nAssistant: b\n\n\n") == "User: a\n\nAssistant: b\n\n"


def test_the_built_in_prelude_is_the_opening_unchanged() -> None:
    text = PRELUDES["api-demo-chat"]
    assert OfficialTemplate().opening(None, text) == text
    assert text.startswith("User: hi\n\nAssistant: Hi. I am your assistant")


def test_a_prelude_is_a_name_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prelude.txt"
    path.write_text("User: a\n\nAssistant: b", encoding="utf-8-sig")
    assert load_prelude(str(path)) == "User: a\n\nAssistant: b"
    assert load_prelude("api-demo-chat") == PRELUDES["api-demo-chat"]


@pytest.mark.parametrize("content", [None, b"\xff", b"x\0", b"x" * (MAX_PRELUDE_BYTES + 1)])
def test_a_prelude_that_is_missing_not_utf8_or_too_large_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "prelude.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--prelude .*prelude\.txt: (cannot be read|is larger than)") as caught:
        load_prelude(str(path))
    assert "api-demo-chat" in str(caught.value.hint)
