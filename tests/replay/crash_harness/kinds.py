"""Commands that the crash harness kills: inputs, arguments, and how their results are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvbatch.results.row import Row, RowKey
from rwkvbatch.results.row_codec import decode_row
from tests.replay.crash_harness.processes import check_exit, run_program

DATASETS = Path(__file__).parents[3] / "datasets"
SAMPLED = ("--temp", "1", "--top-p", "0.9", "--max-tokens", "24", "--threads", "1", "--batch-size", "6", "--quiet")


@dataclass(frozen=True)
class Job:
    """A command line that is killed.

    Attributes:
        arguments: arguments of the program for the path that it writes or changes.
        before: a directory of which `path` is a copy at first.
        result: the result at a path, without timings.
        serving: arguments of a server that runs meanwhile and is killed instead. port: its port.
    """

    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    before: Path | None = None
    serving: list[str] | None = None
    port: int = 0


def rows(run: Path) -> dict[RowKey, dict[str, Any]]:
    """The rows of a run in their order, without their timings. Damaged lines raise."""
    lines = (run / "results.jsonl").read_bytes().splitlines(keepends=True)
    return {row.key: without_timing(row) for row in map(decode_row, lines)}


def without_timing(row: Row) -> dict[str, Any]:
    values = row.as_dict()
    del values["timing"]
    return values


def replay(*arguments: object, before: Path | None = None, command: str = "run") -> Job:
    return Job(lambda path: [command, *map(str, arguments), "--out", str(path)], rows, before)


def first_lines(root: Path, name: str, count: int) -> Path:
    """A copy of the first `count` lines of a script in `datasets`."""
    path = root / f"{name}.jsonl"
    path.write_bytes(b"".join((DATASETS / path.name).read_bytes().splitlines(keepends=True)[:count]))
    return path


def write_lines(root: Path, name: str, lines: Iterable[object]) -> Path:
    path = root / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def finished_run(root: Path, *arguments: object) -> Path:
    """The directory of a run that was not interrupted."""
    path = root / "before"
    check_exit(run_program(["run", *map(str, arguments), *SAMPLED, "--out", str(path)]))
    return path


def probes(root: Path) -> Job:
    return replay(first_lines(root, "probes", 1), *SAMPLED)


def choices(root: Path) -> Job:
    return replay(first_lines(root, "choices", 24), first_lines(root, "demo", 2), *SAMPLED)


def texts(root: Path) -> Job:
    """Plain text, scored by `run` and generated from."""
    return replay(first_lines(root, "texts", 24), first_lines(root, "memory", 2), *SAMPLED)


def score(root: Path) -> Job:
    words = (DATASETS / "demo.jsonl").read_text()
    for number in range(60):
        (root / f"{number}.txt").write_text(words[number * 200 : number * 200 + 700])
    documents = [str(root / f"{number}.txt") for number in range(60)]
    return replay(*documents, "--threads", "1", "--batch-size", "4", "--quiet", command="score")


def judged_again(root: Path) -> Job:
    """`rwkvbatch check`, with other checks than the run was made with."""
    before = finished_run(root, first_lines(root, "demo", 24))
    lines = [json.loads(line) for line in (root / "demo.jsonl").read_text().splitlines()]
    for line in lines:
        for message in line["messages"]:
            if message["role"] == "user":
                message["expect"] = [{"contains": "you"}, {"regex": "[A-Z]"}]
    script = write_lines(root, "other.jsonl", lines)
    return Job(lambda path: ["check", str(path), "--script", str(script), "--quiet"], rows, before)


def extended(root: Path) -> Job:
    """More repeats, one conversation less and others more."""
    before = finished_run(root, first_lines(root, "demo", 4))
    lines = (DATASETS / "demo.jsonl").read_bytes().splitlines(keepends=True)
    (root / "longer.jsonl").write_bytes(b"".join(lines[1:6]))
    return replay(root / "longer.jsonl", *SAMPLED, "--repeats", "2", before=before)


def quantized_grid(root: Path) -> Job:
    """int4 made at loading and a file of 8 bits, in one grid of models."""
    from rwkvbatch.model.model_files import BUNDLED_MODEL

    quantized = root / "w8a8.safetensors"
    check_exit(run_program(["model", "quantize", str(BUNDLED_MODEL), str(quantized), "--to", "w8a8", "--quiet"]))
    return replay(first_lines(root, "demo", 4), *SAMPLED, "--model", quantized, "--repeats", "2")


def int4(root: Path) -> Job:
    return replay(first_lines(root, "demo", 4), *SAMPLED, "--strategy", "cpu int4", "--repeats", "2")


def adapters(root: Path) -> Job:
    adapter = root / "lora.pth"
    check_exit(run_program(lambda: write_adapter(adapter)))
    return replay(first_lines(root, "demo", 3), *SAMPLED, "--adapter", f"{adapter} alpha=64,none")


def write_adapter(path: Path) -> None:
    import torch

    from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
    from rwkvbatch.model.model_files import BUNDLED_MODEL

    with open_checkpoint(BUNDLED_MODEL) as checkpoint:
        out, width = checkpoint["blocks.0.att.output.weight"].shape
    generator = torch.Generator().manual_seed(1)
    parts = {"lora_A": torch.randn(4, width, generator=generator), "lora_B": torch.randn(out, 4, generator=generator)}
    torch.save({f"blocks.0.att.output.{name}": part.bfloat16() for name, part in parts.items()}, path)


def gguf(root: Path) -> Job:
    path = root / "model.gguf"
    check_exit(run_program(lambda: write_gguf_file(path)))
    return replay(first_lines(root, "demo", 4), *SAMPLED, "--model", path, "--repeats", "2")


def write_gguf_file(path: Path) -> None:
    from benchmarks.gguf_file import write_gguf
    from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
    from rwkvbatch.model.model_files import BUNDLED_MODEL

    with open_checkpoint(BUNDLED_MODEL) as checkpoint:
        write_gguf(path, checkpoint)


def hf_directory(root: Path) -> Job:
    path = root / "model"
    check_exit(run_program(lambda: write_hf_directory(path)))
    return replay(first_lines(root, "demo", 4), *SAMPLED, "--model", path, "--vocab", "world", "--repeats", "2")


def write_hf_directory(path: Path) -> None:
    from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
    from rwkvbatch.model.model_files import BUNDLED_MODEL
    from tests.model.made_forms import to_fla, write_directory

    with open_checkpoint(BUNDLED_MODEL) as checkpoint:
        write_directory(path, to_fla(dict(checkpoint)), shards=3)


def forms(root: Path) -> Job:
    """Published forms of chat files: ShareGPT, LMSYS, MT-Bench, OpenAI's batches, Alpaca, and a JSON array."""
    questions = ["My name is Ada.", "What is my name?", "What is 36 + 27?"]
    chat = [{"role": "user", "content": text} for text in questions]
    lines: list[object] = []
    for n in range(4):
        turns = [{"from": "human", "value": questions[n % 3]}, {"from": "gpt", "value": "Fine."}]
        lines.append({"id": f"share-{n}", "conversations": [*turns, {"from": "human", "value": "And?"}]})
        answered = [each for question in chat[:2] for each in (question, {"role": "assistant", "content": "Yes."})]
        lines.append({"conversation_id": f"lmsys-{n}", "conversation": answered})
        lines.append({"question_id": n, "category": "x", "turns": questions[:2]})
        lines.append({"custom_id": f"batch-{n}", "body": {"messages": chat[:1], "temperature": 0.5}})
    many = write_lines(root, "published.jsonl", lines)
    array = root / "array.json"
    array.write_text(json.dumps([{"id": f"array-{n}", "messages": chat} for n in range(3)]))
    return replay(many, array, *SAMPLED, "--repeats", "2")


def parallel(root: Path) -> Job:
    """Two worker processes; the run is killed, and they must end by themselves."""
    return replay(first_lines(root, "demo", 8), *SAMPLED, "--workers", "2")


ENDPOINT = ("--endpoint-timeout", "20", "--concurrency", "4", "--temp", "0", "--max-tokens", "24", "--quiet")


def endpoint(root: Path) -> Job:
    """A run whose model is a server's; the run is killed. Nothing is scored: the tests' server is slow at that."""
    questions = ["My name is Ada.", "What is my name?", "What is 36 + 27?", "Say it again."]
    chats = [[{"role": "user", "content": f"{text} ({n})"} for text in questions] for n in range(6)]
    script = write_lines(root, "chats.jsonl", ({"id": f"c{n}", "messages": chat} for n, chat in enumerate(chats)))
    arguments = (script, "--endpoint", start_fake_server(root), "--endpoint-model", "demo", *ENDPOINT)
    return replay(*arguments, "--endpoint-retries", "1")


def start_fake_server(root: Path) -> str:
    """The URL of the tests' server, in a process that ends with this one."""
    from tests.replay.crash_harness.processes import start_program, wait_until

    url_path = root / "url"
    start_program(lambda: serve_forever(url_path), ends_with_parent=True)
    wait_until(lambda: url_path.exists() and url_path.read_text().endswith("\n"), 60)
    return url_path.read_text().strip()


def serve_forever(url_path: Path) -> None:
    import threading

    from rwkvbatch.engine.engine import Engine
    from rwkvbatch.model.load import load_model
    from tests.endpoint.server import FakeServer, serving

    with serving(FakeServer(Engine(load_model(None, threads=1)))) as fake:
        url_path.write_text(fake.url + "\n")
        threading.Event().wait()


def serve(root: Path) -> Job:
    """`rwkvbatch serve` is killed under a run that uses it."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    arguments = (
        first_lines(root, "demo", 4),
        "--endpoint",
        url,
        *ENDPOINT,
        "--endpoint-retries",
        "2",
        "--retry-errors",
    )
    job = replay(*arguments)
    return Job(job.arguments, job.result, None, ["serve", "--port", str(port), "--threads", "1", "--quiet"], port)


def read_tensors(path: Path) -> bytes | None:
    return (path / "out.safetensors").read_bytes() if (path / "out.safetensors").exists() else None


def directory_with_an_older_file(root: Path) -> Path:
    before = root / "before"
    before.mkdir()
    check_exit(run_program(["model", "random", "1x64", str(before / "out.safetensors"), "--vocab", "97", "--quiet"]))
    return before


def convert(root: Path) -> Job:
    """`model convert` of a directory of shards, in the place of an older file."""
    source = root / "model"
    check_exit(run_program(lambda: write_hf_directory(source)))

    def arguments(path: Path) -> list[str]:
        return ["model", "convert", str(source), str(path / "out.safetensors"), "--force", "--quiet"]

    return Job(arguments, read_tensors, directory_with_an_older_file(root))


def quantize(root: Path) -> Job:
    """`model quantize`, in the place of an older file."""
    from rwkvbatch.model.model_files import BUNDLED_MODEL

    def arguments(path: Path) -> list[str]:
        return ["model", "quantize", str(BUNDLED_MODEL), str(path / "out.safetensors"), "--force", "--quiet"]

    return Job(arguments, read_tensors, directory_with_an_older_file(root))


KINDS: Mapping[str, Callable[[Path], Job]] = {
    "endpoint": endpoint,
    "serve": serve,
    "probes": probes,
    "choices": choices,
    "texts": texts,
    "score": score,
    "judged-again": judged_again,
    "extended": extended,
    "w8a8-file": quantized_grid,
    "int4": int4,
    "adapters": adapters,
    "gguf": gguf,
    "hf-directory": hf_directory,
    "forms": forms,
    "workers": parallel,
    "convert": convert,
    "quantize": quantize,
}
"""By name: makes the job in its own directory."""
