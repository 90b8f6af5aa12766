"""llama.cpp's own programs, run one at a time, and what they print."""

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
"""What llama.cpp rounds the context of a sequence up to. An RWKV's memory does not depend on it."""


@dataclass(frozen=True)
class Logits:
    """Attributes:
    tokens: token ids [T].
    values: logits after each of them, [T, vocab_size], fp32.
    """

    tokens: list[int]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class LlamaCpp:
    """The programs of one build. Each call starts one, which loads the model and warms up before it measures.

    Raises:
        RwkvBatchError: from every call, when the program fails.
    """

    bench: Path
    batched_bench: Path
    quantize: Path
    results: Path

    @classmethod
    def find(cls, folder: Path) -> LlamaCpp:
        """The programs of the build in `folder`.

        Raises:
            UsageError: some are not there.
        """
        places = [folder, folder / "bin", folder / "build" / "bin"]
        found = {
            role: next((place / name for place in places if (place / name).is_file()), None)
            for role, name in PROGRAMS.items()
        }
        paths = {role: path.absolute() for role, path in found.items() if path is not None}
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
        """The commit that llama.cpp was built from, as it says itself."""
        return self._bench(model, 1, "-p", "1", "-n", "0")[0]["build_commit"]

    def decode_one(self, model: Path, threads: int, steps: int) -> float:
        """Tokens per second of one sequence, logits included, random tokens in."""
        return tokens_per_s(self._bench(model, threads, "-p", "0", "-n", str(steps)), n_gen=steps)

    def read_prompt(self, model: Path, threads: int, length: int) -> float:
        """Tokens per second of a prompt, in batches of 512, logits after its last token."""
        return tokens_per_s(self._bench(model, threads, "-p", str(length), "-n", "0"), n_prompt=length)

    def decode_many(self, model: Path, threads: int, rows: int, steps: int) -> float:
        """Tokens per second of `rows` sequences that step together, logits included, random tokens in."""
        output = _run(
            [
                *(self.batched_bench, "-m", model, "-t", str(threads), "-c", str(rows * CONTEXT_A_ROW)),
                *("-npp", "1", "-ntg", str(steps), "-npl", str(rows), "--output-format", "jsonl"),
            ]
        )
        return tokens_per_s(records(output), pl=rows)

    def logits(self, model: Path, threads: int, text: str, target: Path) -> Logits:
        """Those of every token of `text`, by way of the file `target`."""
        _run([self.results, "-m", model, "-t", str(threads), "-p", text, "-o", target])
        tensors = {tensor.name: tensor.data for tensor in gguf_package().GGUFReader(target).tensors}
        tokens = [int(token) for token in tensors["tokens"]]
        return Logits(tokens, np.array(tensors["logits"], np.float32).reshape(len(tokens), -1))

    def _bench(self, model: Path, threads: int, *options: str) -> list[Mapping[str, Any]]:
        return records(_run([self.bench, "-m", model, "-t", str(threads), "-r", "1", *options, "-o", "jsonl"]))


def records(output: str) -> list[Mapping[str, Any]]:
    """The JSON objects among the lines that a program printed."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def tokens_per_s(found: Iterable[Mapping[str, Any]], **wanted: int) -> float:
    """The speed in the one record that has the `wanted` entries: of `llama-bench`, or `llama-batched-bench`'s decoding.

    Raises:
        RwkvBatchError: none has, or several have.
    """
    matching = [record for record in found if wanted.items() <= record.items()]
    if len(matching) != 1:
        raise RwkvBatchError(f"llama.cpp printed {len(matching)} records of {wanted}, not one")
    record = matching[0]
    return float(record["avg_ts"] if "avg_ts" in record else record["speed_tg"])


def _run(command: Sequence[str | Path]) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise RwkvBatchError(f"{Path(command[0]).name} failed: {said[-1] if said else 'it said nothing'}")
    return result.stdout
