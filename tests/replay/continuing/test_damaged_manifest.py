"""Damaged manifests: refused, and rebuilt by `--repair` from the command, the rows and the script's copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import RunDamagedError
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.results.manifest import read_manifest
from tests.replay.fakes import FakeLoader, make_conversation, make_plan
from tests.replay.runs import StopAfter, results, run


def plan_of(num_conversations: int = 5, **settings: Any) -> Plan:
    return make_plan(
        conversations=[make_conversation(f"c{n}", 1 + n % 3) for n in range(num_conversations)], **settings
    )


def change_seed(path: Path) -> None:
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def remove_identity(path: Path) -> None:
    path.write_text("{}")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in (".lock", "status.json")}


@pytest.mark.parametrize("damage", [change_seed, truncate, remove_identity])
def test_a_damaged_manifest_is_refused_and_repair_rebuilds_it_without_generating(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    run(tmp_path, plan_of())
    manifest, rows = read_manifest(tmp_path), results(tmp_path)
    damage(tmp_path / "manifest.json")
    damaged = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(RunDamagedError, match=r"manifest\.json") as caught:
        run(tmp_path, plan_of())
    assert "--repair" in str(caught.value.hint)
    loader = FakeLoader()
    run(tmp_path, plan_of(), loader, repair=True)
    assert loader.num_generated == 0
    repaired = read_manifest(tmp_path)
    assert repaired is not None
    assert manifest is not None
    assert repaired["identity"] == manifest["identity"]
    assert results(tmp_path) == rows
    assert (tmp_path / "manifest.damaged-1").read_bytes() == damaged


def test_an_interrupted_run_resumes_after_the_repair(tmp_path: Path) -> None:
    run(tmp_path / "whole", plan_of())
    run(tmp_path / "run", plan_of(), should_stop=StopAfter(4))
    truncate(tmp_path / "run" / "manifest.json")
    run(tmp_path / "run", plan_of(), repair=True)
    whole = [json.loads(line)["reply_ids"] for line in results(tmp_path / "whole").splitlines()]
    assert [json.loads(line)["reply_ids"] for line in results(tmp_path / "run").splitlines()] == whole


def test_the_command_of_another_run_repairs_nothing(tmp_path: Path) -> None:
    run(tmp_path, plan_of())
    truncate(tmp_path / "manifest.json")
    before = contents(tmp_path)
    with pytest.raises(RunDamagedError, match="this row is not of this command's run"):
        run(tmp_path, plan_of(seed=3), repair=True)
    with pytest.raises(RunDamagedError, match="not the script of this run") as caught:
        run(tmp_path, plan_of(4), repair=True)
    assert "give the settings and the script that the run was started with" in str(caught.value.hint)
    (tmp_path / "script.jsonl").unlink()
    del before["script.jsonl"]
    with pytest.raises(RunDamagedError, match="no copy of the script"):
        run(tmp_path, plan_of(), repair=True)
    assert contents(tmp_path) == before
