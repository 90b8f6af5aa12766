"""Escaping of text for terminals, JSON and file names."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkvbatch.prompt.escaping import file_name, printable, printable_json

ANY_TEXT = st.text(st.characters(), max_size=200)
HOSTILE = st.text(st.sampled_from("\x1b[]0;m\x07\x9b\x90\u202e\u2066\ud800\udc80\r\b\n\tab\u2028é👩"), max_size=60)
_ALLOWED_CONTROLS = {"\n"}
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), ANY_TEXT, HOSTILE),
    lambda values: st.one_of(st.lists(values, max_size=4), st.dictionaries(HOSTILE, values, max_size=4)),
    max_leaves=8,
)
_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(text=st.one_of(ANY_TEXT, HOSTILE))
@example(text="\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe")
def test_printable_text_has_no_control_and_no_bidi_character(text: str) -> None:
    shown = printable(text)
    for character in shown:
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") or character in _ALLOWED_CONTROLS
        assert unicodedata.bidirectional(character) not in _BIDI
    shown.encode("utf-8")


@given(text=st.one_of(ANY_TEXT, HOSTILE))
def test_without_newlines_printable_text_is_one_line(text: str) -> None:
    assert len(printable(text, keep_newlines=False).splitlines()) <= 1


@given(first=HOSTILE, second=HOSTILE)
def test_pieces_are_escaped_like_the_whole(first: str, second: str) -> None:
    assert printable(first) + printable(second) == printable(first + second)


@given(text=st.one_of(ANY_TEXT, HOSTILE))
def test_escaping_is_idempotent(text: str) -> None:
    assert printable(printable(text)) == printable(text)


@given(text=st.text(st.characters(categories=["L", "N", "P", "S"]) | st.just(" ")))
def test_letters_numbers_and_punctuation_are_unchanged(text: str) -> None:
    assert printable(text) == text


def test_controls_are_escaped_by_their_code() -> None:
    assert printable("a\x1b[0m\x07\x9b\r") == "a\\x1b[0m\\x07\\x9b\\x0d"
    assert printable("\u202e\ud800\u2028") == "\\u202e\\ud800\\u2028"
    assert printable("a\tb\nc", keep_newlines=False) == "a\\tb\\nc"


@given(value=JSON, indent=st.sampled_from([None, 1]), ensure_ascii=st.booleans())
@example(value=["\x7f\x9b31m\u202e\u2028\ud800"], indent=None, ensure_ascii=False)
def test_printable_json_is_printable_and_has_the_same_value(
    value: object, indent: int | None, ensure_ascii: bool
) -> None:
    shown = printable_json(json.dumps(value, indent=indent, ensure_ascii=ensure_ascii))
    # Adjacent escapes of two surrogates are one character in JSON.
    assert json.loads(shown) == json.loads(json.dumps(value))
    assert printable(shown) == shown


@given(text=st.one_of(ANY_TEXT, HOSTILE, st.text(st.sampled_from("/.\\-~:\x00 é世"), max_size=300)))
@example(text="../../etc/passwd")
@example(text="世" * 200)
@example(text="")
def test_any_text_becomes_the_name_of_a_file_in_its_folder(text: str) -> None:
    name = file_name(text)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}-20260101-000000-2.jsonl"
        path.touch()
        assert [found.name for found in Path(folder).iterdir()] == [path.name]
    assert name[0] not in ".-~"
    assert printable(name, keep_newlines=False) == name
    assert file_name(name) == name


@pytest.mark.parametrize("name", ["demo", "mt-bench", "temp=0.7", "Größe", "会話", "a.b_c+d@e~1"])
def test_an_ordinary_name_is_unchanged(name: str) -> None:
    assert file_name(name) == name
