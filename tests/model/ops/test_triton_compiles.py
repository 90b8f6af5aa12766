"""The kernels compile to machine code without a GPU; the interpreter accepts more than the compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

MAX_SHARED_BYTES = 99 * 1024
"""What a block may have on GPUs of compute capability 8.6 to 12.0, the smallest of those that are served."""
COMPILED = Path(__file__).parents[3] / "build" / "triton"
"""Kernels that were compiled before, by the hash of all that goes into them: unchanged ones take no time again."""


@pytest.mark.slow
def test_every_kernel_compiles_for_the_oldest_gpu_that_is_served() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(COMPILED), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "tests.model.ops.compile_kernels", "80"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    # Layers of a few rows are copied ahead, several blocks at a time.
    assert shared["_linears"] >= 32 * 1024
    assert max(shared.values()) <= MAX_SHARED_BYTES
    assert set(shared) >= {"_linears", "_shift_mix", "_scan", "_prepare", "_pass_on", "_finish", "_sample"}
