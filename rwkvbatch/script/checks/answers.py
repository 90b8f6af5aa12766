"""Checks of final answers: the letter of an option, the content of the last `\\boxed{}`, and equal mathematics.

What cannot be read for certain fails, and the verdict says why: a letter that could be another one is no answer.
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
from rwkvbatch.script.records import ReplyFacts, Verdict

MAX_CHARACTERS = 100_000
"""The most characters at the end of an answer that are searched."""

_OPEN, _CLOSE = r"[*_`(\[{$\"'“‘ ]*", r"[*_`)\]}$\"'”’]*"
_END = r"(?![A-Za-z0-9_'’])"
_SAYS = re.compile(
    r"(?:(?:answers?|choice|option|correct one)\b[*_` ]*(?:(?:is|are|would be|must be|should be|=|[:：])[*_` \n]*)+"
    r"|答案(?:应该|应当)?(?:是|为|选|[:：])[*_` \n]*(?:选项)?)"
    r"(?:the letter |letter |option |choice |answer )?"
    rf"{_OPEN}(?P<letter>[A-Za-z]){_END}{_CLOSE}(?P<more>(?:\s*(?:,|/|&|or|and|或|和)\s*{_OPEN}[A-Z]{_END})?)",
    re.IGNORECASE,
)
"""A sentence that says what the answer is, in the forms of lm-evaluation-harness and of OpenAI's simple-evals."""
_WHOLE = re.compile(
    rf"\s*{_OPEN}(?:(?:option|choice|answer)[ :]+)?{_OPEN}(?P<letter>[A-Za-z]){_CLOSE}[.,:)]?{_CLOSE}\s*", re.IGNORECASE
)
_FIRST = re.compile(
    rf"^\s*{_OPEN}(?P<letter>[A-Z]){_CLOSE}(?:[.):,、．：]|\s*[-–—]\s|$){_CLOSE}(?=\s|$|[^\x00-\x7f])", re.MULTILINE
)
_ALONE = re.compile(rf"(?<![A-Za-z0-9_'’])(?P<letter>[A-Z]){_END}")
_NOT = re.compile(
    r"(?:\bnot|n't|n’t|\brather than|\bneither|\bnor|不是)(?: the letter| option| choice)?[*_`(\[ ]*$", re.IGNORECASE
)


@dataclass(frozen=True)
class Letter:
    """The answer names this option by its letter, and no other one; `letters` are those of all options."""

    options: ClassVar[frozenset[str]] = frozenset({"letters"})
    letter: str
    letters: str

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        letters = options.get("letters", "ABCDEFGHIJ")
        if not isinstance(letters, str) or re.fullmatch("[A-Z]{2,26}", letters) is None:
            wrong('must be two capital letters or more, such as "ABCD"', letters, key="letters")
        if len(set(letters)) != len(letters):
            wrong("must not have a letter twice", letters, key="letters")
        if not isinstance(expected, str) or len(expected) != 1 or expected not in letters:
            wrong(
                f"must be one of the letters {letters}", expected, hint='"letters": "ABCD" says what letters there are'
            )
        return cls(expected, letters)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        found, problem = find_letter(text[-MAX_CHARACTERS:], self.letters)
        if found is None:
            return Verdict(False, 0.0, f"{problem}; got {excerpt(text)}", undecided=True)
        return verdict(found == self.letter, f"answered {found}")


def find_letter(text: str, letters: str) -> tuple[str | None, str]:
    """The option that a text chooses, by its letter; or None and why it is not clear.

    In this order: the last `\\boxed{}`, the last sentence that says what the answer is, a text that is a letter or
    begins with one and a mark (`B.`, `(B)`) and lists no others so, the only letter that stands alone anywhere.
    """
    if (boxed := last_boxed(text)) is not None:
        inner = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*", "", boxed)
        if (match := _WHOLE.fullmatch(inner)) or (match := _FIRST.match(inner)):
            return _of(match["letter"], letters)
        return None, f"the box holds no letter of {letters}"
    said = [match for match in _SAYS.finditer(text) if _is_letter(match, text)]
    if said:
        last = said[-1]
        if last["more"]:
            return None, "names several letters"
        return _of(last["letter"], letters)
    if match := _WHOLE.fullmatch(text):
        return _of(match["letter"], letters)
    first = _FIRST.match(text)
    if first and {match["letter"] for match in _FIRST.finditer(text)} == {first["letter"]}:
        return _of(first["letter"], letters)
    stand = [match for match in _ALONE.finditer(text) if not _is_word(match, text)]
    alone = {match["letter"] for match in stand} & set(letters)
    if len(alone) == 1 and not any(_NOT.search(text[max(0, match.start() - 40) : match.start()]) for match in stand):
        return alone.pop(), ""
    return None, f"does not say which letter ({', '.join(sorted(alone))})" if alone else f"names no letter of {letters}"


def _of(letter: str, letters: str) -> tuple[str | None, str]:
    letter = letter.upper()
    return (letter, "") if letter in letters else (None, f"{letter} is none of {letters}")


def _is_letter(match: re.Match[str], text: str) -> bool:
    """Whether what follows "the answer is" is a letter: `a` and `I` are words before another one."""
    letter = match["letter"]
    bare = text[match.start("letter") - 1 : match.start("letter")] in (" ", "")
    return not (bare and (letter.islower() or letter == "I") and _goes_on(text, match.end("letter"))) and not (
        letter == "A" and bare and _goes_on(text, match.end("letter"))
    )


def _is_word(match: re.Match[str], text: str) -> bool:
    """Whether a letter that stands alone is the article `A` or the pronoun `I`."""
    return match["letter"] in "AI" and _goes_on(text, match.end())


def _goes_on(text: str, at: int) -> bool:
    """Whether a word follows a space: `A bird`, but not `A.` or `A is`."""
    return re.match(r" (?!(?:is|because|since|as|and|or|was|it|which|with|for)\b)[a-z]", text[at : at + 12]) is not None


def last_boxed(text: str) -> str | None:
    """The content of the last whole `\\boxed{...}` or `\\fbox{...}`, with the braces inside it; None without one."""
    return next((content for content in _boxes(text)), None)


def _boxes(text: str) -> Iterator[str]:
    """The contents of boxes, from the last one on; a box without an end is left out."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?=\S)", text))):
        if not match[0].endswith("{"):
            yield text[match.end() :].split(None, 1)[0].rstrip("$.,")
            continue
        depth, at = 1, match.end()
        while at < len(text) and depth:
            if text[at] == "\\":
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth:
            yield text[match.end() : at - 1]


_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\(?:left|right)\.?|\\displaystyle|\\[!,;: ]"), ""),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\frac\s?(\d)\s?(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\{\\circ\}|\^\\circ|\\%|\\\$|\$"), ""),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\s+"), ""),
    (re.compile(r"\.$"), ""),
)
"""What becomes one spelling before contents of boxes are compared."""


def plain_latex(text: str) -> str:
    """`text` without what changes only how LaTeX is set: spaces, sizes of fractions and brackets, `\\text`, `$`."""
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


@dataclass(frozen=True)
class Boxed:
    """The last `\\boxed{}` of the answer holds this text, apart from how it is set."""

    options: ClassVar[frozenset[str]] = frozenset()
    text: str

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        return cls(text_of(expected))

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        found = last_boxed(text[-MAX_CHARACTERS:])
        if found is None:
            return Verdict(False, 0.0, f"has no whole \\boxed{{}}; got {excerpt(text)}")
        return verdict(plain_latex(found) == plain_latex(self.text), f"the box holds {excerpt(found)}")


@dataclass(frozen=True)
class Mathematics:
    """The answer is equal to this expression, in LaTeX or plain notation, by math-verify and sympy.

    Of a reply with a `\\boxed{}` the last box is compared, of others the last expression that is found. See
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
                return Verdict(False, 0.0, f"holds no expression that can be read; got {excerpt(text)}")
            case _:
                return Verdict(False, 0.0, "gave up: comparing took too long or too much memory", undecided=True)


_FUNCTIONS = frozenset({"sin", "cos", "tan", "log", "ln", "exp", "sqrt", "pi"})


def _is_expression(text: str) -> bool:
    """Whether a text is one expression and no sentence: one line, whose words are commands of LaTeX or functions."""
    words = re.findall(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{2,}", text)
    return "\n" not in text and set(words) <= _FUNCTIONS
