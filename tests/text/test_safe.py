"""What may reach a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from rwkvbatch.text.safe import printable

ANY_TEXT = st.text(st.characters(), max_size=200)
HOSTILE = st.text(
    st.sampled_from("\x1b[]0;m\x07\x9b\x90\u202e\u2066\ud800\udc80\r\b\n\tab\u2028é👩"), max_size=60
)
_ALLOWED_CONTROLS = {"\n"}
_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(text=st.one_of(ANY_TEXT, HOSTILE))
@example(text="\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe")
def test_nothing_that_a_terminal_acts_upon_is_left(text: str) -> None:
    shown = printable(text)
    for character in shown:
        assert (
            unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") or character in _ALLOWED_CONTROLS
        )
        assert unicodedata.bidirectional(character) not in _BIDI
    shown.encode("utf-8")


@given(text=st.one_of(ANY_TEXT, HOSTILE))
def test_without_newlines_it_is_one_line(text: str) -> None:
    assert len(printable(text, keep_newlines=False).splitlines()) <= 1


@given(first=HOSTILE, second=HOSTILE)
def test_text_may_come_in_pieces(first: str, second: str) -> None:
    assert printable(first) + printable(second) == printable(first + second)


@given(text=st.one_of(ANY_TEXT, HOSTILE))
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert printable(printable(text)) == printable(text)


@given(text=st.text(st.characters(categories=["L", "N", "P", "S"]) | st.just(" ")))
def test_ordinary_text_is_untouched(text: str) -> None:
    assert printable(text) == text


def test_controls_are_shown_by_their_code() -> None:
    assert printable("a\x1b[0m\x07\x9b\r") == "a\\x1b[0m\\x07\\x9b\\x0d"
    assert printable("\u202e\ud800\u2028") == "\\u202e\\ud800\\u2028"
    assert printable("a\tb\nc", keep_newlines=False) == "a\\tb\\nc"
