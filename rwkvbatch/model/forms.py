"""The forms in which people hold checkpoints: `official` undoes each, so that the tensors have the official names.

A form is one entry of `FORMS`, tried in order, each on what those before it left. Its function takes the tensors and
returns None when they are not of this form; else `tensors.changed(entries, phrase, ..., form=name)` with the entries
under their official names, made by `Entry.transposed`, `Entry.part` or an `Entry` of your own (nothing is read before
the entry's `load` is called), and a phrase for each thing that was undone, which `model info` prints. It raises
`CheckpointError` for files that are recognised but cannot be right. A kind of file (how bytes hold tensors) is an entry
of `containers.KINDS` instead. A new form also needs a row in `docs/models.md`, a test that its logits are those of the
`.pth`, hostile files in `tests/model/hostile/`, and a seed for `tools/fuzz/fuzz_checkpoint.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.strategy import PRECISIONS
from rwkvbatch.model.tensor_file import Entry, NamedTensors

Entries = dict[str, Entry]


@dataclass(frozen=True)
class Form:
    """What people do to a checkpoint's names and shapes, and how it is undone; see the module's docstring."""

    name: str
    undo: Callable[[NamedTensors], NamedTensors | None]


def official(tensors: NamedTensors) -> NamedTensors:
    """The tensors under the official names of their generation, whatever form they are in.

    Raises:
        CheckpointError: they are of a known form, but of one that this program cannot compute.
    """
    for form in FORMS:
        tensors = form.undo(tensors) or tensors
    return tensors


# Prefixes: https://github.com/Lightning-AI/pytorch-lightning adds `_forward_module.` (Fabric), torch's DistributedData-
# Parallel `module.`, torch.compile `_orig_mod.`, transformers the base model's name (`model.`, `rwkv.`).

_ANCHOR = re.compile(
    r"(.*?)(?:blocks\.\d+\.(?:att|ffn|ln[012]|attention|feed_forward)|(?:model\.)?layers\.\d+\.attn)\."
)
_ROOTS = {"blocks", "emb", "ln_out", "head", "layers", "embeddings", "norm", "lm_head"}


def _without_prefix(tensors: NamedTensors) -> NamedTensors | None:
    """Remove what all names begin with, then what those of all layers begin with, as the head's name may not."""
    anchored = {match[1] for name in tensors.entries if (match := _ANCHOR.match(name))}
    if anchored <= {""}:
        return None
    if len(anchored) > 1:
        shown = " and ".join(repr(prefix[:60]) for prefix in sorted(anchored)[:3])
        raise CheckpointError(
            f"it holds more than one network: there are layers under {shown}",
            path=tensors.path,
            hint="save the tensors of one of them alone",
        )
    common = _common_prefix([*tensors.entries])
    (own,) = anchored
    undone: list[str] = []
    entries: Entries = dict(tensors.entries)
    for prefix in filter(None, (common, own.removeprefix(common))):
        changed = {name.removeprefix(prefix): entry for name, entry in entries.items()}
        if len(changed) != len(entries):
            raise CheckpointError(f"some tensors are there with and without the prefix {prefix!r}", path=tensors.path)
        count = sum(name.startswith(prefix) for name in entries)
        undone.append(f"the prefix {prefix!r} of {'all' if count == len(entries) else count} names")
        entries = changed
    return tensors.changed(entries, *undone) if undone else None


def _common_prefix(names: list[str]) -> str:
    """The components that all names begin with, before the first that the networks' own names begin with."""
    parts: list[str] = []
    for components in zip(*(name.split(".") for name in names), strict=False):
        if len(set(components)) > 1 or components[0] in _ROOTS:
            break
        parts.append(components[0] + ".")
    return "".join(parts)


# fla: github.com/fla-org/flash-linear-attention, utils/convert_from_rwkv7.py (names and transposes),
# fla/layers/rwkv7.py and fla/models/rwkv7 (shapes, eps, the older `x_x`).

_FLA = re.compile(r"(?:model\.)?layers\.(\d{1,6})\.(.+)")
_FLA_WHOLE = {
    "embeddings.weight": "emb.weight",
    "norm.weight": "ln_out.weight",
    "norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
_FLA_PARTS = {
    "pre_norm": "ln0",
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "attn.g_norm": "att.ln_x",
    "attn.r_proj": "att.receptance",
    "attn.k_proj": "att.key",
    "attn.v_proj": "att.value",
    "attn.o_proj": "att.output",
}
_FLA_LORA = re.compile(r"attn\.([wavg])_lora\.lora\.(0\.weight|2\.weight|2\.bias)")
_FLA_LORA_NUMBER = {"2.bias": "0", "0.weight": "1", "2.weight": "2"}
_FUSED_ORDER = "rwkvag"


def _from_fla(tensors: NamedTensors) -> NamedTensors | None:
    """Official names; the low-rank matrices transposed; the older `x_x` taken apart; a tied head repeated."""
    if not any(
        re.fullmatch(r"(?:model\.)?layers\.\d+\.attn\.(?:r_k|[wa]_lora\.lora\.0\.weight)", n) for n in tensors.entries
    ):
        return None
    _check_config(
        tensors, norm_eps=1e-5, hidden_act="sqrelu", norm_first=True, norm_bias=True, attn=None, rescale_every=0
    )
    entries: Entries = {}
    phrases = ["names of flash-linear-attention", "the low-rank matrices' transposition"]
    for name, entry in tensors.entries.items():
        match = _FLA.fullmatch(name)
        if match is None:
            entries[_FLA_WHOLE.get(name.removeprefix("model."), name)] = entry
            continue
        block, rest = f"blocks.{match[1]}", match[2]
        stem, _, ending = rest.rpartition(".")
        if lora := _FLA_LORA.fullmatch(rest):
            number = _FLA_LORA_NUMBER[lora[2]]
            is_matrix = number != "0" and len(entry.shape) == 2
            entries[f"{block}.att.{lora[1]}{number}"] = entry.transposed() if is_matrix else entry
        elif rest == "attn.x_x" and entry.shape[:1] == (len(_FUSED_ORDER),):
            for index, letter in enumerate(_FUSED_ORDER):
                entries[f"{block}.att.x_{letter}"] = entry.part(index)
            phrases.append("the six mixing vectors stored as one (x_x)")
        elif stem in _FLA_PARTS:
            entries[f"{block}.{_FLA_PARTS[stem]}.{ending}"] = entry
        else:
            entries[f"{block}.{re.sub('^attn[.]', 'att.', rest)}"] = entry
    return _tied(tensors.changed(entries, *dict.fromkeys(phrases), form="flash-linear-attention"))


# transformers: github.com/huggingface/transformers, src/transformers/models/rwkv/convert_rwkv_checkpoint_to_hf.py.

_TRANSFORMERS = {
    "embeddings.": "emb.",
    ".pre_ln.": ".ln0.",
    ".attention.": ".att.",
    ".feed_forward.": ".ffn.",
    ".time_mix_key": ".time_mix_k",
    ".time_mix_value": ".time_mix_v",
    ".time_mix_receptance": ".time_mix_r",
    ".time_mix_gate": ".time_mix_g",
}


def _from_transformers(tensors: NamedTensors) -> NamedTensors | None:
    """Official names for those of transformers' RWKV-4, and of the code that Hugging Face's RWKV-5 and 6 bring."""
    if not any(re.match(r"blocks\.\d+\.(?:attention|feed_forward)\.", name) for name in tensors.entries):
        return None
    _check_config(tensors, layer_norm_epsilon=1e-5)
    entries: Entries = {}
    for name, entry in tensors.entries.items():
        changed = name
        for theirs, official_part in _TRANSFORMERS.items():
            changed = changed.replace(theirs, official_part)
        entries[changed] = entry
    return _tied(tensors.changed(entries, "names of transformers", form="transformers"))


def _with_head(tensors: NamedTensors) -> NamedTensors | None:
    """`lm_head.weight`, as transformers calls the head, beside official names."""
    if "lm_head.weight" not in tensors.entries or "head.weight" in tensors.entries:
        return None
    if "emb.weight" not in tensors.entries:
        return None
    entries = {"head.weight" if name == "lm_head.weight" else name: e for name, e in tensors.entries.items()}
    return tensors.changed(entries, "the head's name 'lm_head.weight'")


def _tied(tensors: NamedTensors) -> NamedTensors:
    """With the embedding as the head, when there is none and the configuration says that they are the same."""
    if "head.weight" in tensors.entries or tensors.config.get("tie_word_embeddings") is not True:
        return tensors
    if "emb.weight" not in tensors.entries:
        return tensors
    head = {"head.weight": tensors.entries["emb.weight"]}
    return tensors.changed({**tensors.entries, **head}, "the head, which is the embedding (tie_word_embeddings)")


def _check_config(tensors: NamedTensors, **computed: Any) -> None:
    """Refuse a configuration that asks for another computation than this program's, which `computed` says."""
    for key, expected in computed.items():
        found = tensors.config.get(key, expected)
        if found != expected and not (expected is None and not found):
            raise CheckpointError(
                f"its config.json has {key} = {str(found)[:80]!r}; this program computes {expected!r} only",
                path=tensors.path,
            )


def _without_unused(tensors: NamedTensors) -> NamedTensors | None:
    """Leave out `v0`, `v1`, `v2` of layer 0, which nothing reads, where they are empty or do not fit."""
    att = "blocks.0.att."
    names = [f"{att}v{number}" for number in range(3)]
    width = next((entry.shape[-1:] for name, entry in tensors.entries.items() if name == "emb.weight"), ())
    if f"{att}r_k" not in tensors.entries or not width:
        return None
    v0, v1, v2 = (tensors.entries.get(name) for name in names)
    sound = {
        names[0]: v0 is not None and tuple(size for size in v0.shape if size != 1) == width,
        names[1]: v1 is not None and v2 is not None and v1.shape == (*width, *v2.shape[:1]),
        names[2]: v1 is not None and v2 is not None and v2.shape == (*v1.shape[1:], *width),
    }
    unsound = [
        name
        for name, is_sound in sound.items()
        if (entry := tensors.entries.get(name)) and not (is_sound and entry.num_elements and entry.dtype in PRECISIONS)
    ]
    if not unsound:
        return None
    entries = {name: entry for name, entry in tensors.entries.items() if name not in unsound}
    return tensors.changed(entries, f"{', '.join(unsound)}, which nothing reads and which do not fit, left out")


FORMS = (
    Form("prefix", _without_prefix),
    Form("flash-linear-attention", _from_fla),
    Form("transformers", _from_transformers),
    Form("head", _with_head),
    Form("unused tensors", _without_unused),
)
