"""Coverage-guided fuzzing of the checkpoint reader: `python -m tools.fuzz.fuzz_checkpoint [SECONDS] [FOLDER]`.

Every input must either load or end in a `CheckpointError`. Anything else stops the fuzzer, which then leaves the
input in the working directory; a finding belongs into `tests/model/hostile_checkpoints.py`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
    include=["rwkvbatch.model", "zipfile"]
):
    from rwkvbatch.errors import CheckpointError
    from rwkvbatch.model.checkpoint import open_checkpoint

MAX_BYTES = 1 << 16


def seeds() -> dict[str, bytes]:
    """Sound files, as small as can be, for the fuzzer to begin with."""
    import io

    import torch
    from safetensors.torch import save

    from rwkvbatch.model.random_checkpoint import LowRankWidths, random_tensors

    def pth(value: object, *, new: bool) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=new)
        return buffer.getvalue()

    tensors = random_tensors(1, 2, 3, head_size=2, hidden=1, ranks=LowRankWidths(1, 1, 1, 1))
    few = {"emb.weight": torch.ones(2, 2), "blocks.0.att.r_k": torch.ones(1, 2)}
    made = {"pth": pth(tensors, new=True), "old": pth(tensors, new=False), "safe": save(tensors)}
    return made | {"few-pth": pth(few, new=True), "few-old": pth(few, new=False), "few-safe": save(few)}


def main(arguments: list[str]) -> None:
    """Fuzz for a number of seconds (60 unless given), with the corpus in a folder (a temporary one unless given)."""
    seconds = int(arguments[1]) if len(arguments) > 1 else 60
    folder = Path(arguments[2] if len(arguments) > 2 else tempfile.mkdtemp(prefix="rwkvbatch-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)
    # In memory: a file of its own for each of thousands of inputs a second would be mostly waiting.
    target = Path("/dev/shm") / f"rwkvbatch-fuzz-{os.getpid()}"

    def read_one(data: bytes) -> None:
        target.write_bytes(data)
        try:
            with open_checkpoint(target) as checkpoint:
                for name in checkpoint:
                    checkpoint.check(name)
        except CheckpointError as error:
            if str(target) not in str(error):
                raise AssertionError("the message does not name the file") from error

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        "-timeout=2",
        "-rss_limit_mb=2048",
        str(folder),
    ]
    atheris.Setup([arguments[0], *options], read_one)
    try:
        atheris.Fuzz()
    finally:
        target.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv)
