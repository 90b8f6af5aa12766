"""`model damage`: two models' distributions on the same texts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rwkvbatch.bench.damage import CHUNK, damage
from rwkvbatch.cli.app import app
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.load import load_model
from rwkvbatch.model.random_checkpoint import random_tensors
from rwkvbatch.script.documents import read_documents

VOCAB = 256


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("models") / "a.pth"
    torch.save(random_tensors(2, 64, VOCAB, dtype=torch.float32), path)
    return {name: load_model(path, name, "reference") for name in ("cpu", "cpu int8", "cpu int4")}


def documents(folder: Path, texts: list[dict[str, str]]):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    return read_documents([str(path)]).conversations


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_the_figures_are_those_of_whole_distributions(models, tmp_path: Path) -> None:
    texts = [{"text": "ab" * (CHUNK + 3)}, {"prompt": "some prompt", "continuation": " and its end"}, {"text": "x"}]
    found = damage(models["cpu"], models["cpu int4"], documents(tmp_path, texts), encode)
    kl, same, nll = [], [], [[], []]
    for text in texts:
        before = encode(text.get("prompt", ""))
        tokens = [0, *before, *encode(text.get("text") or text["continuation"])]
        p, q = (
            model.forward([tokens], every_token=True)[0][len(before) : -1].double().log_softmax(1)
            for model in (models["cpu"], models["cpu int4"])
        )
        kl += (p.exp() * (p - q)).sum(1).tolist()
        same += (p.argmax(1) == q.argmax(1)).tolist()
        for each, logs in zip(nll, (p, q), strict=True):
            each += [-float(logs[row, token]) for row, token in enumerate(tokens[len(before) + 1 :])]
    assert found.num_tokens == len(kl) == 2 * CHUNK + 6 + 12 + 1
    assert found.divergence.mean == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert found.worst.divergence == pytest.approx(max(kl), rel=1e-3)
    assert found.same_token.mean == pytest.approx(sum(same) / len(same))
    ratio = math.exp((sum(nll[1]) - sum(nll[0])) / len(kl))
    assert found.perplexity_ratio.mean == pytest.approx(ratio, rel=1e-5)
    assert found.other_perplexity / found.reference_perplexity == pytest.approx(ratio, rel=1e-5)
    low, high = found.divergence.low, found.divergence.high
    assert low is not None
    assert high is not None
    assert low < found.divergence.mean < high


def test_a_model_against_itself_is_undamaged_and_coarser_rounding_damages_more(models, tmp_path: Path) -> None:
    texts = documents(tmp_path, [{"text": "a text of some length"}, {"text": "and another one"}])
    none, some, much = (damage(models["cpu"], models[name], texts, encode) for name in ("cpu", "cpu int8", "cpu int4"))
    assert (none.divergence.mean, none.same_token.mean, none.perplexity_ratio.mean) == (0, 1, 1)
    assert 0 < some.divergence.mean < 0.1 * much.divergence.mean


def test_one_document_has_no_interval(models, tmp_path: Path) -> None:
    found = damage(models["cpu"], models["cpu int8"], documents(tmp_path, [{"text": "only one"}]), encode)
    assert (found.divergence.low, found.same_token.high) == (None, None)


def test_different_vocabularies_and_logits_that_are_not_finite_are_refused(models, tmp_path: Path) -> None:
    texts = documents(tmp_path, [{"text": "a"}])
    torch.save(random_tensors(1, 64, VOCAB + 1), tmp_path / "b.pth")
    with pytest.raises(UsageError, match="vocabularies of 256 and 257 tokens"):
        damage(models["cpu"], load_model(tmp_path / "b.pth", "cpu", "reference"), texts, encode)
    tensors = random_tensors(1, 64, VOCAB, dtype=torch.float32)
    tensors["head.weight"] *= 1e38
    torch.save(tensors, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="not finite"):
        damage(models["cpu"], load_model(tmp_path / "c.pth", "cpu", "reference"), texts, encode)


def test_the_command_compares_strategies_and_checkpoints(tmp_path: Path) -> None:
    text = tmp_path / "t.jsonl"
    text.write_text('{"text": "User: What is 3 + 4?\\n\\nAssistant: 7"}\n{"text": "My name is Ada."}\n')
    quantised = tmp_path / "q.safetensors"
    run = CliRunner().invoke
    from rwkvbatch.model.load import BUNDLED_MODEL

    assert run(app, ["model", "quantize", str(BUNDLED_MODEL), str(quantised)]).exit_code == 0
    by_strategy = ["model", "damage", "--strategy", "cpu int4", "--against", "cpu", "--texts", str(text), "--json"]
    by_file = ["model", "damage", str(quantised), "--against", str(BUNDLED_MODEL), "--texts", str(text), "--json"]
    first, second = (json.loads(run(app, arguments).stdout) for arguments in (by_strategy, by_file))
    assert first["divergence"] == second["divergence"]
    assert first["num_documents"] == 2
    shown = run(app, by_strategy[:-1])
    assert "same likeliest token" in shown.stdout
    assert "2 documents" in shown.stdout
