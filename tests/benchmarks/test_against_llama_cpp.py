from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.against_llama_cpp import PAIRS, Plan, Shape, main, measure_shape, steps_of
from benchmarks.llama_cpp_agreement import CHECKED_TEXT, EXACT_KIND, Files, agreement_of, check
from benchmarks.llama_cpp_figures import Measurement, figures_of, groups_of, idle_text
from benchmarks.llama_cpp_programs import PROGRAMS, LlamaCpp, Logits, records, tokens_per_s
from benchmarks.machine_load import LoadReading, busy_ticks, share_of_others
from rwkvbatch.bench.limits import Meter, Rates
from rwkvbatch.errors import RwkvBatchError, UsageError
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.weights.safetensors import save_tensors
from rwkvbatch.prompt.tokenizer import world_tokenizer

BENCH = """\
{"build_commit": "0c1e570", "n_threads": 2, "n_prompt": 512, "n_gen": 0, "avg_ts": 776.5, "samples_ts": [ 776.5 ]}
{"build_commit": "0c1e570", "n_threads": 2, "n_prompt": 0, "n_gen": 32, "avg_ts": 88.4, "samples_ts": [ 88.4 ]}
"""
BATCHED = """
{"n_ubatch": 512, "pp": 1, "tg": 8, "pl": 32, "n_kv": 288, "speed_pp": 348.9, "speed_tg": 384.8, "speed": 380.4}

llama_perf_context_print: load time = 100.00 ms
"""


def test_the_speed_is_that_of_the_test_that_was_asked_for() -> None:
    assert tokens_per_s(records(BENCH), n_prompt=512) == 776.5
    assert tokens_per_s(records(BENCH), n_gen=32) == 88.4


def test_of_the_batched_benchmark_only_decoding_counts() -> None:
    assert tokens_per_s(records(BATCHED), pl=32) == 384.8


@pytest.mark.parametrize("output", ["", BENCH, BATCHED + BATCHED])
def test_a_speed_that_was_not_printed_exactly_once_is_refused(output: str) -> None:
    with pytest.raises(RwkvBatchError, match="not one"):
        tokens_per_s(records(output), pl=32)


@pytest.mark.parametrize("inside", [".", "bin", "build/bin"])
def test_programs_are_found_in_a_build_or_its_bin(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS.values():
        (tmp_path / inside / name).touch()
    assert LlamaCpp.find(tmp_path).quantize == tmp_path / inside / "llama-quantize"


def test_programs_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "llama-bench").touch()
    with pytest.raises(UsageError, match="no llama-batched-bench, llama-quantize, llama-results in"):
        LlamaCpp.find(tmp_path)


def test_a_program_that_fails_is_told_in_its_last_words(tmp_path: Path) -> None:
    for name in PROGRAMS.values():
        (tmp_path / name).write_text("#!/bin/sh\necho first >&2; echo cannot load it >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(RwkvBatchError, match=r"^llama-quantize failed: cannot load it$"):
        LlamaCpp.find(tmp_path).write_quantized(tmp_path / "a", tmp_path / "b", "Q8_0")


def test_a_missing_build_ends_the_benchmark_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["against_llama_cpp.py", "--llama-cpp", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: no llama-bench, .*\n  build llama\.cpp with the targets"):
        main()


def measurements(speeds: dict[str, list[float]]) -> list[Measurement]:
    return [
        Measurement(number, "decode, 1 row", who, speed, 10.0 * number)
        for who, of_rounds in speeds.items()
        for number, speed in enumerate(of_rounds, start=1)
    ]


def test_the_ratio_is_the_median_of_the_rounds_quotients_and_ours_come_first() -> None:
    found = measurements({"Q8_0": [50.0, 40.0, 60.0], "cpu int8": [100.0, 160.0, 60.0], "cpu w8a8": [150.0, 120.0]})
    figures = figures_of(found, PAIRS)
    assert [figure.who for figure in figures] == ["cpu int8", "cpu w8a8", "Q8_0"]
    assert (figures[0].median, figures[0].ratios) == (100.0, ())
    theirs = figures[2]
    assert (theirs.median, theirs.lowest, theirs.highest, theirs.count) == (50.0, 40.0, 60.0, 3)
    # 2, 4, 1 and 3, 3; quotients of the medians would be 2 and 2.7.
    assert [(ratio.strategy, ratio.median, ratio.lowest, ratio.highest) for ratio in theirs.ratios] == [
        ("cpu int8", 2.0, 1.0, 4.0),
        ("cpu w8a8", 3.0, 3.0, 3.0),
    ]
    assert theirs.read_gb_s == 20.0


def test_measurements_at_slow_and_at_fast_memory_can_be_told_apart() -> None:
    groups = groups_of(measurements({"cpu bf16": [1.0, 2.0, 3.0]}), 20.0)
    slow, fast = ([measurement.tokens_per_s for measurement in group] for group in groups.values())
    assert (slow, fast) == ([1.0], [2.0, 3.0])


def test_groups_keep_the_order_of_things_whatever_is_missing_in_a_round() -> None:
    found = [
        Measurement(1, "decode", "cpu bf16", 1.0, 10.0),
        Measurement(1, "prompt", "cpu bf16", 2.0, 30.0),
        Measurement(2, "decode", "cpu bf16", 3.0, 30.0),
    ]
    fast = groups_of(found, 20.0)["memory from 20 GB/s up"]
    assert [measurement.what for measurement in fast] == ["decode", "prompt"]


def test_a_kind_without_our_own_measurement_in_its_rounds_has_no_ratio() -> None:
    (theirs,) = figures_of(measurements({"F16": [50.0]}), PAIRS)
    assert theirs.ratios == ()


def test_processor_time_of_other_programs_is_all_that_is_busy_but_not_ours() -> None:
    stat = "cpu  100 20 30 1000 50 1 2 7 60 0\ncpu0 50 10 15 500 25 0 1 3 30 0\n"
    assert busy_ticks(stat) == 100 + 20 + 30 + 1 + 2 + 7
    start, end = LoadReading(10.0, 50.0, 3.0), LoadReading(12.0, 53.0, 5.0)
    assert share_of_others(start, end, processors=2) == 0.25
    assert share_of_others(None, end) is None


def test_a_machine_that_was_not_idle_is_named() -> None:
    idle = [Measurement(1, "decode", "F16", 1.0, 30.0, others) for others in (0.01, 0.02, None)]
    assert idle_text(idle) == "the machine was idle: other programs used at most 2.0% of the processors"
    busy = [*idle, Measurement(1, "decode", "F16", 1.0, 30.0, 0.4)]
    assert idle_text(busy).startswith("THE MACHINE WAS NOT IDLE: in 1 of 3 measurements")
    assert "not known" in idle_text(idle[2:])


VOCAB = 300
TOKENS = np.random.default_rng(0).integers(1, VOCAB, 56).tolist()


def logits_of(
    tensors: Mapping[str, torch.Tensor], folder: Path, tokens: list[int] = TOKENS, backend: str = "cpu"
) -> Logits:
    save_tensors(folder / "model.safetensors", tensors, replace=True)
    model = load_model(folder / "model.safetensors", "cpu", backend, threads=1)
    return Logits(tokens, model.forward([tokens], every_token=True)[0].numpy().copy())


SHAPES = [(1, 64), (6, 128), (24, 128)]


@pytest.mark.parametrize(("layers", "width"), SHAPES, ids=str)
def test_another_network_is_told_from_ours_at_every_depth(layers: int, width: int, tmp_path: Path) -> None:
    tensors = random_tensors(layers, width, VOCAB, dtype=torch.float32)
    ours = logits_of(tensors, tmp_path)
    assert agreement_of(EXACT_KIND, ours, logits_of(tensors, tmp_path)).error == 0
    last = f"blocks.{layers - 1}"
    matrix = tensors[f"{last}.att.receptance.weight"]
    swapped = matrix.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    changed = {"transposed": matrix.T.contiguous(), "two outputs swapped": swapped}
    for what, weight in changed.items():
        other = logits_of({**tensors, f"{last}.att.receptance.weight": weight}, tmp_path)
        with pytest.raises(RwkvBatchError, match="it computes something else"):
            pytest.fail(f"{what}: {agreement_of(EXACT_KIND, ours, other)}")


def test_what_fp32_sums_in_another_order_change_is_within_the_tolerance(tmp_path: Path) -> None:
    tensors = random_tensors(24, 128, VOCAB, dtype=torch.float32)
    ours = logits_of(tensors, tmp_path)
    theirs = logits_of(tensors, tmp_path, backend="reference")
    assert 0 < agreement_of(EXACT_KIND, ours, theirs).error < 0.001


def test_a_rounded_kind_is_told_but_not_judged_and_logits_that_are_not_numbers_are_refused() -> None:
    values = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    ours = Logits([1, 2, 3, 4], values)
    other = Logits([1, 2, 3, 4], values * np.float32(1.05))
    assert agreement_of("F16", ours, other).error == pytest.approx(0.05, rel=0.05)
    assert agreement_of("F16", ours, other).same_choice == 1
    for broken in (other, Logits([1, 2, 3, 4], np.full_like(values, np.nan))):
        with pytest.raises(RwkvBatchError, match="it computes something else"):
            agreement_of(EXACT_KIND, ours, broken)


def test_nothing_is_measured_when_the_text_is_read_as_other_tokens() -> None:
    values = np.ones((2, 3), np.float32)
    with pytest.raises(RwkvBatchError, match="reads other tokens"):
        agreement_of(EXACT_KIND, Logits([1, 2], values), Logits([1, 3], values))


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> LlamaCpp:
    """A build whose programs answer at once, with logits as ours."""
    monkeypatch.setattr(LlamaCpp, "decode_one", lambda *_: 10.0)
    monkeypatch.setattr(LlamaCpp, "decode_many", lambda *_: 20.0)
    monkeypatch.setattr(LlamaCpp, "read_prompt", lambda *_: 30.0)
    monkeypatch.setattr(Meter, "measure", lambda _: Rates(3e10, 1e11))
    nowhere = Path("nowhere")
    return LlamaCpp(nowhere, nowhere, nowhere, nowhere)


def test_the_network_is_judged_by_a_file_in_fp32_that_is_removed(
    build: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = world_tokenizer().encode(CHECKED_TEXT)
    vocab = max(tokens) + 1
    ours = logits_of(random_tensors(1, 64, vocab), tmp_path, tokens)
    asked: list[str] = []

    def answer(self: LlamaCpp, path: Path, *_: object) -> Logits:
        if path.name == "F32.gguf":
            assert path.stat().st_size > 4 * 2 * vocab * 64
        asked.append(path.name)
        return ours

    monkeypatch.setattr(LlamaCpp, "logits", answer)
    files = Files(tmp_path / "model.safetensors", {"Q8_0": tmp_path / "q.gguf"})
    found = check(files, build, 1, tmp_path, lambda _: None)
    assert [one.kind for one in found] == ["F32", "Q8_0"]
    assert asked == ["F32.gguf", "q.gguf"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_groups_that_were_measured_before_are_not_measured_again(build: LlamaCpp, tmp_path: Path) -> None:
    save_tensors(tmp_path / "model.safetensors", random_tensors(1, 64, 300))
    plan = Plan(("F16", "Q4_0"), (1, 8), 16, 2, 1)
    path, facts = tmp_path / "figures.json", {"shape": "1x64"}
    shape, lines = Shape.read(path, facts), list[str]()
    files = Files(tmp_path / "model.safetensors", {"F16": tmp_path, "Q4_0": tmp_path})
    measure_shape(files, plan, build, shape, lambda: shape.write(path), lines.append)
    assert len(shape.measurements) == plan.count == 2 * 3 * 4
    assert "24/24, 0.0 min left" in lines[-1]
    assert {one.tokens_per_s for one in shape.measurements if one.who == "F16"} == {10.0, 20.0, 30.0}
    kept = json.loads(path.read_text())
    kept["measurements"] = [one for one in kept["measurements"] if one["who"] in ("F16", "cpu bf16")]
    path.write_text(json.dumps(kept))
    again = Shape.read(path, facts)
    lines.clear()
    measure_shape(files, plan, build, again, lambda: None, lines.append)
    assert len(again.measurements) == plan.count
    assert not any("cpu bf16" in line for line in lines)


def test_figures_of_other_facts_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    Shape({"shape": "1x64", "threads": 1}, [], []).write(path)
    assert Shape.read(path, {"shape": "1x64", "threads": 1}).measurements == []
    with pytest.raises(UsageError, match="another threads: 1 there, 2 now"):
        Shape.read(path, {"shape": "1x64", "threads": 2})
    path.write_text("[1]")
    with pytest.raises(UsageError, match="was not written by this benchmark"):
        Shape.read(path, {})


def test_steps_are_fewer_with_more_rows() -> None:
    assert [steps_of(rows) for rows in (1, 2, 8, 64)] == [32, 16, 8, 8]
