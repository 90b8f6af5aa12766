"""Checks of text, token counts, finish reasons and similarity, and helpers for all checks and plug-ins.

Patterns come from scripts and are not trusted. Therefore they are matched by the `regex` library, which has a time
limit, after `patterns` has translated them from the syntax of `re`.
"""

from __future__ import annotations

import operator
import re
import string
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, ClassVar, NoReturn, Protocol, Self

import regex

from rwkvbatch.errors import MissingExtraError, counted
from rwkvbatch.script.checks.patterns import compiled_size, translate
from rwkvbatch.script.lines import is_array, is_number
from rwkvbatch.script.records import ReplyFacts, Rule, Verdict

FINISH_REASONS = ("stop", "eos", "length", "time")
IGNORE_CASE = frozenset({"ignore_case"})


@dataclass(eq=False)
class WrongValueError(Exception):
    """A wrong value or option of a check; becomes a `ScriptError` that names file, line and key.

    Attributes:
        message: what is allowed, such as `must be a string`.
        got: the wrong value.
        key: the option; None for the value of the kind itself.
    """

    message: str
    got: object
    key: str | None = None
    hint: str | None = None


class RuleKind(Protocol):
    """A kind of check, which parses entries into rules."""

    @property
    def options(self) -> frozenset[str]:
        """Keys that an entry may have in addition to the kind."""
        ...

    def parse(self, expected: Any, options: Mapping[str, Any], /) -> Rule:
        """The rule of one entry.

        Raises:
            WrongValueError: the value of `expected` or of an option is wrong.
        """
        ...


def wrong(message: str, got: object, *, key: str | None = None, hint: str | None = None) -> NoReturn:
    """Raise `WrongValueError`."""
    raise WrongValueError(message, got, key, hint)


def answer(facts: ReplyFacts) -> str:
    """The reply without its thinking part, stripped. A reply that ended while thinking has no answer."""
    return answer_of(facts.text)


def answer_of(text: str) -> str:
    """A reply or a reference without its thinking part, stripped, as `answer`."""
    text = text.strip()
    _, end_of_thinking, after_thinking = text.rpartition("</think>")
    if end_of_thinking:
        return after_thinking.strip()
    return "" if text.startswith("<think") else text


def excerpt(text: str, limit: int = 80) -> str:
    """The first `limit` characters of a reply as a Python literal, for the detail of a verdict."""
    return repr(text) if len(text) <= limit else repr(text[:limit]) + "…"


def flag(options: Mapping[str, Any], key: str) -> bool:
    """A boolean option, false when it is not given."""
    value = options.get(key, False)
    return value if isinstance(value, bool) else wrong("must be true or false", value, key=key)


def text_of(expected: Any) -> str:
    """`expected`, which must be a string that is not empty."""
    return expected if isinstance(expected, str) and expected else wrong("must be a string that is not empty", expected)


def texts_of(expected: Any) -> tuple[str, ...]:
    """`expected`, which must be a string or an array of strings, none empty."""
    texts = expected if is_array(expected) else [expected]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        wrong("must be a string or an array of strings, none empty", expected)
    return tuple(texts)


def verdict(passed: bool, detail: str) -> Verdict:
    """A verdict with the score 0 or 1, and with `detail` only if the check did not pass."""
    return Verdict(passed, float(passed), None if passed else detail)


@dataclass(frozen=True)
class _TextRule(ABC):
    """Compares the answer with texts, both case-folded with `ignore_case`."""

    options: ClassVar[frozenset[str]] = IGNORE_CASE
    texts: tuple[str, ...]
    ignore_case: bool

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        return cls(cls._texts(expected), flag(options, "ignore_case"))

    @classmethod
    def _texts(cls, expected: Any) -> tuple[str, ...]:
        return texts_of(expected)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        return self._judge(self._folded(text), tuple(map(self._folded, self.texts)), f"got {excerpt(text)}")

    def _folded(self, text: str) -> str:
        return text.casefold() if self.ignore_case else text

    @abstractmethod
    def _judge(self, text: str, texts: tuple[str, ...], got: str) -> Verdict: ...


_PUNCTUATION = str.maketrans(dict.fromkeys(f"{string.punctuation}‘’´", " "))
_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)


@dataclass(frozen=True)
class OneOf(_TextRule):
    """The answer equals one of the texts.

    With all options, texts are compared as by TriviaQA's `triviaqa_evaluation.py`:
    https://github.com/mandarjoshi90/triviaqa.
    """

    options: ClassVar[frozenset[str]] = IGNORE_CASE | {"ignore_punctuation", "ignore_articles"}
    ignore_punctuation: bool = False
    ignore_articles: bool = False

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        return cls(
            cls._texts(expected), *(flag(options, f"ignore_{what}") for what in ("case", "punctuation", "articles"))
        )

    def _folded(self, text: str) -> str:
        """`text` without what is ignored; the text itself if nothing would be left of it (`The The`)."""
        text = super()._folded(text)
        folded = text.translate(_PUNCTUATION) if self.ignore_punctuation else text
        folded = _ARTICLES.sub(" ", folded) if self.ignore_articles else folded
        return " ".join(folded.split()) or text if self.ignore_punctuation or self.ignore_articles else text

    @classmethod
    def _texts(cls, expected: Any) -> tuple[str, ...]:
        if not is_array(expected):
            wrong("must be an array of strings", expected)
        return tuple(text.strip() for text in texts_of(expected))

    def _judge(self, text: str, texts: tuple[str, ...], got: str) -> Verdict:
        return verdict(text in texts, got)


class Equals(OneOf):
    """The answer equals the text."""

    @classmethod
    def _texts(cls, expected: Any) -> tuple[str, ...]:
        return (expected.strip(),) if isinstance(expected, str) else wrong("must be a string", expected)


class Contains(_TextRule):
    """The answer contains all texts; the score is the share that it contains."""

    def _judge(self, text: str, texts: tuple[str, ...], got: str) -> Verdict:
        missing = [original for original, folded in zip(self.texts, texts, strict=True) if folded not in text]
        detail = f"lacks {', '.join(map(excerpt, missing))}; {got}" if missing else None
        return Verdict(not missing, 1 - len(missing) / len(texts), detail)


class NotContains(_TextRule):
    """The answer contains none of the texts."""

    def _judge(self, text: str, texts: tuple[str, ...], got: str) -> Verdict:
        present = [original for original, folded in zip(self.texts, texts, strict=True) if folded in text]
        return verdict(not present, f"contains {', '.join(map(excerpt, present))}; {got}")


class StartsWith(_TextRule):
    """The answer begins with one of the texts."""

    def _judge(self, text: str, texts: tuple[str, ...], got: str) -> Verdict:
        return verdict(text.startswith(texts), got)


@dataclass(frozen=True)
class _TokenLimit:
    options: ClassVar[frozenset[str]] = frozenset()
    holds: ClassVar[Callable[[int, int], bool]]
    limit: int

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        if not isinstance(expected, int) or isinstance(expected, bool) or expected < 0:
            wrong("must be a number of tokens", expected)
        return cls(expected)

    def judge(self, facts: ReplyFacts) -> Verdict:
        return verdict(type(self).holds(facts.num_tokens, self.limit), f"has {counted(facts.num_tokens, 'token')}")


class MaxTokens(_TokenLimit):
    """The reply, thinking included, has at most this many tokens."""

    holds = operator.le


class MinTokens(_TokenLimit):
    """The reply, thinking included, has at least this many tokens."""

    holds = operator.ge


@dataclass(frozen=True)
class Finished:
    """The reply ended for one of these reasons."""

    options: ClassVar[frozenset[str]] = frozenset()
    reasons: tuple[str, ...]

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        reasons = texts_of(expected)
        if not set(reasons) <= set(FINISH_REASONS):
            wrong(f"must be of {', '.join(FINISH_REASONS)}", expected)
        return cls(reasons)

    def judge(self, facts: ReplyFacts) -> Verdict:
        return verdict(facts.finish_reason in self.reasons, f"ended by {facts.finish_reason}")


MAX_PATTERN_LENGTH = 2000
MAX_COMPILED_SIZE = 500_000
MAX_SEARCHED_CHARACTERS = 100_000
DEADLINE_S = 1.0


def compile_pattern(pattern: str, *, ignore_case: bool = False) -> regex.Pattern[str]:
    """The compiled `pattern`, which matches the same texts as in Python's `re`, with `IGNORECASE` for `ignore_case`.

    Raises:
        ValueError: `pattern` is not a regular expression of `re`, or is too long or too deep to compile.
    """
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise ValueError(f"longer than {MAX_PATTERN_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if compiled_size(pattern) > MAX_COMPILED_SIZE:
                raise ValueError("its counted repeats, such as {1000}, are too large together")
            re.compile(pattern, re.IGNORECASE if ignore_case else 0)
            translated, ignores_case = translate(pattern, ignore_case=ignore_case)
            return regex.compile(translated, (regex.IGNORECASE if ignores_case else 0) | regex.VERSION0)
    except (re.error, regex.error) as error:
        raise ValueError(str(error)) from None
    except (RecursionError, MemoryError, OverflowError):
        raise ValueError("too deep or too large to compile") from None


def search(pattern: regex.Pattern[str], text: str) -> bool:
    """Whether `pattern` matches anywhere in the first `MAX_SEARCHED_CHARACTERS` of `text`.

    Raises:
        TimeoutError: matching takes longer than `DEADLINE_S`.
        MemoryError: matching takes too much memory.
    """
    return pattern.search(text[:MAX_SEARCHED_CHARACTERS], timeout=DEADLINE_S) is not None


@dataclass(frozen=True)
class Matches:
    """The pattern matches anywhere in the answer."""

    options: ClassVar[frozenset[str]] = IGNORE_CASE
    pattern: regex.Pattern[str]

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        ignore_case = flag(options, "ignore_case")
        try:
            return cls(compile_pattern(text_of(expected), ignore_case=ignore_case))
        except ValueError as error:
            wrong(f"is not a regular expression ({error})", expected)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        try:
            return verdict(search(self.pattern, text), f"got {excerpt(text)}")
        except TimeoutError:
            detail = f"gave up: matching took longer than {DEADLINE_S:g} s; simplify the pattern"
            return Verdict(False, 0.0, detail, undecided=True)


MAX_COMPARED_CHARACTERS = 20_000


@dataclass(frozen=True)
class Similarity:
    """The chrF score (character n-grams, Popović 2015; of sacrebleu) of the answer and a text is at least `at_least`.

    The text is `to`, or the answer of the turn's reference if `to` is None. The first `MAX_COMPARED_CHARACTERS` of both
    are compared.
    """

    options: ClassVar[frozenset[str]] = frozenset({"to"})
    at_least: float
    to: str | None

    @property
    def needs_reference(self) -> bool:
        return self.to is None

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        if not is_number(expected) or not 0 <= expected <= 1:
            wrong("must be a number in [0, 1]", expected)
        if find_spec("sacrebleu") is None:
            raise MissingExtraError(
                "the check `similarity` needs the sacrebleu library, which is not installed", extra="metrics"
            )
        return cls(float(expected), text_of(options["to"]) if "to" in options else None)

    def judge(self, facts: ReplyFacts) -> Verdict:
        if self.to is not None:
            other = self.to
        elif facts.reference is not None:
            other = answer_of(facts.reference)
        else:
            return Verdict(False, 0.0, "the turn has no reference reply", undecided=True)
        text = answer(facts)
        chrf = _metric().sentence_score(text[:MAX_COMPARED_CHARACTERS], [other[:MAX_COMPARED_CHARACTERS]])
        score = min(1.0, max(0.0, float(chrf.score) / 100))
        passed = score >= self.at_least
        return Verdict(passed, score, None if passed else f"chrF {score:.3f}; got {excerpt(text)}")


@lru_cache(maxsize=1)
def _metric() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
