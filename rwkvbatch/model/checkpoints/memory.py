"""Free memory of this process, and the check that a model's weights fit into it, before they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.ops import Rounding, matrix_rounding
from rwkvbatch.model.ops.reference import ROUNDINGS
from rwkvbatch.model.strategy import Precision, Strategy
from rwkvbatch.model.weights.quantised import matrix_kind

if TYPE_CHECKING:
    from rwkvbatch.model.checkpoints.checkpoint import Checkpoint


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still allocate: the least of the machine's and of its cgroups'; None if unknown.

    The page cache counts as free, since the system frees it on demand. Sources: Linux's proc(5)
    (`MemAvailable`), admin-guide/cgroup-v2.rst (`memory.max`, `memory.current`) and cgroup-v1/memory.rst.
    """
    limits = [*_free_on_machine(root), *_free_in_cgroups(root)]
    return max(0, min(limits)) if limits else None


def _free_on_machine(root: Path) -> Iterator[int]:
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    if match is not None:
        yield 1024 * int(match[1])


_CGROUPS = (
    # Controller, file of the limit, file of the usage, and the line of memory.stat with the bytes that can be freed.
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _free_in_cgroups(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, cgroup = [*line.split(":", 2), "", ""][:3]
        for controller, limit_name, usage_name, freeable_name in _CGROUPS:
            if controller not in controllers.split(","):
                continue
            base = root / "sys/fs/cgroup" / controller
            # In a container the path may be the host's, and only the root folder exists.
            own_folder = base / cgroup.lstrip("/")
            for folder in {own_folder, *own_folder.parents, base}:
                if folder != base and base not in folder.parents:
                    continue
                limit, usage = _number(folder / limit_name), _number(folder / usage_name)
                if limit is not None and usage is not None:
                    freeable = re.search(rf"^{freeable_name} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                    yield limit - usage + (0 if freeable is None else int(freeable[1]))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None  # "max" means no limit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def packed_bytes(checkpoint: Checkpoint, bytes_of: Callable[[str, torch.dtype], float]) -> int:
    """Bytes of the packed weights, plus those of the file's largest tensor, which is in memory while it is packed."""
    entries = checkpoint.file.entries
    weights = sum(entry.num_elements * bytes_of(name, entry.dtype) for name, entry in entries.items())
    return round(weights + max(entry.num_bytes for entry in entries.values()))


def bytes_of_weights(strategy: Strategy, *, in_fp32: bool = False) -> Callable[[str, torch.dtype], float]:
    """A function of a tensor's name and dtype that returns the bytes per weight in memory.

    Args:
        in_fp32: whether the backend keeps all weights in fp32, regardless of the strategy.
    """

    def bytes_of(name: str, stored: torch.dtype) -> float:
        if in_fp32:
            return 4
        rounding = matrix_rounding(strategy.rounding, matrix_kind(name))
        if rounding is not None:
            return ROUNDINGS[rounding].bytes_per_weight
        return min(stored.itemsize, (strategy.dtype or stored).itemsize)

    return bytes_of


def refuse_too_large(checkpoint: Checkpoint, strategy: Strategy, device: str, *, in_fp32: bool = False) -> None:
    """Raise `CheckpointError` when the weights will not fit into the memory of `device`.

    Args:
        in_fp32: whether the backend keeps all weights in fp32.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else free_memory()
    needed = packed_bytes(checkpoint, bytes_of_weights(strategy, in_fp32=in_fp32))
    if free is None or needed <= free:
        return
    raise CheckpointError(
        f"its weights need {_gib(needed)} of memory, and {_gib(free)} are free",
        path=checkpoint.file.path,
        hint=_smaller_hint(checkpoint, device, needed, free),
    )


def _smaller_hint(checkpoint: Checkpoint, device: str, needed: int, free: int) -> str:
    """A hint: the largest strategy that fits, else the memory that the smallest one needs."""
    precisions: list[Precision | Rounding] = ["bf16", "int8", "int4"] if device == "cpu" else ["bf16"]
    sizes = {
        f"{device} {precision}": packed_bytes(checkpoint, bytes_of_weights(Strategy(device, precision)))
        for precision in precisions
    }
    smaller = {name: size for name, size in sizes.items() if size < needed}
    fitting = next((name for name, size in smaller.items() if size <= free), None)
    if fitting is not None:
        return f'use --strategy "{fitting}", which needs {_gib(sizes[fitting])}'
    if smaller:
        name, size = min(smaller.items(), key=lambda item: item[1])
        return f'even --strategy "{name}" needs {_gib(size)}; free memory, or use another machine'
    return "free memory, or use another machine"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"
