"""Prompt templates from files: a sandboxed subset of Jinja2.

A file defines three macros and may set two variables:

    {% set closing = "<|im_end|>\\n" %}
    {% set stops = ["<|im_end|>"] %}
    {% macro system(text) %}...{% endmacro %}     the system message
    {% macro user(text) %}...{% endmacro %}       a user message and the beginning of the reply
    {% macro reply(text) %}...{% endmacro %}      a given reply, with the closing text

`think` is the thinking mode. There are no loops, calls or includes: a template always ends, its output is bounded, and
it has access to nothing but its text. See `docs/prompts.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2 import TemplateError as JinjaError
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rwkvbatch.config import ThinkMode
from rwkvbatch.errors import TemplateError
from rwkvbatch.prompt.templates import THINK_OPENINGS, clean, prelude_text, with_thinking

MAX_TEMPLATE_BYTES = 64 * 1024
MAX_OUTPUT_CHARACTERS = 16_000_000
_MACROS = ("system", "user", "reply")
_FILTERS = ("trim", "upper", "lower", "default", "length")
_TESTS = ("defined", "undefined", "none")
_STATEMENTS: tuple[type[nodes.Node], ...] = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Macro, nodes.If, nodes.Assign,
    nodes.Name, nodes.Const, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not,
    nodes.Add, nodes.Filter, nodes.Test, nodes.List, nodes.Tuple,
)  # fmt: skip
_FAILURES = (JinjaError, RecursionError, MemoryError, TypeError, ValueError)
_HINT = "see docs/prompts.md for what a prompt template may contain"


class _Environment(ImmutableSandboxedEnvironment):
    """Texts, `+` and a few filters, within a budget of characters per rendering.

    The budget includes the operands of `+`, with which repeated doubling could build a huge text.
    """

    intercepted_binops = frozenset({"+"})

    def __init__(self) -> None:
        super().__init__(
            autoescape=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=self._count,
        )
        untyped: Any = self
        untyped.globals.clear()
        untyped.filters = {name: untyped.filters[name] for name in _FILTERS}
        untyped.tests = {name: untyped.tests[name] for name in _TESTS}
        self.left = MAX_OUTPUT_CHARACTERS

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, str) or not isinstance(right, str):
            raise JinjaError("`+` joins two texts")
        self._count(left)
        self._count(right)
        return left + right

    def _count(self, value: Any) -> Any:
        self.left -= len(value) if isinstance(value, str) else 1
        if self.left < 0:
            raise JinjaError(f"makes more than {MAX_OUTPUT_CHARACTERS} characters")
        return value


class _Source:
    """A compiled template file: `module` runs it in a thinking mode, `render` runs one of its macros."""

    def __init__(self, source: str, path: str) -> None:
        self.path = path
        self._environment = _Environment()
        try:
            _check_tree(self._environment.parse(source), path)
            self._compiled = self._environment.from_string(source)
        except _FAILURES as error:
            raise self._failure(error, "") from None

    def module(self, think: ThinkMode) -> Any:
        self._environment.left = MAX_OUTPUT_CHARACTERS
        try:
            return self._compiled.make_module({"think": think})
        except _FAILURES as error:
            raise self._failure(error, "") from None

    def render(self, module: Any, name: str, text: str) -> str:
        macro = getattr(module, name, None)
        if not isinstance(macro, Macro):
            hint = f"add {{% macro {name}(text) %}}; {_HINT}"
            raise TemplateError(f"defines no macro {name!r}", path=self.path, hint=hint)
        self._environment.left = MAX_OUTPUT_CHARACTERS
        try:
            return str(macro(text))
        except _FAILURES as error:
            raise self._failure(error, f"in the macro {name!r}: ") from None

    def _failure(self, error: Exception, prefix: str) -> TemplateError:
        if isinstance(error, RecursionError | MemoryError):
            return TemplateError(f"{prefix}nested too deeply", path=self.path, hint=_HINT)
        line = error.lineno if isinstance(error, TemplateSyntaxError) else self._line(error)
        return TemplateError(f"{prefix}{error}", path=self.path, line=line, hint=_HINT)

    def _line(self, error: BaseException) -> int | None:
        """The template's line of a rendering error, from the frames of its compiled code."""
        trace, line = error.__traceback__, None
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = self._compiled.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return line


@dataclass(frozen=True)
class JinjaTemplate:
    """A template file as a `PromptTemplate`.

    `render` renders one of its macros with a text; `render_past` does the same without thinking.
    """

    closing: str
    stops: tuple[str, ...]
    think: ThinkMode
    render: Callable[[str, str], str]
    render_past: Callable[[str, str], str]

    def opening(self, system: str | None, prelude: str | None) -> str:
        cleaned = clean(system or "")
        return (self.render("system", cleaned) if cleaned else "") + prelude_text(prelude, self.closing)

    def turn(self, user: str) -> str:
        text = self.render("user", clean(user))
        begun = THINK_OPENINGS[self.think]
        return text + (begun.lstrip() if text[-1:].isspace() else begun)

    def past_turn(self, user: str) -> str:
        return self.render_past("user", clean(user))

    def reply(self, text: str) -> str:
        return self.render_past("reply", clean(text))

    def shown_reply(self, text: str) -> str:
        return with_thinking(THINK_OPENINGS[self.think], text)


def read_template(path: str, think: ThinkMode) -> JinjaTemplate:
    """The prompt template in a file. Each macro is rendered once, to find errors before anything is generated.

    Raises:
        TemplateError: the file cannot be read, is not a template, or uses a forbidden construct (file and line).
    """
    return parse_template(_read_source(path), path, think)


def parse_template(text: str, path: str, think: ThinkMode) -> JinjaTemplate:
    """Like `read_template`, from a text; `path` is for messages."""
    source = _Source(text, path)
    now, past = source.module(think), source.module("off")
    for module in (now, past):
        for name in _MACROS:
            source.render(module, name, "text")
    closing: Any = getattr(now, "closing", "\n\n")
    if not isinstance(closing, str):
        raise TemplateError("`closing` must be a text", path=path, hint=_HINT)
    stops: Any = getattr(now, "stops", (closing,) if closing else ())
    if not _is_texts(stops):
        raise TemplateError("`stops` must be a list of texts, none empty", path=path, hint=_HINT)
    return JinjaTemplate(closing, tuple(stops), think, partial(source.render, now), partial(source.render, past))


def _is_texts(value: Any) -> TypeGuard[Sequence[str]]:
    items: list[Any] = list(value) if isinstance(value, list | tuple) else [None]  # pyright: ignore[reportUnknownArgumentType]
    return all(isinstance(item, str) and item for item in items)


def _read_source(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_TEMPLATE_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise TemplateError(f"cannot be read: {reason}", path=path, hint="name a UTF-8 text file") from None
    if len(data) > MAX_TEMPLATE_BYTES:
        raise TemplateError(f"is larger than {MAX_TEMPLATE_BYTES} bytes", path=path, hint=_HINT)
    return text


def _check_tree(tree: nodes.Template, path: str) -> None:
    for node in _descendants(tree):
        name = type(node).__name__
        if not isinstance(node, _STATEMENTS):
            raise TemplateError(f"{name} is not allowed in a prompt template", path=path, line=node.lineno, hint=_HINT)
        if isinstance(node, nodes.List | nodes.Tuple) and not all(isinstance(item, nodes.Const) for item in node.items):
            raise TemplateError("a list may only contain constants", path=path, line=node.lineno, hint=_HINT)
        if isinstance(node, nodes.Macro) and [argument.name for argument in node.args] != ["text"]:
            raise TemplateError(f"the macro {node.name!r} must take `text`", path=path, line=node.lineno, hint=_HINT)


def _descendants(tree: nodes.Node) -> list[nodes.Node]:
    found: list[nodes.Node] = [tree]
    for node in found:
        found += node.iter_child_nodes()
    return found
