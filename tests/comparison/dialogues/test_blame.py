"""`compare --blame`: the first turn that fails only after the model's own history."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.comparison import compare
from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.script.records import Check, Conversation, ReplyFacts, Turn, Verdict
from tests.replay.fakes import FakeLoader, make_conversation, make_plan

GOLD = "a reference"


class IsGood:
    """Passes for the reply `good`."""

    def judge(self, facts: ReplyFacts) -> Verdict:
        return Verdict(facts.text == "good", float(facts.text == "good"))


def derailing_reply(request: Request, reply: Reply) -> Reply:
    """Replies: `lost` fails after its own bad word of turn 1, `hard` at turn 1 with any history, `both` in both."""
    name, turn = request.noise.conversation, request.noise.turn
    history = bytes(token - 1 for token in request.tokens).decode()
    text = "good"
    if (name == "lost" and "a bad word" in history) or (name in ("hard", "both") and turn == 1):
        text = "bad"
    if name in ("lost", "both") and turn == 0:
        text = "good"
    if name == "lost" and turn == 1:
        text = "a bad word"
    if name == "both" and turn == 2 and "bad" in history:
        text = "bad"
    ids = tuple(byte + 1 for byte in f" {text}\n\n".encode())
    return replace(reply, text=f" {text}", ids=ids, finish_reason="stop", stopped_by="\n\n",
                   history=(*request.tokens, *ids), logprobs=(-1.0,) * len(ids))  # fmt: skip


def script() -> list[Conversation]:
    check = Check("good", 1, IsGood())
    found: list[Conversation] = []
    for name in ("fine", "lost", "hard", "both"):
        base = make_conversation(name, 4, checks=[check], reference=GOLD)
        turns = [
            replace(turn, checks=() if name == "lost" and at == 1 else (check,)) for at, turn in enumerate(base.turns)
        ]
        found.append(replace(base, turns=tuple(turns)))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("blame") / "run"
    plan = make_plan(conversations=script(), cells=make_cells({"history": ["own", "gold"]}))
    execute(plan, FakeLoader(change=derailing_reply), RunOptions(out=out))
    return out


def test_the_first_turn_that_fails_only_with_its_own_history_is_blamed(run: Path) -> None:
    (found,) = compare(run, blame=True).blame
    assert (found.own.cell, found.gold.cell, found.num_dialogues) == ("history=own", "history=gold", 4)
    assert {each.conversation: (each.failed, each.turn, each.cause) for each in found.dialogues} == {
        "lost": (2, 2, "history"),
        "hard": (1, None, "turn"),
        "both": (1, 2, "history"),
    }
    assert found.by_turn == {2: 2}
    assert found.sentence == (
        "history=own: 3 of 4 dialogues failed: 2 fail only after the model's own history; "
        "1 fail after the gold history too"
    )


@pytest.mark.usefixtures("undrawn")
def test_every_format_has_the_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, options in (("table", []), ("md", ["--format", "md"])):
        assert invoke(["compare", str(run), "--blame", *options]) == ExitCode.DONE, name
        shown = capsys.readouterr().out
        assert "3 of 4 dialogues failed" in " ".join(shown.split())
        assert "lost; both" in shown
    assert invoke(["compare", str(run), "--blame", "--json"]) == ExitCode.DONE
    (content,) = json.loads(capsys.readouterr().out)["blame"]
    assert content["by_turn"] == [{"turn": 2, "dialogues": 2}]
    page = tmp_path / "r.html"
    assert invoke(["compare", str(run), "--blame", "--out", str(page)]) == ExitCode.DONE
    html = page.read_text()
    assert "Where dialogues went wrong" in html
    assert '"blame":[[0,"lost",0,2],[0,"both",0,2]]' in html
    assert invoke(["compare", str(run), "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["blame"] == []


def test_two_runs_of_different_histories_are_compared(tmp_path: Path) -> None:
    for history in ("own", "gold"):
        plan = make_plan(conversations=script(), cells=make_cells({}), history=history)
        execute(plan, FakeLoader(change=derailing_reply), RunOptions(out=tmp_path / history))
    (found,) = compare([tmp_path / "own", tmp_path / "gold"], blame=True).blame
    assert found.by_turn == {2: 2}


def test_a_turn_missing_with_gold_history_is_of_unknown_cause(run: Path, tmp_path: Path) -> None:
    lines = (run / "results.jsonl").read_bytes().splitlines(keepends=True)
    kept = [
        line for line in lines if not (json.loads(line)["cell"] == "history=gold" and json.loads(line)["turn"] == 2)
    ]
    part = tmp_path / "part"
    part.mkdir()
    (part / "results.jsonl").write_bytes(b"".join(kept))
    (part / "manifest.json").write_bytes((run / "manifest.json").read_bytes())
    (found,) = compare(part, blame=True).blame
    causes = {each.conversation: (each.turn, each.cause) for each in found.dialogues}
    assert causes["lost"] == (None, "unknown")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cells": {}}, "differ only in --history"),
        ({"cells": {"temperature": [0.3, 1.0]}}, "differ only in --history"),
        ({"cells": {"history": ["own", "gold"]}, "checks": False}, "needs turns with checks"),
    ],
)
def test_runs_that_cannot_be_blamed_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    conversations = script()
    if not settings.get("checks", True):
        conversations = [replace(c, turns=tuple(Turn(t.user, t.reference) for t in c.turns)) for c in conversations]
    plan = make_plan(conversations=conversations, cells=make_cells(settings["cells"]))
    execute(plan, FakeLoader(), RunOptions(out=tmp_path / "run"))
    with pytest.raises(UsageError, match=message):
        compare(tmp_path / "run", blame=True)
