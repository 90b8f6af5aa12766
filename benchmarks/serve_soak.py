"""Soak test of `rwkvbatch serve`: many streams, of which some are cancelled at random, with a check of every reply.

    python benchmarks/serve_soak.py --streams 256 --minutes 5
    python benchmarks/serve_soak.py --model FILE --conversations 384 --max-tokens 32 --state-memory 2G --minutes 0.2

First, the throughput of `rwkvbatch run` and of the server is measured in turns, on the same conversations. Then, while
clients cancel requests at random, every complete reply is compared with the reply of `LLM.chat` (which has another
batch), and the server's memory, open files, threads and unfinished replies are recorded. The exit code is 1 if a reply
differs or a resource leaks.

The clients share the machine with the server. They are one thread with plain sockets, whose processor time is printed
beside the throughput; it parses the responses only after the time was taken. Like the usual client packages, clients
reuse their connection for the next request.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rwkvbatch import LLM, SamplingParams

MODEL = "soak"
PARAMS: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9}
END_OF_BODY = b"\r\n0\r\n\r\n"
MAX_RSS_GROWTH = 64 << 20
"""The largest growth in bytes from the first quarter of the soak to its end; during the first quarter, caches fill."""


@dataclass(frozen=True)
class Work:
    """A conversation, and its reply by the library."""

    text: str
    seed: int
    expected: str


@dataclass
class Counts:
    """Counts of the clients' responses: read to the end, left early, with a different reply, or failed."""

    read: int = 0
    left: int = 0
    different: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list[str])

    def take(self, work: Work, data: bytes) -> None:
        """Compare a complete response with the expected reply."""
        try:
            reply = text_of(data)
        except ValueError as error:
            self.failed += 1
            self.problems.append(f"{work.text!r}: {error}")
            return
        self.read += 1
        if reply != work.expected:
            self.different += 1
            self.problems.append(f"{work.text!r} seed {work.seed}: {reply!r} instead of {work.expected!r}")


@dataclass(frozen=True)
class Usage:
    """Resources that the server process uses; `rss` is in bytes."""

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
        """End the process with SIGTERM, and return its exit code."""
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
    """User messages, many of which have a common prefix."""
    rng = random.Random(1)
    names = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald"]
    return [
        f"My name is {rng.choice(names)}. " * rng.randint(1, 6) + f"What is {index} plus {rng.randint(1, 99)}?"
        for index in range(number)
    ]


def request(work: Work, max_tokens: int) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": work.text}], "seed": work.seed, "stream": True}
    data = json.dumps({**body, **PARAMS, "max_tokens": max_tokens}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def text_of(data: bytes) -> str:
    """The text of a streamed response; raises `ValueError` if it is incomplete or not a reply."""
    head, _, rest = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError(f"answered {data[:200]!r}")
    body = bytearray()
    while (size := int(rest.partition(b"\r\n")[0] or b"0", 16)) > 0:
        begin = rest.index(b"\r\n") + 2
        body += rest[begin : begin + size]
        rest = rest[begin + size + 2 :]
    events = re.findall(rb"data: (.*)\n\n", bytes(body))
    if not events or events.pop() != b"[DONE]":
        raise ValueError("the stream ended early")
    parts: list[str] = []
    for event in map(json.loads, events):
        if "error" in event:
            raise ValueError(f"answered {event}")
        parts += [choice["delta"].get("content", "") for choice in event["choices"]]
    return "".join(parts)


@dataclass
class Client:
    """One stream; `leave_after` is the number of events after which it is cancelled, None for never."""

    connection: socket.socket
    work: Work
    leave_after: int | None
    data: bytearray = field(default_factory=bytearray)


class Load:
    """Clients of a server, in one thread.

    Args:
        leaving: share of the requests that are cancelled before the end of their response.
        take: called with each complete response.
    """

    def __init__(
        self, server: Server, max_tokens: int, leaving: float, counts: Counts, take: Callable[[Work, bytes], None]
    ) -> None:
        self._server = server
        self._max_tokens = max_tokens
        self._leaving = leaving
        self._counts = counts
        self._take = take
        self._source = random.Random(2)
        self._selector = selectors.DefaultSelector()

    def run(self, streams: int, next_work: Callable[[], Work | None]) -> None:
        """Keep `streams` streams open until `next_work` returns None and all streams have ended."""
        num_open = sum(self._begin(next_work(), None) for _ in range(streams))
        while num_open:
            for key, _ in self._selector.select():
                client: Client = key.data
                if self._read(client):
                    num_open += self._begin(next_work(), client.connection) - 1
        self._selector.close()

    def _begin(self, work: Work | None, connection: socket.socket | None) -> bool:
        """Request `work` over a used connection or a new one; without work, close the connection.

        Returns:
            Whether a request was sent.
        """
        is_open = connection is not None and connection.fileno() >= 0
        if work is None:
            if connection is not None and is_open:
                self._selector.unregister(connection)
                connection.close()
            return False
        if connection is None or not is_open:
            connection = socket.create_connection(self._server.address)
            self._selector.register(connection, selectors.EVENT_READ)
        leaves = self._source.random() < self._leaving
        client = Client(connection, work, self._source.randint(0, 12) if leaves else None)
        self._selector.modify(connection, selectors.EVENT_READ, client)
        connection.sendall(request(work, self._max_tokens))
        return True

    def _read(self, client: Client) -> bool:
        """Read from a client's connection; close it if the request is cancelled or the connection ended.

        Returns:
            Whether the request has ended: completely, by cancellation, or by the end of the connection.
        """
        try:
            received = client.connection.recv(1 << 16) if client.leave_after != 0 else b""
        except OSError as error:
            received = b""
            self._counts.problems.append(f"{client.work.text!r}: {error}")
        client.data += received
        leaves = client.leave_after is not None and client.data.count(b"data: ") >= client.leave_after
        is_complete = client.data.endswith(END_OF_BODY)
        if received and not leaves and not is_complete:
            return False
        if leaves or not is_complete:
            self._selector.unregister(client.connection)
            client.connection.close()
        if leaves:
            self._counts.left += 1
        else:
            self._take(client.work, bytes(client.data))
        return True


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the server, and the clients' processor time per token in seconds."""

    tokens_per_s: float
    client_s: float


def serve_speed(server: Server, work: list[Work], tokens: int, arguments: argparse.Namespace, counts: Counts) -> Speed:
    """The speed of the server when all of `work` is requested once; its replies have `tokens` tokens altogether."""
    responses: list[tuple[Work, bytes]] = []
    queue = iter(work)
    load = Load(server, arguments.max_tokens, 0.0, counts, lambda one_work, data: responses.append((one_work, data)))
    start_s, client_start_s = time.monotonic(), time.process_time()
    load.run(arguments.streams, lambda: next(queue, None))
    speed = Speed(tokens / (time.monotonic() - start_s), (time.process_time() - client_start_s) / tokens)
    for one_work, data in responses:
        counts.take(one_work, data)
    return speed


def soak(server: Server, work: list[Work], arguments: argparse.Namespace, counts: Counts) -> list[Usage]:
    """Run the load with clients that cancel requests, and return the server's usage over time."""
    end_s, rng = time.monotonic() + 60 * arguments.minutes, random.Random(3)
    load = Load(server, arguments.max_tokens, arguments.leaving, counts, counts.take)

    def next_work() -> Work | None:
        return rng.choice(work) if time.monotonic() < end_s else None

    running = threading.Thread(target=load.run, args=(arguments.streams, next_work))
    running.start()
    usages: list[Usage] = []
    while running.is_alive():
        usages.append(server.usage())
        print(f"  {usages[-1]}", flush=True)
        running.join(max(1.0, 60 * arguments.minutes / 20))
    return usages


def run_speed(texts: list[str], arguments: argparse.Namespace, folder: Path) -> float:
    """Tokens per second of `rwkvbatch run` on the same conversations."""
    script = folder / "soak.jsonl"
    lines = [
        json.dumps({"id": str(index), "messages": [{"role": "user", "content": text}]})
        for index, text in enumerate(texts)
    ]
    script.write_text("\n".join(lines) + "\n")
    options = ["--temp", str(PARAMS["temperature"]), "--top-p", str(PARAMS["top_p"])]
    options += ["--max-tokens", str(arguments.max_tokens), "--batch-size", str(arguments.batch_size), "--quiet"]
    options += ["--state-memory", arguments.state_memory, *_model_options(arguments)]
    command = [sys.executable, "-m", "rwkvbatch", "run", str(script), "--out", str(folder / "run"), *options]
    subprocess.run(command, check=True)
    return float(json.loads((folder / "run" / "summary.json").read_text())["session"]["tokens_per_s"])


def _model_options(arguments: argparse.Namespace) -> list[str]:
    return [] if arguments.model is None else ["--model", arguments.model]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="a checkpoint (default: the bundled model)")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--conversations", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of run and serve, in turns")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--state-memory", default="128M")
    parser.add_argument("--leaving", type=float, default=0.3, help="share of requests that are cancelled")
    arguments = parser.parse_args()
    texts = texts_of(arguments.conversations)
    print("expected replies, in one batch of the library ...", flush=True)
    params = [SamplingParams(**PARAMS, max_tokens=arguments.max_tokens, seed=seed) for seed in range(len(texts))]
    llm = LLM(arguments.model, max_batch=arguments.batch_size)
    outputs = llm.chat([[{"role": "user", "content": text}] for text in texts], params)
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    work = [Work(text, seed, output.text) for seed, (text, output) in enumerate(zip(texts, outputs, strict=True))]
    llm.close()
    # The memory for states is small, so that it is full, and its pages are resident, before the first usage is read.
    options = ["--batch-size", str(arguments.batch_size), "--state-memory", arguments.state_memory]
    server = Server(["--served-name", MODEL, *options, *_model_options(arguments)])
    counts, soaked, ratios = Counts(), Counts(), list[float]()
    try:
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                speed = run_speed(texts, arguments, Path(folder))
            served = serve_speed(server, work, tokens, arguments, counts)
            ratios.append(served.tokens_per_s / speed)
            print(
                f"rwkvbatch run: {speed:,.0f} tokens/s; serve, {arguments.streams} streams: "
                f"{served.tokens_per_s:,.0f} tokens/s, {ratios[-1]:.2f} of it; its clients took "
                f"{1e6 * served.client_s:.1f} us of processor time a token",
                flush=True,
            )
        if ratios:
            print(f"median: {statistics.median(ratios):.2f}")
        print(f"soak of {arguments.minutes:g} minutes, {arguments.leaving:.0%} of clients leave:", flush=True)
        usages = soak(server, work, arguments, soaked)
        time.sleep(2)
        last = server.usage()
    finally:
        code = server.stop()
    settled = usages[len(usages) // 4]
    print(f"  at the end: {last}; exit code {code}")
    for name, phase in {"throughput": counts, "soak": soaked}.items():
        print(f"{name}: {phase.read:,} read, {phase.left:,} left, {phase.different} different, {phase.failed} failed")
        for problem in phase.problems[:5]:
            print(f"  {problem}")
    leaks = {
        "memory": last.rss - settled.rss > MAX_RSS_GROWTH,
        "open files": last.files > usages[0].files + 4 or last.files > 64,
        "threads": last.threads > settled.threads,
        "unfinished replies": last.unfinished != 0,
    }
    for name in [name for name, is_leak in leaks.items() if is_leak]:
        print(f"leak: {name}")
    num_wrong = sum(phase.different + phase.failed for phase in (counts, soaked))
    return 1 if num_wrong or any(leaks.values()) or code else 0


if __name__ == "__main__":
    sys.exit(main())
