"""A process forked after packing its weights, as worker processes are (rwkvbatch/replay/pools/processes.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import os, sys
import torch
from rwkvbatch.model.ops import Product
from rwkvbatch.model.ops.cpu import CpuOps

ops = CpuOps(threads=2)
torch.manual_seed(0)
layer = ops.linear_layer(torch.randn(4096, 512))
x = torch.randn(8, 512)

def product():
    (result,) = ops.linears([Product(ops.array(x), layer)])
    return ops.values(result)

expected = product()
process = os.fork()
if process == 0:
    alone = len(os.listdir("/proc/self/task"))
    same = torch.equal(product(), expected)
    started = len(os.listdir("/proc/self/task")) - alone
    os._exit(0 if same and started == 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, "the child had other bits or no thread of its own"
assert torch.equal(product(), expected)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in Linux's /proc")
def test_a_forked_child_starts_its_own_threads_and_computes_the_same_bits() -> None:
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True, timeout=120)
