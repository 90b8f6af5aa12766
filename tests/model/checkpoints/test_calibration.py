"""Rounding to 4 bits that is fitted to texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rwkvbatch.bench.damage import ScoredPart, ScoredText, damage
from rwkvbatch.cli.app import app
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import RaggedBatch
from rwkvbatch.model.checkpoints import calibration
from rwkvbatch.model.checkpoints.calibration import fitted, pieces, rounded_with_feedback
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.model_files import BUNDLED_MODEL
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.ops.reference import ROUNDINGS, ReferenceOps, layer_norm
from rwkvbatch.model.weights.safetensors import save_tensors
from rwkvbatch.prompt.vocabulary import tokenizer_of

RULE = ROUNDINGS["int4"]


def correlated(count: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(count, 12, generator=generator) @ torch.randn(12, width, generator=generator)
    return mixed + 0.3 * torch.randn(count, width, generator=generator)


def test_outputs_on_inputs_that_occur_err_less_than_with_rounding_to_the_nearest() -> None:
    x = correlated(500, 200)
    weight = torch.randn(60, 200, generator=torch.Generator().manual_seed(3))

    def error(rounded: torch.Tensor) -> float:
        return float((x @ (weight - rounded).T).square().mean())

    fed_back = RULE.dequantize(*rounded_with_feedback(weight, x.T @ x, RULE))
    assert error(fed_back) < 0.4 * error(RULE.rounded(weight))


def test_the_factor_is_that_of_the_inverse_of_damped_moments() -> None:
    x = correlated(300, 40)
    moments = x.T @ x
    factor = calibration._inverse_factor(moments)
    damped = moments.double() + calibration.DAMPING * moments.double().diagonal().mean() * torch.eye(40)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.double().T @ factor.double() @ damped, torch.eye(40).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("width", [131, 32, 1])
def test_rounding_it_again_finds_the_same_integers_and_scales(width: int) -> None:
    x = correlated(300, width)
    x[:, width // 2 :: 7] = 0  # inputs that never occur
    weight = torch.randn(70, width, generator=torch.Generator().manual_seed(4))
    weight[0] = 0
    weight[1] *= 1e-42
    weight[2:10] = (weight[2:10] * 3).round() / 3  # with several greatest ones
    integers, scales = rounded_with_feedback(weight, x.T @ x, RULE)
    again, scales_again = RULE.quantize(RULE.dequantize(integers, scales))
    assert torch.equal(again, integers)
    assert torch.equal(scales_again, scales)


def test_without_any_inputs_it_still_rounds() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(5))
    actual = RULE.dequantize(*rounded_with_feedback(weight, torch.zeros(40, 40), RULE))
    assert float((actual - weight).abs().max()) < 0.5


@pytest.mark.parametrize("deep_embed", [None, 4], ids=["RWKV-7", "RWKV-7a"])
def test_layers_are_fitted_to_what_the_fitted_layers_before_them_give(
    deep_embed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = random_tensors(3, 64, 97, head_size=32, deep_embed=deep_embed, dtype=torch.float32)
    tensors["blocks.0.att.time_state"] = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(1))
    for layer in (1, 2):
        tensors[f"blocks.{layer}.att.time_state"] = tensors["blocks.0.att.time_state"] * layer
    save_tensors(tmp_path / "a.safetensors", tensors)
    texts = [[0, 5, 7, 9, 11], [0, 3], [0, 8, 8, 8]]
    monkeypatch.setattr(calibration, "ROWS_PER_PASS", 6)
    seen: list[torch.Tensor] = []

    def nearest(weight: torch.Tensor, moments: torch.Tensor, rule: object) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(moments)
        return RULE.quantize(weight)

    monkeypatch.setattr(calibration, "rounded_with_feedback", nearest)
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        names = [name for name, _ in fitted(checkpoint, texts, lambda *_: None)]
    assert names[0] == "blocks.0.att.receptance.weight"
    assert names[-1] == "head.weight"
    assert len(names) == len(set(names)) == 3 * 6 + 1

    inputs: list[torch.Tensor] = []

    class Recording(ReferenceOps):
        def head(self, step, x, norm, layer):
            inputs.append(calibration.as_multiplied(layer_norm(x, norm), RULE.input_group))
            return super().head(step, x, norm, layer)

    ops = Recording(rounding="int4")
    pool = ops.make_pool(3, 3, 2, 32).with_initial(
        torch.stack([tensors[f"blocks.{layer}.att.time_state"] for layer in range(3)])
    )
    for slot in range(3):
        pool.clear(slot)
    with torch.no_grad():
        Network.build(tensors, 3, ops).step(ops, RaggedBatch.of(texts, range(3)), pool)
    torch.testing.assert_close(seen[-1], inputs[0].T @ inputs[0], rtol=1e-3, atol=1e-2)


def test_pieces_have_token_0_before_each_and_stop_at_the_limit() -> None:
    text = list(range(1, 1200))
    actual = pieces([text, [7], [8]], 1206)
    assert [len(piece) for piece in actual] == [512, 512, 178, 2, 2]
    assert [token for piece in actual[:3] for token in piece[1:]] == text
    assert {piece[0] for piece in actual} == {0}
    assert sum(map(len, pieces([text, [7]], 600))) == 600
    assert pieces([[5]], 1) == []


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_tensors(path, random_tensors(1, 64, 300), metadata={"vocabulary": "world"})
    (tmp_path / "t.txt").write_text("The quick brown fox. " * 40)
    return path


def quantize(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["model", "quantize", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stderr


def test_the_file_says_what_it_was_fitted_to_and_is_the_same_each_time(original: Path, tmp_path: Path) -> None:
    one, other, again = (tmp_path / f"{name}.safetensors" for name in ("b", "c", "d"))
    assert "fitted to 300 tokens" in quantize(
        original, one, "--calibrate", tmp_path / "t.txt", "--calibrate-tokens", 300
    )
    quantize(original, other, "--calibrate", tmp_path / "t.txt", "--calibrate-tokens", 300)
    assert one.read_bytes() == other.read_bytes()
    quantize(one, again)
    assert again.read_bytes() == one.read_bytes()
    described = json.loads(CliRunner().invoke(app, ["model", "info", str(one), "--json"]).stdout)
    assert (described["quantised"], described["fitted_tokens"]) == ("int4", 300)
    assert (
        "int4, the large matrices, fitted to 300 tokens" in CliRunner().invoke(app, ["model", "info", str(one)]).stdout
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--to", "w8a8", "--calibrate", "t.txt"], "--calibrate is for --to int4"),
        (["--vocab", "world"], "--vocab belongs to --calibrate"),
        (["--calibrate", "short.txt"], "at least 256 tokens"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    options: list[str], problem: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Short.")
    with pytest.raises(UsageError, match=problem):
        quantize(original, "out.safetensors", *options)
    assert not Path("out.safetensors").exists()


def test_a_quantised_file_is_not_fitted(original: Path, tmp_path: Path) -> None:
    quantize(original, tmp_path / "q.safetensors")
    with pytest.raises(UsageError, match="quantised already, to int4; fitting it"):
        quantize(tmp_path / "q", tmp_path / "r.safetensors", "--calibrate", tmp_path / "t.txt")


def test_the_bundled_model_is_damaged_less_on_texts_that_it_was_not_fitted_to(tmp_path: Path) -> None:
    lines = (Path(__file__).parents[3] / "datasets" / "styles.jsonl").read_text().splitlines()
    texts = []
    for line in lines:
        said = [message["content"] for message in json.loads(line)["messages"]]
        texts.append("\n\n".join(f"{'Assistant' if n % 2 else 'User'}: {text}" for n, text in enumerate(said)))
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[10:]))
    quantize(BUNDLED_MODEL, tmp_path / "q.safetensors", "--calibrate", path, "--calibrate-tokens", 2048)
    exact, nearest = load_model(None, "cpu", threads=1), load_model(None, "cpu int4", threads=1)
    encode = tokenizer_of(exact.spec, None).encode
    held_out = [ScoredText(str(n), (ScoredPart((0,), tuple(encode(text))),)) for n, text in enumerate(texts[:10])]
    fitted_model = load_model(tmp_path / "q", "cpu", threads=1)
    assert fitted_model.spec.dtype == "int4"
    before, after = (damage(exact, model, held_out).divergence.mean for model in (nearest, fitted_model))
    assert after < 0.7 * before
