"""The `repr` of the library's objects: one or two informative lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rwkvbatch
from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Reply, ReplyTiming, Request, Score
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.model.base import Model, State
from rwkvbatch.prompt.escaping import html_table

LONGEST = 250


@pytest.fixture(scope="module")
def model() -> Model:
    return rwkvbatch.load_model()


def test_a_state_shows_its_sizes_and_no_tensors(model: Model) -> None:
    _, state = model.forward([[1, 2], [3]])
    assert repr(state) == "<State of 2 sequences: 4 layers, width 128, 2 heads, 270,336 bytes>"


@pytest.mark.parametrize("tensors", [{}, {"wkv": torch.zeros(3)}, {"x": torch.zeros(2, 5)}])
def test_a_state_of_another_kind_shows_what_there_is(tensors: dict[str, torch.Tensor]) -> None:
    assert counted(len(tensors), "tensor") in repr(State(tensors))


def test_a_model_an_engine_and_its_tokenizer_say_what_they_are(model: Model) -> None:
    engine = Engine(model, max_batch=3)
    engine.submit(Request(tokens=(1, 2)))
    assert "rwkv7-demo.safetensors: RWKV-7, 4 layers, width 128, " in repr(model)
    assert repr(model) in repr(engine)
    assert "batch of at most 3, 1 unfinished" in repr(engine)
    assert repr(engine.tokenizer) == "<WorldTokenizer rwkv-world: 512 ids>"
    assert "512 logits" in repr(engine.next_logits([1]))
    assert len(repr(engine)) < LONGEST


def test_a_request_shows_its_first_tokens_and_what_is_not_the_default() -> None:
    request = Request(tokens=tuple(range(1000)), sampling=Sampling(top_k=3), max_tokens=9)
    assert repr(request).startswith("Request(tokens=<1000: 0, 1, 2, 3, 4, 5 and 994 more>, sampling=Sampling(")
    assert repr(request).endswith(", max_tokens=9)")
    assert repr(Request(tokens=(7,))) == "Request(tokens=<1: 7>)"


def test_a_reply_shows_its_text_shortened_and_how_it_ended() -> None:
    timing = ReplyTiming(0, 0, 0, 0)
    reply = Reply("long " * 100, (1,) * 99, (1,) * 999, "stop", "\n\n", (0.0,) * 99, 900, 400, timing)
    assert repr(reply).endswith("…': 99 tokens, ended by stop '\\n\\n', after 900 tokens (400 cached)>")
    assert len(repr(reply)) < LONGEST
    failed = Reply("", (), (), "error", None, (), 1, 0, timing, "no logits")
    assert "ended by error, after 1 token (0 cached), error 'no logits'" in repr(failed)


def test_a_score_shows_its_mean() -> None:
    assert repr(Score((-1.0, -2.0), 1)) == "<Score of 2 tokens: nll 1.5000, 1 matched>"


def test_the_result_of_a_run_shows_its_figures(tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text('{"messages": [{"role": "user", "content": "Hi", "expect": [{"contains": "q"}]}]}\n')
    result = rwkvbatch.run(script, max_tokens=2)
    assert repr(result) == "<RunResult: 1 of 1 rows in memory; cells 1, errors 0, checks passed 0 of 1>"
    assert repr(result.plan) == "<Plan: rows 1, conversations 1, cells 1, repeats 1>"


def test_sampling_params_show_what_decides_and_what_is_changed() -> None:
    short = repr(rwkvbatch.SamplingParams(temperature=0.7))
    assert short == "SamplingParams(temperature=0.7, top_p=0.3, max_tokens=256, seed=0)"
    changed = rwkvbatch.SamplingParams(top_k=5, stop="\n\n")
    assert repr(changed) == (
        "SamplingParams(temperature=1.0, top_p=0.3, max_tokens=256, seed=0, stop=('\\n\\n',), top_k=5)"
    )


def test_results_are_tables_and_reports_in_html(tmp_path: Path) -> None:
    script = {"id": "<b>", "messages": [{"role": "user", "content": "Hi", "expect": {"contains": "i"}}]}
    result = rwkvbatch.run(script, temperature=[0.5, 1.5], top_p=1.0, max_tokens=4)
    table = result._repr_html_()
    assert "<td>temp=0.5</td><td>1</td>" in table
    assert "in memory; cells 2" in table
    analysis = rwkvbatch.compare(result)
    shown = analysis._repr_html_()
    assert "<th>difference</th><th>95 % interval</th>" in shown
    assert shown.count("<tr>") == 1 + len(analysis.comparisons)
    report = tmp_path / "report.html"
    for _ in range(2):  # a report may be replaced
        analysis.to_html(report)
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")
    other = tmp_path / "notes.html"
    other.write_text("my notes")
    with pytest.raises(UsageError, match="is not an HTML report"):
        analysis.to_html(other)
    assert other.read_text() == "my notes"


def test_names_in_tables_of_html_are_escaped() -> None:
    assert html_table("<i>", ["a"], [["<script>"]]) == (
        "<table><caption>&lt;i&gt;</caption><thead><tr><th>a</th></tr></thead>"
        "<tbody><tr><td>&lt;script&gt;</td></tr></tbody></table>"
    )
