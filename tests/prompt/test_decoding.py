"""Incremental decoding and stop strings, compared with a reference that decodes everything at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.text_stream import REPLACEMENT, TextStream, Utf8Stream, decode_utf8
from rwkvbatch.prompt.tokenizer import world_tokenizer


def reference_text(data: bytes, stops: Sequence[str]) -> tuple[str, str | None]:
    """Reference: decode all text, then cut at the stop string that ends first, the longest of these."""
    text = reference_decode(data)
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def reference_decode(data: bytes) -> str:
    """Reference: valid sequences of one to four bytes, and one U+FFFD for each run of other bytes."""
    text, at, in_run = "", 0, False
    while at < len(data):
        for length in (1, 2, 3, 4):
            try:
                text += data[at : at + length].decode("utf-8")
                at, in_run = at + length, False
                break
            except UnicodeDecodeError:
                continue
        else:
            text += "" if in_run else REPLACEMENT
            at, in_run = at + 1, True
    return text


BYTES = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from([b"\xe4", b"\xbd", b"\xa0", b"\xff", b"\xf0\x9f", b"a", b"\xef\xbf\xbd"])).map(b"".join),
)
ALPHABET = st.sampled_from(["a", "b", "\n", "é"])
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    boundaries = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in pairwise(boundaries)]


@given(data=BYTES)
@example(data=b"\xe4\xbd")
@example(data=b"\xed\xa0\x80\xff")
def test_decoding_at_once_has_one_replacement_for_each_invalid_run(data: bytes) -> None:
    assert decode_utf8(data) == reference_decode(data)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_valid_text_is_decoded_unchanged(text: str) -> None:
    assert decode_utf8(text.encode()) == text


@given(data=BYTES, cuts=st.lists(st.integers(0, 100)))
def test_pieces_of_bytes_decode_to_the_text_of_the_whole(data: bytes, cuts: list[int]) -> None:
    stream = Utf8Stream()
    pieces = [stream.push(piece) for piece in in_pieces(data, cuts)] + [stream.push(b"", final=True)]
    assert "".join(pieces) == reference_decode(data)


@given(data=BYTES, cuts=st.lists(st.integers(0, 100)), stops=STOPS)
def test_pieces_of_text_end_at_the_first_stop_string(data: bytes, cuts: list[int], stops: list[str]) -> None:
    check_against_reference(data, cuts, stops)


@given(text=st.text(ALPHABET, max_size=40), cuts=st.lists(st.integers(0, 100)), stops=STOPS)
@example(text="\n\n", cuts=[], stops=["\n\n"])
@example(text="aab", cuts=[1, 2], stops=["ab"])
@example(text="aaaab", cuts=[], stops=["aab", "aaaa"])
@example(text="aaab", cuts=[1, 3], stops=["aab"])
@example(text="abcd", cuts=[1, 2, 3], stops=["bcd", "c"])
@example(text="xab", cuts=[], stops=["b", "ab"])
def test_stop_strings_are_found_across_token_boundaries(text: str, cuts: list[int], stops: list[str]) -> None:
    check_against_reference(text.encode(), cuts, stops)


def check_against_reference(data: bytes, cuts: list[int], stops: list[str]) -> None:
    expected, stopped_by = reference_text(data, stops)
    tokens = in_pieces(data, cuts)
    stream = TextStream(tokens.__getitem__, stops)
    pieces: list[str] = []
    for token in range(len(tokens)):
        pieces.append(stream.push(token))
        assert stream.text == "".join(pieces)
        assert expected.startswith(stream.text)
        whole = reference_decode(b"".join(tokens[: token + 1]))
        if stream.stopped_by is None and not REPLACEMENT_AT_END.search(whole):
            # Text is held back only while it may be the start of a stop string.
            assert whole == stream.text + stream.held
            assert not stream.held or any(stop.startswith(stream.held) for stop in stops)
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text == expected
    assert stream.stopped_by == stopped_by


REPLACEMENT_AT_END = re.compile(f"{REPLACEMENT}$")


def test_a_stop_string_ends_the_stream_and_the_rest_of_its_token_is_dropped() -> None:
    stream = TextStream([b"Hi.\n", b"\nUser: more"].__getitem__, ["\n\n"])
    assert stream.push(0) == "Hi."
    assert stream.push(1) == ""
    assert (stream.text, stream.stopped_by) == ("Hi.", "\n\n")


def test_an_ended_stream_returns_no_text() -> None:
    stream = TextStream([b"a", b"\xe4"].__getitem__, ["a"])
    assert [stream.push(0), stream.push(0), stream.push(1), stream.finish(), stream.finish()] == [""] * 5
    ended = TextStream([b"a"].__getitem__, [])
    assert [ended.push(0), ended.finish(), ended.push(0)] == ["a", "", ""]
    assert ended.text == "a"


def test_an_incomplete_character_is_held_back_and_replaced_at_the_end() -> None:
    stream = TextStream(["你".encode()[:2], "你".encode()[2:]].__getitem__, [])
    assert [stream.push(0), stream.push(1)] == ["", "你"]
    assert [stream.push(0), stream.finish()] == ["", REPLACEMENT]
    assert stream.text == "你" + REPLACEMENT


def test_a_stop_string_of_a_replacement_character_is_found() -> None:
    stream = TextStream([b"a\xff", b"\xe4"].__getitem__, [REPLACEMENT])
    assert stream.push(0) == "a"
    assert stream.stopped_by == REPLACEMENT


def test_token_0_and_unknown_ids_add_no_text() -> None:
    stream = TextStream(world_tokenizer().token_bytes, ["\n\n"])
    assert [stream.push(token) for token in (0, 65535, 66, 0)] == ["", "", "A", ""]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="must not be empty"):
        TextStream(world_tokenizer().token_bytes, [""])


def test_a_long_repetitive_stop_string_takes_linear_time() -> None:
    stop = "a" * 20_000 + "b"
    stream = TextStream([b"a"].__getitem__, [stop])
    for _ in range(55_000):
        stream.push(0)
    assert len(stream.text) == 35_000
    assert len(stream.finish()) == 20_000
