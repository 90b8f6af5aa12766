"""What the fuzz targets share: instrumented imports, seeds, a corpus folder, and libFuzzer's options."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

DEFAULT_SECONDS = 60


@contextmanager
def instrumented(*packages: str) -> Generator[None]:
    """Inside, top-level `packages` are imported such that the fuzzer sees which branches are taken.

    The import hook of an editable installation is put aside: it hands out loaders that atheris cannot change, and the
    fuzzer would be blind. The package is then found in the working directory.
    """
    hooks = [finder for finder in sys.meta_path if type(finder).__module__.startswith("_editable_")]
    for hook in hooks:
        sys.meta_path.remove(hook)
    try:
        with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
            include=list(packages)
        ):
            yield
    finally:
        sys.meta_path[:0] = hooks


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
    atheris.Setup(  # pyright: ignore[reportAttributeAccessIssue]
        [sys.argv[0], *options, str(folder)], target
    )
    atheris.Fuzz()  # pyright: ignore[reportAttributeAccessIssue]


def _quoted(word: str) -> str:
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in word.encode("utf-8", "surrogatepass")
    )
