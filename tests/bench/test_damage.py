"""`model damage`: two models' distributions on the same texts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rwkvbatch import run as run_scripts
from rwkvbatch.bench.damage import CHUNK, ScoredPart, ScoredText, damage, texts_of_documents
from rwkvbatch.cli.app import app
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.model_files import BUNDLED_MODEL
from rwkvbatch.script.documents import read_documents

VOCAB = 256


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("models") / "a.pth"
    torch.save(random_tensors(2, 64, VOCAB, dtype=torch.float32), path)
    return {name: load_model(path, name, "reference") for name in ("cpu", "cpu int8", "cpu int4")}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory):
    """Other weights, not rounded ones: the reference rounds activations, which lie at the border of two integers,
    differently in a batch of another size."""
    path = tmp_path_factory.mktemp("models") / "b.pth"
    torch.save(random_tensors(2, 64, VOCAB, seed=1, dtype=torch.float32), path)
    return load_model(path, "cpu", "reference")


def documents(folder: Path, texts: list[dict[str, str]]):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    return texts_of_documents(read_documents([str(path)]).conversations, encode)


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_the_figures_are_those_of_whole_distributions(models, other, tmp_path: Path) -> None:
    texts = [{"text": "ab" * (CHUNK + 3)}, {"prompt": "some prompt", "continuation": " and its end"}, {"text": "x"}]
    found = damage(models["cpu"], other, documents(tmp_path, texts))
    kl, same, nll = [], [], [[], []]
    for text in texts:
        before = encode(text.get("prompt", ""))
        tokens = [0, *before, *encode(text.get("text") or text["continuation"])]
        p, q = (
            model.forward([tokens], every_token=True)[0][len(before) : -1].double().log_softmax(1)
            for model in (models["cpu"], other)
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
    none, some, much = (damage(models["cpu"], models[name], texts) for name in ("cpu", "cpu int8", "cpu int4"))
    assert (none.divergence.mean, none.same_token.mean, none.perplexity_ratio.mean) == (0, 1, 1)
    assert 0 < some.divergence.mean < 0.1 * much.divergence.mean


def test_parts_that_begin_alike_give_the_figures_of_each_part_alone(tmp_path: Path) -> None:
    torch.save(random_tensors(1, 64, VOCAB), tmp_path / "a.pth")
    models = [load_model(tmp_path / "a.pth", name, "cpu", threads=1) for name in ("cpu", "cpu int4")]
    generator = torch.Generator().manual_seed(3)
    tokens = tuple(torch.randint(1, VOCAB, (3 * CHUNK,), generator=generator).tolist())
    long, fork = tokens[: 2 * CHUNK + 5], (*tokens[: CHUNK + 9], 7, 8, 9)
    parts = [
        ScoredPart(tokens[:5], tokens[5:20]),  # a part of the next one as a whole
        ScoredPart(long[:-2], long[-2:]),
        ScoredPart(fork, (1, 2, 3)),  # leaves the one before it early
        ScoredPart((*fork, 1), (4, 5)),
        ScoredPart(tokens[:3], tokens[3:4]),  # begins before what was kept
        ScoredPart((200,), (1,)),  # has nothing in common with it
        ScoredPart((200,), (1,)),
        ScoredPart(long, tokens[len(long) :]),
    ]
    whole = damage(models[0], models[1], [ScoredText("a", tuple(parts))])
    apart = damage(models[0], models[1], [ScoredText(str(n), (part,)) for n, part in enumerate(parts)])
    assert whole.num_tokens == sum(len(part.scored) for part in parts)
    for name in ("num_tokens", "divergence_tail", "reference_perplexity", "other_perplexity"):
        assert getattr(whole, name) == getattr(apart, name)
    assert whole.divergence.mean == apart.divergence.mean


def test_one_document_has_no_interval(models, tmp_path: Path) -> None:
    found = damage(models["cpu"], models["cpu int8"], documents(tmp_path, [{"text": "only one"}]))
    assert (found.divergence.low, found.same_token.high) == (None, None)


def test_different_vocabularies_and_logits_that_are_not_finite_are_refused(models, tmp_path: Path) -> None:
    texts = documents(tmp_path, [{"text": "a"}])
    torch.save(random_tensors(1, 64, VOCAB + 1), tmp_path / "b.pth")
    with pytest.raises(UsageError, match="vocabularies of 256 and 257 tokens"):
        damage(models["cpu"], load_model(tmp_path / "b.pth", "cpu", "reference"), texts)
    tensors = random_tensors(1, 64, VOCAB, dtype=torch.float32)
    tensors["head.weight"] *= 1e38
    torch.save(tensors, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="not finite"):
        damage(models["cpu"], load_model(tmp_path / "c.pth", "cpu", "reference"), texts)


def test_the_command_compares_strategies_and_checkpoints(tmp_path: Path) -> None:
    text = tmp_path / "t.jsonl"
    text.write_text('{"text": "User: What is 3 + 4?\\n\\nAssistant: 7"}\n{"text": "My name is Ada."}\n')
    quantised = tmp_path / "q.safetensors"
    run = CliRunner().invoke
    assert run(app, ["model", "quantize", str(BUNDLED_MODEL), str(quantised)]).exit_code == 0
    by_strategy = ["model", "damage", "--strategy", "cpu int4", "--against", "cpu", "--texts", str(text), "--json"]
    by_file = ["model", "damage", str(quantised), "--against", str(BUNDLED_MODEL), "--texts", str(text), "--json"]
    first, second = (json.loads(run(app, arguments).stdout) for arguments in (by_strategy, by_file))
    assert first["divergence"] == second["divergence"]
    assert first["num_documents"] == 2
    shown = run(app, by_strategy[:-1])
    assert "same likeliest token" in shown.stdout
    assert "2 documents" in shown.stdout


def test_one_document_is_shown_without_an_interval_and_why(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("My name is Ada.")
    arguments = ["model", "damage", "--strategy", "cpu int4", "--against", "cpu", "--texts", str(text)]
    shown = CliRunner().invoke(app, arguments).stdout
    assert "(no interval: one document)" in shown


DIALOGUES = [
    {
        "id": "a",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "My name is Ada."},
            {"role": "user", "content": "What is 3 + 4?"},
            {"role": "assistant", "content": "7"},
            {"role": "user", "content": "Who am I?"},
            {"role": "assistant", "content": "Your name is Ada."},
            {"role": "user", "content": "Thank you."},
        ],
    },
    {"id": "b", "messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]},
    {"id": "c", "messages": [{"role": "user", "content": "Has no reference."}]},
]


def test_dialogues_are_scored_as_a_run_with_gold_history_scores_them(tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in DIALOGUES))
    arguments = ["model", "damage", "--strategy", "cpu int4", "--against", "cpu", "--script", str(script), "--json"]
    found = json.loads(CliRunner().invoke(app, arguments).stdout)
    rows = run_scripts(script, preset="greedy", history="gold", strategy="cpu").rows()
    references = [row.reference for row in rows if row.reference is not None]
    assert found["num_documents"] == 2
    assert found["num_tokens"] == sum(reference.tokens for reference in references)
    nll = sum(reference.nll * reference.tokens for reference in references) / found["num_tokens"]
    assert found["reference_perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    assert found["divergence"]["mean"] > 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "needs texts"),
        (["--texts", "t.txt", "--script", "s.jsonl"], "--texts and --script are both given"),
        (["--texts", "t.txt", "--turn-end", "next-role"], "--turn-end belongs to --script"),
        (["--script", "none.jsonl"], "no reference replies"),
        (["--script", "none.jsonl", "--think", "off,fake"], "no place there"),
    ],
)
def test_what_to_compare_on_has_to_be_clear(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("none.jsonl").write_text(json.dumps(DIALOGUES[2]) + "\n")
    result = CliRunner().invoke(app, ["model", "damage", "--against", "cpu", *arguments])
    assert isinstance(result.exception, UsageError)
    assert problem in result.exception.message


@pytest.fixture
def certain(tmp_path: Path) -> Path:
    """A model whose logits are so large that each token is all but certain or impossible."""
    path = tmp_path / "certain.pth"
    tensors = random_tensors(2, 64, VOCAB, dtype=torch.float32)
    tensors["head.weight"] *= 1e5
    torch.save(tensors, path)
    return path


def test_perplexities_beyond_a_float_are_infinite(models, certain: Path, tmp_path: Path) -> None:
    texts = documents(tmp_path, [{"text": "A text of some length."}, {"text": "Another text."}])
    found = damage(models["cpu"], load_model(certain, "cpu", "reference"), texts)
    assert found.other_perplexity == found.perplexity_ratio.mean == found.perplexity_ratio.high == math.inf
    assert 1 < found.reference_perplexity < 1e6
    against = damage(load_model(certain, "cpu", "reference"), models["cpu"], texts)
    assert (against.reference_perplexity, against.perplexity_ratio.mean) == (math.inf, 0)


def test_the_command_shows_perplexities_beyond_a_float(tmp_path: Path) -> None:
    tensors = load_file(BUNDLED_MODEL)
    tensors["head.weight"] = tensors["head.weight"] * 2000
    save_file(tensors, tmp_path / "certain.safetensors")
    (tmp_path / "t.txt").write_text("Seventeen zebras juggle.")
    arguments = ["model", "damage", str(tmp_path / "certain.safetensors"), "--against", str(BUNDLED_MODEL)]
    arguments += ["--vocab", "world", "--texts", str(tmp_path / "t.txt")]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    assert "perplexity            >1e308 against " in shown.stdout
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout, parse_constant=pytest.fail)
    assert (found["other_perplexity"], found["perplexity_ratio"]["mean"]) == (None, None)
