"""The check `number`: reads the last number in an answer exactly, and refuses text that could mean different numbers.

Reading a wrong number is worse than reading none. Therefore texts such as `3,5` (a decimal comma, or two numbers) and
`10:30` fail the check, and the verdict has the reason. `docs/scripts.md` lists what is read and what is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar, Self

from rwkvbatch.script.checks.answers import MAX_CHARACTERS, last_box
from rwkvbatch.script.checks.text import answer, excerpt, verdict, wrong
from rwkvbatch.script.lines import is_number
from rwkvbatch.script.records import ReplyFacts, Verdict

MAX_DIGITS = 400
MAX_TEN_EXPONENT = 999
MAX_EXPONENT = 64
MAX_LINE = 4000
"""Number of characters after `####`."""

# Letters of writing systems that put spaces between words: `CO2` has no number, but `答案是42` has one.
_LETTER = "A-Za-z\u00c0-\u02af\u0370-\u052f"
_CURRENCY = r"(?:[A-Z]{0,2}[$€£¥₹₩₽₺₫₴₪฿]|(?:USD|EUR|GBP|JPY|CNY|INR|CHF)) ?"
_DIGITS = r"(?:\d+(?:[.,'_\u00a0]\d+)*|\.\d+)"
_POWER = r"\^\{?\s?(?P<NAME>[-+]?\d{1,6})\s?\}?(?![\d.]*\d)"
_TEN_TO, _TO = _POWER.replace("NAME", "ten"), _POWER.replace("NAME", "own")
_NUMBER = re.compile(
    # A minus is a sign only if it cannot be a hyphen or stand between two numbers (`3-5`, `5个-6个`).
    rf"(?P<sign>(?<![{_LETTER}\d_)\]}}%-])(?<!\d\w)(?<!\d\w\w)[-+])?(?:{_CURRENCY}(?P<inner_sign>[-+])?)?"
    r"(?:"
    rf"(?:(?P<whole>{_DIGITS})[ \u00a0]?)?\\frac\s?\{{\s?(?P<over>-?\d+)\s?\}}\s?\{{\s?(?P<under>\d+)\s?\}}"
    r"|(?:(?P<units>\d+)[ \u00a0-])?(?P<top>\d+) ?/ ?(?P<bottom>\d+)(?![.,]?\d)"
    rf"|(?P<digits>(?<![\d.]){_DIGITS})(?:[eE](?P<e>[-+]?\d{{1,6}})(?![.,]?\d)| ?[×*xX] ?10{_TEN_TO}"
    rf"|{_TO})?"
    r")"
)
_GROUPINGS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    # The pattern of grouped digits, the mark between groups, the decimal mark.
    (re.compile(r"\d+|\d*\.\d+"), "", "."),
    (re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?"), ",", "."),
    (re.compile(r"[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d+)?"), ",", "."),  # India
    (re.compile(r"[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}"), ".", ","),
    (re.compile(r"[1-9]\d{0,2}(?:'\d{3})+(?:\.\d+)?"), "'", "."),  # Switzerland
    (re.compile(r"[1-9]\d{0,2}(?:\u00a0\d{3})+(?:\.\d+)?"), "\u00a0", "."),  # ISO 80000-1
    (re.compile(r"[1-9]\d{0,2}(?:\u00a0\d{3})+(?:,\d+)?"), "\u00a0", ","),
    (re.compile(r"[1-9]\d{0,2}(?:_\d{3})+"), "_", "."),
)
_SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "quadrillion": 15, "quintillion": 18
}  # fmt: skip
_ANY_SCALE = "|".join(_SCALES)
_SCALE = re.compile(rf"(?:[ \u00a0-]?(?:{_ANY_SCALE})s?\b)+", re.IGNORECASE)
_SMALL = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen"
    "|twenty|thirty|fou?rty|fifty|sixty|seventy|eighty|ninety"
)
_PARTS = (
    "halves|thirds|quarters(?= of)|(?:four|fif|six|seven|eigh|nin|ten|[a-z]*hundred|[a-z]*thousand|[a-z]*illion)ths"
)
_PART = re.compile(
    r"[ \u00a0-](?:half\b|quarter of\b|(?:third|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand|[a-z]*illion)th)"
    r"(?= of\b|[^\w\s-]|\s*$))"
)
_RAISED_TO = re.compile(r"(?:[\d)]|\b(?i:[b-hj-z])) raised to (?:the )?$")
_UNIT = re.compile(
    r"(?:[mcdk]?m|k?g|mg|lbs?|oz|t|[mcd]?[lL]|m?s|mins?|hr?s?|[ap]\.?m|[mk]?W|kWh|m?[VA]|[kMG]?Hz|[kKMGT]B|px|pt|ft|in|yd|mi"
    r"|mph|km?h|rpm|[kMm]?N|k?J|k?cal|k?Pa|mol|deg|rad|[CF]|USD|EUR|GBP)"
    rf"(?![{_LETTER}\d_])"
)
"""A unit that may follow a number without a space."""
_NO_NUMBER_BEFORE = re.compile(rf"(?:[{_LETTER}]-?|[{_LETTER})\]}}]_\{{?-?|\^\{{?\s?[-+]?|[{_LETTER}]\*\*)$")
_NO_NUMBER_AFTER = re.compile(rf"(?:st|nd|rd|th)(?![{_LETTER}\d])")
_FUNCTION = r"sqrt|cbrt|log|ln|lg|exp|sin|cos|tan|cot|sec|csc|abs|floor|ceil|round|max|min|gcd|lcm|factorial|det"
_INDEX = r"(?:_?\{?\d+\}?)?(?:\^\{?-?\d\}?)?"
_UNCLEAR_BEFORE = re.compile(
    r"(?:--|[√∛∜] ?\(?|± ?|\\pm ?\{?"  # roots, tolerances
    r"|\\(?:sqrt(?: ?\[\d+\])?|frac|[dt]?binom|overline|bar|dot) ?(?:\{[^{}\n]*\} ?)?(?:\{[^{}\n]*)?|\\choose ?"
    # Without a backslash, a bracket or an index, names of functions are also words: `tan 5`, `5 min (300 seconds)`.
    rf"|\\(?:{_FUNCTION}){_INDEX} ?(?:[({{\[][^(){{}}\n]*)?|\b(?:{_FUNCTION}){_INDEX}[({{\[][^(){{}}\n]*"
    r"|\blog_\{?\w+\}? ?|\b(?:sqrt|cbrt|sin|cos|ln) ?"
    r"|\b(?:root|logarithm|factorial|absolute value) of (?:the )?|\bto the power (?:of )?"
    r"|(?:\b|\\[bp])mod(?:ulo)?\}? ?[({]?|\bin base |\d base |\d_\{|\^ ?(?:[({][^(){}\n]*)?"
    r"|\)\^\{?-?|\d\*\*|[\d)] \*\* "  # remainders, bases, exponents
    r"|\d[:.,'_\u00a0]\(?|/ ?|\d-\d{1,2}-|\d ?[~～〜] ?"  # times, dates, versions, ranges
    r"|[\d)]\("  # products
    r"|-\s?(?:\(|\\boxed ?\{|\{)\s?|\b(?:is|are|be|equals) -[ \u00a0]|(?<!\d )\bminus[ \u00a0]"  # possible signs
    rf"|(?:{_ANY_SCALE})s? (?:and )?)$",
    re.IGNORECASE,
)
_UNCLEAR_AFTER = re.compile(
    rf"[{_LETTER}]|[ \u00a0]?(?:π|\\pi|√|\\sqrt|‰|[万亿億千百十万억]"
    r"|(?:dozen|lakh|crore|bn|mn|mln|mio|milliard|(?:sext|sept|oct|non|dec|gaz|baj|baz|z)illion)s?\b)"
    r"|!\s?[=+*/×-]|[)\]}|]*\s?\^(?!\{?\\circ)|[:/]\d|[.,'_\u00a0]\d|[)\]}|]* \*\* [-+]?[\d(]"
    r"| and (?:a|an|one) (?:half|third|quarter)"
    rf"|[ \u00a0-](?:{_PARTS}|squared|cubed|factorial|point (?:zero|{_SMALL}))\b"
    r"|\)? (?:raised )?to the (?:[a-z0-9]+ )?power\b|\)? raised to\b",
    re.IGNORECASE,
)
_UNCLEAR_AFTER_SCALE = re.compile(rf"[ \u00a0-](?:and )?(?:(?:{_SMALL})\b|of (?:{_ANY_SCALE})s?\b)", re.IGNORECASE)
_SPACED_GROUP = re.compile(r"(?<![\d.,])\d{1,3}(?:[ ,.']\d{3})* $")


class UnclearNumberError(Exception):
    """A text could mean different numbers; the argument is an excerpt of it."""


_PLAIN = str.maketrans(
    {
        **dict.fromkeys("−–－﹣", "-"),
        **dict.fromkeys("\u2009\u202f\u2007", "\u00a0"),
        **dict.fromkeys("✕·⋅", "×"),
        **{"’": "'", "＋": "+", "⁄": "/", "٫": ".", "٬": ",", "￥": "¥", "％": "%"},
    }
)
_MINUS = "[-−–－﹣]"
_BEGINS_NUMBER = r"(?=[\d.$€£¥]|\\frac)"
_RAISED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_SPELLINGS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(rf"(?:\\text)?\{{({_MINUS})\}}"), r"\1"),
    # A sign separated from its number, where it cannot stand between two numbers.
    (re.compile(rf"([=≈<>≤≥(\[{{:：$][ \u00a0]?){_MINUS}[ \u00a0]{_BEGINS_NUMBER}"), r"\1-"),
    (re.compile(rf"\bnegative[ \u00a0]{_BEGINS_NUMBER}", re.IGNORECASE), "-"),
    (
        re.compile(
            rf"(?:^|(?<=[=≈:(])|(?<=[=≈:(] )|(?<=\bis )|(?<=\bequals ))minus[ \u00a0]{_BEGINS_NUMBER}", re.IGNORECASE
        ),
        "-",
    ),
    (re.compile(r"(?<!\d)负(?=\d)"), "-"),
    (re.compile(r"\\frac\s?(\d)\s?(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\{(,|\\[,;])\}"), r"\1"),
    (re.compile(r"(?<=\d,)\\!(?=\d)"), ""),
    (re.compile(r"(?<=\d)(?:\\[,;](?=\d)|\\[ :](?=\d{3}(?!\d)))"), "\u00a0"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\(?=[$%€£])"), ""),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\+/-"), "±"),
    (re.compile(r"^.*\*\*.*$", re.MULTILINE), lambda match: _with_powers(match[0])),
    (re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+"), lambda match: "^{" + match[0].translate(_RAISED) + "}"),
    (re.compile("[¼-¾⅐-⅞↉]"), lambda match: _fraction(match[0])),
)
"""Patterns and replacements that unify spellings before numbers are searched."""


_POWER_MARK = re.compile(r"(?<=[\d)\]}|A-Za-z])\*\*(?=[-+]?\d+(?!\d|\*\*)|-?\(|[a-z](?![a-z]))")


def _with_powers(line: str) -> str:
    """A line with `^` for `**` between a number and its exponent; not for the marks of bold text."""
    bold = False

    def replaced(match: re.Match[str]) -> str:
        nonlocal bold
        if not bold and _POWER_MARK.match(line, match.start()):
            return "^"
        bold = not bold
        return match[0]

    return re.sub(r"\*\*", replaced, line)


def _fraction(mark: str) -> str:
    """A fraction character such as ½, in LaTeX."""
    top, _, bottom = unicodedata.normalize("NFKC", mark).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}"


def last_number(text: str, *, first: bool = False) -> Fraction | None:
    """The last number in `text`, or the `first` one; None if there is none.

    Ordinals, and digits after a letter (`CO2`), an exponent mark (`m^2`) or a subscript mark (`x_1`) are not numbers.

    Raises:
        UnclearNumberError: the text could mean different numbers, or the number is too large.
    """
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = text.translate(_PLAIN)
    last: re.Match[str] | None = None
    for match in _NUMBER.finditer(text):
        follows_letter = _NO_NUMBER_BEFORE.search(text, max(0, match.start() - 5), match.start())
        if not follows_letter and not _NO_NUMBER_AFTER.match(text, match.end()):
            last = match
            if first:
                break
    return None if last is None else _value(last, text)


_MARKED = re.compile(rf"^#### ?(?={_MINUS}?{_BEGINS_NUMBER})(?![\d.,]+[.):][ \u00a0]*\S)(.*)")
"""A line that states an answer as those of GSM8K do; not a heading that is numbered, such as `#### 3. Add them`."""
_REMARK = re.compile(r"(?<=\S)(?:[ \u00a0]\([^()]*(?:\)|$)|（[^（）]*(?:）|$))")
_OPERATION = re.compile(
    rf"(?:\s(?:[-+*/×÷]|{_MINUS}|\\(?:times|cdot|div))|(?<=[\d)%])(?:[+*×÷]|{_MINUS}))"
    rf"\s*{_BEGINS_NUMBER}(?!10 ?(?:\^|\*\*|[⁺⁻⁰¹²³⁴-⁹]))"
)
_AFTER_BOX = re.compile(
    rf"[ \u00a0$]*(?:/ ?[\d\\({{]|\^(?!\{{?\\circ)|\*\*[-+]?[\d(]"
    rf"|(?:\\(?:times|cdot|div)(?![A-Za-z])|[×÷*·⋅]) ?[-+\d\\({{]"
    rf"|!\s?[=+*/×-]|(?:\\text ?\{{)? ?-?(?:{_ANY_SCALE}|dozen|lakh|crore|bn|mln)s?\b|[万亿億]|[千百十](?![克米瓦卡分])"
    r"|π|√|\\(?:pi|sqrt|[dt]?frac)(?![A-Za-z]))",
    re.IGNORECASE,
)
"""What changes the value of a box before it."""


def answer_number(text: str) -> Fraction | None:
    """The number that `text` states as its answer; None if there is none.

    It is the last in the last `\\boxed{}`; without a box, the one after `####` on the last line, with which answers of
    GSM8K end; without either, the last one in `text`.

    Raises:
        UnclearNumberError: as `last_number`; or a sign, an exponent or a factor stands outside the box.
    """
    end = text[-MAX_CHARACTERS:]
    if (box := last_box(end)) and (boxed := end[box].strip()):
        after = end[box.stop :].removeprefix("}")
        if re.search(rf"{_MINUS}\s?\\(?:boxed|fbox)\s*\{{\s*$", end[: box.start]) or _AFTER_BOX.match(after):
            raise UnclearNumberError(f"{end[box.start - 10 : box.stop + 10]}")
        return last_number(boxed)
    if marked := _MARKED.match(text.rstrip().rpartition("\n")[2]):
        return _marked_number(marked[1])
    return last_number(text)


def _marked_number(line: str) -> Fraction | None:
    """The number after `####`: the first one, or that on the right of an equation; brackets after it are a remark."""
    if len(line) > MAX_LINE:
        raise UnclearNumberError(line[:40])
    while (shorter := _REMARK.sub("", line)) != line:
        line = shorter
    _, equals, right = line.replace("≈", "=").rpartition("=")
    if equals and (value := last_number(f"= {right}")) is not None:
        if value != last_number(f"= {right}", first=True):
            raise UnclearNumberError(line[:40])
        return value
    if _OPERATION.search(line):
        raise UnclearNumberError(line[:40])
    return last_number(line, first=True)


def _value(match: re.Match[str], text: str) -> Fraction:
    """The value of a number, with its sign and scale; raises `UnclearNumberError`."""
    before, after = text[max(0, match.start() - 60) : match.start()], text[match.end() : match.end() + 120]
    unclear = UnclearNumberError(f"{before[-12:]}{match[0][:40]}{after[:12]}".strip())
    parts = match.groupdict()
    scale = _SCALE.match(after)
    follows_spaced_group = re.match(r"\d{3}(?!\d)", match[0]) and _SPACED_GROUP.search(before)
    follows_spaced_group = follows_spaced_group or (re.match(r"0\d", match[0]) and re.search(r"\d $", before))
    after_scale = after[scale.end() :] if scale else after
    has_unit = _UNIT.match(after_scale) is not None
    if len(match[0]) > MAX_DIGITS or follows_spaced_group or _UNCLEAR_BEFORE.search(before):
        raise unclear
    if (_UNCLEAR_AFTER.match(after_scale) and not has_unit) or (parts["sign"] and parts["inner_sign"]):
        raise unclear
    if scale and _UNCLEAR_AFTER_SCALE.match(after_scale):
        raise unclear
    if (parts["top"] or parts["over"]) and re.search(r"\d and $", before):
        raise unclear
    if parts["sign"] == "-" and before.endswith("|") and after.startswith("|"):
        raise unclear
    if match[0] == "1" and _PART.match(after):
        raise unclear
    if match[0][0].isdigit() and not re.match(r"\s?%", after) and _RAISED_TO.search(before):
        raise unclear
    try:
        number = _magnitude(parts)
    except (ValueError, ZeroDivisionError):
        raise unclear from None
    if scale is not None:
        number *= 10 ** sum(_SCALES[word.lower()] for word in re.findall(_ANY_SCALE, scale[0], re.IGNORECASE))
    return -number if "-" in (parts["sign"], parts["inner_sign"]) else number


def _magnitude(parts: Mapping[str, str | None]) -> Fraction:
    """The absolute value of a number without its scale.

    Raises:
        ValueError, ZeroDivisionError: the number is not clear, too large, or has the denominator 0.
    """
    if over := parts["over"]:
        if over.startswith("-") and parts["whole"]:
            raise ValueError("a mixed number with a negative part")
        return _decimal(parts["whole"] or "0") + Fraction(int(over), int(parts["under"] or 0))
    if top := parts["top"]:
        return int(parts["units"] or 0) + Fraction(int(top), int(parts["bottom"] or 0))
    number = _decimal(parts["digits"] or "")
    if exponent := parts["e"] or parts["ten"]:
        return number * _power(Fraction(10), int(exponent))
    return number if parts["own"] is None else _power(number, int(parts["own"]))


def _power(base: Fraction, exponent: int) -> Fraction:
    if abs(exponent) > (MAX_TEN_EXPONENT if base == 10 else MAX_EXPONENT):
        raise ValueError("too large")
    return base**exponent


def _decimal(text: str) -> Fraction:
    """The value of digits with marks between groups and a decimal mark."""
    for pattern, group_mark, decimal_mark in _GROUPINGS:
        if pattern.fullmatch(text):
            ungrouped = text.replace(group_mark, "") if group_mark else text
            return Fraction(Decimal(ungrouped.replace(decimal_mark, ".")))
    raise ValueError("the digits are grouped in an unknown way")


@dataclass(frozen=True)
class Number:
    """The number that the answer states is within `tolerance` of the value, in exact arithmetic."""

    options: ClassVar[frozenset[str]] = frozenset({"tolerance"})
    value: Fraction
    tolerance: Fraction

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        tolerance = options.get("tolerance", 0)
        if not is_number(expected):
            wrong("must be a number", expected)
        if not is_number(tolerance) or tolerance < 0:
            wrong("must be a number that is not negative", tolerance, key="tolerance")
        return cls(Fraction(Decimal(repr(expected))), Fraction(Decimal(repr(tolerance))))

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        try:
            number = answer_number(text)
        except UnclearNumberError as error:
            return Verdict(False, 0.0, f"cannot tell which number is meant: {excerpt(str(error))}", undecided=True)
        if number is None:
            return verdict(False, f"no number in {excerpt(text)}")
        return verdict(abs(number - self.value) <= self.tolerance, f"got {_shown(number)}")


def _shown(number: Fraction) -> str:
    """The number as a decimal; a rounded one is cut to 12 characters, an exact one to 40."""
    text = format(Decimal(number.numerator) / Decimal(number.denominator), "f" if abs(number) < 10**15 else "e")
    return (text if Fraction(Decimal(text)) == number else f"{text[:12]}…")[:40]
