"""Token ids outside the vocabulary: refused from every source before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.chat.session import Session
from rwkvbatch.cli.app import invoke
from rwkvbatch.config import CellSettings, Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Request
from rwkvbatch.errors import ScriptError, UsageError
from tests.chat.scripted_model import ScriptedModel

VOCABULARY = r"vocabulary has \d+ token ids, 0 to \d+; got "


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def script(params: dict[str, Any] | None = None, turn_params: dict[str, Any] | None = None) -> str:
        message = {"role": "user", "content": "Hi", **({"params": turn_params} if turn_params else {})}
        path = tmp_path / "s.jsonl"
        path.write_text(json.dumps({"id": "c", "messages": [message], "params": params or {}}) + "\n")
        return str(path)

    return script


def test_the_largest_id_is_allowed_and_the_next_one_is_not() -> None:
    Sampling(banned_token_ids=(256,)).check_vocabulary(257)
    with pytest.raises(UsageError, match="257 token ids, 0 to 256; got 257, 300"):
        Sampling(banned_token_ids=(300, 3, 257, 300)).check_vocabulary(257)


def test_an_id_of_the_command_line_is_refused(
    write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert invoke(["run", write(), "--ban", "0,70000", "--out", str(out)]) == 2
    assert "--ban: the model's vocabulary has " in (message := capsys.readouterr().err)
    assert "got 70000\n  leave it out" in message
    assert not out.exists()


def test_an_id_of_a_grid_is_refused_with_its_cell(write: Callable[..., str], tmp_path: Path) -> None:
    (grid := tmp_path / "g.toml").write_text("[cells.a]\nban = [0]\n[cells.b]\nban = [70000]\n")
    with pytest.raises(UsageError, match=rf"cell b: banned_token_ids: .*{VOCABULARY}70000"):
        rwkvbatch.run(write(), grid=grid, max_tokens=2)


@pytest.mark.parametrize(
    ("params", "turn_params", "name"),
    [
        ({"ban": [70000]}, None, r"params\.banned_token_ids"),
        (None, {"banned_token_ids": [70000]}, "params of turn 0: banned_token_ids"),
    ],
)
def test_an_id_in_params_of_a_script_is_refused_with_its_line(
    params: dict[str, Any] | None, turn_params: dict[str, Any] | None, name: str, write: Callable[..., str]
) -> None:
    with pytest.raises(ScriptError, match=rf"s\.jsonl:1: {name}: .*{VOCABULARY}70000"):
        rwkvbatch.run(write(params, turn_params), max_tokens=2)


def test_an_id_in_overridden_params_is_accepted(write: Callable[..., str]) -> None:
    result = rwkvbatch.run(write({"ban": [70000]}), ban=[0], max_tokens=2)
    assert result.summary.errors == 0


def test_an_id_in_a_request_is_refused_and_the_engine_stays_usable() -> None:
    engine = Engine(ScriptedModel())
    with pytest.raises(UsageError, match=rf"banned_token_ids: .*{VOCABULARY}300"):
        engine.submit(Request(tokens=(1,), sampling=Sampling(banned_token_ids=(300,))))
    assert engine.step() == []
    assert not engine.busy


def test_an_id_in_settings_of_a_session_is_refused() -> None:
    session = Session(Engine(ScriptedModel()), CellSettings(banned_token_ids=(299,)))
    with pytest.raises(UsageError, match=rf"{VOCABULARY}300"):
        session.use_settings(session.settings.replace(banned_token_ids=(300,)))
    assert session.settings.banned_token_ids == (299,)


def test_an_id_on_the_command_line_of_a_chat_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["chat", "--ban", "70000", "--no-transcript"]) == 2
    assert "--ban: the model's vocabulary has " in capsys.readouterr().err
