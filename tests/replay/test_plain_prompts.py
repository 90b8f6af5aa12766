"""Replies to prompts of plain text: without a template, as `LLM.generate` makes them, and in every part of a run."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.config import SamplingParams
from rwkvbatch.errors import ScriptError, UsageError
from rwkvbatch.model.base import Model
from rwkvbatch.results.row import SHORT_TEXT, Row
from rwkvbatch.script.lint import lint
from rwkvbatch.script.native import native_record
from tests.replay.runs import check_invariance
from tests.script.writing import conversation, read, user, write

PROMPTS = ["User: hi\n\nAssistant:", "Tom has", "  def f(x):\n", "1, 2, 3,\n\n4, 5,", ""]
WARM = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 16, "seed": 3}


def key_of(model: Model, prompt: str, *, bos: bool = True) -> str:
    """The id with which a row has the random numbers of `LLM.generate`."""
    tokens = [0] * bos + rwkvbatch.LLM(model).tokenizer.encode(prompt)
    return hashlib.blake2b(" ".join(map(str, tokens)).encode(), digest_size=16).hexdigest()


def rows_of(path: str | Path, **options: Any) -> list[Row]:
    return sorted(rwkvbatch.run(path, **options).rows(), key=lambda row: (row.conversation, row.repeat))


@pytest.mark.parametrize("bos", [True, False])
def test_replies_are_those_of_generate_for_the_same_prompts_and_seeds(tmp_path: Path, model: Model, bos: bool) -> None:
    prompts = [prompt for prompt in PROMPTS if prompt or bos]
    ids = [key_of(model, prompt, bos=bos) for prompt in prompts]
    lines = [{"id": name, "prompt": prompt} for name, prompt in zip(ids, prompts, strict=True)]
    params = {**WARM, "stop": ["."]}
    path = write(tmp_path / "s.jsonl", {"defaults": {"params": params}}, *lines)
    # None of the settings of a template has an effect.
    settings = {
        "system": "Be brief.",
        "think": "on",
        "turn_end": "blank-line",
        "history": "gold",
        "prelude": "api-demo-chat",
    }
    run = rwkvbatch.run(path, model=model, repeats=2, bos="auto" if bos else "off", batch_size=3, **settings)
    replies = {(row.conversation, row.repeat): row for row in run.rows()}
    llm = rwkvbatch.LLM(model)
    outputs = llm.generate(prompts, SamplingParams(**{**params, "stop": (".",)}), n=2, bos=bos)
    for name, output in zip(ids, outputs, strict=True):
        for repeat, expected in enumerate(output.outputs):
            row = replies[name, repeat]
            assert (row.reply, tuple(row.reply_ids)) == (expected.text, tuple(expected.token_ids))
            assert row.finish_reason == expected.finish_reason
            assert row.logprob.sum == math.fsum(expected.logprobs)


def test_replies_do_not_depend_on_the_batch_nor_on_interruptions(tmp_path: Path) -> None:
    script = read(tmp_path, {"defaults": {"params": WARM}}, *({"prompt": prompt} for prompt in PROMPTS), conversation())
    check_invariance(tmp_path, script.conversations, [1])


def test_a_blank_line_and_a_role_end_no_reply(tmp_path: Path, model: Model) -> None:
    """Only the stop texts of the settings do: the continuation of a dialogue writes the next message too."""
    path = write(tmp_path / "s.jsonl", {"prompt": "User: hi\n\nAssistant:", "params": {"max_tokens": 64}})
    (row,) = rows_of(path, model=model, temperature=0.0)
    assert row.finish_reason == "length"
    assert "\n\n" in row.reply
    (row,) = rows_of(path, model=model, temperature=0.0, stop=["\n\n"])
    assert (row.finish_reason, row.stopped_by) == ("stop", "\n\n")


def test_checks_references_and_defaults_apply_as_to_other_replies(tmp_path: Path, model: Model) -> None:
    line = {"prompt": "My name is Ada. What is my name? It is", "expect": {"contains": "a"}, "reference": " Ada"}
    defaults = {"expect": {"max_tokens": 4}, "tags": ["few"], "params": {"max_tokens": 4}}
    path = write(tmp_path / "s.jsonl", {"defaults": defaults}, {**line, "tags": ["ada"]})
    (row,) = rows_of(path, model=model, temperature=0.0)
    assert row.tags == ("few", "ada")
    assert [(check.kind, check.passed) for check in row.checks] == [
        ("contains", "a" in row.reply),
        ("max_tokens", True),
    ]
    assert row.reference is not None
    llm = rwkvbatch.LLM(model)
    expected = llm.score(line["prompt"], " Ada", bos=True)
    assert row.reference.nll == -sum(expected.logprobs) / len(expected.token_ids)
    assert (row.reference.text, row.reference.logprob) == (" Ada", None)


def test_a_long_prompt_is_stored_whole(tmp_path: Path, model: Model) -> None:
    """Its question stands at the end, after the examples."""
    prompt = "Question: 1 + 1?\nAnswer: 2\n\n" * 100 + "Question: 1 + 2?\nAnswer:"
    assert len(prompt) > SHORT_TEXT
    path = write(tmp_path / "s.jsonl", *({"prompt": prompt + end} for end in ("", " 3", " three")))
    rows = rows_of(path, model=model, max_tokens=2)
    assert rows[0].prompt == prompt
    assert sum(row.timing.cached_tokens > 1000 for row in rows) == 2  # the examples are read once


def test_a_prompt_without_tokens_is_the_error_of_its_row(tmp_path: Path, model: Model) -> None:
    path = write(tmp_path / "s.jsonl", {"prompt": "", "params": {"bos": False}})
    (row,) = rows_of(path, model=model)
    assert row.error == "the prompt is empty, and nothing is read before it: use --bos on"


def test_the_native_form_of_a_prompt_is_read_as_the_same_conversation(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "prompt": "", "params": {"stop": ["\n"], "bos": "on"}},
        {"id": "b", "prompt": " A", "expect": [{"contains": "x"}], "reference": " B", "tags": ["t"]},
    ]
    first = read(tmp_path, {"defaults": {"expect": {"not_contains": "y"}}}, *lines)
    again = read(tmp_path, *map(native_record, first.conversations))
    assert [c.sha256 for c in again.conversations] == [c.sha256 for c in first.conversations]
    assert [turn.checks[-1].kind for c in again.conversations for turn in c.turns] == ["not_contains"] * 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"prompt": "a", "continuation": "b", "expect": {"equals": "b"}}, "expect: belongs to a prompt"),
        ({"prompt": "a", "continuation": "b", "reference": "b"}, "reference: belongs to a prompt"),
        ({"prompt": "a", "text": "b"}, "prompt: belongs to a prompt"),
        ({"prompt": "a", "choices": ["b", "c"], "reference": "b"}, "unknown key 'reference'"),
        ({"prompt": "a", "max_tokens": 3}, "unknown key 'max_tokens'"),
        ({"prompt": "a", "expects": []}, "unknown key 'expects'"),
        ({"prompt": "a", "reference": ""}, "reference: is empty"),
        ({"prompt": "a", "expect": {"similarity": 0.5}}, "the check 'similarity' needs a reference reply"),
        ({"prompt": "a", "expect": {"choice": "b"}}, "the check 'choice' needs choices"),
        ({"prompt": ["a"]}, "is of no known form"),
        ({"prompt": "a", "system": "b"}, "is of no known form"),
    ],
)
def test_ambiguous_and_wrong_lines_are_refused_by_name(tmp_path: Path, line: dict[str, Any], problem: str) -> None:
    with pytest.raises(ScriptError, match=f"demo.jsonl:1: .*{problem}"):
        read(tmp_path, line)


def batch(body: dict[str, Any], url: str | None = "/v1/completions") -> dict[str, Any]:
    return {"custom_id": "r", "method": "POST", **({"url": url} if url else {}), "body": {"model": "any", **body}}


@pytest.mark.parametrize("url", ["/v1/completions", None])
def test_a_batch_request_for_completions_is_a_prompt(tmp_path: Path, url: str | None) -> None:
    script = read(tmp_path, batch({"prompt": ["A"], "max_tokens": 7, "stop": "\n", "echo": False, "logprobs": 1}, url))
    (found,) = script.conversations
    assert found.sha256 == read(
        tmp_path, {"id": "r", "prompt": "A", "params": {"max_tokens": 7, "stop": ["\n"]}}
    ).conversations[0].sha256  # fmt: skip
    assert dict(script.ignored) == {"logprobs": 1}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"prompt": [1, 2]}, "body.prompt: must be one text, got an array"),
        ({"prompt": ["a", "b"]}, "body.prompt: must be one text"),
        ({"prompt": "a", "echo": True}, "body.echo: has no counterpart here"),
        ({"prompt": "a", "suffix": "b"}, "body.suffix: has no counterpart here"),
        ({"prompt": "a", "best_of": 2}, "body.best_of: has no counterpart here"),
        ({"prompt": "a", "n": 2}, "body.n: must be 1"),
        ({"messages": [{"role": "user", "content": "a"}]}, "body.prompt: is missing"),
    ],
)
def test_batch_requests_for_completions_that_cannot_be_replayed(
    tmp_path: Path, body: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ScriptError, match=problem):
        read(tmp_path, batch(body))


def test_lint_names_a_space_at_the_end_and_no_rules_of_messages(tmp_path: Path) -> None:
    script = read(tmp_path, {"prompt": "User: a\n\nb ", "reference": "c"}, {"prompt": "User: a\r\n\n"})
    assert [(w.code, w.source) for w in lint(script.conversations, reply_prefix="x")] == [
        ("space-before-text", script.conversations[0].source)
    ]


def test_a_dry_run_counts_prompts_and_replies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "s.jsonl", *({"prompt": "A", "params": {"max_tokens": 5}} for _ in range(3)))
    assert invoke(["run", path, "--dry-run", "--json", "--repeats", "2"]) == 0
    preview = json.loads(capsys.readouterr().out)
    text = json.dumps(preview)
    assert '"rows": 6' in text
    assert '"first_prompt_tokens": 12' in text  # token 0 and one more, 6 times
    assert '"max_reply_tokens": 30' in text


def test_the_interface_of_chats_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", conversation(user()), {"prompt": "A"})
    with pytest.raises(UsageError, match=r"--endpoint-api chat .* neither plain texts nor choices: 1 of 2"):
        rwkvbatch.run(path, endpoint="http://127.0.0.1:9/v1", endpoint_api="chat", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_python_mappings_show_check_and_compare(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    lines = [{"id": "tom", "prompt": "Tom has", "expect": {"contains": "a"}, "params": {"max_tokens": 3}}]
    rwkvbatch.run(lines, model=model, out=out, temp=[0.0, 1.0])
    assert invoke(["show", out]) == 0
    assert "Tom has" in capsys.readouterr().out
    assert invoke(["check", out, "--quiet"]) in (0, 1)
    assert invoke(["compare", out]) == 0
    assert invoke(["chat", "--from", f"{out}:tom:0", "--cell", "temp=0"]) == 2
    assert "plain text" in capsys.readouterr().err
