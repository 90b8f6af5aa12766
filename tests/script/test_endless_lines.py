"""Endless and huge lines: reading stops in bounded memory with an error that has the line number."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvbatch.config import ScriptLimits
from rwkvbatch.errors import RwkvBatchError, ScriptError, UsageError
from rwkvbatch.script.raw_lines import SKIP_FACTOR
from rwkvbatch.script.reader import KEPT_BYTES, read_scripts

GOOD = b'{"id": "good", "messages": [{"role": "user", "content": "Hi"}]}\n'


class Endless(io.RawIOBase):
    """A stream of the lines of `head` followed by an endless line."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.num_read = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size > 0
        line, _, rest = self.head.partition(b"\n")
        if self.head and len(line) < size:
            self.head = rest
            return line + b"\n"
        self.num_read += size
        return b"x" * size


class Stdin:
    def __init__(self, buffer: io.RawIOBase) -> None:
        self.buffer = buffer


@pytest.mark.parametrize("skip_bad", [True, False])
def test_an_endless_line_is_refused_with_its_number_in_bounded_memory(
    skip_bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Endless(GOOD)
    monkeypatch.setattr("sys.stdin", Stdin(stream))
    limit = 1_000_000
    tracemalloc.start()
    with pytest.raises(ScriptError, match="<stdin>:2: the line ") as caught:
        read_scripts(["-"], limits=ScriptLimits(max_line_bytes=limit), skip_bad=skip_bad)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.line == 2
    assert ("no end within 100,000,000 bytes" in str(caught.value)) == skip_bad
    assert stream.num_read <= (SKIP_FACTOR * limit + 2**20 if skip_bad else 2 * limit)
    assert peak < 2**22 + 10 * limit


def test_a_huge_line_is_set_aside_shortened(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"x" * 3_000_000 + b"\n" + GOOD)
    script = read_scripts([str(path)], limits=ScriptLimits(max_line_bytes=100_000), skip_bad=True)
    (skipped,) = script.skipped
    assert (len(skipped.raw), skipped.whole, skipped.source.line) == (KEPT_BYTES, False, 1)
    assert [found.id for found in script.conversations] == ["good"]


def test_more_bad_lines_than_conversations_allowed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(GOOD + b"bad\n" * 4)
    with pytest.raises(UsageError, match=r"s\.jsonl:5: more than 3 bad lines; the last one: .*not JSON"):
        read_scripts([str(path)], limits=ScriptLimits(max_conversations=3), skip_bad=True)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.just(GOOD),
            st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(90, 30_000)),
            st.sampled_from([b"\n", b"\r\n", b"\xef\xbb\xbf", b'{"', b"[" * 500]),
        )
    ).map(b"".join),
    skip_bad=st.booleans(),
)
def test_any_bytes_are_read_or_refused_with_the_file_name(content: bytes, skip_bad: bool, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    refused: RwkvBatchError | None = None
    try:
        script = read_scripts([str(path)], limits=ScriptLimits(max_line_bytes=100), skip_bad=skip_bad)
    except RwkvBatchError as error:
        refused = error
    if refused is not None:
        assert "s.jsonl" in str(refused)
        return
    assert script.conversations
    assert all(len(line.raw) <= 100 for line in script.skipped)
