"""Property tests: any bytes and any JSON object are read as conversations or refused with a message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkvbatch.errors import ScriptError
from rwkvbatch.script.reader import Script, read_scripts
from tests.script.writing import write


def read_or_error(path: str) -> Script | ScriptError:
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
    found = read_or_error(str(path))
    assert found.message if isinstance(found, ScriptError) else found.conversations


_KEYS = [
    *("messages", "id", "tags", "params", "expect", "body", "custom_id", "conversations", "turns", "question_id"),
    *("reference", "role", "content", "from", "value", "temperature", "stop", "defaults", "contains", "json", "any"),
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


@example(value={"messages": [{"role": "user", "content": "a"}]})  # shapes drawn at random are hardly ever read
@given(value=st.dictionaries(st.sampled_from(_KEYS), _SHAPES, max_size=5))
def test_any_object_is_read_or_refused(value: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    found = read_or_error(write(tmp_path_factory.mktemp("any") / "demo.jsonl", value))
    if isinstance(found, ScriptError):
        assert found.line in (1, None)
    else:
        assert found.conversations[0].turns
        assert len(found.conversations[0].sha256) == 64
