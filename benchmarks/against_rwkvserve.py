"""Speed of rwkvbatch compared with RWKVServe (PyPI `rwkvserve`) on the CPU: greedy replies of the same random RWKV-7.

    python benchmarks/against_rwkvserve.py --python ENV/bin/python [--shape 12x768] [--rows 1,8,32] [--rounds 3]

ENV is an environment in which `rwkvserve` is installed; it runs in a process of its own. Both programs generate replies
to the same prompts in one call, in turns, with weights in fp32 or bf16; our arithmetic is in fp32. First, the reply
tokens in fp32 are compared; if they differ, nothing is measured. A figure is the reply tokens per second of a call.
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
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors

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
    """Reply tokens per second, as medians over the rounds; `ratio` is the median of the rounds' ratios."""

    rows: int
    ours: float
    theirs: float
    ratio: float


class RwkvServe:
    """RWKVServe in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def generate(self, prompts: list[str], tokens: int) -> Reply:
        """Greedy replies of `tokens` tokens."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return Reply(**self.read_line())

    def read_line(self) -> dict[str, Any]:
        """The next line that the process prints.

        Raises:
            RwkvBatchError: the process ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RwkvBatchError("the process with rwkvserve ended early; its messages are above")
        return json.loads(line)


@contextmanager
def rwkvserve(python: str, folder: Path, dtype: str, threads: int) -> Generator[RwkvServe]:
    """A context with RWKVServe and the model in `folder`."""
    command = [python, "-c", CHILD, str(folder), dtype, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            server = RwkvServe(process)
            server.read_line()
            yield server
        finally:
            process.kill()


def write_model(folder: Path, shape: str) -> Path:
    """Write a random checkpoint that both programs read: `model.pth`, with a `config.json` for RWKVServe."""
    num_layers, width = map(int, shape.split("x"))
    # RWKVServe has one width for the low-rank chains of decay and rate, as official models do.
    ranks = LowRankWidths.official(width)
    torch.save(random_tensors(num_layers, width, ranks=ranks), folder / "model.pth")
    sizes = {"n_layer": num_layers, "n_embd": width, "vocab_size": 65536, "head_size_a": 64, "dim_ffn": 4 * width}
    chains = {"dim_att_lora": ranks.decay, "dim_gate_lora": ranks.gate, "dim_mv_lora": ranks.value}
    config = {"model_type": "rwkv7", "dim_att": width, **sizes, **chains}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.pth"


def prompts_of(rows: int, call: int) -> list[str]:
    """Prompts that share no prefix with each other or with those of other calls, so that no cache helps."""
    return [f"{1000 * call + row} is a number. Tell me about it.\n\nAssistant:" for row in range(rows)]


def ours(llm: LLM, prompts: list[str], tokens: int) -> Reply:
    started = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, top_p=1.0, max_tokens=tokens))
    seconds = time.perf_counter() - started
    return Reply([list(output.outputs[0].token_ids) for output in outputs], seconds)


def num_differing(mine: Reply, theirs: Reply) -> int:
    """The number of prompts whose replies differ."""
    return sum(a != b for a, b in zip(mine.ids, theirs.ids, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="Python of an environment with rwkvserve")
    parser.add_argument("--shape", default="12x768")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="dtype of the measured weights")
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
    """Check that both programs give the same replies, then measure.

    Raises:
        RwkvBatchError: replies differ, or RWKVServe fails.
    """
    path = write_model(folder, arguments.shape)
    row_counts = [int(part) for part in arguments.rows.split(",")]
    checked_prompts = prompts_of(min(4, max(row_counts)), 0)
    num_checked = len(checked_prompts)
    llm = LLM(path, strategy="cpu", threads=arguments.threads, vocab="world")
    with rwkvserve(arguments.python, folder, "fp32", arguments.threads) as server:
        mine = ours(llm, checked_prompts, arguments.tokens)
        theirs = server.generate(checked_prompts, arguments.tokens)
        if count := num_differing(mine, theirs):
            raise RwkvBatchError(f"{count} of {num_checked} greedy replies differ: it computes something else")
    print(f"the same {num_checked} greedy replies of {arguments.tokens} tokens", file=sys.stderr)
    pairs: dict[int, list[tuple[Reply, Reply]]] = {num_rows: [] for num_rows in row_counts}
    with rwkvserve(arguments.python, folder, arguments.dtype, arguments.threads) as server:
        for number in range(arguments.rounds):
            for index, (num_rows, row_pairs) in enumerate(pairs.items()):
                prompts = prompts_of(num_rows, 1 + number * len(pairs) + index)
                mine, theirs = ours(llm, prompts, arguments.tokens), server.generate(prompts, arguments.tokens)
                row_pairs.append((mine, theirs))
                print(
                    f"round {number + 1}, {num_rows} rows: {mine.tokens_per_s:.1f}, "
                    f"rwkvserve {theirs.tokens_per_s:.1f}",
                    file=sys.stderr,
                )
    return [
        Figure(
            num_rows,
            median(mine.tokens_per_s for mine, _ in row_pairs),
            median(theirs.tokens_per_s for _, theirs in row_pairs),
            median(mine.tokens_per_s / theirs.tokens_per_s for mine, theirs in row_pairs),
        )
        for num_rows, row_pairs in pairs.items()
    ]


if __name__ == "__main__":
    main()
