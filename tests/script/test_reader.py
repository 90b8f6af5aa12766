"""Files to conversations: places, ids, limits, hostile lines."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.errors import ScriptError, UsageError
from rwkvbatch.script.reader import Limits, Script, read_scripts
from rwkvbatch.script.records import SourceLine
from tests.script.writing import assistant, conversation, read, user, write


def test_a_conversation_knows_what_it_says_and_where_it_stood(tmp_path: Path) -> None:
    line = {
        "id": "names-1",
        "tags": ["memory", "memory"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            user("My name is Ada."),
            assistant("Hi Ada!"),
            user("What is my name?", expect=[{"contains": "Ada"}]),
        ],
        "params": {"temperature": 0.2, "stop": ["!"], "seed": 7},
    }
    (found,) = read(tmp_path, b"", line).conversations
    assert (found.id, found.system, found.tags) == ("names-1", "Be brief.", ("memory",))
    assert [(turn.user, turn.reference) for turn in found.turns] == [
        ("My name is Ada.", "Hi Ada!"),
        ("What is my name?", None),
    ]
    assert [check.kind for check in found.turns[1].checks] == ["contains"]
    assert found.params == {"temperature": 0.2, "stop": ("!",), "seed": 7}
    assert found.source == SourceLine(str(tmp_path / "demo.jsonl"), 2)


def test_two_user_messages_in_a_row_are_two_turns(tmp_path: Path) -> None:
    (found,) = read(tmp_path, conversation(user("a"), user("b"), assistant("c"))).conversations
    assert [(turn.user, turn.reference) for turn in found.turns] == [("a", None), ("b", "c")]


def test_lines_without_an_id_are_named_by_their_line(tmp_path: Path) -> None:
    script = read(tmp_path, conversation(), b"", b"  ", conversation(id="x"), conversation())
    assert [found.id for found in script.conversations] == ["line-1", "x", "line-5"]


def test_with_several_files_lines_are_named_by_file_and_line(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, conversation()) for name in ("a.jsonl", "b.jsonl"))
    assert [found.id for found in read_scripts([first, second]).conversations] == ["a.jsonl:1", "b.jsonl:1"]


def test_ids_must_differ_between_all_files(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, conversation(id="x")) for name in ("a.jsonl", "b.jsonl"))
    with pytest.raises(ScriptError, match=r"b\.jsonl:1: the id 'x' was already used at .*a\.jsonl:1"):
        read_scripts([first, second])


@pytest.mark.parametrize("given", ["a/b", "../../etc", "..", "ключ", "a b", "x" * 200, "=1+1"])
def test_any_printable_id_is_taken(given: str, tmp_path: Path) -> None:
    assert read(tmp_path, conversation(id=given)).conversations[0].id == given


@pytest.mark.parametrize(
    "given", ["", "x" * 201, "a\nb", "a\x1b[0m", "a\x00", " a", "a ", "\u202ea", "a\u2028b"]
)
def test_other_ids_are_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"demo\.jsonl:1: id: cannot be an id") as caught:
        read(tmp_path, conversation(id=given))
    assert "1 to 200 printable characters" in str(caught.value.hint)


def test_standard_input_is_read_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps(conversation()).encode() + b"\n{}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(ScriptError, match="<stdin>:2: messages: is missing"):
        read_scripts(["-"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content[:-3])))
    assert read_scripts(["-"]).conversations[0].id == "line-1"


def test_standard_input_cannot_be_given_twice_and_something_must_be_given() -> None:
    with pytest.raises(UsageError, match="only once"):
        read_scripts(["-", "-"])
    with pytest.raises(UsageError, match="no script"):
        read_scripts([])


def test_a_byte_order_mark_and_carriage_returns_at_line_ends_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(conversation(id=i)).encode() for i in "ab"))
    assert [found.id for found in read_scripts([str(path)]).conversations] == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n", b'{"defaults": {}}\n'])
def test_a_file_without_a_conversation_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    path.write_bytes(content)
    with pytest.raises(ScriptError, match=r"demo\.jsonl: holds no conversation"):
        read_scripts([str(path)])


def test_a_file_that_cannot_be_read_to_its_end_is_refused() -> None:
    # Reading a process's memory from address 0 fails after opening succeeded, as a broken disk would.
    with pytest.raises(ScriptError, match="/proc/self/mem:1: cannot be read"):
        read_scripts(["/proc/self/mem"])


@pytest.mark.parametrize("name", ["none.jsonl", ".", "a\x00b"])
def test_a_file_that_cannot_be_opened_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="cannot be read"):
        read_scripts([str(tmp_path / name)])


GOOD = json.dumps(conversation(id="good")).encode()
HI = b'{"messages": [{"role": "user", "content": ""}], '
BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"messages": [{"role": "user", "content": "\xff"}]}', r"2:44: not UTF-8: byte 0xff"),
    (b'{"messages": [{"role": "user", "content": "\xc3\xa9\xe4\xbd"}]}', r"2:45: not UTF-8: byte 0xe4"),
    (b"\xef\xbb\xbf" + GOOD, r"2:1: not JSON: Unexpected UTF-8 BOM"),
    (b'{"messages": "\x00"}', r"2:15: not JSON: Invalid control character"),
    (b"\x00", r"2:1: not JSON"),
    (b'{"messages": [', r"2:15: not JSON"),
    (b"{", r"2:2: not JSON"),
    (b"{} {}", r"2:4: not JSON: Extra data"),
    (b"{'messages': 1}", r"2:2: not JSON"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', r"2: half of a surrogate pair, \\ud800"),
    (b'{"\\udc00": 1}', r"2: half of a surrogate pair, \\udc00"),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, r"2: nested deeper than 64 levels"),
    (b'{"a":' * 100 + b"1" + b"}" * 100, r"2: nested deeper than 64 levels"),
    (b"[" * 10_000, r"2: nested deeper than 64 levels"),
    (b'{"params": {"temperature": NaN}}', r"2: NaN is not a JSON number"),
    (b'{"params": {"temperature": -Infinity}}', r"2: -Infinity is not a JSON number"),
    (b'{"params": {"temperature": 1e999}}', r"2: the number 1e999 is out of range"),
    (b'{"params": {"seed": ' + b"9" * 5000 + b"}}", r"2: a number with 5000 digits is out of range"),
    (b'{"id": "a", "id": "b", "messages": []}', r"2: the key 'id' comes twice"),
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
    (b'{"messages": [{"role": "user", "content": 3}], "id": "x"}', r"2: messages\[0\]\.content: must be a string"),
    (b'{"messages": [{"role": "usr", "content": ""}], "id": "x"}', r"2: messages\[0\]\.role: .*got 'usr'"),
    (b'{"messages": [{"role": "user", "expct": 1}], "id": "x"}', r"2: messages\[0\]: unknown key 'expct'"),
    (HI + b'"id": 3}', r"2: id: must be a string, got 3"),
    (HI + b'"tags": "x"}', r"2: tags: must be an array, got 'x'"),
    (HI + b'"tags": [3]}', r"2: tags\[0\]: must be a string, got 3"),
    (HI + b'"params": {"temp": 1}}', r"2: params: unknown key 'temp'"),
    (HI + b'"params": {"top_p": 2}}', r"2: params: top_p: .*got 2"),
    (HI + b'"params": {"top_p": true}}', r"2: params\.top_p: must not be a boolean"),
    (HI + b'"params": {"seed": 1.5}}', r"2: params\.seed: must be an integer"),
    (HI + b'"params": []}', r"2: params: must be an object"),
    (HI + b'"expect": [{"equal": 1}]}', r"2: expect\[0\]: unknown key 'equal'"),
    (b'{"defaults": {}}', r"2: `defaults` may only be the first line"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_refused_with_its_place_and_a_way_out(
    line: bytes, message: str, tmp_path: Path
) -> None:
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


def test_setting_all_lines_aside_leaves_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="holds no conversation that can be used"):
        read(tmp_path, b"{", skip_bad=True)


def test_unknown_keys_name_what_was_probably_meant(tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, {"mesages": []})
    assert caught.value.hint == "did you mean 'messages'?"
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, conversation(zzz=1, id="x"))
    assert caught.value.hint == "allowed: expect, id, messages, params, tags"


def test_indented_json_and_arrays_are_told_how_to_become_lines(tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, b"{", b'  "messages": []', b"}")
    assert "indented JSON" in str(caught.value.hint)
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, [conversation()])
    assert "jq -c '.[]'" in str(caught.value.hint)


def test_a_line_over_the_limit_is_refused_and_the_next_line_is_still_line_three(tmp_path: Path) -> None:
    limits = Limits(max_line_bytes=200)
    long = conversation(user("x" * 3_000_000))
    with pytest.raises(ScriptError, match=r":2: the line is longer than 200 bytes") as caught:
        read(tmp_path, GOOD, long, limits=limits)
    assert "max_line_bytes" in str(caught.value.hint)
    script = read(tmp_path, GOOD, long, conversation(), limits=limits, skip_bad=True)
    assert [found.source.line for found in script.conversations] == [1, 3]
    assert (len(script.skipped[0].raw), script.skipped[0].whole) == (200, False)


def test_a_line_without_an_end_is_refused_without_waiting_for_it() -> None:
    with pytest.raises(ScriptError, match=r"zero:1: the line is longer than 1,000 bytes"):
        read_scripts(["/dev/zero"], limits=Limits(max_line_bytes=1000))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_of_exactly_the_limit_is_read(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    path.write_bytes(GOOD + end)
    assert read_scripts([str(path)], limits=Limits(max_line_bytes=len(GOOD))).conversations
    with pytest.raises(ScriptError, match="longer than"):
        read_scripts([str(path)], limits=Limits(max_line_bytes=len(GOOD) - 1))


def test_a_huge_line_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    with path.open("wb") as file:
        file.write(b'{"messages": "')
        file.seek(300_000_000)
        file.write(b'"}\n')
    tracemalloc.start()
    try:
        with pytest.raises(ScriptError, match="longer than 10,000,000 bytes"):
            read_scripts([str(path)])
        with pytest.raises(ScriptError, match="no conversation that can be used"):
            read_scripts([str(path)], skip_bad=True)  # reads past it
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_more_turns_than_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r":1: has 20,000 turns, more than 10,000"):
        read(tmp_path, conversation(*[user()] * 20_000))
    assert read(tmp_path, conversation(*[user()] * 3), limits=Limits(max_turns=3)).conversations


def test_a_million_turns_end_at_the_limit_of_a_line(tmp_path: Path) -> None:
    line = b'{"messages": [' + b",".join([b'{"role":"user","content":""}'] * 1_000_000) + b"]}"
    with pytest.raises(ScriptError, match="longer than 10,000,000 bytes"):
        read(tmp_path, line)


def test_more_conversations_than_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than 2 conversations"):
        read(tmp_path, *[conversation()] * 3, limits=Limits(max_conversations=2), skip_bad=True)


def test_defaults_are_given_to_every_conversation_of_their_file_only(tmp_path: Path) -> None:
    defaults = {"tags": ["all"], "params": {"temperature": 0, "top_p": 1}, "expect": {"max_tokens": 9}}
    first = write(
        tmp_path / "a.jsonl",
        {"defaults": defaults},
        conversation(user("a", expect={"equals": "x"}), user("b"), tags=["own"], params={"top_p": 0.5}),
    )
    second = write(tmp_path / "b.jsonl", conversation())
    one, other = read_scripts([first, second]).conversations
    assert (one.tags, one.params) == (("all", "own"), {"temperature": 0, "top_p": 0.5})
    assert [[check.kind for check in turn.checks] for turn in one.turns] == [
        ["equals", "max_tokens"],
        ["max_tokens"],
    ]
    assert (other.tags, other.params, other.turns[0].checks) == ((), {}, ())


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"tag": []}, "defaults: unknown key 'tag'"),
        ({"params": {"temp": 1}}, r"defaults\.params: unknown key 'temp'"),
        ({"expect": [{"regex": "("}]}, r"defaults\.expect\[0\]\.regex: is no regular expression"),
        ([], "defaults: must be an object"),
    ],
)
def test_wrong_defaults_are_refused(defaults: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=":1: " + message):
        read(tmp_path, {"defaults": defaults}, conversation())


def test_a_conversations_own_checks_are_given_to_every_turn(tmp_path: Path) -> None:
    (found,) = read(tmp_path, conversation(user("a"), user("b"), expect={"not_contains": "!"})).conversations
    assert [[check.kind for check in turn.checks] for turn in found.turns] == [["not_contains"]] * 2


def test_the_hash_of_a_script_is_that_of_what_it_says(tmp_path: Path) -> None:
    lines = [conversation(user("a"), id="a"), conversation(user("b"), id="b")]
    plain = read(tmp_path, *lines).sha256
    assert read(tmp_path, b"", *(dict(reversed(line.items())) for line in lines)).sha256 == plain
    assert read(tmp_path, *reversed(lines)).sha256 != plain
    assert read(tmp_path, conversation(user("A"), id="a"), lines[1]).sha256 != plain


def outcome(path: str) -> Script | ScriptError:
    try:
        return read_scripts([path])
    except ScriptError as error:
        return error


_FRAGMENTS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"messages"',
    b":",
    b",",
    b'"role"',
    b'"user"',
    b'"content"',
    b"1",
    b"\n",
    b"\\u",
    b"\xff",
]
_BYTES = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(_FRAGMENTS), max_size=40).map(b"".join))


@given(data=_BYTES)
def test_any_bytes_are_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "demo.jsonl"
    path.write_bytes(data)
    found = outcome(str(path))
    assert found.message if isinstance(found, ScriptError) else found.conversations


_KEYS = [
    *(
        "messages",
        "id",
        "tags",
        "params",
        "expect",
        "body",
        "custom_id",
        "conversations",
        "turns",
        "question_id",
    ),
    *(
        "reference",
        "role",
        "content",
        "from",
        "value",
        "temperature",
        "stop",
        "defaults",
        "contains",
        "json",
        "any",
    ),
]
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
    st.sampled_from(["user", "system", "assistant", "human"]),
)  # fmt: skip
_SHAPES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(_KEYS), st.text(max_size=5)), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(value=st.dictionaries(st.sampled_from(_KEYS), _SHAPES, max_size=5))
def test_any_object_is_read_or_refused(
    value: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = outcome(write(tmp_path_factory.mktemp("any") / "demo.jsonl", value))
    if isinstance(found, ScriptError):
        assert found.line in (1, None)
    else:
        assert found.conversations[0].turns
        assert len(found.sha256) == 64


def test_a_file_of_bad_lines_alone_says_why_the_first_one_is_bad(tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, b"{", skip_bad=True)
    said = str(caught.value)
    assert "holds no conversation that can be used; its first bad line: " in said
    assert "demo.jsonl:1:2: not JSON" in said


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"temperature": -1}, "params: temperature: must be a number in [0, 100], got -1"),
        ({"ban": ["a"]}, "params: ban.0: must be token ids, whole numbers from 0 up, got 'a'"),
        ({"order": "up"}, "params: order: must be 'top-p-first' or 'temperature-first', got 'up'"),
    ],
)
def test_a_param_says_what_it_may_be(params: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        read(tmp_path, conversation(params=params))
    assert said in str(caught.value)
