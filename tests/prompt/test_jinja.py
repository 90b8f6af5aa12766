"""Prompt templates from files: rendered prompts, forbidden constructs, limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvbatch.config import Prompting, ReplyPrompt
from rwkvbatch.errors import TemplateError
from rwkvbatch.prompt import jinja
from rwkvbatch.prompt.jinja import MAX_TEMPLATE_BYTES, JinjaTemplate, read_template
from rwkvbatch.prompt.templates import TEMPLATES, load_template

CHATML = Path(__file__).with_name("chatml.jinja")
OFFICIAL = """\
{% macro system(text) %}
System: {{ text }}

{% endmacro %}
{% macro user(text) %}
User: {{ text }}

Assistant:{% endmacro %}
{% macro reply(text) %} {{ text }}

{% endmacro %}
"""
REST = "{% macro user(text) %}{{ text }}{% endmacro %}{% macro reply(text) %}{{ text }}{% endmacro %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}",
        "{%- set last = messages | last -%}{% generation %}{{ last }}{% endgeneration %}",
        "{{ raise_exception('x') if messages[0]['role'] == 'system' }}",
        '{"bos_token": null, "chat_template": "{{ messages }}"}',
    ],
)
def test_a_chat_template_of_hugging_face_is_named(source: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(TemplateError, match="chat template of Hugging Face") as caught:
        load_template(Prompting(template=str(tmp_path / "chat_template.jinja")))
    assert "macros" in str(caught.value.hint)


def test_a_prompt_template_may_write_about_messages(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(f"{OFFICIAL}{{# put it in messages [1] #}}")
    assert load_template(Prompting(template=str(tmp_path / "t.jinja"))).turn("Hi") == "User: Hi\n\nAssistant:"


def test_a_chatml_file_renders_chatml() -> None:
    template = load_template(Prompting(template=str(CHATML)))
    assert template.opening("Be brief.", None) == "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert template.turn(" Hi ") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert template.reply("Hello") == "Hello<|im_end|>\n"
    assert (template.closing, template.stops) == ("<|im_end|>\n", ("<|im_end|>",))


def test_the_thinking_mode_is_rendered_in_the_last_turn_only() -> None:
    template = load_template(Prompting(template=str(CHATML), think="short"))
    assert template.turn("x") == "<|im_start|>user\nx think a bit<|im_end|>\n<|im_start|>assistant\n<think"
    assert template.past_turn("x") == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert template.shown_reply(">a</think> b<") == "<think>a</think> b<"


@pytest.mark.parametrize("think", ["off", "on", "fake"])
def test_the_official_template_as_a_file_renders_the_same_text(think: str, tmp_path: Path) -> None:
    path = tmp_path / "official.jinja"
    path.write_text(OFFICIAL, encoding="utf-8")
    official = load_template(Prompting.parse({"think": think}))
    from_file = load_template(Prompting.parse({"think": think, "template": str(path)}))
    for text in ("Hi", "a\r\n\r\nb ", "{{ 7 * 7 }} {% x", "<b>&amp;"):
        assert from_file.opening(text, "User: a\n\nAssistant: b") == official.opening(text, "User: a\n\nAssistant: b")
        assert from_file.turn(text) == official.turn(text)
        assert from_file.past_turn(text) == official.past_turn(text)
        assert from_file.reply(text) == official.reply(text)
        assert from_file.shown_reply(text) == official.shown_reply(text)
    assert from_file.closing == "\n\n"


def test_a_prelude_is_closed_once() -> None:
    template = read_template(str(CHATML), ReplyPrompt())
    closed = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    assert template.opening(None, closed) == closed
    assert template.opening(None, closed.removesuffix("<|im_end|>\n")) == closed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for a in 'ab' %}{% endfor %}", r"t\.jinja:1: For is not allowed"),
        ("\n\n{{ ''.join(['a']) }}", r"t\.jinja:3: Call is not allowed"),
        ("{{ text.__class__ }}", r"t\.jinja:1: Getattr is not allowed"),
        ("{{ text['__class__'] }}", r"t\.jinja:1: Getitem is not allowed"),
        ("{% include '/etc/passwd' %}", r"t\.jinja:1: Include is not allowed"),
        ("{% import 'x' as x %}", r"t\.jinja:1: Import is not allowed"),
        ("{% extends 'x' %}", r"t\.jinja:1: Extends is not allowed"),
        ("{% macro a(text) %}{{ a(text) }}{{ a(text) }}{% endmacro %}", r"t\.jinja:1: Call is not allowed"),
        ("{% set a %}x{% endset %}", r"t\.jinja:1: AssignBlock is not allowed"),
        ("{% set a = 'x' * 1000000000 %}", r"t\.jinja:1: Mul is not allowed"),
        ("{% set a = 'x' ~ 'x' %}", r"t\.jinja:1: Concat is not allowed"),
        ("{% set a = '%1000000000d' % 1 %}", r"t\.jinja:1: Mod is not allowed"),
        ("{% set a = [['x'], ['x']] %}", r"t\.jinja:1: a list may only contain constants"),
        ("{% macro user(x) %}{% endmacro %}", r"t\.jinja:1: the macro 'user' must take `text`"),
        ("{{ 'x'|center(1000000000) }}", r"t\.jinja:1: No filter named 'center'"),
        ("{{ range }}", r"t\.jinja:1: 'range' is undefined"),
        ("\n{% if %}", r"t\.jinja:2: "),
        ("{{ 1 + 1 }}", r"t\.jinja:1: `\+` joins two texts"),
        ("{{ " + "(" * 20_000 + " }}", r"t\.jinja: nested too deeply"),
        ("{{ 'a'" + " + 'a'" * 9_000 + " }}", r"t\.jinja: nested too deeply"),
        ("{% set closing = 3 %}", "`closing` must be a text"),
        ("{% set stops = 'x' %}", "`stops` must be a list of texts"),
        ("{% set stops = [''] %}", "`stops` must be a list of texts"),
        ("{% set system = 'x' %}", "defines no macro 'system'"),
    ],
)  # fmt: skip
def test_forbidden_constructs_are_refused_with_their_line(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        JinjaTemplate(source + OFFICIAL * ("system" not in source), "t.jinja", ReplyPrompt())


def test_an_undefined_name_in_a_macro_is_refused_at_loading() -> None:
    with pytest.raises(TemplateError, match=r"t\.jinja:2: in the macro 'system': 'nothing' is undefined"):
        JinjaTemplate("{% macro system(text) %}\n{{ nothing }}{% endmacro %}" + REST, "t.jinja", ReplyPrompt())


def test_a_missing_macro_is_named() -> None:
    with pytest.raises(TemplateError, match="defines no macro 'system'") as caught:
        JinjaTemplate(REST, "t.jinja", ReplyPrompt())
    assert "{% macro system(text) %}" in str(caught.value.hint)


def test_the_output_of_a_macro_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "MAX_OUTPUT_CHARACTERS", 1000)
    doubled = "{% set a = text %}" + "{% set a = a + a %}" * 60
    for body in (doubled + "{{ a }}", "{{ text }}" * 300):
        with pytest.raises(TemplateError, match="more than 1000 characters"):
            JinjaTemplate("{% macro system(text) %}" + body + "{% endmacro %}" + REST, "t.jinja", ReplyPrompt())


def test_text_outside_macros_is_bounded() -> None:
    with pytest.raises(TemplateError, match="more than"):
        JinjaTemplate(
            "{% set a = 'aaaaaaaaaaaaaaaa' %}" + "{% set a = a + a %}" * 60 + OFFICIAL, "t.jinja", ReplyPrompt()
        )


def test_each_rendering_has_the_whole_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "MAX_OUTPUT_CHARACTERS", 100)
    template = JinjaTemplate(OFFICIAL, "t.jinja", ReplyPrompt())
    assert [template.turn("x" * 80) for _ in range(5)] == ["User: " + "x" * 80 + "\n\nAssistant:"] * 5


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (MAX_TEMPLATE_BYTES + 1)])
def test_a_file_that_is_not_utf8_or_too_large_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_bytes(content)
    with pytest.raises(TemplateError, match=r"t\.jinja: (cannot be read|is larger than)"):
        read_template(str(path), ReplyPrompt())


@pytest.mark.parametrize("name", ["none.jinja", ".", "a\x00b"])
def test_a_file_that_cannot_be_opened_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        read_template(str(tmp_path / name), ReplyPrompt())


def test_a_template_past_its_deadline_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "{% macro system(text) %}" + "{{ text|upper|lower|length }}" * 100 + "{% endmacro %}"
    template = JinjaTemplate(slow + REST, "t.jinja", ReplyPrompt())
    monkeypatch.setattr(jinja, "DEADLINE_S", 0.05)
    with pytest.raises(TemplateError, match=r"t\.jinja: in the macro 'system': took longer than 0.05 s"):
        template.opening("a" * 3_000_000, None)


def test_the_template_markdown_renders_the_sample_of_the_templates_file() -> None:
    """The first sample without its content in RWKV-LM's `RWKV7-G1x-templates.txt` of 2026-04-18 (commit b562542)."""
    system = '### `f`\n**Description:** Fetches.\n**Parameters:**\n```json\n{\n  "type": "object"\n}\n```'
    template = load_template(Prompting(template="markdown", think="on"))
    first = template.opening(system, None) + template.turn("Can you?")
    assert first == f"### System\n{system}\n### User\nCan you?\n### Assistant\n<think"
    assert template.past_turn("a") + template.reply("b\n\nc") == "### User\na\n### Assistant\nb\n\nc\n"
    assert (template.closing, template.stops[0]) == ("\n", "\n### User\n")
    request = load_template(Prompting(template="markdown", think="short-parens")).turn("a")
    assert request == "### User\na (think a bit)\n### Assistant\n<think"


@pytest.mark.parametrize(("think", "reply"), [("off", ""), ("on", "<think"), ("fake-oneline", "<think></think")])
def test_the_template_bot_renders_the_prompts_of_the_tests_of_transformers(think: str, reply: str) -> None:
    """The prompts of transformers' `tests/models/rwkv/test_tokenization_rwkv.py` of 2026-08-11 (commit c29f4fb)."""
    template = load_template(Prompting.parse({"template": "bot", "think": think}))
    assert template.opening("Be brief.", None) == "System✿Be brief.✿\n"
    assert template.turn("A\r\n\r\nB\n\n\n") == f"User✿A\nB✿\nBot✿{reply}"
    assert template.past_turn("Hi") + template.reply("Done") == "User✿Hi✿\nBot✿Done✿\n"
    assert (template.closing, template.stops) == ("✿\n", ("✿",))


def test_reply_space_false_removes_the_space_before_replies_and_prefixes() -> None:
    template = load_template(Prompting(template="bot", reply_prefix="The answer is"))
    assert template.turn("a") == "User✿a✿\nBot✿The answer is"
    assert template.given_reply("The answer is 3") == ("The answer is", " 3✿\n")
    with pytest.raises(TemplateError, match="`reply_space` must be true or false"):
        JinjaTemplate("{% set reply_space = 'no' %}" + OFFICIAL, "t.jinja", ReplyPrompt())


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_built_in_template_is_documented(name: str) -> None:
    assert f"--template {name}" in (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
