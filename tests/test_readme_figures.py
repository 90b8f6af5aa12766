"""The figures of README and docs/compare.md are what the program prints for `make sweep`.

`fixtures/sweep_scores.csv` holds the scores of that run: for each conversation and cell the turns of each repetition,
`0`, `1` or `5` (one half). Replies on the CPU are reproducible, so a part that is run again has the same scores.
"""

from __future__ import annotations

import csv
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.comparison import load
from tests.comparison.make_run import make_row, write_run

ROOT = Path(__file__).parents[1]
SCORES = {"0": 0.0, "1": 1.0, "5": 0.5}
COMMAND = "$ rwkvbatch compare runs/sweep\n"


def stored_scores() -> dict[tuple[str, str, int, int], float]:
    """By conversation, cell, repeat and turn."""
    with (ROOT / "tests/fixtures/sweep_scores.csv").open(encoding="utf-8") as file:
        return {
            (line["conversation"], line["cell"], repeat, turn): SCORES[score]
            for line in csv.DictReader(file, delimiter=";")
            for repeat, turns in enumerate(line["scores"].split())
            for turn, score in enumerate(turns)
        }


def row_of(key: tuple[str, str, int, int], score: float) -> dict[str, Any]:
    conversation, cell, repeat, turn = key
    check = {"kind": "k", "expected": "", "passed": score == 1, "score": score, "weight": 1.0, "detail": None}
    return make_row(conversation, cell=cell, repeat=repeat, turn=turn, checks=[check])


def test_readme_and_compare_md_show_what_compare_prints_for_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "sweep", [row_of(key, score) for key, score in stored_scores().items()], manifest={})
    monkeypatch.setenv("COLUMNS", "80")
    assert invoke(["compare", str(tmp_path / "sweep"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{COMMAND}{printed}```" in readme
    indented = "".join(f"    {line}\n" for line in f"{COMMAND}{printed}".splitlines())
    assert indented in (ROOT / "docs/compare.md").read_text(encoding="utf-8")


def test_the_readme_shows_what_the_demo_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `make demo` prints, with its settings, except times and the width of their column."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndemo:")[2].partition("\n\n")[0]
    assert "run datasets/demo.jsonl --preset greedy --out" in recipe
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    arguments = [str(ROOT / "datasets/demo.jsonl"), "--preset", "greedy", "--out", "runs/demo"]
    assert invoke(["run", *arguments]) == 1
    said = capsys.readouterr().err
    assert invoke(["show", "runs/demo", "--limit", "1"]) == 0
    said = said.partition("\n\n")[2] + "\n" + capsys.readouterr().out
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("`make demo` ends with\n\n```text\n")[2].partition("\n...\n")[0]
    times = re.compile(r"[\d,.]+(?: / [\d.]+)? +m?s\b|[\d,.]+(?= tokens/s)|first_token_s [\d.]+|\d+ read, [\d,]+|─+")
    printed = [" ".join(times.sub("T", line).split()) for line in said.splitlines()]
    expected = [" ".join(times.sub("T", line).split()) for line in shown.splitlines()]
    assert len(expected) > 15
    assert printed[: len(expected)] == expected


@pytest.mark.slow
def test_the_stored_scores_are_those_of_the_program(tmp_path: Path) -> None:
    grid = tomllib.loads((ROOT / "datasets/grid.toml").read_text(encoding="utf-8"))["grid"]
    settings: dict[str, Any] = {"top_p": 1.0, "repeats": 2, "limit": 6, **grid}
    rwkvbatch.run(ROOT / "datasets/styles.jsonl", out=tmp_path / "sweep", **settings)
    stored = stored_scores()
    table = load(tmp_path / "sweep")
    keys = table[["conversation", "cell", "repeat", "turn"]].itertuples(index=False, name=None)
    found = {key: score for key, score in zip(keys, table["score"], strict=True) if score == score}
    assert len(found) > 100
    assert found == {key: stored[key] for key in found}
