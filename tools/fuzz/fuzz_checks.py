"""Coverage-guided fuzzing of checks: `python -m tools.fuzz.fuzz_checks [SECONDS] [FOLDER]`.

The first byte says what the rest is. Patterns match exactly what they match in Python's `re`. A number that is written
in a known way is read exactly, and any other text is read or refused. JSON in any fence gives a verdict.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from fractions import Fraction

import atheris  # pyright: ignore[reportMissingImports]

from tools.fuzz.fuzzing import fuzz, instrumented

with instrumented("rwkvbatch"):
    from rwkvbatch.script.checks import judge_all, parse_checks
    from rwkvbatch.script.checks.numbers import UnclearNumberError, last_number
    from rwkvbatch.script.checks.text import compile_pattern
    from rwkvbatch.script.lines import SourceLine
    from rwkvbatch.script.records import ReplyFacts

_CHECKS = parse_checks({"json": True, "prose": True}, SourceLine("fuzz.jsonl", 1))


def check_pattern(pattern: str, text: str) -> None:
    """Compare a pattern's matches with those of `re`; patterns that `re` refuses are refused here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            expected = None
    try:
        found = compile_pattern(pattern)
    except ValueError:
        return
    assert expected is not None, pattern
    if expected.flags & re.IGNORECASE and not text.isascii():
        return  # the two libraries fold some letters outside ASCII in other ways
    try:
        other = found.search(text, timeout=1)
    except TimeoutError:
        return
    one = expected.search(text)
    assert (one and one.span()) == (other and other.span()), (pattern, text)


def check_number(text: str, value: int) -> None:
    """Read any text, and a number after it."""
    with contextlib.suppress(UnclearNumberError):
        last_number(text)
    for written in (f"{value}", f"{value:,}", f"{value}.5"):
        expected = Fraction(written.replace(",", ""))
        assert last_number(f"{text}\nSo it is: {written}.") == expected, (text, written)


def read_one(data: bytes) -> None:
    """One input; see above."""
    provider = atheris.FuzzedDataProvider(data)  # pyright: ignore[reportAttributeAccessIssue]
    kind = provider.ConsumeIntInRange(0, 2)
    if kind == 0:
        check_pattern(provider.ConsumeUnicodeNoSurrogates(24), provider.ConsumeUnicodeNoSurrogates(12))
    elif kind == 1:
        check_number(provider.ConsumeUnicodeNoSurrogates(40), provider.ConsumeIntInRange(-(10**9), 10**9))
    else:
        judge_all(_CHECKS, ReplyFacts(provider.ConsumeUnicodeNoSurrogates(200), "stop", 1))


def main() -> None:
    """Fuzz; see `fuzz`."""
    seeds = {
        "pattern": rb"a{2,3}[^\W1](?<=b)\b{e}x{,2}",
        "number": "1,234.5 km^2 \\frac{3}{4} ½ 3 × 10^5 -$7".encode(),
        "json": b'Here:\n```json\n{"a": 1}\n```\n~~~\n[]\n~~~',
    }
    fuzz(read_one, seeds, max_bytes=400, words=("{e}", "{1,", "[[:", "(?", "\\frac{", "×10^", "```", "~~~", "\u00a0"))


if __name__ == "__main__":
    sys.exit(main())
