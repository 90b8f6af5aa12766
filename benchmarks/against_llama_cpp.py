"""rwkvbatch against llama.cpp on the CPU: the same random RWKV-7, the same number of threads, in turns.

    python benchmarks/against_llama_cpp.py --llama-cpp BUILD [--shape 12x768] [--kinds F16,BF16,Q8_0] [--rounds 5]

BUILD is a folder in which llama.cpp was built; the package `gguf` has to be installed. First llama.cpp's logits of a
text are compared with ours: if they are of another network, nothing is measured. Then rounds: each thing is done by us
and by llama.cpp with each kind of GGUF file, one right after the other, and before each of these the rate is measured
at which the machine reads memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.gguf_file import write_gguf
from benchmarks.llama_cpp_figures import OURS, Agreement, Measurement, figures_of, groups_of, show
from benchmarks.llama_cpp_programs import LlamaCpp
from rwkvbatch import __version__
from rwkvbatch.bench.measure import write_random
from rwkvbatch.bench.workloads import TEXT, Meter, Workload, decode, native_ops, prompt
from rwkvbatch.errors import RwkvBatchError, UsageError
from rwkvbatch.files import replacing
from rwkvbatch.model.base import Model
from rwkvbatch.model.checkpoint import open_checkpoint
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.tokenizer import world_tokenizer

BASE_KIND = "F16"
"""The kind that is written from the checkpoint, and that `llama-quantize` makes the others of."""
STEPS = {1: 32, 32: 8, 64: 8}
"""Decode steps of one measurement, by rows."""
PROMPT_TOKENS = 512
EXACT = "cpu"
"""The strategy that leaves the weights as they are: the one that llama.cpp's logits are held against."""
CHECKED_TEXT = TEXT[:200]
TOLERANCE = 0.02
"""Of the logits' standard deviation. llama.cpp rounds activations to fp16 where weights are: 0.002 to 0.005."""


@dataclass(frozen=True)
class Files:
    """The checkpoint, and llama.cpp's files of it by kind."""

    checkpoint: Path
    gguf: Mapping[str, Path]


def make_files(folder: Path, shape: str, kinds: Sequence[str], llama_cpp: LlamaCpp) -> Files:
    """What is not in `folder` yet is made there."""
    checkpoint = folder / f"random-{shape}.safetensors"
    if not checkpoint.is_file():
        checkpoint = write_random(shape, folder)
    paths = {kind: folder / f"random-{shape}-{kind}.gguf" for kind in [BASE_KIND, *kinds]}
    for kind, path in paths.items():
        if not path.is_file():
            with replacing(path, durable=False) as unfinished:
                if kind == BASE_KIND:
                    with open_checkpoint(checkpoint) as opened:
                        write_gguf(unfinished, opened)
                else:
                    llama_cpp.write_quantized(paths[BASE_KIND], unfinished, kind)
    return Files(checkpoint, paths)


def check(model: Model, files: Files, llama_cpp: LlamaCpp, threads: int) -> list[Agreement]:
    """The agreement of every kind.

    Raises:
        RwkvBatchError: llama.cpp reads other tokens, or the fp16 file is of another network than ours.
    """
    tokens = world_tokenizer().encode(CHECKED_TEXT)
    ours = model.forward([tokens], every_token=True)[0].numpy().copy()
    found: list[Agreement] = []
    for kind, path in files.gguf.items():
        with tempfile.TemporaryDirectory() as folder:
            theirs = llama_cpp.logits(path, threads, CHECKED_TEXT, Path(folder) / "logits.gguf")
        if theirs.tokens != tokens:
            raise RwkvBatchError(f"llama.cpp reads other tokens than we do: {theirs.tokens[:8]}, {tokens[:8]}")
        error = float(np.sqrt(np.mean((ours - theirs.values) ** 2)) / ours.std())
        same_choice = float(np.mean(ours.argmax(1) == theirs.values.argmax(1)))
        found.append(Agreement(kind, error, same_choice))
        if kind == BASE_KIND and not error <= TOLERANCE:
            raise RwkvBatchError(
                f"llama.cpp's logits differ from ours by {error:.1%} of their standard deviation, "
                f"of which {TOLERANCE:.0%} are allowed: it computes something else"
            )
    return found


def measure(
    model: Model, files: Files, llama_cpp: LlamaCpp, threads: int, rounds: int, say: Callable[[Measurement], None]
) -> list[Measurement]:
    meter = Meter.of(model)
    found: list[Measurement] = []
    workloads = [*(decode(model, rows) for rows in STEPS), prompt(model, PROMPT_TOKENS)]
    for workload in workloads:
        workload.once()
    for number in range(1, rounds + 1):
        for workload in workloads:
            for who in [OURS, *files.gguf]:
                rates = meter.measure()
                assert rates is not None
                if who == OURS:
                    speed = our_speed(workload)
                else:
                    speed = their_speed(workload, llama_cpp, files.gguf[who], threads)
                found.append(Measurement(number, workload.name, who, speed, rates.read / 1e9))
                say(found[-1])
    return found


def our_speed(workload: Workload) -> float:
    """Tokens per second."""
    steps = 1 if workload.kind == "prompt" else STEPS[workload.size]
    return workload.size * steps / sum(workload.once() for _ in range(steps))


def their_speed(workload: Workload, llama_cpp: LlamaCpp, path: Path, threads: int) -> float:
    """Tokens per second."""
    if workload.kind == "prompt":
        return llama_cpp.read_prompt(path, threads, workload.size)
    if workload.size == 1:
        return llama_cpp.decode_one(path, threads, STEPS[1])
    return llama_cpp.decode_many(path, threads, workload.size, STEPS[workload.size])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, metavar="BUILD")
    parser.add_argument("--shape", default="12x768")
    parser.add_argument("--kinds", default="F16,BF16,Q8_0", help="as llama-quantize names them")
    parser.add_argument("--strategy", default=EXACT, help='of ours, when it is measured: "cpu", "cpu int8"')
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="of both; all that there are unless given")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files are made, and found again the next time"
    )
    parser.add_argument(
        "--split",
        type=float,
        default=None,
        metavar="GB_S",
        help="show apart what was measured while memory was read more slowly, and not",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    llama_cpp = LlamaCpp.find(arguments.llama_cpp)
    if arguments.rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {arguments.rounds}")
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        files = make_files(folder, arguments.shape, arguments.kinds.split(","), llama_cpp)
        model = load_model(files.checkpoint, EXACT, "cpu", threads=arguments.threads)
        ops = native_ops(model)
        assert ops is not None
        agreements = check(model, files, llama_cpp, ops.threads)
        if arguments.strategy != EXACT:
            del model
            model = load_model(files.checkpoint, arguments.strategy, "cpu", threads=arguments.threads)
        facts = {
            "rwkvbatch": __version__,
            "instructions": ops.isa,
            "llama_cpp": llama_cpp.build(files.gguf[BASE_KIND]),
            "shape": arguments.shape,
            "threads": ops.threads,
            "weights": model.spec.dtype,
        }
        print(", ".join(f"{name} {fact}" for name, fact in facts.items()), file=sys.stderr)
        found = measure(model, files, llama_cpp, ops.threads, arguments.rounds, tell)
    figures = {title: figures_of(group) for title, group in groups_of(found, arguments.split).items()}
    if arguments.json:
        parts = {"agreements": agreements, "measurements": found, **figures}
        print(json.dumps(facts | {name: [asdict(record) for record in part] for name, part in parts.items()}))
    else:
        show(agreements, figures)


def tell(measurement: Measurement) -> None:
    """A line on standard error."""
    print(
        f"round {measurement.round}  {measurement.what:18} {measurement.who:10} "
        f"{measurement.tokens_per_s:9.1f} tokens/s, memory {measurement.read_gb_s:.1f} GB/s",
        file=sys.stderr,
    )


def main() -> None:
    try:
        run(options())
    except RwkvBatchError as error:
        raise SystemExit(f"error: {error}" + (f"\n  {error.hint}" if error.hint else "")) from None


if __name__ == "__main__":
    main()
