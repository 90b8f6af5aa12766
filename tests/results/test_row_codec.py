"""Rows as lines of `results.jsonl`: encoding, decoding, checksums, invalid values."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.engine.request import FinishReason
from rwkvbatch.results.row import FINISH_REASONS, SCORED, Row, RowKey
from rwkvbatch.results.row_codec import BadLineError, RowHead, WrongValuesError, decode_head, decode_row, encode_row
from tests.replay.fakes import make_row

CHOICE = {"name": "a", "logprob": -1.0, "tokens": 2, "bytes": 5, "characters": 5}


class TestLines:
    @given(reply=st.text(), prompt=st.text(st.characters()), ids=st.lists(st.integers(0, 2**31 - 1)))
    def test_a_row_is_decoded_from_its_line(self, reply: str, prompt: str, ids: list[int]) -> None:
        row = make_row("1", reply=reply, prompt=prompt, reply_ids=tuple(ids))
        line = encode_row(row)
        assert line.count(b"\n") == 1
        assert decode_row(line) == row

    @pytest.mark.parametrize(("name", "value"), [("repeat", -1), ("turn", 2**31), ("seed", 2**64), ("cell", None)])
    def test_an_invalid_value_is_refused(self, name: str, value: object) -> None:
        values = json.loads(json.dumps(make_row("1").as_dict()))
        assert Row.from_dict(values) == make_row("1")
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Row.from_dict({**values, name: value})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"finish_reason": "tired"}, "finish_reason must be one of "),
            ({"tokens": []}, "tokens must be an object, got []"),
            ({"checks": {}}, "checks must be an array, got {}"),
            ({"checks": ["x"]}, 'checks.0 must be an object, got "x"'),
            (
                {"checks": [{"kind": "k", "expected": 1, "passed": True, "score": None}]},
                "checks.0 must have both `passed` and `score`",
            ),
            ({"tokens": {"prompt": 1, "reply": 1, "thinking": -1}}, "tokens.thinking must be at least 0, got -1"),
            (
                {"reference": {"text": "x", "nll": 1, "matched": 1, "tokens": 1, "logprob": "-1", "bytes": 1}},
                'reference.logprob must be a number, got "-1"',
            ),
            ({"choices": []}, "choices must be an object, got []"),
            ({"choices": {"scores": {}}}, "choices.scores must be an array, got {}"),
            ({"choices": {"scores": []}}, "choices.scores must be an array of at least 1, got []"),
            ({"choices": {"scores": ["x"]}}, 'choices.scores.0 must be an object, got "x"'),
            *(
                ({"choices": {"scores": [CHOICE | {key: 0}]}}, f"choices.scores.0.{key} must be at least 1, got 0")
                for key in ("tokens", "bytes", "characters")
            ),
            (
                {"reference": {"text": "x", "nll": 1, "matched": 1, "tokens": 1, "logprob": -1, "bytes": 0}},
                "reference.bytes must be at least 1, got 0",
            ),
            ({"choices": {"scores": [CHOICE | {"logprob": None}]}}, "choices.scores.0.logprob must be a number"),
            ({"choices": {"scores": [CHOICE | {"bytes": 2.5}]}}, "choices.scores.0.bytes must be an integer, got 2.5"),
            ({"choices": {"scores": [CHOICE | {"characters": "3"}]}}, "choices.scores.0.characters must be an integer"),
            ({"probe": 1}, "probe must be an object, got 1"),
            (
                {"probe": {"after": 0, "number": 0, "turns": 1, "tokens": "9"}},
                'probe.tokens must be an integer, got "9"',
            ),
            ({"tags": [3]}, "tags.0 must be a string, got 3"),
            ({"reply_ids": [1, -2]}, "reply_ids must contain token ids, got -2"),
            ({"reply_ids": [1, 2**31]}, "reply_ids must contain token ids, got 2147483648"),
            ({"reply_ids": [1, True]}, "reply_ids.1 must be an integer, got true"),
            ({"reply_ids": [1.0]}, "reply_ids.0 must be an integer, got 1.0"),
        ],
    )
    def test_an_invalid_part_is_refused_with_what_is_allowed(self, change: dict[str, object], message: str) -> None:
        values = json.loads(json.dumps(make_row("1").as_dict()))
        with pytest.raises(ValueError, match=re.escape(message)):
            Row.from_dict({**values, **change})

    def test_a_lone_surrogate_is_kept(self) -> None:
        row = make_row("1", prompt="\ud800 and 树")
        assert decode_row(encode_row(row)) == row

    def test_a_row_of_a_development_version_is_refused(self) -> None:
        body = encode_row(make_row("1"))[:-19].replace(b'"finish_reason"', b'"finish"') + b"}"
        line = b'%s,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body))
        for decode in (decode_row, decode_head):
            with pytest.raises(WrongValuesError, match="not a row of this version"):
                decode(line)

    @given(
        prompt=st.text(st.characters()),
        finish_reason=st.sampled_from(["stop", "error"]),
        ids=st.lists(st.integers(0, 2**31 - 1)),
        change=st.none() | st.tuples(st.integers(0, 10_000), st.integers(1, 255)),
    )
    def test_the_head_of_a_line_is_decoded_or_refused_like_the_whole_row(
        self, prompt: str, finish_reason: str, ids: list[int], change: tuple[int, int] | None
    ) -> None:
        line = bytearray(encode_row(make_row("1", 3, finish_reason=finish_reason, prompt=prompt, reply_ids=tuple(ids))))
        if change is not None:
            line[change[0] % len(line)] ^= change[1]

        def outcome(decode: Callable[[bytes], Row | RowHead]) -> tuple[RowKey, str] | str:
            try:
                found = decode(bytes(line))
            except BadLineError as error:
                return str(error)
            return found.key, found.finish_reason

        assert outcome(decode_head) == outcome(decode_row)

    @pytest.mark.parametrize("body", ["[]", "null", '{"conversation":["a"],"cell":"b"}', "[" * 5000 + "]" * 5000])
    def test_a_line_that_is_no_row_has_no_head(self, body: str) -> None:
        text = body[:-1] + "}"
        line = f'{body[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()
        with pytest.raises(BadLineError, match=r"not a (row of this version|JSON object)|not JSON"):
            decode_head(line)

    def test_the_checksum_is_the_crc_of_the_line_without_it(self) -> None:
        line = encode_row(make_row("1"))
        text, _, tail = line.decode().rpartition(',"crc":"')
        assert tail == f'{zlib.crc32((text + "}").encode()):08x}"}}\n'
        assert list(json.loads(line))[-1] == "crc"

    @given(data=st.data())
    def test_any_changed_byte_is_refused(self, data: st.DataObject) -> None:
        line = bytearray(encode_row(make_row("1", reply="größe")))
        at = data.draw(st.integers(0, len(line) - 1))
        line[at] ^= data.draw(st.integers(1, 255))
        with pytest.raises(BadLineError):
            decode_row(bytes(line))

    @given(cut=st.integers(0, 10_000))
    def test_any_truncated_line_is_refused(self, cut: int) -> None:
        line = encode_row(make_row("1"))
        with pytest.raises(BadLineError):
            decode_row(line[: cut % len(line)])

    def test_infinity_is_refused(self) -> None:
        from rwkvbatch.results.row import Logprob

        with pytest.raises(ValueError, match="not JSON compliant"):
            encode_row(make_row("1", logprob=Logprob(float("inf"), 0.0)))


def test_finish_reasons_of_rows_are_those_of_the_engine_and_scored() -> None:
    assert (set(get_args(FinishReason)) - {"cancelled"}) | {SCORED} == FINISH_REASONS
