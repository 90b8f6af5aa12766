"""Regular expressions of checks match what they match in Python's `re`."""

from __future__ import annotations

import re
import unicodedata
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkvbatch.errors import ScriptError
from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.checks.patterns import translate
from rwkvbatch.script.checks.text import compile_pattern
from tests.script.writing import HERE

PIECES = (
    *"ab1 {}[],:e<=-_()|*+?.^$",
    *("\n", "\\w", "\\W", "\\d", "\\D", "\\s", "\\S", "\\b", "\\B", "\\Z", "\\A", "\\{", "\\}", "\\x41", "\\N{BULLET}"),
    *(
        "(?:",
        "*?",
        "+?",
        "??",
        "*+",
        "++",
        "(?=",
        "(?!",
        "(?<=",
        "(?<!",
        "(?>",
        "(?i:",
        "(?i)",
        "(?s:",
        "(?m:",
        "(?-i:",
    ),
    *("{2}", "{1,2}", "{,2}", "{1,}", "{,}", "{e}", "{e<=1}", "{ 1}", "{1", "{i<=1,d<=1}", "a{2}{e}"),
    *(
        "[[:alpha:]]",
        "[a-b]",
        "[^a]",
        "[\\w]",
        "[^\\W]",
        "[^\\W1]",
        "[\\Wa]",
        "[]a]",
        "[^]a]",
        "[a||b]",
        "[a--b]",
        "[a&&b]",
    ),
    *("\\1", "(?P<n>", "(?P=n)", "(?(1)a|b)", "(?a:", "(?u:", "(?#c)", "é", "\u0301", "\x1c"),
)
TEXTS = (
    "",
    "a",
    "ab",
    "aab",
    "b1",
    "a{e}",
    "a{1",
    "{",
    "}",
    "a{,}",
    "a{ 1}",
    "aaa\n",
    "\n",
    "a b",
    "é",
    "e\u0301",
    "\x1c",
    ":]",
)


def assert_same_matches(pattern: str, texts: list[str], *, ignore_case: bool = False) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        except (re.error, RecursionError, OverflowError):
            with pytest.raises(ValueError, match=r".+"):
                compile_pattern(pattern, ignore_case=ignore_case)
            return
        try:
            found = compile_pattern(pattern, ignore_case=ignore_case)
        except ValueError:
            assert re.search(r"\(\?[imsaux-]*[ax]", pattern)  # flags that are refused
            return
    for text in texts:
        expected_match, match = expected.search(text), found.search(text, timeout=5)
        assert (match and match.span()) == (expected_match and expected_match.span()), (pattern, text)


@given(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.text(st.sampled_from("ab1{}e \n:[]é\u0301"), max_size=8),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
@example("a{e}", "ab", False)
@example("x{,}", "xx", False)
@example("[[:alpha:]]", "a", False)
def test_any_pattern_matches_what_it_matches_in_re(pattern: str, text: str, ignore_case: bool) -> None:
    assert_same_matches(pattern, [*TEXTS, text], ignore_case=ignore_case)


@pytest.mark.parametrize(
    "pattern",
    ["^{}$", "^[{}b]$", "^[^{}]$", "^[^{}b]$", "^[{}-\U0000ffff]$", "^[^{}-\U0000ffff]$", r"^[{}\W]$", "(?-i:^{}$)"],
)
def test_case_is_ignored_as_in_re(pattern: str) -> None:
    letters = "aAiIİıjJsSſkK\u212aßẞµμσςΣéÉ"
    for letter in letters:
        assert_same_matches(pattern.format(letter), list(letters), ignore_case=True)
        assert_same_matches(f"(?i:{pattern.format(letter)})", list(letters))


@pytest.mark.parametrize("pattern", ["(?a)a", "(?a:a)"])
def test_the_option_ignore_case_is_refused_where_the_flag_is(pattern: str) -> None:
    with pytest.raises(ValueError, match="flags a and i"):
        compile_pattern(pattern, ignore_case=True)
    with pytest.raises(ScriptError, match="flags a and i"):
        parse_checks({"regex": pattern, "ignore_case": True}, HERE)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("^a{e}$", "a{e}", True),  # fuzzy matching in the regex library
        ("^a{e}$", "b", False),
        ("^a{,2}$", "aa", True),
        ("^a{2,1x}$", "a{2,1x}", True),
        ('^{"a": 1}$', '{"a": 1}', True),
        (r"^\w$", "\u0301", False),  # a combining mark is a word character for the regex library
        (r"^\s$", "\x1c", True),
        ("^[[:alpha:]]$", "l]", True),
        ("^[b-d]+$", "bcd", True),
        ("^[b-d]+$", "abc", False),
        (r"^[^\W1]$", "a", True),
        (r"^[^\W1]$", "1", False),
        (r"^(?>a+)ab$", "aab", False),  # an atomic group gives nothing back
        (r"^a++ab$", "aab", False),
        (r"^a+?b$", "aab", True),
        (r"a(?=b)", "ab", True),
        (r"a(?!b)", "ab", False),
        (r"(?<=a)b", "ab", True),
        (r"(?<!a)b", "ab", False),
        (r"^(a|b)\1$", "bb", True),
        (r"^(a|b)\1$", "ab", False),
        (r"^(?P<n>a)(?P=n)$", "aa", True),
        (r"^(a)?(?(1)b|c)$", "ab", True),
        (r"^(a)?(?(1)b|c)$", "ac", False),
        (r"^(a)?(?(1)b)$", "", True),
        (r"a(?!)|b", "a", False),
        (r"^(?i:a)b$", "Ab", True),
        (r"^(?i:a)b$", "AB", False),
        (r"(?i)^(?-i:a)b$", "aB", True),
        (r"(?i)^(?-i:a)b$", "AB", False),
        (r"(?s:^.$)", "\n", True),
        (r"(?m:^b)", "a\nb", True),
        (r"(?a:\w)", "é", False),
        (r"(?a)^(?u:\w)", "é", True),
        (r"(?a)\w", "é", False),
        ("(?i)^[a-z]+$", "dıs", True),
        ("(?i)^[a-z]+$", "DİS", True),
        ("(?i)^i$", "ı", True),
    ],
)
def test_patterns_have_the_meaning_of_re(pattern: str, text: str, matches: bool) -> None:
    assert (compile_pattern(pattern).search(text) is not None) == matches == (re.search(pattern, text) is not None)


@pytest.mark.parametrize("name", ["w", "d", "s", "W", "D", "S"])
def test_character_classes_are_those_of_re(name: str) -> None:
    # The two libraries may know different versions of Unicode.
    known = (chr(code) for code in range(0x32000) if unicodedata.category(chr(code)) not in ("Cn", "Cs"))
    text = "".join(known)
    assert compile_pattern(f"\\{name}").findall(text) == re.findall(f"\\{name}", text)


@pytest.mark.parametrize("pattern", ["(?x)a", "(?ai)a", "(?a:(?i:a))", "(?x:a)", "(?-x:a)", "(?L:a)"])
def test_flags_without_the_same_meaning_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="flag"):
        translate(pattern)
