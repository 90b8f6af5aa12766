"""Lines that cannot be read: refused with file, line and hint, or set aside."""

from __future__ import annotations

import io
import lzma
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.config import ScriptLimits
from rwkvbatch.errors import ScriptError
from rwkvbatch.script.reader import read_scripts
from tests.script.writing import GOOD, conversation, read, write

HI = b'{"messages": [{"role": "user", "content": ""}], '


BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"messages": [{"role": "user", "content": "\xff"}]}', r"2:44: not UTF-8: byte 0xff"),
    (b'{"messages": [{"role": "user", "content": "\xc3\xa9\xe4\xbd"}]}', r"2:45: not UTF-8: byte 0xe4"),
    (b"\xef\xbb\xbf" + GOOD, r"2:1: not JSON: Unexpected UTF-8 BOM"),
    (b'{"messages": "\x00"}', r"2:15: a NUL byte: is it UTF-16\?"),
    (b'{"messages": "\x01"}', r"2:15: not JSON: Invalid control character"),
    (b"\x00", r"2:1: a NUL byte"),
    ('{"messages": []}'.encode("utf-16"), r"2:1: not UTF-8: byte 0xff"),
    ('{"messages": []}'.encode("utf-16-le"), r"2:2: a NUL byte"),
    (b'{"messages": [', r"2:15: not JSON"),
    (b"{", r"2:2: not JSON"),
    (b"{} {}", r"2:4: not JSON: Extra data"),
    (b"{'messages': 1}", r"2:2: not JSON"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', r"2: unpaired surrogate, \\ud800"),
    (b'{"\\udc00": 1}', r"2: unpaired surrogate, \\udc00"),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, r"2: nested deeper than 64 levels"),
    (b'{"a":' * 100 + b"1" + b"}" * 100, r"2: nested deeper than 64 levels"),
    (b"[" * 10_000, r"2: nested deeper than 64 levels"),
    (b'{"params": {"temperature": NaN}}', r"2: NaN is not a JSON number"),
    (b'{"params": {"temperature": -Infinity}}', r"2: -Infinity is not a JSON number"),
    (b'{"params": {"temperature": 1e999}}', r"2: the number 1e999 is out of range"),
    (b'{"params": {"seed": ' + b"9" * 5000 + b"}}", r"2: a number with 5000 digits is out of range"),
    (b'{"id": "a", "id": "b", "messages": []}', r"2: the key 'id' is repeated"),
    (b'[{"messages": []}]', r"2: must be a JSON object, got an array"),
    (b"3", r"2: must be a JSON object, got a number"),
    (b'"text"', r"2: must be a JSON object, got a string"),
    (b"true", r"2: must be a JSON object, got a boolean"),
    (b"null", r"2: must be a JSON object, got null"),
    (GOOD, r"2: the id 'good' was already used at .*:1"),
    (b'{"mesages": []}', r"2: unknown key 'mesages'"),
    (b'{"messages": {}}', r"2: messages: must be an array, got \{\}"),
    (b'{"messages": []}', r"2: has no user message"),
    (b'{"messages": [3]}', r"2: messages\[0\]: must be an object, got a number"),
    (b'{"messages": [{"role": "user"}], "id": "x"}', r"2: messages\[0\]\.content: is missing"),
    (b'{"messages": [{"role": "user", "content": null}], "tags": []}', r"2: messages\[0\]\.content: .*, got null"),
    (b'{"messages": [{"role": "user", "content": 3}], "id": "x"}', r"2: messages\[0\]\.content: must be a string"),
    (b'{"messages": [{"role": "usr", "content": ""}], "id": "x"}', r"2: messages\[0\]\.role: .*got 'usr'"),
    (b'{"messages": [{"role": "user", "expct": 1}], "id": "x"}', r"2: messages\[0\]: unknown key 'expct'"),
    (HI + b'"id": 3}', r"2: id: must be a string, got 3"),
    (HI + b'"tags": "x"}', r"2: tags: must be an array, got 'x'"),
    (HI + b'"tags": [3]}', r"2: tags\[0\]: must be a string, got 3"),
    (HI + b'"params": {"heat": 1}}', r"2: params: unknown key 'heat'"),
    (HI + b'"params": {"top_p": 2}}', r"2: params: top_p: .*got 2"),
    (HI + b'"params": {"top_p": true}}', r"2: params\.top_p: must not be a boolean"),
    (HI + b'"params": {"seed": 1.5}}', r"2: params\.seed: must be an integer"),
    (HI + b'"params": []}', r"2: params: must be an object"),
    (HI + b'"expect": [{"equal": 1}]}', r"2: expect\[0\]: unknown key 'equal'"),
    (b'{"defaults": {}}', r"2: `defaults` may only be the first line"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_refused_with_its_line_and_column(line: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"demo\.jsonl:" + message) as caught:
        read(tmp_path, GOOD, line)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_can_be_set_aside(line: bytes, message: str, tmp_path: Path) -> None:
    script = read(tmp_path, GOOD, line, conversation(id="last"), skip_bad=True)
    assert [found.id for found in script.conversations] == ["good", "last"]
    (skipped,) = script.skipped
    assert (skipped.raw, skipped.whole, skipped.source.line) == (line, True, 2)
    assert skipped.error.line == 2


def test_a_script_whose_lines_are_all_set_aside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="contains no conversation that can be used"):
        read(tmp_path, b"{", skip_bad=True)


def test_the_hint_for_an_unknown_key_is_a_close_match_or_the_allowed_keys(tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, {"mesages": []})
    assert caught.value.hint == "did you mean 'messages'?"
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, conversation(zzz=1, id="x", tags=[]))
    assert caught.value.hint == (
        "allowed: expect, id, messages, params, probes, tags, tool_choice, tools; "
        "`rwkvbatch script convert` writes lines of other programs with these keys alone"
    )


def test_the_hint_for_indented_json_and_arrays_says_how_to_make_lines(tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, b"{", b'  "messages": []', b"}")
    assert "indented JSON" in str(caught.value.hint)
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, [conversation()])
    assert "jq -c '.[]'" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"tag": []}, "defaults: unknown key 'tag'"),
        ({"params": {"heat": 1}}, r"defaults\.params: unknown key 'heat'"),
        ({"expect": [{"regex": "("}]}, r"defaults\.expect\[0\]\.regex: is not a regular expression"),
        ([], "defaults: must be an object"),
    ],
)
def test_invalid_defaults_are_refused(defaults: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=":1: " + message):
        read(tmp_path, {"defaults": defaults}, conversation())


def test_the_error_for_only_bad_lines_has_the_first_one(tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, b"{", skip_bad=True)
    message = str(caught.value)
    assert "contains no conversation that can be used; its first bad line: " in message
    assert "demo.jsonl:1:2: not JSON" in message


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1}, "params: temperature: must be a number in [0, 100], got -1"),
        ({"ban": ["a"]}, "params: banned_token_ids.0: must be token ids, whole numbers in [0, 2147483647], got 'a'"),
        (
            {"order": "up"},
            "params: order: must be 'top-p-first', 'top-k-first', 'temperature-first' or 'temperature-top-k', got 'up'",
        ),
    ],
)
def test_an_invalid_param_is_refused_with_what_is_allowed(
    params: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, conversation(params=params))
    assert message in str(caught.value)


class TestHintAboutOtherLines:
    """The hint of the first bad line counts the other bad lines."""

    @staticmethod
    def hint(tmp_path: Path, *lines: Any) -> str:
        with pytest.raises(ScriptError, match=r"demo\.jsonl:\d: ") as caught:
            read(tmp_path, *lines)
        return str(caught.value.hint)

    def test_how_many_are_bad_and_good_and_the_way_to_run_those(self, tmp_path: Path) -> None:
        good = [conversation(id=f"c{n}") for n in range(5)]
        lines = [{"defaults": {}}, *good[:2], {"mesages": []}, b"", b"{", good[2], conversation(id="c0"), *good[3:]]
        assert self.hint(tmp_path, *lines) == (
            "did you mean 'messages'?\n"
            "  2 more lines are bad in this file, 5 can be used\n"
            "  --skip-bad of `run`, `score` and `script convert` sets bad lines aside and takes the others"
        )

    def test_one_bad_line_suggests_skip_bad(self, tmp_path: Path) -> None:
        hint = self.hint(tmp_path, {"mesages": []}, conversation())
        assert (
            hint == "did you mean 'messages'?\n"
            "  --skip-bad of `run`, `score` and `script convert` sets bad lines aside and takes the others"
        )

    def test_only_bad_lines_are_counted_without_suggesting_skip_bad(self, tmp_path: Path) -> None:
        hint = self.hint(tmp_path, {"mesages": []}, b"[]")
        assert hint == "did you mean 'messages'?\n  1 more line is bad in this file, 0 can be used"

    def test_counting_stops_at_a_limit_of_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rwkvbatch.script.reader.COUNTED_BYTES", 40)
        hint = self.hint(tmp_path, {"mesages": []}, *[b'{"a": 1}'] * 10, conversation())
        assert "at least 4 more lines are bad in this file\n  --skip-bad" in hint

    def test_counting_stops_at_a_line_that_is_too_long(self, tmp_path: Path) -> None:
        path = write(tmp_path / "demo.jsonl", b"{", b"{", b"x" * 200, b"{")
        with pytest.raises(ScriptError) as caught:
            read_scripts([path], limits=ScriptLimits(max_line_bytes=100))
        assert "at least 1 more line is bad" in str(caught.value.hint)

    def test_the_rest_of_a_pipe_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"{\n")
        with os.fdopen(writer, "wb"), os.fdopen(reader, "rb") as pipe:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
            with pytest.raises(ScriptError) as caught:
                read_scripts(["-"])
        assert "sets bad lines aside" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ('{"messages": []}\n'.encode("utf-16"), "iconv -f UTF-16"),
        ('{"messages": []}\n'.encode("utf-16-be"), "iconv -f UTF-16"),
        (b"\x28\xb5\x2f\xfd\x24\x00\x01", "zstd -d"),
        (lzma.compress(GOOD), "xz -d"),
        (b"caf\xe9", "save the file as UTF-8"),
    ],
)
def test_a_file_of_another_encoding_or_compression_is_refused_with_the_way_out(
    data: bytes, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(data)
    with pytest.raises(ScriptError) as caught:
        read_scripts([str(path)])
    assert hint in (caught.value.hint or "")
