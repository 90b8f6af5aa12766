"""rwkvbatch against RWKVServe (PyPI `rwkvserve`) on the CPU: the same random RWKV-7, greedy replies, in turns.

    python benchmarks/against_rwkvserve.py --python ENV/bin/python [--shape 12x768] [--rows 1,8,32] [--rounds 3]

ENV is an environment in which `rwkvserve` is installed; it runs in a process of its own. Both generate replies to the
same prompts, all in one call, weights in fp32 or bf16 and all else in fp32 (ours). First the reply tokens in fp32 are
compared: if they differ, nothing is measured. A figure is reply tokens a second of the whole call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine_load import IDLE, load_of_others
from rwkvbatch import LLM, SamplingParams
from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.model.random_checkpoint import LowRankWidths, random_tensors

CHILD = """
import json, shutil, sys, time
from pathlib import Path
answers, sys.stdout = sys.stdout, sys.stderr  # the package prints
import rwkvserve, torch
from rwkvserve.entrypoints.llm import LLM
from rwkvserve.sampling_params import SamplingParams
folder, dtype, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
vocabulary = Path(rwkvserve.__file__).parent / "data/tokenizers/vocab/rwkv_vocab_v20230424.txt"
shutil.copy(vocabulary, folder / vocabulary.name)
llm = LLM(str(folder), device="cpu", dtype=dtype)
print(json.dumps({"ready": True}), file=answers, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    started = time.perf_counter()
    outputs = llm.generate(asked["prompts"], SamplingParams(temperature=0, max_tokens=asked["tokens"]), use_tqdm=False)
    seconds = time.perf_counter() - started
    ids = [list(map(int, output.outputs[0].token_ids)) for output in outputs]
    print(json.dumps({"ids": ids, "seconds": seconds}), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Reply:
    """The reply tokens to each prompt, and the seconds of the call."""

    ids: list[list[int]]
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.ids)) / self.seconds


@dataclass(frozen=True)
class Figure:
    """Reply tokens a second, medians over the rounds; `ratio` is the median of the rounds' quotients."""

    rows: int
    ours: float
    theirs: float
    ratio: float


class Peer:
    """RWKVServe in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, prompts: list[str], tokens: int) -> Reply:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return Reply(**self.answer())

    def answer(self) -> dict[str, Any]:
        """The next line that it prints.

        Raises:
            RwkvBatchError: it ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RwkvBatchError("the process with rwkvserve ended early; what it said is above")
        return json.loads(line)


@contextmanager
def peer(python: str, folder: Path, dtype: str, threads: int) -> Generator[Peer]:
    """RWKVServe with the model in `folder`."""
    command = [python, "-c", CHILD, str(folder), dtype, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = Peer(process)
            found.answer()
            yield found
        finally:
            process.kill()


def write_model(folder: Path, shape: str) -> Path:
    """A random checkpoint as both read it: `model.pth`, and a `config.json` for RWKVServe."""
    num_layers, width = map(int, shape.split("x"))
    # That program has one width for the chains of decay and rate, as official models do.
    ranks = LowRankWidths.official(width)
    torch.save(random_tensors(num_layers, width, ranks=ranks), folder / "model.pth")
    sizes = {"n_layer": num_layers, "n_embd": width, "vocab_size": 65536, "head_size_a": 64, "dim_ffn": 4 * width}
    chains = {"dim_att_lora": ranks.decay, "dim_gate_lora": ranks.gate, "dim_mv_lora": ranks.value}
    described = {"model_type": "rwkv7", "dim_att": width, **sizes, **chains}
    (folder / "config.json").write_text(json.dumps(described))
    return folder / "model.pth"


def prompts_of(rows: int, call: int) -> list[str]:
    """Prompts that differ from their beginning on, and from those of other calls: nothing is found in a cache."""
    return [f"{1000 * call + row} is a number. Tell me about it.\n\nAssistant:" for row in range(rows)]


def ours(llm: LLM, prompts: list[str], tokens: int) -> Reply:
    started = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, top_p=1.0, max_tokens=tokens))
    seconds = time.perf_counter() - started
    return Reply([list(output.outputs[0].token_ids) for output in outputs], seconds)


def differing(mine: Reply, theirs: Reply) -> int:
    """How many replies differ."""
    return sum(a != b for a, b in zip(mine.ids, theirs.ids, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="of an environment with rwkvserve")
    parser.add_argument("--shape", default="12x768")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=16, help="of each reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights when measured")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if (load := load_of_others()) is not None and load > IDLE:
        print(f"warning: the machine is not idle, other programs use {load:.0%} of the processors", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory() as name:
            figures = measure(arguments, Path(name))
    except RwkvBatchError as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures]))
        return
    for figure in figures:
        print(
            f"{figure.rows:4} rows: {figure.ours:9.1f} tokens/s, rwkvserve {figure.theirs:9.1f}, {figure.ratio:.1f} x"
        )


def measure(arguments: argparse.Namespace, folder: Path) -> list[Figure]:
    """Check, then measure.

    Raises:
        RwkvBatchError: replies differ, or RWKVServe fails.
    """
    path = write_model(folder, arguments.shape)
    counts = [int(part) for part in arguments.rows.split(",")]
    checked = prompts_of(min(4, max(counts)), 0)
    llm = LLM(path, strategy="cpu", threads=arguments.threads, vocab="world")
    with peer(arguments.python, folder, "fp32", arguments.threads) as other:
        if count := differing(ours(llm, checked, arguments.tokens), other.ask(checked, arguments.tokens)):
            raise RwkvBatchError(f"{count} of {len(checked)} greedy replies differ: it computes something else")
    print(f"the same {len(checked)} greedy replies of {arguments.tokens} tokens", file=sys.stderr)
    found: dict[int, list[tuple[Reply, Reply]]] = {count: [] for count in counts}
    with peer(arguments.python, folder, arguments.dtype, arguments.threads) as other:
        for number in range(arguments.rounds):
            for place, (count, pairs) in enumerate(found.items()):
                prompts = prompts_of(count, 1 + number * len(found) + place)
                pairs.append((ours(llm, prompts, arguments.tokens), other.ask(prompts, arguments.tokens)))
                mine, theirs = pairs[-1]
                print(
                    f"round {number + 1}, {count} rows: {mine.tokens_per_s:.1f}, rwkvserve {theirs.tokens_per_s:.1f}",
                    file=sys.stderr,
                )
    return [
        Figure(
            count,
            median(mine.tokens_per_s for mine, _ in pairs),
            median(theirs.tokens_per_s for _, theirs in pairs),
            median(mine.tokens_per_s / theirs.tokens_per_s for mine, theirs in pairs),
        )
        for count, pairs in found.items()
    ]


if __name__ == "__main__":
    main()
