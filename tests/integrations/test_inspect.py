"""Inspect with the provider `rwkvbatch`: a task with its own scorers, log-probabilities, epochs and errors."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.comparison.runs.foreign import read_foreign
from rwkvbatch.errors import CheckpointError, UsageError

pytest.importorskip("inspect_ai", reason="needs Inspect: make test-ecosystem")

from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    GenerateConfig,
)

from rwkvbatch.integrations.inspect_provider import RwkvBatchAPI

ROOT = Path(__file__).parents[2]
TASK = """
import re

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import Score, accuracy, includes, scorer
from inspect_ai.solver import chain, generate, user_message


@scorer(metrics=[accuracy()])
def is_short():
    async def score(state, target):
        return Score(value=1 if len(state.output.completion) < 60 else 0, answer=state.output.completion)
    return score


@task
def names():
    samples = [Sample(id=name, input=f"My name is {name}.", target=name) for name in ("Ada", "Bob", "Eve", "Max")]
    return Task(
        dataset=samples,
        solver=chain(generate(), user_message("What is my name?"), generate()),
        scorer=[includes(), is_short()],
    )
"""
GREEDY = GenerateConfig(temperature=0, max_tokens=32)


def generated(api: RwkvBatchAPI, *texts: str, config: GenerateConfig = GREEDY) -> list[Any]:
    """The outputs for several inputs at once."""

    async def ask() -> list[Any]:
        inputs = [[ChatMessageUser(content=text)] for text in texts]
        return await asyncio.gather(*(api.generate(list(each), [], "none", config) for each in inputs))

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def api() -> RwkvBatchAPI:
    return RwkvBatchAPI("demo")


def test_a_task_with_its_own_scorers_gives_the_replies_of_the_library(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    about = tmp_path / "rwkvbatch-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rwkvbatch\nVersion: 1\n")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["inspect_ai"]
    (about / "entry_points.txt").write_text(
        "[inspect_ai]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    )
    paths = [str(tmp_path), str(ROOT), *filter(None, (os.environ.get("PYTHONPATH"),))]
    call = ["-m", "inspect_ai", "eval", "task.py", "--model", "rwkvbatch/demo", "--temperature", "0"]
    options = ["--log-format", "json", "--log-dir", "logs", "--display", "plain", "--max-tokens", "40"]
    done = subprocess.run(
        [sys.executable, *call, *options],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leaked" not in done.stdout + done.stderr
    (path,) = (tmp_path / "logs").glob("*.json")
    log = json.loads(path.read_text())
    assert log["status"] == "success"
    llm = rwkvbatch.LLM()
    params = rwkvbatch.SamplingParams.from_preset("greedy", max_tokens=40)
    for sample in log["samples"]:
        messages: list[dict[str, str]] = []
        for text in (f"My name is {sample['id']}.", "What is my name?"):
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": llm.chat(messages, params).text})
        assert [message["content"] for message in sample["messages"]] == [m["content"] for m in messages]
        assert set(sample["scores"]) == {"includes", "is_short"}
    found = read_foreign(path)
    assert found is not None
    assert {row.conversation for row in found.rows} == {"Ada", "Bob", "Eve", "Max"}


def test_replies_do_not_depend_on_what_else_is_under_way(api: RwkvBatchAPI) -> None:
    texts = [f"My name is {name}." for name in ("Ada", "Bob", "Eve")]
    together = [output.completion for output in generated(api, *texts)]
    assert together == [generated(RwkvBatchAPI("demo"), text)[0].completion for text in texts]


def test_log_probabilities_are_the_models_own(api: RwkvBatchAPI) -> None:
    config = GREEDY.merge(GenerateConfig(logprobs=True, top_logprobs=3))
    (output,) = generated(api, "My name is Ada.", config=config)
    content = output.choices[0].logprobs.content
    reply = rwkvbatch.LLM().chat(
        [{"role": "user", "content": "My name is Ada."}], rwkvbatch.SamplingParams.from_preset("greedy", max_tokens=32)
    )
    assert [each.logprob for each in content][: len(reply.outputs[0].logprobs)] == list(reply.outputs[0].logprobs)
    assert b"".join(bytes(each.bytes) for each in content).decode().strip().startswith(output.completion)
    for each in content:
        assert len(each.top_logprobs) == 3
        assert each.top_logprobs[0].logprob >= each.top_logprobs[1].logprob
        assert each.top_logprobs[0].token == each.token  # greedy
    assert generated(api, "My name is Ada.")[0].choices[0].logprobs is None


def test_epochs_and_choices_of_a_sample_differ_and_come_again() -> None:
    config = GenerateConfig(temperature=8.0, top_p=1.0, max_tokens=16, seed=4)
    first = [output.completion for output in generated(RwkvBatchAPI("demo"), *["Say something."] * 4, config=config)]
    assert len(set(first)) > 1
    config = config.merge(GenerateConfig(num_choices=4))
    (again,) = generated(RwkvBatchAPI("demo"), "Say something.", config=config)
    assert sorted(choice.message.text for choice in again.choices) == sorted(first)


def test_thinking_is_reasoning() -> None:
    api = RwkvBatchAPI("demo", think="on")
    whole, cut = (
        generated(api, "What is 12 + 30?", config=GenerateConfig(temperature=0, max_tokens=size))[0]
        for size in (120, 3)
    )
    reasoning, answer = whole.message.content
    assert isinstance(reasoning, ContentReasoning)
    assert "42" in answer.text
    assert "<" not in answer.text
    assert cut.stop_reason == "max_tokens"
    assert cut.completion == ""


def test_usage_counts_every_token_once(api: RwkvBatchAPI) -> None:
    (output,) = generated(api, "My name is Ada.")
    usage = output.usage
    assert usage.total_tokens == usage.input_tokens + usage.input_tokens_cache_read + usage.output_tokens


def test_a_stop_text_ends_a_reply(api: RwkvBatchAPI) -> None:
    (whole,) = generated(api, "My name is Ada.")
    (cut,) = generated(api, "My name is Ada.", config=GREEDY.merge(GenerateConfig(stop_seqs=["Ada"])))
    assert "Ada" in whole.completion
    assert cut.completion == whole.completion.partition("Ada")[0].strip()


@pytest.mark.parametrize(
    "config", [{"logit_bias": {1: 2.0}}, {"best_of": 3}, {"prompt_logprobs": 1}, {"temperature": -1.0}, {"top_p": 1.5}]
)
def test_settings_without_a_counterpart_are_refused(config: dict[str, Any], api: RwkvBatchAPI) -> None:
    with pytest.raises(UsageError):
        generated(api, "Hi", config=GREEDY.merge(GenerateConfig(**config)))


def test_messages_that_cannot_be_written_are_refused(api: RwkvBatchAPI) -> None:
    image = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])
    hi = ChatMessageUser(content="Hi")
    for messages in ([image], [ChatMessageSystem(content="x")], [hi, ChatMessageAssistant(content="Yes")]):
        with pytest.raises(UsageError):
            asyncio.run(api.generate(list(messages), [], "none", GREEDY))
    with pytest.raises(UsageError, match="tools"):
        asyncio.run(api.generate([hi], [object()], "auto", GREEDY))


@pytest.mark.parametrize(
    "arguments", [{"stategy": "cpu"}, {"think": "x"}, {"preset": "x"}, {"strategy": "x"}, {"prelude": "none.txt"}]
)
def test_wrong_arguments_of_the_provider_are_usage_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RwkvBatchAPI("demo", **arguments)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        RwkvBatchAPI(str(tmp_path / "none.pth"))
