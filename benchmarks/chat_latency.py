"""Latency of a chat from Enter to the first token, and its growth over 200 turns.

    python benchmarks/chat_latency.py [TURNS]        (at least 20; 200 when not given)

Runs the chat's loop (all but the input line) with the bundled model, drawing on a terminal that discards its output,
with a transcript on the disk. "Overhead" is the time from the line to the first text on the terminal, minus the
engine's time to its first token.
"""

from __future__ import annotations

import io
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from rwkvbatch.chat.commands import handle_line
from rwkvbatch.chat.start import ChatArguments, open_chat
from rwkvbatch.chat.terminal import TerminalView


class _DiscardingTerminal(io.StringIO):
    """A terminal whose output is discarded."""

    def write(self, text: str) -> int:
        return len(text)


def main() -> None:
    num_turns = max(int(sys.argv[1]) if len(sys.argv) > 1 else 200, 20)
    view = TerminalView(Console(file=_DiscardingTerminal(), force_terminal=True, width=100, height=30, highlight=False))
    with tempfile.TemporaryDirectory() as directory:
        arguments = ChatArguments(transcript=Path(directory) / "transcript.jsonl")
        chat = open_chat(arguments, view, is_terminal=False)
        overhead_ms: list[float] = []
        turn_ms: list[float] = []
        memory_mib: list[float] = []
        shown_at_s: list[float] = []
        show_piece = view.piece

        def show_and_record(text: str) -> None:
            show_piece(text)
            shown_at_s.append(time.perf_counter())

        view.piece = show_and_record
        for number in range(num_turns):
            shown_at_s.clear()
            started_s = time.perf_counter()
            handle_line(chat, f"My number is {number % 10}. What is my number?")
            turn_ms.append((time.perf_counter() - started_s) * 1000)
            last = chat.session.tree.last
            assert last is not None
            if shown_at_s:
                overhead_ms.append((shown_at_s[0] - started_s - last.first_token_s) * 1000)
            memory_mib.append(_resident_mib())
        chat.transcript.close()
    tokens = len(chat.session.tree.history())
    print(f"{num_turns} turns, {tokens} tokens of history, {resource.getpagesize()} byte pages")
    print(
        f"overhead to the first token: median {statistics.median(overhead_ms):.2f} ms, "
        f"p95 {_percentile(overhead_ms, 0.95):.2f} ms, highest {max(overhead_ms):.2f} ms"
    )
    for first, last in ((0, 20), (num_turns - 20, num_turns)):
        print(
            f"turns {first + 1} to {last}: overhead median {statistics.median(overhead_ms[first:last]):.2f} ms, "
            f"turn median {statistics.median(turn_ms[first:last]):.1f} ms"
        )
    half = num_turns // 2
    kib_per_turn = (memory_mib[-1] - memory_mib[half - 1]) * 1024 / (num_turns - half)
    print(f"memory: {kib_per_turn:.0f} KiB per turn over the second half, {memory_mib[-1]:.0f} MiB at the end")


def _percentile(values: list[float], fraction: float) -> float:
    return sorted(values)[min(int(len(values) * fraction), len(values) - 1)]


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
