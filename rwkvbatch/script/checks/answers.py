"""Checks of final answers: the letter of an option, the content of the last `\\boxed{}`, equal mathematics, and the
likeliest choice.

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

MAX_CLAUSE = 200
"""Number of characters before a statement that are searched for a negation."""

_OPEN, _CLOSE = r"[*_`(\[{$\"'“‘ ]*", r"[*_`)\]}$\"'”’]*"
_END = r"(?![A-Za-z0-9_'’])"
_SAYS = re.compile(
    r"(?:(?:answers?|choice|option|correct one)\b[*_` ]*(?:(?:is|are|would be|must be|should be|=|[:：])[*_` \n]*)+"
    r"|答案(?:应该|应当)?(?:是|为|选|[:：])[*_` \n]*(?:选项)?)"
    r"(?:the letter |letter |option |choice |answer )?"
    rf"{_OPEN}(?P<letter>[A-Za-z]){_END}{_CLOSE}(?P<more>(?:\s*(?:,|/|&|or|and|或|和)\s*{_OPEN}[A-Z]{_END})?)",
    re.IGNORECASE,
)
"""A sentence that states the answer, in the forms of lm-evaluation-harness and of OpenAI's simple-evals."""
_DENIES = re.compile(
    r"(?:(?:answers?|choice|option|correct one)\b[*_` ]*"
    r"(?:(?:is|are|was|would|could|should|must|can|will)(?:n['’]t| ?not)(?: be)?|(?:can|won)['’]t be"
    r"|(?:is|are|was) (?:[a-z]+ly |of course )?(?:not|neither|anything but))"
    r"(?: (?:[a-z]+ly|simply|just))?[*_` ]+"
    r"|答案(?:应该|应当|绝对)?(?:不(?:可能|应该|应当)?(?:是|为|选)|并非)[*_` ]*(?:选项)?)"
    r"(?:the letter |letter |option |choice |answer )?"
    rf"{_OPEN}(?P<letter>[A-Za-z]){_END}",
    re.IGNORECASE,
)
"""A sentence that states what the answer is not."""
_WHOLE = re.compile(
    rf"\s*{_OPEN}(?:(?:option|choice|answer)[ :]+)?{_OPEN}(?P<letter>[A-Za-z]){_CLOSE}[.,:)]?{_CLOSE}\s*", re.IGNORECASE
)
_FIRST = re.compile(
    rf"^\s*{_OPEN}(?P<letter>[A-Z]){_CLOSE}(?:[.):,、．：]|\s*[-–—]\s|$){_CLOSE}(?=\s|$|[^\x00-\x7f])", re.MULTILINE
)
_ALONE = re.compile(rf"(?<![A-Za-z0-9_'’])(?P<letter>[A-Z]){_END}")
_NOT = re.compile(
    r"(?:\b(?:(?:not|cannot|[a-z]+n['’]t)(?: be)?|rather than|neither|nor|except(?: for)?"
    r"|(?:all|anything|everything) but|rul(?:e|ed|ing) out|eliminat(?:e|ed|ing))|不是|除了)"
    r"(?: the letter| option| choice)?[*_`(\[ ]*$",
    re.IGNORECASE,
)
"""The end of a text before a letter that is denied."""
_IS_NOT = re.compile(
    r"[*_`)\] ]*(?:\b(?:(?:is|was|could|would|must|should)(?:n['’]t| not)|can(?:not|['’]t| not))\b"
    r"|\b(?:is|was|must be|seems|looks) (?:the |an? )?(?:wrong|incorrect|false|ruled out|eliminated)\b"
    r"|不对|不是|是错|错)",
    re.IGNORECASE,
)
"""The beginning of a text after a letter that is denied."""
_BRACKET_IS_NOT = re.compile(
    r"[*_`]*[)\]][*_` ]*is(?:(?:n['’]t| not) (?:correct|right|true|it\b|the )| (?:wrong|incorrect|false)\b)",
    re.IGNORECASE,
)
"""The same after a stated letter with a bracket; `D) Cannot be determined` names the option's text."""


_CLAUSE = re.compile(
    r"[.!?;:,()。！？；：，\n—–]|\b(?:so|but|and|yet|then|therefore|thus|hence|however|instead)\b", re.IGNORECASE
)
_SENTENCE = re.compile(r"[.!?;。！？；\n]")
_NEGATION = re.compile(
    r"n['’]t\b|\b(?:not(?! only)|cannot|never|neither|nobody|nor|no (?:way|one|reason|evidence)|wrong|incorrect"
    r"|false|untrue|mistaken(?:ly)?|mistake|impossible|unlikely|doubtful|disagree\w*|den(?:y|ies|ied)|reject(?:s|ed)?)\b"
    r"|(?<!no )(?<!without )(?<!beyond )(?<!out )(?<!any )(?<!a )\bdoubts?\b|不|并非|错",
    re.IGNORECASE,
)
_SUBORDINATE = re.compile(r"\W*(?:since|because|as|given|considering|although|though|while|when)\b", re.IGNORECASE)
_RETRACTED = re.compile(
    r"[*_`)\]\"'”’ ]*(?:\?[\"'”’\s]*(?:no|nope|not|never|wrong|false|incorrect)\b"
    r"|(?:[,.!?…。！？—–-]+|\n)?[\"'”’\s]*(?:(?:oh|wait|hmm|but|well|actually|sorry)\b[,.…! ]*)*"
    r"(?:(?:no|nope)\b[,.… ]+(?:wait|sorry|actually|hold on|scratch|it['’]s|it is|(?-i:[B-HJ-Z])(?![A-Za-z0-9_'’]))"
    r"|i do(?:n['’]t| not) (?:think|believe) so"
    r"|(?:(?:that|this)(?:['’]s| is| was) (?:wrong|incorrect|false|a mistake|not (?:right|correct|true|it))"
    r"|(?:that|this) (?:is|was)n['’]t (?:right|correct|true|it))"
    r"(?=\s*(?:[.,;!?\n]|$|because\b|since\b|as\b))|不对|不是|错了))",
    re.IGNORECASE,
)
"""The beginning of a text after a statement that takes it back; `B. No` or `B) False` names the option's text."""


@dataclass(frozen=True)
class Letter:
    """The answer names this option by its letter, and no other option; `letters` has the letters of all options."""

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
            wrong(f"must be one of the letters {letters}", expected, hint='"letters": "ABCD" lists the letters')
        return cls(expected, letters)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        letter, problem = find_letter(text[-MAX_CHARACTERS:], self.letters)
        if letter is None:
            return Verdict(False, 0.0, f"{problem}; got {excerpt(text)}", undecided=True)
        return verdict(letter == self.letter, f"answered {letter}")


def find_letter(text: str, letters: str) -> tuple[str | None, str]:
    """The letter of the option that a text chooses; or None and the reason why it is not clear.

    The first of these that the text has decides:

    1. the last `\\boxed{}`;
    2. the last sentence that states the answer, if it is not denied there or later;
    3. a letter that is the whole text, or that begins it and is followed by a mark (`B.`, `(B)`), if no other letter
       begins a line in this way;
    4. the only letter that stands alone anywhere.
    """
    if (boxed := last_boxed(text)) is not None:
        content = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*", "", boxed)
        if (match := _WHOLE.fullmatch(content)) or (match := _FIRST.match(content)):
            return _known_letter(match["letter"], letters)
        return None, f"the box contains no letter of {letters}"
    stated = [match for match in _SAYS.finditer(text) if _states_letter(match, text)]
    denied = {match["letter"].upper(): match.start() for match in _DENIES.finditer(text)}
    for match in stated:
        has_bracket = re.match(r"[*_`]*[)\]]", text[match.end("letter") : match.end("letter") + 8]) is not None
        if _is_negated(match.start(), match.end("letter"), text, _BRACKET_IS_NOT if has_bracket else _IS_NOT):
            denied[match["letter"].upper()] = max(match.start(), denied.get(match["letter"].upper(), 0))
    statements = [match for match in stated if denied.get(match["letter"].upper()) != match.start()]
    if statements:
        last = statements[-1]
        if last["more"]:
            return None, "names several letters"
        if denied.get(last["letter"].upper(), -1) > last.start():
            return None, f"says {last['letter']}, and then denies it"
        return _known_letter(last["letter"], letters)
    letter, problem = _without_statement(text, letters)
    return (None, f"denies {letter}, and states no other letter") if letter in denied else (letter, problem)


def _without_statement(text: str, letters: str) -> tuple[str | None, str]:
    """The letter by the third and fourth rule of `find_letter`."""
    if match := _WHOLE.fullmatch(text):
        return _known_letter(match["letter"], letters)
    first = _FIRST.match(text)
    if first and {match["letter"] for match in _FIRST.finditer(text)} == {first["letter"]}:
        return _known_letter(first["letter"], letters)
    single = [match for match in _ALONE.finditer(text) if not _is_word(match, text)]
    named = {match["letter"] for match in single} & set(letters)
    if len(named) == 1 and not any(_is_denied(match, text) for match in single):
        return named.pop(), ""
    return None, f"does not say which letter ({', '.join(sorted(named))})" if named else f"names no letter of {letters}"


def _known_letter(letter: str, letters: str) -> tuple[str | None, str]:
    letter = letter.upper()
    return (letter, "") if letter in letters else (None, f"{letter} is none of {letters}")


def _states_letter(match: re.Match[str], text: str) -> bool:
    """Whether "the answer is" is followed by a letter, not by the word `a`, `A` or `I` before another word."""
    letter = match["letter"]
    follows_space = text[match.start("letter") - 1 : match.start("letter")] in (" ", "")
    may_be_word = letter.islower() or letter in "AI"
    return not (follows_space and may_be_word and _is_before_word(text, match.end("letter")))


def _is_word(match: re.Match[str], text: str) -> bool:
    """Whether a letter that stands alone is the article `A` or the pronoun `I`."""
    return match["letter"] in "AI" and _is_before_word(text, match.end())


def _is_denied(match: re.Match[str], text: str) -> bool:
    """Whether the words around a letter that stands alone say that it is not the answer."""
    before = _NOT.search(text[max(0, match.start() - 40) : match.start()])
    return before is not None or _is_negated(match.start(), match.end(), text)


def _is_negated(start: int, end: int, text: str, is_not: re.Pattern[str] = _IS_NOT) -> bool:
    """Whether the clause before a statement negates it ("I don't think the answer is B") or the text after it does."""
    if is_not.match(text, end) or _RETRACTED.match(text, end):
        return True
    before = text[max(0, start - MAX_CLAUSE) : start]
    clause = _after_last(_CLAUSE, before)
    if re.match(r"\s*that\b", clause):
        clause = _after_last(_SENTENCE, before)
    return _NEGATION.search(clause) is not None and _SUBORDINATE.match(clause) is None


def _after_last(boundary: re.Pattern[str], text: str) -> str:
    return text[max((match.end() for match in boundary.finditer(text)), default=0) :]


def _is_before_word(text: str, index: int) -> bool:
    """Whether a space and a word that can follow an article are at `index`: `A bird`, but not `A.` or `A is`."""
    following = text[index : index + 12]
    return re.match(r" (?!(?:is|because|since|as|and|or|was|it|which|with|for)\b)[a-z]", following) is not None


def last_boxed(text: str) -> str | None:
    """The content of the last closed `\\boxed{...}` or `\\fbox{...}`, including inner braces; None if there is none."""
    return next((content for content in _boxes(text)), None)


def _boxes(text: str) -> Iterator[str]:
    """The contents of the closed boxes, beginning with the last one."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?=\S)", text))):
        if not match[0].endswith("{"):
            yield text[match.end() :].split(None, 1)[0].rstrip("$.,")
            continue
        depth, index = 1, match.end()
        while index < len(text) and depth:
            if text[index] == "\\":
                index += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            index += 1
        if not depth:
            yield text[match.end() : index - 1]


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

    def judge(self, facts: ReplyFacts) -> Verdict:
        if facts.choices is None:
            return Verdict(False, 0.0, "the turn has no choices")
        best, expected = facts.choices.best(self.normalize).name, facts.choices.named(self.choice).name
        return verdict(best == expected, f"chose {excerpt(best)}")
