"""What the fuzz targets share: seeds, a corpus folder, and libFuzzer's options."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

DEFAULT_SECONDS = 60


def fuzz(
    target: Callable[[bytes], None],
    seeds: Mapping[str, bytes],
    *,
    max_bytes: int,
    words: tuple[str, ...] = (),
    seconds_an_input: int = 2,
) -> None:
    """Call `target` with inputs that grow from `seeds` until the time is over; an exception of it is a finding.

    The command line is `[SECONDS] [FOLDER]`: how long (60), and where the corpus is kept (a temporary folder).
    Never returns: the fuzzer ends the process, with its figures on standard error.

    Args:
        max_bytes: of one input.
        words: what inputs are likely to hold.
        seconds_an_input: that `target` may take for one input; more is a finding too.
    """
    arguments = sys.argv[1:]
    seconds = int(arguments[0]) if arguments else DEFAULT_SECONDS
    folder = Path(arguments[1] if len(arguments) > 1 else tempfile.mkdtemp(prefix="rwkvbatch-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (folder / name).write_bytes(data)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={max_bytes}",
        f"-timeout={seconds_an_input}",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    if words:
        dictionary = Path(tempfile.mkdtemp(prefix="rwkvbatch-fuzz-words-")) / "words"
        dictionary.write_text("".join(f'"{_quoted(word)}"\n' for word in words), encoding="ascii")
        options.append(f"-dict={dictionary}")
    atheris.Setup([sys.argv[0], *options, str(folder)], target)
    atheris.Fuzz()


def _quoted(word: str) -> str:
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in word.encode("utf-8", "surrogatepass")
    )
