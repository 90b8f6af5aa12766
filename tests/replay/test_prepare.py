from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.replay.api import prepare


def told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *params: Mapping[str, Any],
    lists: Mapping[str, Any] | None = None,
    **values: Any,
) -> str:
    """What is said about a script with a conversation for each of `params`."""
    script = tmp_path / "s.jsonl"
    lines = [{"messages": [{"role": "user", "content": "Hi"}], "params": own} for own in params or [{}]]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level(logging.WARNING, logger="rwkvbatch"):
        prepare(script, **values, **(lists or {}))
    return caplog.text


class TestRepeatsOfGreedyReplies:
    @pytest.mark.parametrize("values", [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}, {"preset": "greedy"}])
    def test_are_said_to_change_nothing(
        self, values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        said = told(tmp_path, caplog, repeats=5, **values)
        assert "--repeats 5 changes nothing: replies are greedy" in said
        assert "leave it out, or sample" in said

    @pytest.mark.parametrize("values", [{"repeats": 5}, {"temperature": 0}])
    def test_not_without_repeats_nor_where_replies_are_sampled(
        self, values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert told(tmp_path, caplog, **values) == ""

    def test_in_some_cells_are_told_with_their_names(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        said = told(tmp_path, caplog, repeats=2, lists={"temperature": [0, 1]})
        assert "changes nothing in the cell temp=0: " in said
        assert "run such cells without it" in said

    def test_in_all_cells_are_told_without_their_names(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert "nothing in any cell: " in told(tmp_path, caplog, repeats=2, top_p=0, lists={"temperature": [0.5, 1]})

    def test_of_many_cells_only_some_are_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        lists = {"temperature": [0, 1], "top_p": [n / 10 for n in range(1, 11)]}
        said = told(tmp_path, caplog, repeats=2, lists=lists)
        assert "temp=0,top_p=0.8 and 2 more: " in said

    def test_are_not_told_of_where_one_conversation_samples_by_its_own_params(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        own = ({}, {"temperature": 1})
        config = tmp_path / "c.toml"
        config.write_text("temp = 0\n")
        script = tmp_path / "s.jsonl"
        lines = [{"messages": [{"role": "user", "content": "Hi"}], "params": params} for params in own]
        script.write_text("".join(json.dumps(line) + "\n" for line in lines))
        prepare(script, repeats=2, config=config)
        assert caplog.text == ""
        assert "nothing: " in told(tmp_path, caplog, *own, repeats=2, temperature=0)

    def test_are_told_of_where_every_conversation_is_greedy_by_its_own_params(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert "nothing: " in told(tmp_path, caplog, {"temperature": 0}, {"top_p": 0}, repeats=2)
