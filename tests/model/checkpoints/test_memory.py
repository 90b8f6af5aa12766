"""Weights that do not fit are refused before they are read; files may be larger than the memory."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.checkpoints import memory
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.description import describe
from rwkvbatch.model.checkpoints.memory import bytes_of_weights, free_memory, packed_bytes
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.strategy import parse_strategy
from rwkvbatch.model.weights.safetensors import save_entries

MIB = 2**20


def machine(root: Path, available_kib: int, cgroup: str = "", **files: str) -> Path:
    """A root directory whose /proc and /sys say this; a file's `__` is a `/`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available_kib} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_free_memory_is_the_least_of_the_machines_and_the_cgroups(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path / "alone", 1000)) == 1000 * 1024
    files = {
        "job__memory_dot_max": "5000000",
        "job__memory_dot_current": "4500000",
        "job__memory_dot_stat": "anon 1\ninactive_file 100000\n",
        "memory_dot_max": "max",
        "memory_dot_current": "9",
    }
    assert free_memory(machine(tmp_path / "v2", 1 << 20, "0::/job/step\n", **files)) == 600_000
    files = {"memory_dot_max": "7000", "memory_dot_current": "3000"}
    assert free_memory(machine(tmp_path / "container", 1 << 20, "0::/host/path\n", **files)) == 4000
    files = {"memory__memory_dot_limit_in_bytes": "7000", "memory__memory_dot_usage_in_bytes": "9000"}
    assert free_memory(machine(tmp_path / "v1", 1 << 20, "4:cpu,memory:/x\n", **files)) is not None
    assert free_memory(machine(tmp_path / "v1-own", 1 << 20, "4:memory:/x\n", **files)) == 0
    assert free_memory(tmp_path / "nothing") is None


def test_this_machine_has_free_memory() -> None:
    free = free_memory()
    assert free is None or 0 < free < 2**50


@pytest.mark.parametrize(
    ("strategy", "backend", "free_mib", "hint"),
    [
        ("cpu fp32", "cpu", 60, 'use --strategy "cpu bf16", which needs 40.7 MiB'),
        ("cpu", "cpu", 30, 'even --strategy "cpu bf16" needs 40.7 MiB'),
        ("cpu", "reference", 50, 'use --strategy "cpu bf16", which needs'),
        ("cpu fp32", "upstream", 50, 'use --strategy "cpu bf16", which needs'),
        ("cpu", "cpu", 1, "free memory, or use another machine"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    strategy: str, backend: str, free_mib: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = random_tensors(1, 256, 20000, dtype=torch.float32)
    size_mib = sum(tensor.nbytes for tensor in tensors.values()) / MIB
    torch.save(tensors, tmp_path / "a.pth")
    monkeypatch.setattr(memory, "free_memory", lambda: free_mib * MIB)
    with pytest.raises(
        CheckpointError, match=rf"its weights need .* of memory, and {free_mib}\.0 MiB are free"
    ) as caught:
        load_model(tmp_path / "a.pth", strategy, backend)
    assert hint in str(caught.value.hint)
    monkeypatch.setattr(memory, "free_memory", lambda: round(1.6 * size_mib * MIB))
    assert load_model(tmp_path / "a.pth", strategy, backend, threads=1).spec.num_layers == 1


def test_int8_needs_less_than_bf16_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(random_tensors(2, 512, 100), tmp_path / "a.pth")
    monkeypatch.setattr(memory, "free_memory", lambda: 10 * MIB)
    with pytest.raises(CheckpointError, match="its weights need") as caught:
        load_model(tmp_path / "a.pth", "auto" if not torch.cuda.is_available() else "cpu")
    assert 'use --strategy "cpu int8", which needs ' in str(caught.value.hint)
    assert load_model(tmp_path / "a.pth", "cpu int8", threads=1).spec.dtype == "int8"


def sparse(path: Path, layers: int, width: int, vocab: int) -> int:
    """An RWKV-7 checkpoint of zeros that takes no room on the disk; returns its size."""
    ranks = LowRankWidths(32, 32, 32, 32)
    shapes = {name: list(tensor.shape) for name, tensor in random_tensors(layers, 64, 2, 64, ranks=ranks).items()}
    scale = {64: width, 256: 4 * width, 2: vocab, 1: 1, 32: 32}
    header, end = {}, 0
    for name, shape in shapes.items():
        large = [width // 64, 64] if name.endswith("r_k") else [scale[size] for size in shape]
        start, end = end, end + 2 * math.prod(large)
        header[name] = {"dtype": "BF16", "shape": large, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path.stat().st_size


@contextmanager
def address_space(more: int) -> Iterator[None]:
    """At most `more` bytes beyond what this process has mapped."""
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize")) * 1024
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited by what Linux's /proc says")
def test_a_file_larger_than_the_memory_is_described_without_mapping_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.safetensors"
    assert sparse(path, 67, 4096, 65536) > 26 * 2**30
    with address_space(512 * MIB), open_checkpoint(path) as checkpoint:
        actual = describe(checkpoint)
        assert (actual.num_layers, actual.width, actual.vocab_size) == (67, 4096, 65536)
        assert checkpoint["blocks.66.att.key.weight"].shape == (4096, 4096)
    monkeypatch.setattr(memory, "free_memory", lambda: 20 * 2**30)
    with pytest.raises(
        CheckpointError, match=r"its weights need 26\.\d GiB of memory, and 20\.0 GiB are free"
    ) as caught:
        load_model(path, "cpu")
    assert 'use --strategy "cpu int8", which needs 1' in str(caught.value.hint)


_CONVERT = """
import sys
from rwkvbatch.cli.app import invoke
def convert(name):
    for ending in (".pth", ".safetensors"):
        assert invoke(["model", "convert", f"{name}.safetensors", f"{name}-out{ending}", "--quiet"]) == 0
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
convert("small")
before = peak()
convert("large")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is what Linux's /proc says")
def test_converting_takes_the_memory_of_one_tensor(tmp_path: Path) -> None:
    sparse(tmp_path / "small.safetensors", 1, 64, 100)
    size = sparse(tmp_path / "large.safetensors", 3, 1024, 2000)
    command = [sys.executable, "-c", _CONVERT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path)
    assert size > 80 * MIB
    assert int(done.stdout) * 1024 < 0.4 * size
    for actual in (load_file(tmp_path / "large-out.safetensors"), torch.load(tmp_path / "large-out.pth", mmap=True)):
        assert actual["blocks.2.ffn.key.weight"].shape == (4096, 1024)


_RUN = """
import sys
from rwkvbatch.cli.app import invoke
script, ending = sys.argv[1:]
def run(name):
    options = ["--limit", "1", "--max-tokens", "2", "--threads", "2", "--quiet", "--vocab", "world"]
    assert invoke(["run", script, "--model", name + ending, "--out", f"{name}.run", *options]) in (0, 1)
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
run("small")
before = peak()
run("large")
print((peak() - before) * 1024, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is what Linux's /proc says")
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_run_takes_the_memory_of_the_weights_and_one_tensor(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("rwkvbatch._native", reason="installed without the native kernels", exc_type=ImportError)
    for name, *sizes in (("small", 1, 64, 300), ("large", 3, 1024, 4000)):
        sparse(tmp_path / f"{name}.safetensors", *sizes)
        if ending == ".pth":
            with open_checkpoint(tmp_path / f"{name}.safetensors") as checkpoint:
                save_entries(tmp_path / f"{name}.pth", checkpoint.rounded(None))
            (tmp_path / f"{name}.safetensors").unlink()
    with open_checkpoint(tmp_path / f"large{ending}") as checkpoint:
        needed = packed_bytes(checkpoint, bytes_of_weights(parse_strategy("cpu")))
    script = tmp_path / "s.jsonl"
    script.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    command = [sys.executable, "-c", _RUN, str(script), ending]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path)
    assert 0.5 * needed < int(done.stderr.split()[-1]) < needed + 24 * MIB
