"""Runs whose checks are functions, and the commands that read their directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.errors import ScriptError, UsageError
from rwkvbatch.replay.judging.recheck import recheck
from rwkvbatch.replay.merge import merge
from rwkvbatch.script.checks import ReplyFacts

SCRIPT: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "Hi", "expect": [{"long": 1}, {"all": [{"long": 1}, {"min_tokens": 1}]}]}
        ]
    },
    {"messages": [{"role": "user", "content": "Count."}], "expect": {"max_tokens": 9}},
]
FILE = "def long(facts, size): return len(facts.text) >= size\n"


def long(facts: ReplyFacts, size: int) -> bool:
    return len(facts.text) >= size


def longer(facts: ReplyFacts, size: int) -> bool:
    return len(facts.text) >= 1000 * size


def run(out: Path | None, checks: Any, scripts: Any = SCRIPT, **settings: Any) -> Any:
    return rwkvbatch.run(scripts, max_tokens=3, out=out, checks=checks, **settings)


def passed(directory: Path) -> list[list[bool]]:
    lines = sorted(
        map(json.loads, (directory / "results.jsonl").read_text().splitlines()), key=lambda r: r["conversation"]
    )
    return [[check["passed"] for check in line["checks"]] for line in lines]


def test_a_changed_function_judges_its_rows_again_and_no_others(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(out, {"long": long}).summary.checks_passed == 3
    same, changed = run(out, {"long": long}).reuse, run(out, {"long": longer}).reuse
    assert (same.kept, same.judged_again, same.to_generate) == (2, 0, 0)
    assert (changed.kept, changed.judged_again, changed.to_generate) == (1, 1, 0)
    assert passed(out) == [[False, False], [True]]


def test_check_needs_the_functions_and_changes_nothing_without_them(tmp_path: Path) -> None:
    out, module = tmp_path / "run", tmp_path / "checks.py"
    run(out, {"long": longer})
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(ScriptError, match="the check 'long' is or has a function, which is not given") as error:
        recheck(out)
    assert "--check-module" in str(error.value.hint)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    module.write_text(FILE)
    assert recheck(out, checks=module).changed == 1
    assert passed(out) == [[True, True], [True]]
    assert recheck(out, checks=module).changed == 0
    assert run(out, module).reuse.judged_again == 0


def test_other_commands_read_the_directory_without_the_functions(tmp_path: Path) -> None:
    parts = [tmp_path / "1", tmp_path / "2"]
    for number, part in enumerate(parts, 1):
        run(part, {"long": long}, shard=f"{number}/2")
    merge(parts, tmp_path / "merged")
    run(tmp_path / "hot", {"long": long}, temperature=9.0, top_p=1.0)
    assert passed(tmp_path / "merged") == [[True, True], [True]]
    (line,) = rwkvbatch.compare([tmp_path / "merged", tmp_path / "hot"], metrics=["tokens"]).comparisons
    assert line.difference == 0
    assert run(tmp_path / "merged", {"long": long}).reuse.kept == 2


@pytest.mark.parametrize(
    "entry",
    [
        {"any": [{"contains": "x", "ignore_case": True, "long": 1}, {"long": 2, "brief": 9, "weight": 2}]},
        {"all": [{"long": 1, "min_tokens": 1}, {"not": {"brief": 1, "contains": "~~~", "long": 1000}}]},
        {"not": {"long": 1000, "contains": "~~~"}},
    ],
)
def test_a_nested_entry_may_name_functions_besides_other_kinds(entry: Any, tmp_path: Path) -> None:
    script, module, out = tmp_path / "script.jsonl", tmp_path / "checks.py", tmp_path / "merged"
    user = {"role": "user", "content": "Hi", "expect": entry, "probes": [{"content": "Sure?", "expect": entry}]}
    script.write_text(json.dumps({"messages": [user]}) + "\n" + json.dumps({"messages": [user, user]}) + "\n")
    module.write_text(FILE + "def brief(facts, size): return len(facts.text) <= 1000 * size\n")
    parts = [str(tmp_path / "1"), str(tmp_path / "2")]
    given = ["--check-module", str(module)]
    for number, part in enumerate(parts, 1):
        shard = ["--shard", f"{number}/2", "--max-tokens", "3"]
        assert invoke(["run", str(script), "--out", part, *shard, *given]) == ExitCode.DONE
    assert invoke(["merge", *parts, "--out", str(out)]) == ExitCode.DONE
    assert passed(out) == [[True]] * 6
    assert invoke(["show", str(out)]) == ExitCode.DONE
    assert invoke(["check", str(out)]) == ExitCode.BAD_INPUT
    assert invoke(["check", str(out), *given]) == ExitCode.DONE


def test_a_script_copy_is_a_script_with_the_same_functions(tmp_path: Path) -> None:
    run(tmp_path / "a", {"long": long})
    copy = tmp_path / "a/script.jsonl"
    with pytest.raises(ScriptError, match="which is not given"):
        run(tmp_path / "b", None, copy)
    run(tmp_path / "b", {"long": long}, copy)
    assert (tmp_path / "b/script.jsonl").read_bytes() == copy.read_bytes()


def test_functions_of_this_process_are_refused_with_workers() -> None:
    with pytest.raises(UsageError, match="cannot judge in other processes"):
        run(None, {"long": long}, workers=2)


def test_workers_load_the_text_of_a_file(tmp_path: Path) -> None:
    module = tmp_path / "checks.py"
    module.write_text(FILE)
    run(tmp_path / "run", module, workers=2)
    assert passed(tmp_path / "run") == [[True, True], [True]]


@pytest.mark.parametrize("checks", [5, [long], long])
def test_another_argument_is_refused(checks: Any) -> None:
    with pytest.raises(UsageError, match=r"checks must be a path .* or a mapping of names to functions, or None"):
        run(None, checks)


def test_an_exception_fails_the_row_and_not_the_run() -> None:
    def broken(facts: ReplyFacts, size: int) -> bool:
        raise OSError("broken")

    function: Callable[..., bool] = broken
    rows = list(run(None, {"long": function}).rows())
    assert [row.error is None for row in rows] == [False, True]
    assert "the check 'long' failed with OSError: broken" in str(rows[0].error)
