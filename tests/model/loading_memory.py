"""Measures the memory that loading a model takes, in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_MEMORY = """
import json, sys
from rwkvbatch.model.load import load_model

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

load_model(sys.argv[1], sys.argv[3], "cpu").forward([[1, 2]])
before = resident("VmRSS")
model = load_model(sys.argv[2], sys.argv[3], "cpu")
after = {"after": resident("VmRSS") - before, "packed": model.ops.native.weight_bytes}
print(json.dumps({"peak": resident("VmHWM") - before, **after}))
"""


def memory_of_loading(path: Path, strategy: str, another: Path) -> dict[str, int]:
    """The peak and the final bytes of loading `path`, in a process that has loaded `another` before."""
    command = [sys.executable, "-c", _MEMORY, str(another), str(path), strategy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)
