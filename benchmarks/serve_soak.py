"""Loads `rwkvbatch serve` with many streams whose clients leave at random, and checks every reply.

    python benchmarks/serve_soak.py --streams 256 --minutes 5

Measured: throughput of `rwkvbatch run` and of the server on the same conversations; then, while clients leave at
random, every reply that was read to its end against the one of `LLM.chat` (which is a batch of its own), and the
server's memory, open files, threads and unfinished replies. Exit code 1 if a reply differs or something leaks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rwkvbatch import LLM, SamplingParams

MODEL = "soak"
PARAMS: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9}
MAX_RSS_GROWTH = 64 << 20
"""Bytes between the first quarter of the soak and its end: caches fill until then."""


@dataclass
class Counts:
    """What the clients saw."""

    read: int = 0
    left: int = 0
    different: int = 0
    failed: int = 0
    tokens: int = 0
    problems: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Usage:
    """The server process."""

    rss: int
    files: int
    threads: int
    unfinished: int
    cached_states: int


class Server:
    """`rwkvbatch serve` as a process."""

    def __init__(self, options: list[str]) -> None:
        command = [sys.executable, "-m", "rwkvbatch", "serve", "--port", "0", "--json", "--quiet", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: exit code {self._process.wait()}")
        self.url = str(json.loads(line)["url"])
        parts = urlsplit(self.url)
        self.address = str(parts.hostname), int(parts.port or 0)

    def stop(self) -> int:
        """End it as Ctrl-C does; returns its exit code."""
        self._process.terminate()
        return self._process.wait(30)

    def usage(self) -> Usage:
        process = Path("/proc") / str(self._process.pid)
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
        figures = {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines}
        return Usage(
            rss=int(status["VmRSS"].split()[0]) * 1024,
            files=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            unfinished=int(figures["rwkvbatch_unfinished_replies"]),
            cached_states=int(figures["rwkvbatch_cached_states"]),
        )


def texts_of(number: int) -> list[str]:
    """User messages, many of which begin alike."""
    source = random.Random(1)
    names = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald"]
    return [
        f"My name is {source.choice(names)}. " * source.randint(1, 6) + f"What is {at} plus {source.randint(1, 99)}?"
        for at in range(number)
    ]


async def ask(server: Server, text: str, seed: int, max_tokens: int, leave_after: int | None) -> str | None:
    """The text of a streamed reply; None if the client left early."""
    # HTTP/1.0: the body is not in chunks, so that its lines can be read as they are.
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "seed": seed, "stream": True}
    data = json.dumps({**body, **PARAMS, "max_tokens": max_tokens}).encode()
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        head = f"POST /v1/chat/completions HTTP/1.0\r\nHost: {server.address[0]}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        parts: list[str] = []
        num_events = 0
        if leave_after == 0:
            return None
        status = await reader.readline()
        if b" 200 " not in status:
            raise OSError(f"answered {status!r}")
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                return "".join(parts)
            event = json.loads(line[6:])
            if "error" in event:
                raise OSError(f"answered {event}")
            parts += [choice["delta"].get("content", "") for choice in event["choices"]]
            num_events += 1
            if num_events == leave_after:
                return None
        raise OSError("the stream ended early")
    finally:
        writer.close()


async def load(
    server: Server, work: list[tuple[str, int, str]], streams: int, max_tokens: int, leaving: float, until_s: float
) -> Counts:
    """Ask all of `work` once, or again and again until `until_s`, in `streams` streams at once."""
    counts, source = Counts(), random.Random(2)
    queue = iter(work)

    def next_work() -> tuple[str, int, str] | None:
        if not until_s:
            return next(queue, None)
        return source.choice(work) if time.monotonic() < until_s else None

    async def client() -> None:
        while (item := next_work()) is not None:
            text, seed, expected = item
            leave_after = source.randint(0, 12) if source.random() < leaving else None
            try:
                found = await ask(server, text, seed, max_tokens, leave_after)
            except (OSError, ValueError) as error:
                counts.failed += 1
                counts.problems.append(f"{text!r}: {error}")
                continue
            if found is None:
                counts.left += 1
                continue
            counts.read += 1
            if found != expected:
                counts.different += 1
                counts.problems.append(f"{text!r} seed {seed}: {found!r} instead of {expected!r}")

    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(client())
    return counts


async def soak(
    server: Server, work: list[tuple[str, int, str]], arguments: argparse.Namespace
) -> tuple[Counts, list[Usage]]:
    """The load with clients that leave, and the server's usage over time."""
    usages: list[Usage] = []
    running = asyncio.create_task(
        load(
            server,
            work,
            arguments.streams,
            arguments.max_tokens,
            arguments.leaving,
            time.monotonic() + 60 * arguments.minutes,
        )
    )
    while not running.done():
        usages.append(await asyncio.to_thread(server.usage))
        print(f"  {usages[-1]}", flush=True)
        await asyncio.wait([running], timeout=max(1.0, 60 * arguments.minutes / 20))
    return await running, usages


def run_speed(texts: list[str], arguments: argparse.Namespace, folder: Path) -> float:
    """Tokens per second of `rwkvbatch run` on the same conversations."""
    script = folder / "soak.jsonl"
    lines = [
        json.dumps({"id": str(at), "messages": [{"role": "user", "content": text}]}) for at, text in enumerate(texts)
    ]
    script.write_text("\n".join(lines) + "\n")
    options = ["--temp", str(PARAMS["temperature"]), "--top-p", str(PARAMS["top_p"])]
    options += ["--max-tokens", str(arguments.max_tokens), "--batch-size", str(arguments.batch_size), "--quiet"]
    command = [sys.executable, "-m", "rwkvbatch", "run", str(script), "--out", str(folder / "run"), *options]
    subprocess.run(command, check=True)
    return float(json.loads((folder / "run" / "summary.json").read_text())["session"]["tokens_per_s"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--conversations", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--state-memory", default="128M")
    parser.add_argument("--leaving", type=float, default=0.3, help="share of requests whose client leaves early")
    arguments = parser.parse_args()
    texts = texts_of(arguments.conversations)
    print("expected replies, in one batch of the library ...", flush=True)
    params = [SamplingParams(**PARAMS, max_tokens=arguments.max_tokens, seed=at) for at in range(len(texts))]
    llm = LLM(max_batch=arguments.batch_size)
    outputs = llm.chat([[{"role": "user", "content": text}] for text in texts], params)
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    work = [(text, at, output.text) for at, (text, output) in enumerate(zip(texts, outputs, strict=True))]
    llm.close()
    with tempfile.TemporaryDirectory() as folder:
        speed = run_speed(texts, arguments, Path(folder))
    print(f"rwkvbatch run: {speed:,.0f} tokens/s", flush=True)
    # Little memory for states, so that it is full, and its pages touched, before the first figures.
    server = Server(
        ["--served-name", MODEL, "--batch-size", str(arguments.batch_size), "--state-memory", arguments.state_memory]
    )
    try:
        begun_s = time.monotonic()
        counts = asyncio.run(load(server, work, arguments.streams, arguments.max_tokens, 0.0, 0.0))
        served = tokens / (time.monotonic() - begun_s)
        print(f"rwkvbatch serve, {arguments.streams} streams: {served:,.0f} tokens/s, {served / speed:.2f} of run's")
        print(f"soak of {arguments.minutes:g} minutes, {arguments.leaving:.0%} of clients leave:", flush=True)
        soaked, usages = asyncio.run(soak(server, work, arguments))
        time.sleep(2)
        last = server.usage()
    finally:
        code = server.stop()
    settled = usages[len(usages) // 4]
    print(f"  at the end: {last}; exit code {code}")
    for name, each in {"throughput": counts, "soak": soaked}.items():
        print(f"{name}: {each.read:,} read, {each.left:,} left, {each.different} different, {each.failed} failed")
        for problem in each.problems[:5]:
            print(f"  {problem}")
    leaks = {
        "memory": last.rss - settled.rss > MAX_RSS_GROWTH,
        "open files": last.files > usages[0].files + 4 or last.files > 64,
        "threads": last.threads > settled.threads,
        "unfinished replies": last.unfinished != 0,
    }
    for name in [name for name, leaks_it in leaks.items() if leaks_it]:
        print(f"leak: {name}")
    wrong = sum(each.different + each.failed for each in (counts, soaked))
    return 1 if wrong or any(leaks.values()) or code else 0


if __name__ == "__main__":
    sys.exit(main())
