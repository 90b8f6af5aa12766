from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import UsageError
from rwkvbatch.replay.prepare import prepare


def warnings_for(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *params: Mapping[str, Any],
    lists: Mapping[str, Any] | None = None,
    **values: Any,
) -> str:
    """The warnings about a script with a conversation for each of `params`."""
    script = tmp_path / "s.jsonl"
    lines = [{"messages": [{"role": "user", "content": "Hi"}], "params": each} for each in params or [{}]]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level(logging.WARNING, logger="rwkvbatch"):
        prepare(script, **values, **(lists or {}))
    return caplog.text


class TestRepeatsOfGreedyReplies:
    @pytest.mark.parametrize("values", [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}, {"preset": "greedy"}])
    def test_repeats_of_greedy_replies_are_warned_about(
        self, values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        warnings = warnings_for(tmp_path, caplog, repeats=5, **values)
        assert "--repeats 5 changes nothing: replies are greedy" in warnings
        assert "leave it out, or sample" in warnings

    @pytest.mark.parametrize("values", [{"repeats": 5}, {"temperature": 0}])
    def test_no_warning_without_repeats_or_where_replies_are_sampled(
        self, values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert warnings_for(tmp_path, caplog, **values) == ""

    def test_the_warning_names_the_greedy_cells(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        warnings = warnings_for(tmp_path, caplog, repeats=2, lists={"temperature": [0, 1]})
        assert "changes nothing in the cell temp=0: " in warnings
        assert "run such cells without it" in warnings

    def test_the_warning_names_no_cell_when_all_are_greedy(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert "nothing in any cell: " in warnings_for(
            tmp_path, caplog, repeats=2, top_p=0, lists={"temperature": [0.5, 1]}
        )

    def test_the_warning_names_only_some_of_many_cells(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        lists = {"temperature": [0, 1], "top_p": [n / 10 for n in range(1, 11)]}
        warnings = warnings_for(tmp_path, caplog, repeats=2, lists=lists)
        assert "temp=0,top_p=0.8 and 2 more: " in warnings

    def test_no_warning_where_params_make_one_conversation_sampled(
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
        assert "nothing: " in warnings_for(tmp_path, caplog, *own, repeats=2, temperature=0)

    def test_greedy_params_of_every_conversation_are_warned_about(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert "nothing: " in warnings_for(tmp_path, caplog, {"temperature": 0}, {"top_p": 0}, repeats=2)


def test_an_unknown_keyword_is_named_as_it_was_given() -> None:
    settings: dict[str, Any] = {"temprature": 1}
    with pytest.raises(UsageError, match=r"^temprature: unknown setting; did you mean temperature"):
        prepare({"text": "a"}, **settings)
