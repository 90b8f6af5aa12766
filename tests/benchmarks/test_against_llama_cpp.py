from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.against_llama_cpp import CHECKED_TEXT, Files, check, main
from benchmarks.llama_cpp_figures import OURS, Agreement, Measurement, figures_of, groups_of
from benchmarks.llama_cpp_programs import PROGRAMS, LlamaCpp, Logits, records, tokens_per_s
from rwkvbatch.bench.measure import write_random
from rwkvbatch.errors import RwkvBatchError, UsageError
from rwkvbatch.model.base import Model
from rwkvbatch.model.load import load_model
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


def test_the_ratio_is_that_of_the_medians_and_ours_come_first() -> None:
    ours, theirs = figures_of(measurements({"F16": [50.0, 40.0, 60.0], OURS: [100.0, 160.0, 60.0]}))
    assert (ours.who, ours.median, ours.ratio) == (OURS, 100.0, None)
    assert (theirs.median, theirs.lowest, theirs.highest, theirs.count) == (50.0, 40.0, 60.0, 3)
    assert theirs.ratio == 2.0
    assert theirs.read_gb_s == 20.0


def test_measurements_at_slow_and_at_fast_memory_can_be_told_apart() -> None:
    groups = groups_of(measurements({OURS: [1.0, 2.0, 3.0]}), 20.0)
    slow, fast = ([measurement.tokens_per_s for measurement in group] for group in groups.values())
    assert (slow, fast) == ([1.0], [2.0, 3.0])


def test_groups_keep_the_order_of_things_whatever_is_missing_in_a_round() -> None:
    found = [
        Measurement(1, "decode", OURS, 1.0, 10.0),
        Measurement(1, "prompt", OURS, 2.0, 30.0),
        Measurement(2, "decode", OURS, 3.0, 30.0),
    ]
    fast = groups_of(found, 20.0)["memory from 20 GB/s up"]
    assert [measurement.what for measurement in fast] == ["decode", "prompt"]


def test_a_group_without_our_own_measurement_has_no_ratio() -> None:
    (theirs,) = figures_of(measurements({"F16": [50.0]}))
    assert theirs.ratio is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_random("1x64", tmp_path_factory.mktemp("check")), "cpu", threads=1)


def checked(model: Model, monkeypatch: pytest.MonkeyPatch, answer: Logits) -> list[Agreement]:
    """`check` of a build that answers with `answer` whatever the file."""
    monkeypatch.setattr(LlamaCpp, "logits", lambda *_: answer)
    nowhere = Path("nowhere")
    build = LlamaCpp(nowhere, nowhere, nowhere, nowhere)
    return check(model, Files(nowhere, {"F16": nowhere, "Q8_0": nowhere}), build, threads=1)


def answer_of(model: Model, scale: float) -> Logits:
    tokens = world_tokenizer().encode(CHECKED_TEXT)
    values = model.forward([tokens], every_token=True)[0].numpy()
    return Logits(tokens, values * np.float32(scale))


def test_logits_that_are_nearly_ours_are_accepted_and_told(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    agreements = checked(model, monkeypatch, answer_of(model, 1.01))
    assert [agreement.kind for agreement in agreements] == ["F16", "Q8_0"]
    assert agreements[0].error == pytest.approx(0.01, rel=0.05)
    assert agreements[0].same_choice == 1.0


def test_nothing_is_measured_when_the_logits_are_of_another_network(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RwkvBatchError, match="it computes something else"):
        checked(model, monkeypatch, answer_of(model, 1.05))


def test_nothing_is_measured_when_the_text_is_read_as_other_tokens(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = answer_of(model, 1.0)
    with pytest.raises(RwkvBatchError, match="reads other tokens"):
        checked(model, monkeypatch, Logits([1, *answer.tokens[1:]], answer.values))
