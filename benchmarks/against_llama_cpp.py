"""Speed of rwkvbatch compared with llama.cpp on the CPU, for the same random RWKV-7 and the same number of threads.

    python benchmarks/against_llama_cpp.py --llama-cpp BUILD [--shapes 12x768,24x1024] [--rounds 5]
    python benchmarks/against_llama_cpp.py --llama-cpp BUILD --folder FILES --shapes 24x2048,32x2560 --json

BUILD is a folder in which llama.cpp was built; the package `gguf` must be installed. Each kind of GGUF file is compared
with the strategies that belong to it (`PAIRS`). First, llama.cpp's logits of a text are compared with ours; if they are
those of another network, nothing is measured. Then, in each round, both programs do each workload one after the other,
and the memory bandwidth is measured before each. With --folder, measurements are saved after each group of kinds, and
the same command continues after the last saved group.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.llama_cpp_agreement import BASE_KIND, Files, check, make_files
from benchmarks.llama_cpp_figures import Agreement, Measurement, figures_of, groups_of, idle_text, is_ours, show
from benchmarks.llama_cpp_programs import LlamaCpp
from benchmarks.machine_load import IDLE, LoadReading, load_of_others, share_of_others
from rwkvbatch import __version__, _native
from rwkvbatch.bench.limits import Meter
from rwkvbatch.bench.workloads import Workload, decode, prompt
from rwkvbatch.errors import RwkvBatchError, UsageError
from rwkvbatch.files import replacing
from rwkvbatch.model.base import Model
from rwkvbatch.model.load import load_model
from rwkvbatch.model.ops.cpu import CpuOps

GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("cpu bf16",), ("F16", "BF16")),
    (("cpu int8", "cpu w8a8"), ("Q8_0",)),
    (("cpu int4",), ("Q4_0", "Q4_K_M")),
)
"""Our strategies and kinds of GGUF file with about equal bits per weight; a group's models are in memory together."""
PAIRS: dict[str, tuple[str, ...]] = {kind: strategies for strategies, kinds in GROUPS for kind in kinds}
MOST_STEPS, LEAST_STEPS = 32, 8
"""The most and the fewest decode steps of one measurement, see `steps_of`."""
FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """The measurements of each shape.

    Attributes:
        rows: numbers of rows of the decode steps. prompt: tokens of the prompt; 0 for none.
    """

    kinds: tuple[str, ...]
    rows: tuple[int, ...]
    prompt: int
    rounds: int
    threads: int

    def groups(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """`GROUPS` with only the requested kinds."""
        groups = [(ours, tuple(kind for kind in kinds if kind in self.kinds)) for ours, kinds in GROUPS]
        return [(ours, kinds) for ours, kinds in groups if kinds]

    @property
    def count(self) -> int:
        """Number of measurements of one shape."""
        num_measured = sum(len(ours) + len(kinds) for ours, kinds in self.groups())
        return num_measured * (len(self.rows) + bool(self.prompt)) * self.rounds


@dataclass
class Shape:
    """The results for one shape; `facts` are the conditions under which they were measured."""

    facts: dict[str, Any]
    agreements: list[Agreement]
    measurements: list[Measurement]

    @classmethod
    def read(cls, path: Path, facts: dict[str, Any]) -> Shape:
        """The results that an earlier run with the same facts saved; empty results if there is no file.

        Raises:
            UsageError: the file was measured with other facts, or was not written by this benchmark.
        """
        if not path.is_file():
            return cls(facts, [], [])
        try:
            saved = json.loads(path.read_text())
            shape = cls(
                saved["facts"],
                [Agreement(**values) for values in saved["agreements"]],
                [Measurement(**values) for values in saved["measurements"]],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} was not written by this benchmark: {error}", hint="remove it") from None
        differing = [name for name in facts if shape.facts.get(name) != facts[name]]
        if differing:
            raise UsageError(
                f"{path} was measured with another {', '.join(differing)}: "
                + ", ".join(f"{shape.facts.get(name)} there, {facts[name]} now" for name in differing),
                hint="use another --folder, or remove the file",
            )
        return shape

    def write(self, path: Path) -> None:
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(self.as_json()))

    def as_json(self) -> dict[str, Any]:
        return {
            "facts": self.facts,
            "agreements": [asdict(agreement) for agreement in self.agreements],
            "measurements": [asdict(measurement) for measurement in self.measurements],
        }


def measure_shape(
    files: Files, plan: Plan, llama_cpp: LlamaCpp, shape: Shape, keep: Callable[[], None], notify: Callable[[str], None]
) -> None:
    """Measure the groups that are missing in `shape`, and call `keep` after each."""
    start_s, done_before = time.monotonic(), len(shape.measurements)
    for strategies, kinds in plan.groups():
        group = {*strategies, *kinds}
        if group <= {measurement.who for measurement in shape.measurements}:
            continue
        models: dict[str, Model] = {}
        for strategy in strategies:
            notify(f"loading {strategy}")
            models[strategy] = load_model(files.checkpoint, strategy, "cpu", threads=plan.threads)
        new: list[Measurement] = []

        def add(measurement: Measurement, new: list[Measurement] = new) -> None:
            new.append(measurement)
            done = len(shape.measurements) + len(new)
            remaining_s = (time.monotonic() - start_s) / (done - done_before) * (plan.count - done)
            notify(progress_line(measurement, done, plan, remaining_s))

        measure_group(models, {kind: files.gguf[kind] for kind in kinds}, plan, llama_cpp, add)
        shape.measurements = [measurement for measurement in shape.measurements if measurement.who not in group] + new
        keep()
        del models
        gc.collect()


def measure_group(
    models: Mapping[str, Model],
    gguf: Mapping[str, Path],
    plan: Plan,
    llama_cpp: LlamaCpp,
    add: Callable[[Measurement], None],
) -> None:
    """Measure all rounds of a group, and call `add` with each measurement."""
    meter = Meter.of(next(iter(models.values())))
    workloads = {name: _workloads(model, plan) for name, model in models.items()}
    for model_workloads in workloads.values():
        for workload in model_workloads:
            workload.once()
    for number in range(1, plan.rounds + 1):
        for index, workload in enumerate(next(iter(workloads.values()))):
            for who in [*models, *gguf]:
                rates = meter.measure()
                assert rates is not None
                before = LoadReading.now()
                if is_ours(who):
                    speed = our_speed(workloads[who][index])
                else:
                    speed = their_speed(workload, llama_cpp, gguf[who], plan.threads)
                others = share_of_others(before, LoadReading.now())
                add(Measurement(number, workload.name, who, speed, rates.read / 1e9, others))


def _workloads(model: Model, plan: Plan) -> list[Workload]:
    prompts = [prompt(model, plan.prompt)] if plan.prompt else []
    return [*(decode(model, rows) for rows in plan.rows), *prompts]


def steps_of(rows: int) -> int:
    """The number of decode steps of one measurement: 32 tokens in all rows together, but at least 8 steps."""
    return max(LEAST_STEPS, MOST_STEPS // rows)


def our_speed(workload: Workload) -> float:
    """Our tokens per second."""
    steps = 1 if workload.kind == "prompt" else steps_of(workload.size)
    return workload.size * steps / sum(workload.once() for _ in range(steps))


def their_speed(workload: Workload, llama_cpp: LlamaCpp, path: Path, threads: int) -> float:
    """llama.cpp's tokens per second."""
    if workload.kind == "prompt":
        return llama_cpp.read_prompt(path, threads, workload.size)
    if workload.size == 1:
        return llama_cpp.decode_one(path, threads, steps_of(1))
    return llama_cpp.decode_many(path, threads, workload.size, steps_of(workload.size))


def progress_line(measurement: Measurement, done: int, plan: Plan, remaining_s: float) -> str:
    others = "" if measurement.others is None else f", others use {measurement.others:.0%}"
    return (
        f"{done}/{plan.count}, {remaining_s / 60:.1f} min left: round {measurement.round}, {measurement.what:18} "
        f"{measurement.who:9} {measurement.tokens_per_s:9.1f} tokens/s, memory {measurement.read_gb_s:.1f} GB/s{others}"
    )


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The numbers in a comma-separated list of positive integers; raises `UsageError`."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{option} must be numbers from 1 up, separated by commas; got {text!r}")
    return tuple(map(int, parts))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, metavar="BUILD")
    parser.add_argument("--shapes", default="12x768", help="LAYERSxWIDTH, separated by commas")
    parser.add_argument("--kinds", default=",".join(PAIRS), help="as llama-quantize names them")
    parser.add_argument("--rows", default="1,8,32,64", help="numbers of rows of the decode steps")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of 1 and 32 rows and the prompt")
    parser.add_argument("--threads", type=int, default=None, help="threads of both programs (default: all processors)")
    parser.add_argument(
        "--folder", type=Path, default=None, help="folder to save files and figures in, and to continue from"
    )
    parser.add_argument(
        "--split",
        type=float,
        default=None,
        metavar="GB_S",
        help="show measurements with a memory bandwidth below and above this in separate tables",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that the options describe; raises `UsageError` for invalid values."""
    if arguments.rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {arguments.rounds}")
    if arguments.prompt < 0:
        raise UsageError(f"--prompt must be at least 0, got {arguments.prompt}")
    kinds = tuple(arguments.kinds.split(","))
    if unknown := [kind for kind in kinds if kind not in PAIRS]:
        raise UsageError(f"--kinds must be some of {', '.join(PAIRS)}; got {unknown[0]!r}")
    rows = (1, 32) if arguments.quick else numbers(arguments.rows, "--rows")
    threads = CpuOps(threads=arguments.threads).threads
    return Plan(kinds, rows, arguments.prompt, 1 if arguments.quick else arguments.rounds, threads)


def run(arguments: argparse.Namespace) -> None:
    llama_cpp, plan, shapes = LlamaCpp.find(arguments.llama_cpp), plan_of(arguments), arguments.shapes.split(",")
    if (load := load_of_others()) is not None and load > IDLE:
        tell(f"warning: the machine is not idle, other programs use {load:.0%} of the processors")
    results: dict[str, Shape] = {}
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for name in shapes:

            def notify(text: str, name: str = name) -> None:
                tell(f"[{name}] {text}")

            files = make_files(folder, name, plan.kinds, llama_cpp, notify)
            path = folder / f"figures-{name}.json"
            shape = Shape.read(path, facts_of(name, plan, llama_cpp, files))
            results[name] = shape
            if not shape.agreements:
                shape.agreements += check(files, llama_cpp, plan.threads, folder, notify)
                shape.write(path)
            measure_shape(files, plan, llama_cpp, shape, lambda shape=shape, path=path: shape.write(path), notify)
    if arguments.json:
        print(json.dumps({name: shape.as_json() | figures(shape, arguments.split) for name, shape in results.items()}))
    else:
        for shape in results.values():
            print(", ".join(f"{name} {fact}" for name, fact in shape.facts.items()))
            groups = groups_of(shape.measurements, arguments.split)
            show(shape.agreements, {title: figures_of(group, PAIRS) for title, group in groups.items()})
    for name, shape in results.items():
        tell(f"[{name}] {idle_text(shape.measurements)}")


def figures(shape: Shape, split_gb_s: float | None) -> dict[str, Any]:
    groups = groups_of(shape.measurements, split_gb_s)
    return {
        "figures": {title: [asdict(figure) for figure in figures_of(group, PAIRS)] for title, group in groups.items()},
        "idle": idle_text(shape.measurements),
    }


def facts_of(name: str, plan: Plan, llama_cpp: LlamaCpp, files: Files) -> dict[str, Any]:
    """The conditions that must be equal for results that are saved in one file."""
    kernels = hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()[:12]
    return {
        "format": FORMAT,
        "shape": name,
        "rwkvbatch": __version__,
        "kernels": kernels,
        "instructions": CpuOps(threads=1).isa,
        "llama_cpp": llama_cpp.build(files.gguf[BASE_KIND]),
        "threads": plan.threads,
        "rows": list(plan.rows),
        "prompt": plan.prompt,
        "rounds": plan.rounds,
    }


def tell(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    try:
        run(options())
    except RwkvBatchError as error:
        raise SystemExit(f"error: {error}" + (f"\n  {error.hint}" if error.hint else "")) from None


if __name__ == "__main__":
    main()
