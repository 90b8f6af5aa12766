"""Prompt templates from files: a sandboxed subset of Jinja2.

A file defines three macros and may set three variables:

    {% set closing = "<|im_end|>\\n" %}
    {% set stops = ["<|im_end|>"] %}
    {% set reply_space = false %}                 no space between the output of `user` and the reply
    {% macro system(text) %}...{% endmacro %}     the system message
    {% macro user(text) %}...{% endmacro %}       a user message and the beginning of the reply
    {% macro reply(text) %}...{% endmacro %}      a reference reply, with the closing text

Two more variables are available: `think`, the thinking mode, and `think_request`, the mode's request for thinking, such
as ` (think a bit)`. There are no loops, calls or includes, so rendering always ends, the output is bounded, and the
template can access nothing else. See `docs/prompts.md`.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any, NoReturn

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2 import TemplateError as JinjaError
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rwkvbatch.config import ReplyPrompt, ThinkMode
from rwkvbatch.deadline import deadline
from rwkvbatch.errors import TemplateError
from rwkvbatch.files import read_text
from rwkvbatch.prompt.segments import THINK_REQUESTS, PromptTemplate, clean

MAX_TEMPLATE_BYTES = 64 * 1024
MAX_OUTPUT_CHARACTERS = 16_000_000
DEADLINE_S = 5.0
"""The time limit of one rendering in seconds."""

_MACROS = ("system", "user", "reply")
_FILTERS = ("trim", "upper", "lower", "default", "length")
_TESTS = ("defined", "undefined", "none")
_STATEMENTS: tuple[type[nodes.Node], ...] = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Macro, nodes.If, nodes.Assign,
    nodes.Name, nodes.Const, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not,
    nodes.Add, nodes.Filter, nodes.Test, nodes.List, nodes.Tuple,
)  # fmt: skip
_HINT = "see docs/prompts.md for what a prompt template may contain"
_CHAT_TEMPLATE = re.compile(r"\bin\s+messages\b|\bmessages\s*(?:\[|\|)|\"chat_template\"\s*:")
_USER_MACRO = re.compile(r"\{%[-+]?\s*macro\s+user\b")


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox with texts, `+` and a few filters, and with a limit on the number of characters per rendering.

    The operands of `+` count as well, since repeated doubling could build a huge text.

    Attributes:
        characters_left: the number of characters that the current rendering may still produce.
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
        self.characters_left = MAX_OUTPUT_CHARACTERS

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, str) or not isinstance(right, str):
            raise JinjaError("`+` joins two texts")
        self._count(left)
        self._count(right)
        return left + right

    def _count(self, value: Any) -> Any:
        self.characters_left -= len(value) if isinstance(value, str) else 1
        if self.characters_left < 0:
            raise JinjaError(f"makes more than {MAX_OUTPUT_CHARACTERS} characters")
        return value


class JinjaTemplate(PromptTemplate):
    """The template in `source`; `path` is its file's name for messages.

    The constructor renders each macro once, to find errors before the first turn.

    Raises:
        TemplateError: `source` is not a template, or uses a forbidden construct (file and line).
    """

    def __init__(self, source: str, path: str, settings: ReplyPrompt) -> None:
        self._path = path
        self._environment = _Environment()
        with self._guarded():
            _check_tree(self._environment.parse(source), path)
            self._compiled = self._environment.from_string(source)
        self._current, self._past = self._module(settings.think), self._module("off")
        for module in (self._current, self._past):
            for name in _MACROS:
                self._render(module, name, "text")
        closing: Any = getattr(self._current, "closing", "\n\n")
        if not isinstance(closing, str):
            raise TemplateError("`closing` must be a text", path=path, hint=_HINT)
        stops: Any = getattr(self._current, "stops", (closing,) if closing else ())
        if type(stops) not in (list, tuple) or not all(isinstance(stop, str) and stop for stop in stops):
            raise TemplateError("`stops` must be a list of texts, none empty", path=path, hint=_HINT)
        reply_space: Any = getattr(self._current, "reply_space", True)
        if not isinstance(reply_space, bool):
            raise TemplateError("`reply_space` must be true or false", path=path, hint=_HINT)
        self._reply_space = reply_space
        super().__init__(settings, closing, tuple(stops))

    def _system(self, text: str) -> str:
        return self._render(self._current, "system", text)

    def turn(self, user: str) -> str:
        text = self._render(self._current, "user", clean(user))
        needs_space = self._reply_space and not text[-1:].isspace()
        return text + (self.reply_start if needs_space else self.reply_start.removeprefix(" "))

    def past_turn(self, user: str) -> str:
        return self._render(self._past, "user", clean(user))

    def reply(self, text: str) -> str:
        return self._render(self._past, "reply", self._clean_reply(text))

    def _module(self, think: ThinkMode) -> Any:
        """The template's macros and variables in a thinking mode."""
        with self._guarded():
            return self._compiled.make_module({"think": think, "think_request": THINK_REQUESTS.get(think, "")})

    def _render(self, module: Any, name: str, text: str) -> str:
        macro = getattr(module, name, None)
        if not isinstance(macro, Macro):
            hint = f"add {{% macro {name}(text) %}}; {_HINT}"
            raise TemplateError(f"defines no macro {name!r}", path=self._path, hint=hint)
        with self._guarded(f"in the macro {name!r}: "):
            return str(macro(text))

    @contextmanager
    def _guarded(self, prefix: str = "") -> Generator[None]:
        """A context for one rendering, with a limit of characters and of time; raises its errors as `TemplateError`."""
        self._environment.characters_left = MAX_OUTPUT_CHARACTERS
        try:
            with deadline(DEADLINE_S):
                yield
        except TimeoutError as error:
            raise TemplateError(f"{prefix}{error}", path=self._path, hint=_HINT) from None
        except (RecursionError, MemoryError, SyntaxError):  # Python's parser allows 100 levels of blocks
            raise TemplateError(f"{prefix}nested too deeply", path=self._path, hint=_HINT) from None
        except (JinjaError, TypeError, ValueError) as error:
            line = error.lineno if isinstance(error, TemplateSyntaxError) else self._line(error)
            raise TemplateError(f"{prefix}{error}", path=self._path, line=line, hint=_HINT) from None

    def _line(self, error: BaseException) -> int | None:
        """The line of the template that raised a rendering error, from the frames of the compiled template."""
        lines = [number for frame, number in walk_tb(error.__traceback__) if frame.f_code.co_filename == "<template>"]
        return self._compiled.get_corresponding_lineno(lines[-1]) if lines else None


def read_template(path: str, settings: ReplyPrompt) -> JinjaTemplate:
    """The prompt template in a file.

    Raises:
        TemplateError: the file cannot be read, is not a template, or uses a forbidden construct (file and line).
    """
    try:
        source = read_text(path, MAX_TEMPLATE_BYTES)
    except ValueError as error:
        raise TemplateError(str(error), path=path, hint=_HINT) from None
    if _CHAT_TEMPLATE.search(source) and not _USER_MACRO.search(source):
        raise TemplateError(
            "this is a chat template of Hugging Face, which formats all messages at once; a prompt template has a "
            "macro for each kind of message",
            path=path,
            hint="write its texts as the macros `system`, `user` and `reply` (docs/prompts.md); RWKV's own form needs "
            "no --template, and --template bot is the form with ✿",
        )
    return JinjaTemplate(source, path, settings)


def _check_tree(tree: nodes.Node, path: str) -> None:
    """Raise `TemplateError` if a node of the tree is not allowed in a prompt template."""

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message, path=path, line=tree.lineno, hint=_HINT)

    if not isinstance(tree, _STATEMENTS):
        refuse(f"{type(tree).__name__} is not allowed in a prompt template")
    if isinstance(tree, nodes.List | nodes.Tuple) and not all(isinstance(item, nodes.Const) for item in tree.items):
        refuse("a list may only contain constants")
    if isinstance(tree, nodes.Macro) and [argument.name for argument in tree.args] != ["text"]:
        refuse(f"the macro {tree.name!r} must take `text`")
    for child in tree.iter_child_nodes():
        _check_tree(child, path)
