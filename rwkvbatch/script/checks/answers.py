"""Checks of final answers: the content of the last `\\boxed{}`, equal mathematics, and the likeliest choice.

An ambiguous answer fails, and the verdict has the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Self

from rwkvbatch.errors import MissingExtraError
from rwkvbatch.script.checks.mathematics import Equality, compare
from rwkvbatch.script.checks.text import answer, excerpt, text_of, verdict, wrong
from rwkvbatch.script.choices import NORMALIZE, Normalize
from rwkvbatch.script.records import ReplyFacts, Verdict

MAX_CHARACTERS = 100_000
"""Number of characters at the end of an answer that are searched."""


def last_boxed(text: str) -> str | None:
    """The content of the last closed `\\boxed{...}` or `\\fbox{...}`, including inner braces; None if there is none."""
    return None if (box := last_box(text)) is None else text[box]


def last_box(text: str) -> slice | None:
    """Where in `text` the content is that `last_boxed` returns."""
    return next(_boxes(text), None)


def _boxes(text: str) -> Iterator[slice]:
    """Where the contents of the closed boxes are, beginning with the last one."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?=\S)", text))):
        if not match[0].endswith("{"):
            content = text[match.end() :].split(None, 1)[0].rstrip("$.,")
            yield slice(match.end(), match.end() + len(content))
            continue
        depth, index = 1, match.end()
        while index < len(text) and depth:
            if text[index] == "\\":
                index += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            index += 1
        if not depth:
            yield slice(match.end(), index - 1)


_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\(?:left|right)(?![A-Za-z])\.?|\\displaystyle(?![A-Za-z])|(?<!\\)\\[!,;: ]"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\frac\s?(\d)\s?(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\{\\circ\}|\^\\circ|\\%|\\\$|\$"), ""),
)
"""Patterns and replacements that unify spellings before the contents of boxes are compared."""


def plain_latex(text: str) -> str:
    """`text` without what affects only its layout in LaTeX: spaces, sizes of fractions and brackets, `\\text`, `$`."""
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", "", _without_thousands_commas(text)).removesuffix(".")


_BRACKET_OR_GROUPED = re.compile(r"(?P<open>[(\[]|\\\{)|(?P<close>[)\]]|\\\})|(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")


def _without_thousands_commas(text: str) -> str:
    """`text` without commas between thousands; in brackets, commas separate the members of pairs and sets."""
    depth = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal depth
        if match["open"] or match["close"]:
            depth = max(0, depth + (1 if match["open"] else -1))
        return match[0] if match["open"] or match["close"] or depth else match[0].replace(",", "")

    return _BRACKET_OR_GROUPED.sub(replaced, text)


@dataclass(frozen=True)
class Boxed:
    """The last `\\boxed{}` of the answer has this text as its content, apart from its layout in LaTeX."""

    options: ClassVar[frozenset[str]] = frozenset()
    text: str

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        return cls(text_of(expected))

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        content = last_boxed(text[-MAX_CHARACTERS:])
        if content is None:
            return Verdict(False, 0.0, f"has no whole \\boxed{{}}; got {excerpt(text)}")
        return verdict(plain_latex(content) == plain_latex(self.text), f"the box contains {excerpt(content)}")


@dataclass(frozen=True)
class Mathematics:
    """The answer is equal to this expression, in LaTeX or plain notation, by math-verify and sympy.

    The content of the last `\\boxed{}` is compared, or the last expression in the text if there is no box. See
    https://github.com/huggingface/Math-Verify.
    """

    options: ClassVar[frozenset[str]] = frozenset()
    expected: str

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        text = text_of(expected)
        if find_spec("math_verify") is None:
            raise MissingExtraError(
                "the check `math` needs the math-verify library, which is not installed", extra="math"
            )
        if compare(text, text) is not Equality.EQUAL:
            wrong(
                "must be an expression that math-verify can read", expected, hint="write LaTeX, such as \\\\frac{1}{2}"
            )
        return cls(text)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)[-MAX_CHARACTERS:]
        boxed = last_boxed(text)
        compared = text if boxed is None else boxed
        match compare(self.expected, compared, whole=boxed is not None or _is_expression(text)):
            case Equality.EQUAL:
                return verdict(True, "")
            case Equality.DIFFERENT:
                return verdict(False, f"got {excerpt(compared)}")
            case Equality.UNREADABLE:
                return Verdict(False, 0.0, f"contains no expression that can be read; got {excerpt(text)}")
            case _:
                return Verdict(False, 0.0, "gave up: comparing took too long or too much memory", undecided=True)


_FUNCTIONS = frozenset({"sin", "cos", "tan", "log", "ln", "exp", "sqrt", "pi"})


def _is_expression(text: str) -> bool:
    """Whether a text is one expression and not a sentence: one line, whose words are LaTeX commands or functions."""
    words = re.findall(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{2,}", text)
    return "\n" not in text and set(words) <= _FUNCTIONS


@dataclass(frozen=True)
class Chosen:
    """The likeliest of the turn's choices has this name or index; of equally likely choices, the first one counts."""

    options: ClassVar[frozenset[str]] = frozenset({"normalize"})
    choice: str | int
    normalize: Normalize

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        if isinstance(expected, bool) or not isinstance(expected, str | int):
            wrong("must be the name of a choice, or its index from 0 up", expected)
        normalize = options.get("normalize", "none")
        if normalize not in NORMALIZE:
            wrong(f"must be one of {', '.join(NORMALIZE)}", normalize, key="normalize")
        return cls(expected, normalize)

    @property
    def choices(self) -> tuple[str | int]:
        return (self.choice,)

    def judge(self, facts: ReplyFacts) -> Verdict:
        if facts.choices is None:
            return Verdict(False, 0.0, "the turn has no choices")
        best, expected = facts.choices.best(self.normalize).name, facts.choices.named(self.choice).name
        return verdict(best == expected, f"chose {excerpt(best)}")
