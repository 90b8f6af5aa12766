"""Report of all checks and figures that need a GPU (`make gpu`, or `python benchmarks/gpu_report.py`), in ten minutes.

Runs the parts of `PARTS` one after the other, each in a process of its own with a time limit, so that a failure or a
hang in one does not stop the others. Writes `gpu-report.json` and the same as Markdown in `gpu-report.md`. Without an
NVIDIA GPU, the kernels are only compiled, for compute capability 8.0 and 9.0. The exit code is 1 if any part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rwkvbatch.files import replacing

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 10.0
LEAST_SECONDS = 5.0
"""The least remaining time with which a part is started."""
KEPT_CHARACTERS = 4000
"""The most characters that are kept of a part's output, from its end."""

Outcome = Literal["ok", "failed", "timed out", "skipped"]


@dataclass(frozen=True)
class Part:
    """One part of the report.

    Attributes:
        command: the part fails if the exit code is not 0, or if it prints a JSON object with `ok` false.
        limit_s: time limit in seconds.
        where: the machines on which the part runs: those with a GPU, those without, or all.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    where: Literal["gpu", "no gpu", "all"] = "gpu"


def _own(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(ROOT / "benchmarks" / "gpu_parts.py"), *arguments)


def _compiled(capability: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.model.ops.compile_kernels", capability)


PARTS = (
    Part("versions", _own("versions"), 30, "all"),
    Part("kernels compiled for 8.0", _compiled("80"), 120, "no gpu"),
    Part("kernels compiled for 9.0", _compiled("90"), 120, "no gpu"),
    *(Part(f"verify {precision}", _own("verify", precision), 75) for precision in ("fp32", "fp16", "bf16")),
    Part("batch invariance, rows=64", _own("invariance", "bf16"), 60),
    Part("bench 24x2048 fp16", _own("bench", "24x2048", "fp16"), 90),
    Part("few rows against cuBLAS", (sys.executable, str(ROOT / "benchmarks" / "few_rows_on_gpu.py")), 90),
    Part("pytest -m gpu", (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"), 150),
    Part("bench 32x4096 bf16", _own("bench", "32x4096", "bf16"), 150),
)


@dataclass(frozen=True)
class Result:
    """The result of a part.

    Attributes:
        found: the JSON object that the part printed; None if it printed none.
        printed: the end of its other output, and of its standard error if it did not succeed.
    """

    name: str
    outcome: Outcome
    seconds: float
    found: dict[str, Any] | None = None
    printed: str = ""


def has_gpu() -> bool:
    """Whether torch finds an NVIDIA GPU."""
    import torch

    return torch.cuda.is_available() and torch.version.hip is None


def run_parts(parts: Sequence[Part], *, gpu: bool, seconds: float, notify: Callable[[str], None]) -> list[Result]:
    """Run the parts for this machine in at most `seconds` altogether."""
    end = time.monotonic() + seconds
    results: list[Result] = []
    for part in parts:
        if part.where != "all" and (part.where == "gpu") != gpu:
            continue
        limit = min(part.limit_s, end - time.monotonic())
        if limit < LEAST_SECONDS and part.limit_s > limit:
            result = Result(part.name, "skipped", 0.0, printed="no time was left")
        else:
            notify(f"{part.name}, at most {limit:.0f} s")
            result = run_part(part, limit)
        notify(f"{part.name}: {result.outcome}, {result.seconds:.1f} s")
        results.append(result)
    return results


def run_part(part: Part, limit_s: float) -> Result:
    """Run one part in a process group of its own, which is killed at the time limit."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(part.command, stdout=out, stderr=errors, cwd=ROOT, start_new_session=True)
        except OSError as error:
            return Result(part.name, "failed", 0.0, printed=str(error))
        timed_out = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - started
        out.seek(0)
        errors.seek(0)
        text, messages = out.read(), errors.read()
    found = _json(text)
    outcome: Outcome = "ok"
    if timed_out:
        outcome = "timed out"
    elif process.returncode != 0 or (found is not None and found.get("ok") is False):
        outcome = "failed"
    printed = "" if found is not None else text[-KEPT_CHARACTERS:]
    if outcome != "ok":
        printed += messages[-KEPT_CHARACTERS:]
    return Result(part.name, outcome, seconds, found, printed)


def _json(text: str) -> dict[str, Any] | None:
    """The JSON object on the last line of a part's output; None without one."""
    lines = text.strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def page(results: Sequence[Result], *, gpu: bool) -> str:
    """The report in Markdown."""
    lines = ["# GPU report", ""]
    if not gpu:
        lines += ["**There is no NVIDIA GPU here: the kernels were compiled, and nothing was run on a GPU.**", ""]
    lines += ["| part | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {result.name} | {result.outcome} | {result.seconds:.1f} |" for result in results]
    for result in results:
        lines += ["", f"## {result.name}", "", *_details(result)]
    return "\n".join(lines) + "\n"


def _details(result: Result) -> list[str]:
    found = result.found or {}
    lines: list[str] = []
    if "figures" in found:
        lines += ["| | median | best | unit | of the limit |", "|---|---|---|---|---|"]
        for figure in found["figures"]:
            share = "" if figure["share"] is None else f"{figure['share']:.0%} of {figure['limit']}"
            lines.append(
                f"| {figure['name']} | {figure['median']:,.1f} | {figure['best']:,.1f} | {figure['unit']} | {share} |"
            )
        memory = found["memory"]
        lines += ["", f"Memory: weights {memory['weights_gb']:.2f} GB, at most {memory['peak_gb']:.2f} GB."]
    elif "with graphs" in found:
        lines += ["| | part | RMS | largest | same token | within |", "|---|---|---|---|---|---|"]
        for mode in ("with graphs", "without graphs"):
            lines += [
                f"| {mode} | {part['name']} | {_number(part['rms'])} | {_number(part['largest'])} "
                f"| {part['same_token']:.1%} | {'yes' if part['within'] else '**no**'} |"
                for part in found[mode]["parts"]
            ]
    elif found:
        lines += [f"- {name}: {value}" for name, value in found.items()]
    if result.printed.strip():
        lines += ["```text", result.printed.strip(), "```"]
    return lines or ["Nothing was printed."]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="gpu-report.json and gpu-report.md")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together")
    arguments = parser.parse_args()
    gpu = has_gpu()

    def notify(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if not gpu:
        notify("torch finds no NVIDIA GPU: the kernels are only compiled")
    results = run_parts(PARTS, gpu=gpu, seconds=60 * arguments.minutes, notify=notify)
    report = {"gpu": gpu, "parts": [asdict(result) for result in results]}
    for suffix, text in ((".json", json.dumps(report, indent=1)), (".md", page(results, gpu=gpu))):
        with replacing(arguments.out.with_suffix(suffix)) as unfinished:
            unfinished.write_text(text)
        notify(f"wrote {arguments.out.with_suffix(suffix)}")
    return int(any(result.outcome != "ok" for result in results))


if __name__ == "__main__":
    sys.exit(main())
