"""Run directories: default names, removal, refusal of other runs, files set aside."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkvbatch.errors import RunDirectoryError, RunMismatchError, StorageError
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.results.directory import RunDirectory, default_directory
from rwkvbatch.results.manifest import refuse_other_run
from rwkvbatch.results.row import Row
from rwkvbatch.results.row_codec import encode_row
from rwkvbatch.results.store import RowStore
from tests.replay.fakes import make_plan, make_row


def row_of(plan: Plan) -> Row:
    """A row of the first conversation and cell of `plan`."""
    return make_row(plan.conversations[0].id, cell=plan.cells[0].name)


@given(name=st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=250))
@example(name="\x1b]0;owned\x07.jsonl")
@example(name="..jsonl")
@example(name="-rf.jsonl")
@example(name="世" * 85)
def test_a_script_of_any_name_gets_a_printable_directory_name_in_runs(name: str) -> None:
    path = default_directory([f"folder/{name}"])
    assert path.parent == Path("runs")
    assert re.search(r"-\d{8}-\d{6}(-\d+)?$", path.name)
    assert printable(path.name, keep_newlines=False) == path.name
    assert path.name[0] not in ".-"
    assert len(path.name.encode()) < 200


def test_the_default_name_of_an_existing_directory_gets_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    names: list[str] = []
    for _ in range(3):
        path = default_directory(["demo.jsonl"], tmp_path)
        path.mkdir()
        names.append(path.name)
    assert names == ["demo-20260101-000000", "demo-20260101-000000-2", "demo-20260101-000000-3"]


def test_a_run_that_never_started_removes_its_directory_and_parents(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    RunDirectory(tmp_path / "old" / "runs" / "a", "").close()
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_a_run_that_never_started_keeps_files_beside_its_directory(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "runs" / "a", "")
    (tmp_path / "runs" / "notes.txt").touch()
    directory.close()
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs", tmp_path / "runs" / "notes.txt"]


def test_a_directory_that_cannot_be_created_leaves_no_parent(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="cannot be made: File name too long"):
        RunDirectory(tmp_path / "runs" / ("a" * 300), "")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_in_a_directory_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "summary.json.tmp").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"is not empty and contains no run \(it has 'notes.txt'\)"):
        RunDirectory(tmp_path, "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "summary.json.tmp"]


def test_a_directory_with_rows_is_refused_to_another_run_and_one_without_is_not(tmp_path: Path) -> None:
    for identity in ({"seed": 1, "cells": {}}, {"seed": 2, "cells": {}}):
        directory = RunDirectory(tmp_path, "")
        directory.claim(identity, dict)
        directory.close()
        (tmp_path / "results.jsonl").touch()
        assert json.loads((tmp_path / "manifest.json").read_text())["identity"] == identity
    (tmp_path / "results.jsonl").write_bytes(b"x")
    directory = RunDirectory(tmp_path, "")
    with pytest.raises(RunMismatchError, match="seed: existing run: 2; this command: 3"):
        directory.claim({"seed": 3, "cells": {}}, dict)
    directory.close()


@pytest.mark.parametrize(
    ("wanted", "lines"),
    [
        ({"seed": 3, "given_for_all": ["seed"]}, ["    seed: existing run: 2; this command: 3"]),
        (
            {"seed": 2, "given_for_all": ["seed"]},
            [
                "    settings given for all conversations, which override a script's `params`: "
                "existing run: none; this command: seed"
            ],
        ),
    ],
)
def test_differing_settings_are_listed_before_how_they_were_given(wanted: dict[str, object], lines: list[str]) -> None:
    existing = {"identity": {"seed": 2, "given_for_all": []}}
    with pytest.raises(RunMismatchError) as caught:
        refuse_other_run(Path("runs/x"), existing, wanted)
    assert str(caught.value).splitlines()[1:] == lines


def differences(existing: dict[str, Any], wanted: dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(RunMismatchError) as caught:
        refuse_other_run(Path("runs/x"), existing, wanted, **options)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("before", "now", "difference"),
    [
        ({}, {}, "cells.a.weights_sha256 (model): existing run: 1; this command: 2"),
        (
            {"files": {"a": {"model": "old.pth"}}},
            {"files": {"a": {"model": "new.pth"}}},
            "cells.a.weights_sha256 (model): existing run: old.pth (1); this command: new.pth (2)",
        ),
        (
            {"files": {"a": {}}},
            {"files": {"b": {"model": "b.pth"}}},
            "cells.a.weights_sha256 (model): existing run: 1; this command: 2",
        ),
    ],
)
def test_differing_files_are_named_when_the_manifests_have_their_names(
    before: dict[str, Any], now: dict[str, Any], difference: str
) -> None:
    sides = [{"cells": {"a": {"weights_sha256": number}}} for number in (1, 2)]
    assert differences({"identity": sides[0], "about": before}, sides[1], about=now) == [difference]


def test_of_many_differences_the_first_are_listed() -> None:
    sides = [{f"setting-{number:02}": side for number in range(30)} for side in (1, 2)]
    lines = differences({"identity": sides[0]}, sides[1])
    assert lines[0] == "setting-00: existing run: 1; this command: 2"
    assert lines[-1] == f"and {30 - (len(lines) - 1)} more"


def test_an_extension_without_a_common_cell_is_refused_with_the_nearest_cell() -> None:
    old = {"cells": {"a": {"temperature": 1.0, "top_p": 0.5}}, "repeats": 1}
    refuse_other_run(Path("runs/x"), {"identity": old}, {**old, "repeats": 3}, extend=True)
    new = {"cells": {"b": {"temperature": 2.0, "top_p": 0.9}, "c": {"temperature": 2.0, "top_p": 0.5}}}
    lines = differences({"identity": old}, new, extend=True)
    assert lines == ["cells.a (this command: c).temperature: existing run: 1.0; this command: 2.0"]
    refuse_other_run(Path("runs/x"), {"identity": {}}, {}, extend=True)


def test_a_full_disk_is_reported_with_the_manifest_and_not_with_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    monkeypatch.setattr("os.write", full)
    directory = RunDirectory(tmp_path / "out", "")
    with pytest.raises(StorageError, match=r"manifest\.json: write failed: No space left"):
        directory.claim({"seed": 1}, dict)
    directory.close()


def test_lines_set_aside_when_a_run_is_resumed_are_logged_with_their_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan()
    directory = RunDirectory(tmp_path, "")
    (tmp_path / "results.jsonl").write_bytes(b"damaged\n" + encode_row(row_of(plan)) + b"torn")
    RowStore(directory.folder, plan.num_rows, plan.row_number, repair=True).close()
    path = tmp_path / "results.jsonl"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: the last write was cut off; 4 bytes set aside in results.torn-1",
        f"{path}: 1 damaged line set aside in results.damaged, to be run again",
    ]
    caplog.clear()
    RowStore(directory.folder, plan.num_rows, plan.row_number).close()
    assert not caplog.records
    directory.close()


def test_the_default_name_for_standard_input_is_stdin(tmp_path: Path) -> None:
    assert default_directory(["-"], tmp_path).name.startswith("stdin-")
