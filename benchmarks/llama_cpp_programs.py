"""Runner of llama.cpp's programs, one at a time, and parser of their output."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gguf_file import gguf_package
from rwkvbatch.errors import RwkvBatchError, UsageError

PROGRAMS = {
    "bench": "llama-bench",
    "batched_bench": "llama-batched-bench",
    "quantize": "llama-quantize",
    "results": "llama-results",
}
CONTEXT_A_ROW = 256
"""The multiple to which llama.cpp rounds up the context of a sequence. An RWKV's memory does not depend on it."""


@dataclass(frozen=True)
class Logits:
    """Logits of a text.

    Attributes:
        tokens: `[T]` token ids. values: `[T, vocab_size]` logits after each token, in fp32.
    """

    tokens: list[int]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class LlamaCpp:
    """The programs of one build.

    Each method starts a program, which loads the model and warms up before it measures. Every method raises
    `RwkvBatchError` if the program fails.
    """

    bench: Path
    batched_bench: Path
    quantize: Path
    results: Path

    @classmethod
    def find(cls, folder: Path) -> LlamaCpp:
        """The programs of the build in `folder`.

        Raises:
            UsageError: a program is missing.
        """
        folders = [folder, folder / "bin", folder / "build" / "bin"]
        candidates = {role: [candidate / name for candidate in folders] for role, name in PROGRAMS.items()}
        paths = {
            role: path.absolute()
            for role, role_candidates in candidates.items()
            if (path := next(filter(Path.is_file, role_candidates), None)) is not None
        }
        if missing := [PROGRAMS[role] for role in PROGRAMS if role not in paths]:
            raise UsageError(
                f"no {', '.join(missing)} in {folder}, its bin or its build/bin",
                hint=f"build llama.cpp with the targets {', '.join(PROGRAMS.values())}",
            )
        return cls(**paths)

    def write_quantized(self, source: Path, target: Path, kind: str) -> None:
        """Write the GGUF file `source` as `kind`, such as `Q8_0` or `BF16`."""
        _run([self.quantize, source, target, kind])

    def build(self, model: Path) -> str:
        """The commit that llama.cpp reports to be built from."""
        return self._bench(model, 1, "-p", "1", "-n", "0")[0]["build_commit"]

    def decode_one(self, model: Path, threads: int, steps: int) -> float:
        """Tokens per second of decode steps of one sequence of random tokens, including logits."""
        return tokens_per_s(self._bench(model, threads, "-p", "0", "-n", str(steps)), n_gen=steps)

    def read_prompt(self, model: Path, threads: int, length: int) -> float:
        """Tokens per second of a prompt in batches of 512, with logits after its last token."""
        return tokens_per_s(self._bench(model, threads, "-p", str(length), "-n", "0"), n_prompt=length)

    def decode_many(self, model: Path, threads: int, rows: int, steps: int) -> float:
        """Tokens per second of decode steps of `rows` sequences of random tokens, including logits."""
        output = _run(
            [
                *(self.batched_bench, "-m", model, "-t", str(threads), "-c", str(rows * CONTEXT_A_ROW)),
                *("-npp", "1", "-ntg", str(steps), "-npl", str(rows), "--output-format", "jsonl"),
            ]
        )
        return tokens_per_s(records(output), pl=rows)

    def logits(self, model: Path, threads: int, text: str, target: Path) -> Logits:
        """The logits after every token of `text`; the program writes them to the file `target`."""
        _run([self.results, "-m", model, "-t", str(threads), "-p", text, "-o", target])
        tensors = {tensor.name: tensor.data for tensor in gguf_package().GGUFReader(target).tensors}
        tokens = [int(token) for token in tensors["tokens"]]
        return Logits(tokens, np.array(tensors["logits"], np.float32).reshape(len(tokens), -1))

    def _bench(self, model: Path, threads: int, *options: str) -> list[Mapping[str, Any]]:
        return records(_run([self.bench, "-m", model, "-t", str(threads), "-r", "1", *options, "-o", "jsonl"]))


def records(output: str) -> list[Mapping[str, Any]]:
    """The JSON objects among the lines that a program printed."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def tokens_per_s(printed: Iterable[Mapping[str, Any]], **entries: int) -> float:
    """The speed in the record with the given entries, of `llama-bench` or of `llama-batched-bench`'s decode steps.

    Raises:
        RwkvBatchError: no record or several records have these entries.
    """
    matching = [record for record in printed if entries.items() <= record.items()]
    if len(matching) != 1:
        raise RwkvBatchError(f"llama.cpp printed {len(matching)} records of {entries}, not one")
    record = matching[0]
    return float(record["avg_ts"] if "avg_ts" in record else record["speed_tg"])


def _run(command: Sequence[str | Path]) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise RwkvBatchError(f"{Path(command[0]).name} failed: {lines[-1] if lines else 'it printed nothing'}")
    return result.stdout
