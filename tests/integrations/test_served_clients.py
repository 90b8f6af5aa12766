"""Other programs as clients of `rwkvbatch serve`: lm-evaluation-harness, llm, promptfoo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.comparison import load
from rwkvbatch.comparison.runs.loading import load_runs
from tests.serve.running import MODEL, SETTINGS, Server, running

GREEDY = rwkvbatch.SamplingParams(temperature=0, max_tokens=24)
NAME, ASKED = "My name is Ada.", "What is my name?"


@pytest.fixture(scope="module")
def server() -> Generator[Server]:
    with running(settings=SETTINGS.replace(bos="on")) as started:
        yield started


@cache
def library() -> rwkvbatch.LLM:
    return rwkvbatch.LLM(threads=1)


def chat(*messages: str, params: rwkvbatch.SamplingParams = GREEDY) -> str:
    """The library's reply after token 0, as the server reads it."""
    roles = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(messages)]
    return library().chat(roles, params, bos=True).text


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: make test-ecosystem")
def test_local_completions_of_the_harness_have_the_numbers_of_our_adapter(server: Server, tmp_path: Path) -> None:
    from rwkvbatch.integrations.harness import RwkvBatchLM
    from tests.integrations.harness_tasks import evaluated, write_tasks

    folder, tasks = write_tasks(tmp_path), ("words", "sums", "texts", "replies")
    url = f"{server.url}/v1/completions"
    arguments = {"model": MODEL, "base_url": url, "num_concurrent": 8, "tokenizer_backend": "remote"}
    served = evaluated("local-completions", folder, tasks, model_args=arguments)
    assert served == evaluated(RwkvBatchLM(threads=1), folder, tasks)
    assert len(served) >= len(tasks)


@pytest.mark.skipif(find_spec("llm") is None, reason="needs the package llm: make test-ecosystem")
def test_llm_chats_and_continues_with_and_without_a_stream(server: Server, tmp_path: Path) -> None:
    models = f'- model_id: ours\n  model_name: {MODEL}\n  api_base: "{server.url}/v1"\n'
    (tmp_path / "extra-openai-models.yaml").write_text(models)

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", "prompt", *arguments, "-o", "temperature", "0", "-o", "max_tokens", "24"],
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")

    first = ask("-m", "ours", NAME)
    assert first == chat(NAME)
    assert ask("--continue", "--no-stream", ASKED) == chat(NAME, first, ASKED)


PROMPTFOO = shutil.which("promptfoo")


@pytest.mark.skipif(PROMPTFOO is None, reason="needs promptfoo on the PATH: npm install --global promptfoo")
def test_promptfoo_evaluates_two_providers_and_compare_reads_its_results(server: Server, tmp_path: Path) -> None:
    served = {"apiBaseUrl": f"{server.url}/v1", "apiKey": "none", "max_tokens": 24}
    sampled = {"temperature": 1.5, "top_p": 0.9, "seed": 7, "passthrough": {"top_k": 40}}
    config = {
        "prompts": ["{{question}}"],
        "providers": [
            {"id": f"openai:chat:{MODEL}", "label": "greedy", "config": served | {"temperature": 0}},
            {"id": f"openai:chat:{MODEL}", "label": "sampled", "config": served | sampled},
        ],
        "tests": [
            {"vars": {"question": text}, "assert": [{"type": "icontains", "value": word}]}
            for text, word in ((f"{NAME} {ASKED}", "Ada"), ("What is 2 + 3?", "5"), ("Hi", "no such reply"))
        ],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    quiet = {
        "PROMPTFOO_DISABLE_TELEMETRY": "1",
        "PROMPTFOO_DISABLE_UPDATE": "1",
        "PROMPTFOO_CONFIG_DIR": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [str(PROMPTFOO), "eval", "-c", "config.json", "-o", "out.json", "--no-cache", "--no-progress-bar"],
        cwd=tmp_path, env=os.environ | quiet, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 100, done.stdout + done.stderr  # a test failed
    (run,) = load_runs([tmp_path / "out.json"])
    frame = run.rows
    own = rwkvbatch.SamplingParams(temperature=1.5, top_p=0.9, seed=7, top_k=40, max_tokens=24)
    params = {"greedy": GREEDY, "sampled": own}
    assert sorted(frame["cell"]) == ["greedy"] * 3 + ["sampled"] * 3
    tests: list[dict[str, Any]] = config["tests"]  # type: ignore[assignment]
    for row in frame.to_dict("records"):
        question = next(test["vars"]["question"] for test in tests if test["vars"]["question"] in row["conversation"])
        assert row["reply"] == chat(question, params=params[row["cell"]])
    assert load(tmp_path / "out.json")["score"].sum() >= 2
