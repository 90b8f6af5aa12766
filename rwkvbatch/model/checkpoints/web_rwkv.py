"""Converts checkpoints and states of web-rwkv (`.st` files) to the official names and shapes.

Sources: cryscan/web-rwkv, convert_safetensors.py and crates/web-rwkv-converter; josStorer/RWKV-Runner and
Ai00-X/ai00_server, convert_safetensors.py. These converters
- round everything to fp16;
- rename `time_faaaa` to `time_first` and `time_maa` to `time_mix`;
- transpose the low-rank matrices of RWKV-6 (`time_mix_w1`, `time_mix_w2`, `time_decay_w1`, `time_decay_w2`) and of
  RWKV-7 (`w1` to `v2`), and `time_state`;
- repeat RWKV-5.1's one number per head (`time_decay`, `time_faaaa`) for each channel of the head.
Versions differ in what they transpose (one transposes RWKV-6's matrices twice), so each matrix is recognised by its
shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.weights.named_tensors import Entry, NamedTensors

ENDINGS = (".st", ".state")
"""Endings of web-rwkv's files. States are recognised by them, since their matrices are square."""

Entries = dict[str, Entry]

_FIRST = re.compile(r"blocks\.\d+\.att\.(?:[wavg]1|time_mix_w1|time_decay_w1)")
_SECOND = re.compile(r"blocks\.\d+\.att\.(?:[wavg]2|time_mix_w2|time_decay_w2)")
_STATE = re.compile(r"blocks\.\d+\.att\.time_state")
_DECAY = re.compile(r"blocks\.\d+\.att\.time_decay")


def undo(tensors: NamedTensors) -> NamedTensors | None:
    """Convert web-rwkv's names and shapes to the official ones; None if nothing differs from them."""
    if tensors.kind != "safetensors":
        return None
    entries: Entries = dict(tensors.entries)
    undone = [phrase for step in (_transposed, _renamed, _one_per_head) for phrase in step(entries, tensors)]
    is_web_rwkv = bool(undone) or tensors.path.suffix in ENDINGS or "pth_SHA" in tensors.metadata
    states = [name for name, entry in entries.items() if _STATE.fullmatch(name) and len(entry.shape) >= 2]
    if is_web_rwkv and states:
        entries |= {name: entries[name].transposed() for name in states}
        undone.append("the transposition of time_state")
    return tensors.changed(entries, *undone, form="web-rwkv") if undone else None


def _transposed(entries: Entries, tensors: NamedTensors) -> Iterator[str]:
    """Transpose low-rank matrices whose width is on the axis of the rank."""
    width = next((entry.shape[-1] for name, entry in entries.items() if name == "emb.weight" and entry.shape), None)
    transposed: list[str] = []
    num_official = 0
    ambiguous: list[str] = []
    for name, entry in entries.items():
        is_first = _FIRST.fullmatch(name) is not None
        if len(entry.shape) < 2 or not (is_first or _SECOND.fullmatch(name)):
            continue
        rows, columns = entry.shape[-2:]
        outer, rank = (rows, columns) if is_first else (columns, rows)
        if rank == outer == width:
            ambiguous.append(name)
        elif rank == width:
            transposed.append(name)
        else:
            num_official += 1
    if ambiguous and (transposed if num_official else tensors.path.suffix in ENDINGS and not transposed):
        raise CheckpointError(
            f"{ambiguous[0]!r} is square, so it is unknown whether web-rwkv's converter transposed it",
            path=tensors.path,
            hint="give the .pth that it was made from",
        )
    if transposed:
        entries |= {name: entries[name].transposed() for name in (*transposed, *ambiguous)}
        yield "the low-rank matrices' transposition"


def _renamed(entries: Entries, tensors: NamedTensors) -> Iterator[str]:
    """Restore the official names of RWKV-5 and 6. In RWKV-4 and 5.0 the new names are the official ones."""
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
    """Raise `CheckpointError` for RWKV-5.0.

    Its official files have either `time_first`, which is a logarithm, or `time_faaaa`, which is not.
    """
    has_first = any(name.endswith(".att.time_first") for name in entries)
    is_5 = any(".att.ln_x." in name for name in entries)
    has_gate = any(name.endswith(".att.gate.weight") for name in entries)
    if tensors.path.suffix in ENDINGS and has_first and is_5 and not has_gate:
        raise CheckpointError(
            "an RWKV-5.0 checkpoint of web-rwkv, which does not show whether time_first was time_faaaa",
            path=tensors.path,
            hint="give the .pth that it was made from",
        )


def _one_per_head(entries: Entries, tensors: NamedTensors) -> Iterator[str]:
    """Restore RWKV-5.1's one number per head, if all channels of a head have the same number in all layers."""
    decays = {name: entry for name, entry in entries.items() if _DECAY.fullmatch(name)}
    has_gate = any(name.endswith(".att.gate.weight") for name in entries)
    if not decays or not has_gate or any(len(entry.shape) != 2 or entry.shape[1] < 2 for entry in decays.values()):
        return
    if any(bool((values != values[:, :1]).any()) for values in (entry.load() for entry in decays.values())):
        return
    for name in decays:
        first = name.replace("time_decay", "time_faaaa")
        for repeated in (name, first):
            if repeated in entries and len(entries[repeated].shape) == 2:
                entries[repeated] = entries[repeated].column(0)
    yield "RWKV-5.1's numbers of a head, repeated for each channel"
