"""Loads `rwkvbatch serve` with many streams whose clients leave at random, and checks every reply.

    python benchmarks/serve_soak.py --streams 256 --minutes 5
    python benchmarks/serve_soak.py --model FILE --conversations 384 --max-tokens 32 --state-memory 2G --minutes 0.2

Measured: throughput of `rwkvbatch run` and of the server on the same conversations, in turns; then, while clients leave
at random, every reply that was read to its end against the one of `LLM.chat` (which is a batch of its own), and the
server's memory, open files, threads and unfinished replies. Exit code 1 if a reply differs or something leaks.

The clients share the machine with the server. They are one thread over plain sockets, which reads the responses of the
throughput only when the time has been taken; its processor time is printed beside the result. As the usual packages do,
they keep a connection for their next request.
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
"""Bytes between the first quarter of the soak and its end: caches fill until then."""


@dataclass(frozen=True)
class Work:
    """A conversation to ask for, and its reply by the library."""

    text: str
    seed: int
    expected: str


@dataclass
class Counts:
    """What the clients saw."""

    read: int = 0
    left: int = 0
    different: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list[str])

    def take(self, work: Work, data: bytes) -> None:
        """Compare a whole response with what is expected."""
        try:
            found = text_of(data)
        except ValueError as error:
            self.failed += 1
            self.problems.append(f"{work.text!r}: {error}")
            return
        self.read += 1
        if found != work.expected:
            self.different += 1
            self.problems.append(f"{work.text!r} seed {work.seed}: {found!r} instead of {work.expected!r}")


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


def request(work: Work, max_tokens: int) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": work.text}], "seed": work.seed, "stream": True}
    data = json.dumps({**body, **PARAMS, "max_tokens": max_tokens}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def text_of(data: bytes) -> str:
    """The text of a streamed response; raises `ValueError` if it is not whole or not a reply."""
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
    """One stream. `leave_after`: events after which it leaves, None for never."""

    connection: socket.socket
    work: Work
    leave_after: int | None
    data: bytearray = field(default_factory=bytearray)


class Load:
    """Clients of a server, in one thread.

    Args:
        leaving: the share of those that leave before the end of their response.
        take: is given each response that was read to its end.
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
        """Keep `streams` streams open until there is no more work and all have ended."""
        num_open = sum(self._begin(next_work(), None) for _ in range(streams))
        while num_open:
            for key, _ in self._selector.select():
                client: Client = key.data
                if self._read(client):
                    num_open += self._begin(next_work(), client.connection) - 1
        self._selector.close()

    def _begin(self, work: Work | None, connection: socket.socket | None) -> bool:
        """Ask for `work` with a connection that was used before, or a new one; without work, end the connection."""
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
        """Whether the client has ended; if not with a whole response, its connection is closed."""
        try:
            part = client.connection.recv(1 << 16) if client.leave_after != 0 else b""
        except OSError as error:
            part = b""
            self._counts.problems.append(f"{client.work.text!r}: {error}")
        client.data += part
        leaves = client.leave_after is not None and client.data.count(b"data: ") >= client.leave_after
        is_whole = client.data.endswith(END_OF_BODY)
        if part and not leaves and not is_whole:
            return False
        if leaves or not is_whole:
            self._selector.unregister(client.connection)
            client.connection.close()
        if leaves:
            self._counts.left += 1
        else:
            self._take(client.work, bytes(client.data))
        return True


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the server, and the processor time that its clients took a token, in seconds."""

    tokens_per_s: float
    client_s: float


def serve_speed(server: Server, work: list[Work], tokens: int, arguments: argparse.Namespace, counts: Counts) -> Speed:
    """Ask for all of `work` once."""
    responses: list[tuple[Work, bytes]] = []
    queue = iter(work)
    load = Load(server, arguments.max_tokens, 0.0, counts, lambda asked, data: responses.append((asked, data)))
    begun_s, client_s = time.monotonic(), time.process_time()
    load.run(arguments.streams, lambda: next(queue, None))
    speed = Speed(tokens / (time.monotonic() - begun_s), (time.process_time() - client_s) / tokens)
    for asked, data in responses:
        counts.take(asked, data)
    return speed


def soak(server: Server, work: list[Work], arguments: argparse.Namespace, counts: Counts) -> list[Usage]:
    """The load with clients that leave; returns the server's usage over time."""
    until_s, source = time.monotonic() + 60 * arguments.minutes, random.Random(3)
    load = Load(server, arguments.max_tokens, arguments.leaving, counts, counts.take)

    def next_work() -> Work | None:
        return source.choice(work) if time.monotonic() < until_s else None

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
        json.dumps({"id": str(at), "messages": [{"role": "user", "content": text}]}) for at, text in enumerate(texts)
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
    parser.add_argument("--model", default=None, help="a checkpoint; the bundled model unless given")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--conversations", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3, help="of run and serve, in turns")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--state-memory", default="128M")
    parser.add_argument("--leaving", type=float, default=0.3, help="share of requests whose client leaves early")
    arguments = parser.parse_args()
    texts = texts_of(arguments.conversations)
    print("expected replies, in one batch of the library ...", flush=True)
    params = [SamplingParams(**PARAMS, max_tokens=arguments.max_tokens, seed=at) for at in range(len(texts))]
    llm = LLM(arguments.model, max_batch=arguments.batch_size)
    outputs = llm.chat([[{"role": "user", "content": text}] for text in texts], params)
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    work = [Work(text, at, output.text) for at, (text, output) in enumerate(zip(texts, outputs, strict=True))]
    llm.close()
    # Little memory for states, so that it is full, and its pages touched, before the first figures.
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
