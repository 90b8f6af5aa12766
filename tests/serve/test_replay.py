"""`rwkvbatch run --endpoint` with this server: greedy replies equal those of a run on the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import UsageError
from tests.serve.running import MODEL, running

CONVERSATIONS = [
    {"id": "name", "messages": [{"role": "user", "content": text} for text in ("My name is Ada.", "What is my name?")]},
    {"id": "sum", "messages": [{"role": "user", "content": "What is 2 + 3?"}]},
    {"id": "hi", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
]


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_run_through_the_server_has_the_replies_of_a_run_on_the_model(tmp_path: Path, api: str) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps(each) + "\n" for each in CONVERSATIONS))

    def replies(name: str, *options: str) -> list[str]:
        settings = ["--preset", "greedy", "--max-tokens", "24", "--threads", "1", "--quiet"]
        assert invoke(["run", str(script), "--out", str(tmp_path / name), *settings, *options]) == 0
        rows = [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        return [row["reply"] for row in sorted(rows, key=lambda row: (row["conversation"], row["turn"]))]

    with running() as server:
        options = ("--endpoint", f"{server.url}/v1", "--endpoint-model", MODEL, "--endpoint-api", api)
        served = replies("served", *options)
    assert served == replies("local")
    assert len(served) == 4


def test_a_benchmark_through_the_server_has_the_scores_of_a_run_on_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        {"id": "choice", "prompt": "Ada thanked ", "choices": ["Ada", "Bob"], "expect": {"choice": "Bob"}},
        {"id": "text", "text": "The café is blue 空."},
        {"id": "pair", "prompt": "The", "continuation": " sky"},
    ]
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps(each) + "\n" for each in lines))
    with running() as server:
        served = rwkvbatch.run(script, endpoint=f"{server.url}/v1")
        with pytest.raises(UsageError, match="gives no log-probabilities of given texts"):
            rwkvbatch.run(script, endpoint=f"{server.url}/v1", endpoint_api="chat")
    for own, row in zip(rwkvbatch.run(script).rows(), served.rows(), strict=True):
        assert row.error is None
        assert row.choices == own.choices
        assert row.reference == own.reference
    assert not [record for record in caplog.records if record.levelname == "WARNING" and "endpoint" in record.name]


@pytest.mark.parametrize("named", [{}, {"endpoint_model": "rwkvbatch-demo"}])
def test_an_address_without_v1_is_refused_before_anything_is_written(tmp_path: Path, named: dict[str, str]) -> None:
    script = {"messages": [{"role": "user", "content": "hi"}]}
    with running() as server, pytest.raises(UsageError, match=f"lists no models, and {server.url}/v1 does"):
        rwkvbatch.run(script, endpoint=server.url, endpoint_model=named.get("endpoint_model"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_looking_for_v1_counts_no_request_of_the_run(tmp_path: Path) -> None:
    script = {"messages": [{"role": "user", "content": "hi"}]}
    with running() as server, pytest.raises(UsageError, match=f"lists no models, and {server.url}/v1 does"):
        rwkvbatch.run(
            script, endpoint=server.url, endpoint_model="rwkvbatch-demo", max_requests=1, out=tmp_path / "run"
        )
