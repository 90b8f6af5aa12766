"""Checkpoints and states that web-rwkv's converters wrote, `.st` files, under their official names and shapes.

Sources: cryscan/web-rwkv, convert_safetensors.py and crates/web-rwkv-converter; josStorer/RWKV-Runner and
Ai00-X/ai00_server, convert_safetensors.py. They round everything to fp16; rename `time_faaaa` to `time_first` and
`time_maa` to `time_mix`; exchange the last two axes of the low-rank matrices of RWKV-6 (`time_mix_w1`, `time_mix_w2`,
`time_decay_w1`, `time_decay_w2`) and 7 (`w1` to `v2`) and of `time_state`; and repeat RWKV-5.1's one number a head
(`time_decay`, `time_faaaa`) for each channel of the head. Versions differ in what they exchange (one does it twice to
RWKV-6), so that each matrix is taken as its shape says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.tensor_file import Entry, NamedTensors

ENDINGS = (".st", ".state")
"""Of files that are web-rwkv's where nothing in them says so: states, whose matrices are square."""

Entries = dict[str, Entry]

_FIRST = re.compile(r"blocks\.\d+\.att\.(?:[wavg]1|time_mix_w1|time_decay_w1)")
_SECOND = re.compile(r"blocks\.\d+\.att\.(?:[wavg]2|time_mix_w2|time_decay_w2)")
_STATE = re.compile(r"blocks\.\d+\.att\.time_state")
_DECAY = re.compile(r"blocks\.\d+\.att\.time_decay")


def undo(tensors: NamedTensors) -> NamedTensors | None:
    """Official names and shapes, for `.safetensors` and `.st` files in which anything differs from them."""
    if tensors.kind != "safetensors":
        return None
    entries: Entries = dict(tensors.entries)
    undone = [phrase for step in (_turned, _renamed, _one_per_head) for phrase in step(entries, tensors)]
    marked = bool(undone) or tensors.path.suffix in ENDINGS or "pth_SHA" in tensors.metadata
    states = [name for name, entry in entries.items() if _STATE.fullmatch(name) and len(entry.shape) >= 2]
    if marked and states:
        entries |= {name: entries[name].transposed() for name in states}
        undone.append("the transposition of time_state")
    return tensors.changed(entries, *undone, form="web-rwkv") if undone else None


def _turned(entries: Entries, tensors: NamedTensors) -> Iterator[str]:
    """Exchange the axes of low-rank matrices that have the width where the rank belongs."""
    width = next((entry.shape[-1] for name, entry in entries.items() if name == "emb.weight" and entry.shape), None)
    turned: list[str] = []
    plain = 0
    unclear: list[str] = []
    for name, entry in entries.items():
        is_first = _FIRST.fullmatch(name) is not None
        if len(entry.shape) < 2 or not (is_first or _SECOND.fullmatch(name)):
            continue
        rows, columns = entry.shape[-2:]
        outer, rank = (rows, columns) if is_first else (columns, rows)
        if rank == outer == width:
            unclear.append(name)
        elif rank == width:
            turned.append(name)
        else:
            plain += 1
    if unclear and (turned if plain else tensors.path.suffix in ENDINGS and not turned):
        raise CheckpointError(
            f"{unclear[0]!r} is square, so it cannot be told whether web-rwkv's converter exchanged its axes",
            path=tensors.path,
            hint="give the .pth that it was made of",
        )
    if turned:
        entries |= {name: entries[name].transposed() for name in (*turned, *unclear)}
        yield "the low-rank matrices' transposition"


def _renamed(entries: Entries, tensors: NamedTensors) -> Iterator[str]:
    """Give RWKV-5 and 6 their names back; RWKV-4 and 5.0 have the new names themselves."""
    is_6 = any(name.endswith((".att.time_mix_w1", ".att.time_decay_w1")) for name in entries)
    changes: dict[str, str] = {}
    for name, entry in entries.items():
        if name.endswith(".att.time_first") and (is_6 or (len(entry.shape) == 2 and 1 not in entry.shape)):
            changes[name] = name.replace("time_first", "time_faaaa")
        elif is_6 and ".time_mix_" in name:
            changes[name] = name.replace("time_mix_", "time_maa_")
    if not changes:
        _refuse_unclear_first(entries, tensors)
        return
    renamed = {changes.get(name, name): entry for name, entry in entries.items()}
    if len(renamed) != len(entries):
        raise CheckpointError("it has tensors under old and new names (time_faaaa, time_maa)", path=tensors.path)
    entries.clear()
    entries |= renamed
    yield f"the names {'time_mix, ' if is_6 else ''}time_first"


def _refuse_unclear_first(entries: Entries, tensors: NamedTensors) -> None:
    """RWKV-5.0 exists with `time_first`, which is a logarithm, and with `time_faaaa`, which is not."""
    has_first = any(name.endswith(".att.time_first") for name in entries)
    is_5 = any(".att.ln_x." in name for name in entries)
    has_gate = any(name.endswith(".att.gate.weight") for name in entries)
    if tensors.path.suffix in ENDINGS and has_first and is_5 and not has_gate:
        raise CheckpointError(
            "an RWKV-5.0 checkpoint of web-rwkv, whose time_first cannot be told from time_faaaa",
            path=tensors.path,
            hint="give the .pth that it was made of",
        )


def _one_per_head(entries: Entries, tensors: NamedTensors) -> Iterator[str]:
    """RWKV-5.1's numbers of heads, where each channel of a head has the same one in all layers."""
    decays = {name: entry for name, entry in entries.items() if _DECAY.fullmatch(name)}
    has_gate = any(name.endswith(".att.gate.weight") for name in entries)
    if not decays or not has_gate or any(len(entry.shape) != 2 or entry.shape[1] < 2 for entry in decays.values()):
        return
    if any(bool((values != values[:, :1]).any()) for values in (entry.load() for entry in decays.values())):
        return
    for name in decays:
        first = name.replace("time_decay", "time_faaaa")
        for each in (name, first):
            if each in entries and len(entries[each].shape) == 2:
                entries[each] = entries[each].column(0)
    yield "RWKV-5.1's numbers of a head, repeated for each channel"
