"""Coverage-guided fuzzing of the checkpoint reader: `python -m tools.fuzz.fuzz_checkpoint [SECONDS] [FOLDER]`.

Every input must either load or end in a `CheckpointError`. Anything else stops the fuzzer, which then leaves the
input in the working directory; a finding belongs into `tests/model/hostile/`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tools.fuzz.fuzzing import fuzz, instrumented

with instrumented("rwkvbatch", "zipfile"):
    from rwkvbatch.errors import CheckpointError
    from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint

MAX_BYTES = 1 << 16


def seeds() -> dict[str, bytes]:
    """Sound files, as small as can be, for the fuzzer to begin with."""
    import io
    from argparse import Namespace

    import numpy as np
    import torch
    from safetensors.torch import save

    from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors

    def pth(value: object, *, new: bool) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=new)
        return buffer.getvalue()

    tensors = random_tensors(1, 2, 3, head_size=2, hidden=1, ranks=LowRankWidths(1, 1, 1, 1))
    few = {"emb.weight": torch.ones(2, 2), "blocks.0.att.r_k": torch.ones(1, 2)}
    from tests.model.hostile.gguf_headers import file, tensor
    from tests.model.made_forms import to_fla, to_transformers_7, to_vllm, to_web_rwkv

    made = {"gguf": file(tensor("token_embd.weight", [2, 2]), tensor("blk.0.time_mix_r_k.weight", [2]))}
    made |= {"web-rwkv": save(to_web_rwkv(tensors)), "fla": save(to_fla(tensors)), "vllm": save(to_vllm(tensors))}
    made |= {"transformers": save({f"module.{name}": part for name, part in to_transformers_7(tensors).items()})}
    wrapped = {"state_dict": tensors, "hyper_parameters": Namespace(lr=1.0, seen=np.float64(1), betas=(1, 2))}
    made |= {"lightning": pth(wrapped, new=True), "lightning-old": pth(wrapped, new=False)}
    made |= {"pth": pth(tensors, new=True), "old": pth(tensors, new=False), "safe": save(tensors)}
    return made | {"few-pth": pth(few, new=True), "few-old": pth(few, new=False), "few-safe": save(few)}


def main() -> None:
    """Fuzz; see `fuzz`."""
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
        finally:
            target.unlink()

    fuzz(read_one, seeds(), max_bytes=MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
