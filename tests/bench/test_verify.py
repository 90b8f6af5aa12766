"""`bench.verify`: accepts the same network, and finds another network or one wrong step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkvbatch.bench import verify as verification
from rwkvbatch.bench.verify import DECODE_ROWS, LENGTHS, LIMITS, Verification, plan, precision_of, verify, verify_model
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import Model, RaggedBatch, StatePool
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.weights.safetensors import save_tensors
from tests.model.older_generations import GENERATIONS, older_tensors

TENSORS = random_tensors(2, 32, 50, 16, seed=3, dtype=torch.float32)


def saved(folder: Path, **changed: torch.Tensor) -> Path:
    path = folder / "model.safetensors"
    save_tensors(path, {**TENSORS, **{name.replace("__", "."): value for name, value in changed.items()}})
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("right"))


def against(path: Path, load: Callable[[], Model]) -> Verification:
    return verify(lambda: load_model(path, "cpu", "reference"), load)


class Broken:
    """A model whose step is passed through a function of the batch and the logits."""

    def __init__(self, model: Model, change: Callable[[RaggedBatch, torch.Tensor], torch.Tensor]) -> None:
        self._model = model
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def step(self, batch: RaggedBatch, pool: StatePool) -> torch.Tensor:
        return self._change(batch, self._model.step(batch, pool).clone())


def wrong_parts(
    path: Path, change: Callable[[RaggedBatch, torch.Tensor], torch.Tensor]
) -> tuple[Verification, list[str]]:
    found = against(path, lambda: Broken(load_model(path, "cpu", "reference"), change))  # pyright: ignore[reportArgumentType]
    return found, [part.name for part in found.parts if not part.within]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_right_backend_is_the_same_network(path: Path, backend: str) -> None:
    found = against(path, lambda: load_model(path, "cpu", backend))
    assert found.same
    assert (found.precision, found.backend) == ("fp32", backend)
    assert all(part.same_token == 1 for part in found.parts)
    assert all(part.rms is not None and part.rms < LIMITS["fp32"].rms / 10 for part in found.parts)


def test_rounded_weights_are_held_to_the_limit_of_their_precision(path: Path) -> None:
    found = against(path, lambda: load_model(path, "cpu bf16", "cpu"))
    assert found.same
    assert found.precision == "bf16"
    assert max(part.rms or 0 for part in found.parts) > LIMITS["fp32"].rms


def test_a_layer_left_out_is_found_out(path: Path, tmp_path: Path) -> None:
    nothing = torch.zeros_like(TENSORS["blocks.1.att.output.weight"])
    other = saved(tmp_path, blocks__1__att__output__weight=nothing)
    found = against(path, lambda: load_model(other, "cpu bf16", "cpu"))
    assert not found.same


def test_a_slightly_wrong_vector_is_found_out_in_fp32(path: Path, tmp_path: Path) -> None:
    other = saved(tmp_path, blocks__0__att__k_a=TENSORS["blocks.0.att.k_a"] * 1.05)
    assert not against(path, lambda: load_model(other, "cpu", "cpu")).same


def test_a_step_that_shows_what_the_one_before_it_had_is_found_out(path: Path) -> None:
    shown: list[torch.Tensor] = []

    def stale(batch: RaggedBatch, logits: torch.Tensor) -> torch.Tensor:
        shown.append(logits)
        return shown[-2] if len(logits) == len(batch.tokens) == 3 and len(shown[-2]) == 3 else logits

    assert wrong_parts(path, stale)[1] == ["decode, 3 rows"]


def test_two_rows_exchanged_are_found_out(path: Path) -> None:
    def exchanged(batch: RaggedBatch, logits: torch.Tensor) -> torch.Tensor:
        return logits.flip(0) if len(batch.slots) == len(logits) == 16 else logits

    assert wrong_parts(path, exchanged)[1] == ["decode, 16 rows"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_never_within_the_limit(path: Path, value: float) -> None:
    def spoilt(batch: RaggedBatch, logits: torch.Tensor) -> torch.Tensor:
        if len(logits) == 1:
            logits[0, 0] = value
        return logits

    found, wrong = wrong_parts(path, spoilt)
    assert "decode, 1 row" in wrong
    assert not found.same
    assert [part.rms for part in found.parts if part.name == "decode, 1 row"] == [None]


def test_a_state_that_is_not_copied_is_found_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(path, "cpu", "cpu")
    monkeypatch.setattr(type(model.make_pool(1)), "copy", lambda *_: None)
    found = against(path, lambda: model)
    assert [part.within for part in found.parts][:3] == [True, True, False]


def test_the_first_model_is_gone_when_the_second_is_loaded(path: Path) -> None:
    import gc
    import weakref

    references: list[weakref.ref[Any]] = []

    def first() -> Model:
        model = load_model(path, "cpu", "reference")
        references.append(weakref.ref(model))
        return model

    def second() -> Model:
        gc.collect()
        assert references[0]() is None
        return load_model(path, "cpu", "cpu")

    assert verify(first, second).same


def test_every_decode_size_goes_on_long_enough_for_graphs_that_are_replayed() -> None:
    from rwkvbatch.model.ops.cuda import is_decode

    decodes = [step.batch for step in plan(50) if is_decode(step.batch) and len(step.batch.tokens) in DECODE_ROWS]
    for rows in DECODE_ROWS:
        assert sum(len(batch.tokens) == rows for batch in decodes) >= 5
    assert min(DECODE_ROWS) == 1 < 16 < max(DECODE_ROWS) == len(LENGTHS)


@pytest.mark.parametrize(
    ("device", "backend", "dtype", "precision"),
    [
        ("cpu", "cpu", "bf16", "fp32"),
        ("cpu", "cpu", "fp16", "fp16"),
        ("cpu", "cpu", "int8", "int8"),
        ("cuda", "cuda", "bf16", "bf16"),
        ("cuda", "cuda", "fp32", "fp32"),
        ("cpu", "upstream", "cpu fp32", "fp32"),
        ("cuda", "upstream", "cuda fp16i8 *10 -> cpu fp32", "int8"),
    ],
)
def test_the_limit_is_that_of_the_coarsest_precision_in_use(
    path: Path, device: str, backend: str, dtype: str, precision: str
) -> None:
    spec = replace(load_model(path, "cpu", "reference").spec, device=device, backend=backend, dtype=dtype)
    assert precision_of(spec, stored="bf16") == precision


@pytest.mark.parametrize(("load", "expected"), [(0.2, 4), (1.6, 2), (27.0, 1)])
def test_the_reference_takes_the_processors_that_are_idle(
    load: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert verification.idle_processors() == expected


def test_both_models_are_loaded_with_the_threads_given(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int | None] = []

    def load(*arguments: Any, threads: int | None) -> Model:
        given.append(threads)
        return load_model(*arguments, threads=threads)

    monkeypatch.setattr(verification, "load_model", load)
    assert verification.verify_model(str(path), strategy="cpu fp32", threads=1).same
    assert given == [1, 1]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_older_generation_is_refused_without_an_option_that_nobody_gave(generation: str, tmp_path: Path) -> None:
    torch.save(older_tensors(generation), tmp_path / "older.pth")
    with pytest.raises(UsageError, match=rf"older\.pth is RWKV-{generation}; the operations") as caught:
        verify_model(str(tmp_path / "older.pth"))
    assert "--backend" not in str(caught.value)
