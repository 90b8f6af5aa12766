"""Names of run directories."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkvbatch.run.directory import default_directory
from rwkvbatch.text.safe import printable


@given(
    name=st.text(
        st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=250
    )
)
@example(name="\x1b]0;owned\x07.jsonl")
@example(name="..jsonl")
@example(name="-rf.jsonl")
@example(name="世" * 85)
def test_a_script_of_any_name_gets_a_directory_right_below_runs(name: str) -> None:
    path = default_directory([f"folder/{name}"])
    assert path.parent == Path("runs")
    assert re.search(r"-\d{8}-\d{6}(-\d+)?$", path.name)
    assert printable(path.name, keep_newlines=False) == path.name
    assert path.name[0] not in ".-"
    assert len(path.name.encode()) < 200


def test_a_directory_that_is_there_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    names: list[str] = []
    for _ in range(3):
        path = default_directory(["demo.jsonl"], tmp_path)
        path.mkdir()
        names.append(path.name)
    assert names == ["demo-20260101-000000", "demo-20260101-000000-2", "demo-20260101-000000-3"]


def test_standard_input_has_a_name_too(tmp_path: Path) -> None:
    assert default_directory(["-"], tmp_path).name.startswith("stdin-")
