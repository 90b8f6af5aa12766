"""Plain texts in runs and in `rwkvbatch score`: likelihoods, chunks of long texts, resuming, documents."""

from __future__ import annotations

import json
import math
import os
import re
import tracemalloc
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rwkvbatch
from rwkvbatch.cli.summaries import show_summary
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import LONG_TEXT_TOKENS
from rwkvbatch.errors import ScriptError, UsageError
from rwkvbatch.model.base import Model
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.model_files import BUNDLED_MODEL
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.replay.worker.models import ModelLoader
from rwkvbatch.results.row import SHORT_TEXT, Row
from rwkvbatch.results.row_codec import decode_row, encode_row
from rwkvbatch.script.documents import LeftOutWarning, read_documents
from tests.replay.fakes import make_plan
from tests.replay.runs import ProgressRecorder, check_invariance
from tests.script.writing import conversation, read, user, write

TEXTS = ["One small text.", "Another text, which is a little longer than the first one.", "größe 🌲"]
PAIRS = [("The sky is", " blue"), ("My name is Ada. What is my name? It is", " Ada"), ("1, 2, 3,", " 4")]


LINES: list[dict[str, Any]] = [
    *({"text": text} for text in TEXTS),
    *({"prompt": prompt, "continuation": text} for prompt, text in PAIRS),
]


def script(path: Path) -> str:
    return write(path, *LINES)


def rows_of(path: str, **options: Any) -> list[Row]:
    return sorted(rwkvbatch.run(path, **options).rows(), key=lambda row: row.conversation)


def test_texts_have_the_log_probability_of_llm_score_after_token_0(tmp_path: Path, model: Model) -> None:
    rows = rows_of(script(tmp_path / "s.jsonl"), model=model)
    llm = rwkvbatch.LLM(model)
    encode = llm.tokenizer.encode
    parts = [([0], text) for text in TEXTS] + [([0, *encode(prompt)], text) for prompt, text in PAIRS]
    for row, (prefix, text) in zip(rows, parts, strict=True):
        expected = llm.score(prefix, text)
        assert row.reference is not None
        assert row.reference.logprob == expected.logprob
        assert row.reference.tokens == len(expected.token_ids)
        assert row.reference.bytes == len(text.encode())
        assert (row.reference.matched == 1) == expected.is_greedy
        assert row.finish_reason == "scored"
        assert row.tokens.prompt == len(prefix)


@pytest.mark.parametrize("step_rows", [1, 7, 64, 512])
def test_log_probabilities_do_not_depend_on_the_chunk_size(model: Model, step_rows: int) -> None:
    tokens = [1 + number * 37 % 90 for number in range(300)]
    expected = Engine(model, step_rows=4096).score([0], tokens)
    engine = Engine(model, step_rows=step_rows)
    prefix_id = engine.submit_score([0], tokens[:50])
    whole_id = engine.submit_score([0], tokens, cache=False)
    scores = dict(engine.step())
    while engine.busy:
        scores |= dict(engine.step())
    assert scores[whole_id] == expected
    assert scores[prefix_id].logprobs == expected.logprobs[:50]  # type: ignore[union-attr]


def test_progress_is_reported_within_a_long_text(tmp_path: Path) -> None:
    recorder = ProgressRecorder()
    path = write(tmp_path / "s.jsonl", {"text": "a b " * LONG_TEXT_TOKENS})
    plan = make_plan(conversations=read_documents([path]).conversations, cells=make_cells({}), threads=1)
    execute(plan, ModelLoader(plan.settings), RunOptions(observers=[recorder]))
    read = [progress.prefill.num_read for progress in recorder.seen if progress.prefill.num_texts]
    assert len(set(read)) > 5
    assert read == sorted(read)
    (num_tokens,) = {progress.prefill.num_tokens for progress in recorder.seen if progress.prefill.num_texts}
    assert num_tokens / 2 < max(read) < num_tokens


def test_a_queued_text_takes_less_than_8_bytes_per_token(model: Model) -> None:
    tokens = array("i", [1 + number % 90 for number in range(100_000)])
    engine = Engine(model)
    tracemalloc.start()
    try:
        engine.submit_score([0], tokens, cache=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(tokens)


def test_rows_of_texts_depend_neither_on_the_batch_nor_on_interruptions(tmp_path: Path) -> None:
    check_invariance(tmp_path, read(tmp_path, *LINES).conversations, interrupt_after=[1])


def test_rows_are_decoded_as_encoded_and_rows_of_replies_have_no_further_keys(tmp_path: Path, model: Model) -> None:
    for row in rows_of(script(tmp_path / "s.jsonl"), model=model):
        assert decode_row(encode_row(row)) == row
    line = write(tmp_path / "c.jsonl", conversation())
    (row,) = rows_of(line, model=model, max_tokens=2)
    assert list(row.as_dict()) == [
        "conversation", "cell", "repeat", "turn", "seed", "tags", "prompt", "reply", "reply_ids", "finish_reason",
        "stopped_by", "tokens", "logprob", "reference", "checks", "error", "timing",
    ]  # fmt: skip


def test_the_summary_and_compare_compute_perplexity_over_all_tokens_of_a_cell(tmp_path: Path, model: Model) -> None:
    result = rwkvbatch.run(script(tmp_path / "s.jsonl"), model=model, out=tmp_path / "run")
    references = [row.reference for row in result.rows() if row.reference is not None]
    total = -math.fsum(reference.logprob or 0.0 for reference in references)
    tokens = sum(reference.tokens for reference in references)
    text = result.summary.cells[0].plain_text
    assert text is not None
    assert text.nll == pytest.approx(total / tokens, rel=1e-12)
    assert text.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-12)
    assert text.bits_per_byte == pytest.approx(
        total / math.log(2) / sum(len(t.encode()) for t in TEXTS + [p[1] for p in PAIRS])
    )
    assert text.text_perplexity == pytest.approx(math.exp(total / 6), rel=1e-12)
    (run_name,) = (variant for variant in rwkvbatch.compare(tmp_path / "run").variants)
    means = {mean.metric.name: mean.mean for mean in rwkvbatch.compare(tmp_path / "run").means(run_name)}
    assert means["nll"] == pytest.approx(text.nll, rel=1e-12)
    assert means["perplexity"] == pytest.approx(text.perplexity, rel=1e-12)
    assert means["bits_per_byte"] == pytest.approx(text.bits_per_byte, rel=1e-12)
    assert means["text_perplexity"] == pytest.approx(text.text_perplexity, rel=1e-12)
    assert means["accuracy"] == text.accuracy
    assert "stopped" not in means
    assert "tokens" not in means


def test_compare_weights_texts_by_their_tokens(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "other.pth"
    torch.save(random_tensors(1, 64, vocab_size=model.spec.vocab_size), path)
    lines = script(tmp_path / "s.jsonl")
    for name, checkpoint in (("a", None), ("b", path)):
        rwkvbatch.run(lines, model=checkpoint, out=tmp_path / name)
    analysis = rwkvbatch.compare([tmp_path / "a", tmp_path / "b"], fail_if=["nll < baseline.nll"])
    (line,) = analysis.comparisons
    assert line.metric.name == "nll"
    scores = [json.loads(row)["reference"] for row in (tmp_path / "b" / "results.jsonl").read_text().splitlines()]
    assert line.variant_mean == pytest.approx(
        -sum(score["logprob"] for score in scores) / sum(score["tokens"] for score in scores), rel=1e-12
    )
    assert line.difference == pytest.approx(line.variant_mean - line.baseline_mean, rel=1e-9)
    assert analysis.gates[0].left == pytest.approx(line.variant_mean, rel=1e-12)


def test_a_row_has_the_size_and_hash_of_a_long_text(tmp_path: Path, model: Model) -> None:
    text = "abc " * SHORT_TEXT
    (row,) = rows_of(write(tmp_path / "s.jsonl", {"text": text}), model=model)
    assert row.reference is not None
    assert len(row.reference.text) < 400
    assert f"[{len(text):,} bytes, sha256 " in row.reference.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": ""}, "text: is empty"),
        ({"text": 3}, "text: must be a string"),
        ({"text": "a", "txet": 1}, "unknown key 'txet'"),
        ({"text": "a", "expect": []}, "expect: belongs to a prompt .*; `text` is scored"),
        ({"prompt": "a", "continuation": ""}, "continuation: is empty"),
        ({"prompt": "", "continuation": "a"}, "prompt: is empty"),
        ({"continuation": "a"}, "prompt: is missing"),
    ],
)
def test_invalid_lines_of_text_are_refused(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    with pytest.raises(ScriptError, match=message):
        rwkvbatch.run(write(tmp_path / "s.jsonl", line))


def test_documents_are_read_from_files_lines_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("Second.")
    (folder / "a.md").write_text("First.\r\n\r\nKept verbatim. ")
    (folder / "deep" / "c").write_text("Third.")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / ".hidden").write_text("no")
    write(folder / "d.jsonl", {"text": "Fourth.", "meta": {"source": "web"}})
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes("größe".encode("latin-1"))
    with pytest.warns(
        LeftOutWarning, match=r"^3 files of folders left out, without text in UTF-8: .*empty.txt, .*latin"
    ):
        found = read_documents([str(folder)]).conversations
    assert [document.turns[0].reference for document in found] == [
        "First.\r\n\r\nKept verbatim. ",
        "Second.",
        "Fourth.",
        "Third.",
    ]
    assert found[0].id == str(folder / "a.md")
    assert found[2].id == "d.jsonl:1"


def test_unreadable_documents_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("größe".encode("latin-1"))
    (tmp_path / "utf-16.txt").write_text("One.", encoding="utf-16-le")
    (tmp_path / "none").mkdir()
    chats = write(tmp_path / "chats.jsonl", conversation())
    for path, message in (
        (tmp_path / "empty.txt", r"empty.txt:1: is empty"),
        (tmp_path / "latin.txt", "not UTF-8"),
        (tmp_path / "utf-16.txt", "utf-16.txt:1:2: a NUL byte: is it UTF-16"),
        (tmp_path / "missing.txt", "cannot be read"),
        (chats, "is not a text to score"),
        (write(tmp_path / "prompt.jsonl", {"prompt": "a"}), "continuation: is missing, and only a prompt"),
        (
            write(tmp_path / "choices.jsonl", {"prompt": "a", "choices": ["b", "c"]}),
            r"continuation: is missing(?s:.)*`rwkvbatch run` scores choices",
        ),
    ):
        with pytest.raises(ScriptError) as caught:
            read_documents([str(path)])
        assert re.search(message, f"{caught.value}\n{caught.value.hint}")
    with pytest.raises(UsageError, match="contains no document"):
        read_documents([str(tmp_path / "none")])
    found = read_documents([str(tmp_path / "empty.txt"), script(tmp_path / "s.jsonl")], skip_bad=True)
    assert (len(found.conversations), len(found.skipped)) == (6, 1)


def test_generated_and_scored_tokens_are_counted_separately(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = {"prompt": "2 + 2 =", "choices": [" 4", " 5"]}
    chat = conversation(user("My name is Ada."))
    path = write(tmp_path / "s.jsonl", {"text": TEXTS[0]}, choices, chat)
    result = rwkvbatch.run(path, model=model)
    rows = {row.conversation: row for row in result.rows()}
    text, chosen, reply = (rows[f"line-{number}"] for number in (1, 2, 3))
    assert text.reference is not None
    assert chosen.choices is not None
    scored = text.reference.tokens + sum(score.tokens for score in chosen.choices.scores)
    progress, summary = result.progress, result.summary
    assert (progress.reply_tokens, progress.scored_tokens) == (len(reply.reply_ids), scored)
    assert progress.tokens_per_s == pytest.approx((progress.reply_tokens + scored) / progress.elapsed_s)
    assert progress.session()["reply_tokens"] == summary.reply_tokens == len(reply.reply_ids)
    (worker,) = progress.workers
    assert (worker.reply_tokens, worker.scored_tokens) == (len(reply.reply_ids), scored)
    assert summary.scored_prompt_tokens == text.tokens.prompt + chosen.tokens.prompt

    show_summary(result)
    messages = capsys.readouterr().err
    assert f"{len(reply.reply_ids)} reply and {scored} scored tokens in " in messages
    assert f"{reply.tokens.prompt} prompt tokens of replies: {reply.tokens.prompt} read, 0 reused" in messages
    assert "prompt tokens before" not in messages


def test_prompt_tokens_that_the_rate_of_scoring_leaves_out_are_named(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "The quick brown fox jumps over the lazy dog."
    result = rwkvbatch.run(write(tmp_path / "s.jsonl", {"prompt": prompt, "continuation": " Yes."}), model=model)
    (row,) = result.rows()
    show_summary(result)
    before = f"{row.tokens.prompt} prompt tokens before the scored tokens; tokens/s does not count them"
    assert before in capsys.readouterr().err


def test_a_perplexity_beyond_all_numbers_is_shown_as_such_and_null_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "s.jsonl", {"prompt": "a", "continuation": "zqx vkj " * 100})
    result = rwkvbatch.run(path, out=tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["cells"][0]["plain_text"]["text_perplexity"] is None
    show_summary(result)
    assert ">1e308" in capsys.readouterr().err


def test_a_text_that_is_certain_has_a_likelihood_without_a_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(BUNDLED_MODEL)
    tensors["head.weight"] = tensors["head.weight"] * 2000  # the likeliest token has a probability of 1
    save_file(tensors, tmp_path / "certain.safetensors")
    path = write(tmp_path / "s.jsonl", {"prompt": "User: What is 36 + 27?\n\nAssistant:", "continuation": " 63"})
    result = rwkvbatch.run(path, model=tmp_path / "certain.safetensors", vocab="world")
    (row,) = result.rows()
    assert row.reference is not None
    assert (str(row.reference.nll), row.reference.matched) == ("0.0", 1)
    show_summary(result)
    assert "-0.0" not in capsys.readouterr().err


def test_links_that_are_not_followed_and_names_that_are_no_files_are_named(tmp_path: Path) -> None:
    folder, other = tmp_path / "books", tmp_path / "more"
    for directory in (folder, other):
        directory.mkdir()
        (directory / "a.txt").write_text("One.")
    (folder / "linked").symlink_to(other)
    (folder / "gone.jsonl").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "same.txt").symlink_to(other / "a.txt")
    kinds = "links to folders, broken links, special files"
    message = rf"^3 names in folders left out \({kinds}\): .*gone.jsonl, .*linked, .*pipe"
    with pytest.warns(LeftOutWarning, match=message):
        found = read_documents([str(folder)]).conversations
    assert [document.id for document in found] == [str(folder / "a.txt"), str(folder / "same.txt")]
