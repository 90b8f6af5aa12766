"""The first promise on the bundled model: rows do not depend on how a run was executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.results.row import Row

SCRIPT = Path(__file__).parent.parent / "datasets" / "demo.jsonl"
SETTINGS: dict[str, Any] = {"temperature": 1.6, "top_p": 1.0, "frequency": 0.2, "max_tokens": 24, "limit": 8}


def contents(row: Row) -> dict[str, Any]:
    values = row.as_dict()
    del values["timing"]
    return values


def rows(**settings: Any) -> list[dict[str, Any]]:
    return [contents(row) for row in rwkvbatch.run(SCRIPT, **{**SETTINGS, **settings}).rows()]


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    return rows(batch_size=1)


@pytest.mark.parametrize(
    "how",
    [{"batch_size": 5}, {"batch_size": 64}, {"threads": 1}, {"threads": 2}, {"state_memory": "1M"}],
    ids=lambda how: " ".join(f"{name}={value}" for name, value in how.items()),
)
def test_rows_are_the_same_however_the_run_is_made(how: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert rows(**how) == expected


@pytest.mark.parametrize("what", [{"seed": 1}, {"temperature": 0.5}, {"frequency": 20.0}], ids=str)
def test_rows_are_not_the_same_when_what_is_run_differs(what: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    """The negative control: the comparison above can fail."""
    assert [row["reply_ids"] for row in rows(**what)] != [row["reply_ids"] for row in expected]


def tokens(found: list[dict[str, Any]]) -> list[Any]:
    return [row["reply_ids"] for row in found]


def test_the_reference_operations_choose_the_same_tokens(expected: list[dict[str, Any]]) -> None:
    assert tokens(rows(backend="reference", batch_size=5)) == tokens(expected)


def test_a_sweeps_cell_is_the_run_of_its_settings(expected: list[dict[str, Any]]) -> None:
    """Neighbouring cells share the batch and the prefixes, and change nothing."""
    swept = rows(temperature=[0.4, SETTINGS["temperature"]])
    cell = [row for row in swept if row["cell"] == f"temp={SETTINGS['temperature']}"]
    assert tokens(cell) == tokens(expected)
