"""The forms of checkpoints (names and shapes of other programs). `official` converts them to the official names.

A form is an entry of `FORMS`. They are tried in order, each on the result of those before it. Its function takes the
tensors and returns None if they are not of this form, else `tensors.changed(entries, phrase, ..., form=name)`: the
entries under their official names, made by `Entry.transposed`, `Entry.select` or a new `Entry` (nothing is read until
the entry's `load` is called), and a phrase for each conversion, which `model info` prints. It raises `CheckpointError`
for files that have this form but an impossible content.

A file format (how bytes hold tensors) is an entry of `containers.KINDS` instead. A new form also needs a row in
`docs/models.md`, a test that its logits equal those of the `.pth`, hostile files in `tests/model/hostile/`, and a seed
for `tools/fuzz/fuzz_checkpoint.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rwkvbatch.errors import CheckpointError, counted
from rwkvbatch.model.checkpoints import web_rwkv
from rwkvbatch.model.strategy import PRECISIONS
from rwkvbatch.model.weights import gguf
from rwkvbatch.model.weights.containers import CONFIG
from rwkvbatch.model.weights.named_tensors import Entry, NamedTensors

Entries = dict[str, Entry]

FLA = "flash-linear-attention"


@dataclass(frozen=True)
class Form:
    """A change of a checkpoint's names and shapes, and the function that undoes it; see the module's docstring."""

    name: str
    undo: Callable[[NamedTensors], NamedTensors | None]


def official(tensors: NamedTensors) -> NamedTensors:
    """The tensors under the official names of their generation.

    Raises:
        CheckpointError: the tensors have a known form, but an impossible or unsupported content.
    """
    _check_config(tensors)
    for form in FORMS:
        tensors = form.undo(tensors) or tensors
    _check_layers(tensors)
    return tensors


# Prefixes: https://github.com/Lightning-AI/pytorch-lightning adds `_forward_module.` (Fabric), torch's DistributedData-
# Parallel `module.`, torch.compile `_orig_mod.`, transformers the base model's name (`model.`, `rwkv.`).

_ANCHOR = re.compile(
    r"(.*?)(?:blocks\.\d+\.(?:att|ffn|ln[012]|attention|feed_forward)"
    r"|(?:model\.)?layers\.\d+\.(?:(?:linear_)?attn|(?:ffn|mlp)\.\w+\.lora_[AB]))\."
)
_ROOTS = {"blocks", "emb", "ln_out", "head", "layers", "embeddings", "embed_tokens", "norm", "lm_head"}


def _without_prefix(tensors: NamedTensors) -> NamedTensors | None:
    """Remove the prefix of all names, then that of the layers' names, which the head's name may lack."""
    layer_prefixes = {match[1] for name in tensors.entries if (match := _ANCHOR.match(name))}
    if layer_prefixes <= {""}:
        return None
    if len(layer_prefixes) > 1:
        shown = " and ".join(repr(prefix[:60]) for prefix in sorted(layer_prefixes)[:3])
        raise CheckpointError(
            f"it contains more than one network: there are layers under {shown}",
            path=tensors.path,
            hint="save the tensors of one of them alone",
        )
    common = _common_prefix([*tensors.entries])
    (layer_prefix,) = layer_prefixes
    undone: list[str] = []
    entries: Entries = dict(tensors.entries)
    for prefix in filter(None, (common, layer_prefix.removeprefix(common))):
        changed = {name.removeprefix(prefix): entry for name, entry in entries.items()}
        if len(changed) != len(entries):
            raise CheckpointError(f"some tensors exist with and without the prefix {prefix!r}", path=tensors.path)
        count = sum(name.startswith(prefix) for name in entries)
        undone.append(f"the prefix {prefix!r} of {'all' if count == len(entries) else count} names")
        entries = changed
    return tensors.changed(entries, *undone) if undone else None


def _common_prefix(names: list[str]) -> str:
    """The leading components that all names share, up to the first one of an official or another program's name."""
    shared: list[str] = []
    for components in zip(*(name.split(".") for name in names), strict=False):
        if len(set(components)) > 1 or components[0] in _ROOTS:
            break
        shared.append(components[0] + ".")
    return "".join(shared)


# Other programs' names. Sources (all on github.com):
#   fla-org/flash-linear-attention, utils/convert_from_rwkv7.py, fla/layers/rwkv7.py, fla/models/rwkv7 (the older `x_x`)
#   huggingface/transformers, src/transformers/models/rwkv/convert_rwkv_checkpoint_to_hf.py (RWKV-4; the code in
#     Hugging Face repositories of RWKV-5 and 6 uses the same names)
#   rwkv-rs/vllm-rwkv, vllm/transformers_utils/configs/rwkv7.py (`model.embeddings`, low-rank matrices as linear layers)
#   rwkv-rs's transformers, convert_rwkv7_checkpoint_to_hf.py of 2026 (`linear_attn`), as in the release rwkv7-g1-st


@dataclass(frozen=True)
class _Naming:
    """A program's names of the tensors of RWKV.

    Attributes:
        name: the program.
        mark: matches the name of a tensor that only this program uses.
        names: official names by the program's names, both without `blocks.N.`; the longest match applies.
    """

    name: str
    mark: re.Pattern[str]
    names: Mapping[str, str]


_PROJECTIONS = {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output", "g_norm": "ln_x"}
_NAMINGS = (
    _Naming(
        FLA,
        re.compile(
            r"layers\.\d+\.(?:attn\.(?:r_k|[wa]_lora\.lora\.0\.weight)"
            r"|(?:attn\.(?:[rkvo]_proj|[wavg]_lora\.lora\.[02])|ffn\.(?:key|value))\.lora_[AB](?:\.default)?\.weight)"
        ),
        {
            "pre_norm": "ln0",
            "attn_norm": "ln1",
            "ffn_norm": "ln2",
            "attn": "att",
            **{f"attn.{other}": f"att.{official_name}" for other, official_name in _PROJECTIONS.items()},
        },
    ),
    _Naming(
        "transformers (RWKV-7)",
        re.compile(
            r"layers\.\d+\.(?:linear_attn\.(?:r_k|w0|k_k)"
            r"|(?:linear_attn\.[rkvo]_proj|mlp\.(?:up|down)_proj)\.lora_[AB](?:\.default)?\.weight)"
        ),
        {
            "input_layernorm": "ln1",
            "post_attention_layernorm": "ln2",
            "linear_attn": "att",
            **{f"linear_attn.{other}": f"att.{official_name}" for other, official_name in _PROJECTIONS.items()},
            "mlp": "ffn",
            "mlp.up_proj": "ffn.key",
            "mlp.down_proj": "ffn.value",
        },
    ),
    _Naming(
        "transformers (RWKV-4 to 6)",
        re.compile(r"blocks\.\d+\.(?:attention|feed_forward)\..+"),
        {
            "pre_ln": "ln0",
            "attention": "att",
            "feed_forward": "ffn",
            **{
                f"{other}.time_mix_{word}": f"{official_name}.time_mix_{word[0]}"
                for other, official_name in (("attention", "att"), ("feed_forward", "ffn"))
                for word in ("key", "value", "receptance", "gate")
            },
        },
    ),
    _Naming("vllm-rwkv", re.compile(r"blocks\.\d+\.att\.[wavg][12]\.weight"), {}),
)

_MODEL_NAMES = {
    "embeddings": "emb",
    "embed_tokens": "emb",
    "embedding_norm": "blocks.0.ln0",
    "norm": "ln_out",
    "lm_head": "head",
}
_IN_LAYER = re.compile(r"(?:layers|blocks)\.(\d{1,6})\.(.+)")
_LORA = re.compile(r"att\.([wavg])_lora\.lora\.(0\.weight|2\.weight|2\.bias)")
_LORA_NUMBER = {"2.bias": "0", "0.weight": "1", "2.weight": "2"}
# PEFT's `target_modules="all-linear"` adapts the low-rank matrices too. Transposing B A exchanges its two factors.
_LORA_PART = re.compile(r"att\.([wavg])_lora\.lora\.([02])\.lora_([AB])(?:\.default)?\.weight")
_EXCHANGED = {"A": "B", "B": "A"}
_AS_LINEAR_LAYER = re.compile(r"att\.([wavg])([12])\.weight")
_FUSED_ORDER = "rwkvag"


def _renamed(tensors: NamedTensors) -> NamedTensors | None:
    """Convert another program's names, and transpose its low-rank matrices, to the official form."""
    short = {name.removeprefix("model."): entry for name, entry in tensors.entries.items()}
    naming = next((naming for naming in _NAMINGS if any(map(naming.mark.fullmatch, short))), None)
    if naming is None or len(short) != len(tensors.entries):
        return None
    entries: Entries = {}
    phrases = dict.fromkeys([f"the names of {naming.name}"])
    for name, entry in short.items():
        match = _IN_LAYER.fullmatch(name)
        if match is None:
            first, _, ending = name.partition(".")
            entries[f"{_MODEL_NAMES.get(first, first)}.{ending}" if ending else name] = entry
            continue
        block, inner = f"blocks.{match[1]}", _translated(match[2], naming.names)
        is_matrix = len(entry.shape) == 2
        if (lora := _LORA.fullmatch(inner)) and (number := _LORA_NUMBER[lora[2]]):
            transpose = number != "0" and is_matrix
            entries[f"{block}.att.{lora[1]}{number}"] = entry.transposed() if transpose else entry
        elif part := _LORA_PART.fullmatch(inner):
            transpose = is_matrix
            target = f"{block}.att.{part[1]}{_LORA_NUMBER[part[2] + '.weight']}"
            entries[f"{target}.lora_{_EXCHANGED[part[3]]}"] = entry.transposed() if transpose else entry
        elif linear := _AS_LINEAR_LAYER.fullmatch(inner):
            transpose = is_matrix
            entries[f"{block}.att.{linear[1]}{linear[2]}"] = entry.transposed() if transpose else entry
        elif inner == "att.x_x" and entry.shape[:1] == (len(_FUSED_ORDER),):
            transpose = False
            phrases["the six mixing vectors stored as one (x_x)"] = None
            entries |= {f"{block}.att.x_{letter}": entry.select(row) for row, letter in enumerate(_FUSED_ORDER)}
        else:
            transpose = False
            entries[f"{block}.{inner}"] = entry
        if transpose:
            phrases["the transposition of the low-rank matrices"] = None
    named = tensors.changed(entries, *phrases, form=naming.name)
    return _with_official_norm(named) if naming.name == FLA else named


OFFICIAL_HEAD_SIZE = 64
_SCALED = re.compile(r"blocks\.\d+\.att\.(value\.weight|r_k)")


def _with_official_norm(tensors: NamedTensors) -> NamedTensors:
    """Rescale flash-linear-attention's weights for the official norm, if heads have a size N other than 64.

    Its norm of a head adds N * 1e-5 to the variance (`eps=self.head_dim*norm_eps` in `fla/layers/rwkv7.py`; bc3b101d,
    2026-08-22); the official norm adds 64e-5 for every N. Multiplying the values, and so the states and outputs of
    heads, by c = sqrt(64 / N) makes both norms equal. The values' only other use is the bonus, whose factor `r_k` is
    divided by c. Both become fp32, so that the relative rounding error of the products is at most 2^-24.

    Raises:
        CheckpointError: the configuration has another head size than the tensors.
    """
    r_k = tensors.entries.get("blocks.0.att.r_k")
    if r_k is None or len(r_k.shape) != 2 or 0 in r_k.shape:
        return tensors
    size = r_k.shape[1]
    config_size = tensors.config.get("head_dim")
    if config_size is not None and config_size != size:
        raise CheckpointError(
            f"its {CONFIG} has head_dim = {_shown(config_size)}, and its heads have size {size}", path=tensors.path
        )
    if size == OFFICIAL_HEAD_SIZE:
        return tensors
    factor = math.sqrt(OFFICIAL_HEAD_SIZE / size)
    entries = dict(tensors.entries)
    for name, entry in entries.items():
        if (match := _SCALED.fullmatch(name)) and entry.dtype in PRECISIONS:
            entries[name] = _times(entry, factor if match[1] == "value.weight" else 1 / factor)
    phrase = f"the norm of heads of {size}, which adds {size}e-5: value.weight and r_k scaled so that 64e-5 is the same"
    return replace(tensors.changed(entries, phrase), is_rescaled=True)


def _times(entry: Entry, factor: float) -> Entry:
    return Entry(torch.float32, entry.shape, lambda: entry.load().float() * factor)


def _translated(name: str, names: Mapping[str, str]) -> str:
    """`name`, with its longest leading part that is a key of `names` replaced."""
    components = name.split(".")
    for end in range(len(components), 0, -1):
        if (official_name := names.get(".".join(components[:end]))) is not None:
            return ".".join([official_name, *components[end:]])
    return name


def _plain_head(tensors: NamedTensors) -> NamedTensors | None:
    """Convert transformers' names of the embedding and the head, which occur with any naming of the layers."""
    names = {"embeddings.weight": "emb.weight", "lm_head.weight": "head.weight"}
    renames = {
        name: official_name
        for name, official_name in names.items()
        if name in tensors.entries and official_name not in tensors.entries
    }
    if not renames or not any(name.startswith("blocks.") for name in tensors.entries):
        return None
    entries = {renames.get(name, name): entry for name, entry in tensors.entries.items()}
    return tensors.changed(entries, *(f"the name {name!r}" for name in renames))


def _tied_head(tensors: NamedTensors) -> NamedTensors | None:
    """Add the embedding as the head, if there is none and the configuration says that they are tied."""
    if "head.weight" in tensors.entries or tensors.config.get("tie_word_embeddings") is not True:
        return None
    if "emb.weight" not in tensors.entries:
        return None
    head = {"head.weight": tensors.entries["emb.weight"]}
    return tensors.changed({**tensors.entries, **head}, "the head, which is the embedding (tie_word_embeddings)")


_COMPUTED: Mapping[str, Any] = {
    "norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "group_norm_epsilon": 64e-5,
    "norm_first": True,
    "norm_bias": True,
    "hidden_act": "sqrelu",
    "attn": None,
    "embedding_layer_norm_fused": False,
    "quantization_config": None,
}
"""Keys of a `config.json` of RWKV that change the computation, each with the only supported value."""


def _check_config(tensors: NamedTensors) -> None:
    """Raise `CheckpointError` for an RWKV configuration that needs an unsupported computation."""
    if not str(tensors.config.get("model_type", "rwkv")).startswith("rwkv"):
        return  # not RWKV: refused later, by its tensor names
    for key, computed in _COMPUTED.items():
        value = tensors.config.get(key, computed)
        if value != computed and not (computed is None and not value):
            reason = f"only {computed!r} is computed" if computed is not None else "which is not supported"
            raise CheckpointError(f"its {CONFIG} has {key} = {_shown(value)}; {reason}", path=tensors.path)


_LAYER = re.compile(r"blocks\.(\d{1,6})\.")


def _check_layers(tensors: NamedTensors) -> None:
    """Refuse fewer or more layers than the configuration has: layers were lost, or do not belong to the network."""
    configured = tensors.config.get("num_hidden_layers")
    layers = {match[1] for name in tensors.entries if (match := _LAYER.match(name))}
    if isinstance(configured, int) and layers and "emb.weight" in tensors.entries and configured != len(layers):
        raise CheckpointError(
            f"its {CONFIG} has num_hidden_layers = {configured}, and its tensors have {counted(len(layers), 'layer')}",
            path=tensors.path,
            hint="weights and configuration belong to different models, or layers were lost",
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _without_unused(tensors: NamedTensors) -> NamedTensors | None:
    """Leave out the unused `v0`, `v1`, `v2` of layer 0, if they are empty or have a wrong shape."""
    att = "blocks.0.att."
    names = [f"{att}v{number}" for number in range(3)]
    width = next((entry.shape[-1:] for name, entry in tensors.entries.items() if name == "emb.weight"), ())
    if f"{att}r_k" not in tensors.entries or not width:
        return None
    v0, v1, v2 = (_usable(tensors.entries.get(name)) for name in names)
    pair_fits = v1 is not None and v2 is not None and v1.shape == (*width, *v2.shape[:1]) and v2.shape[1:] == width
    fits = {
        names[0]: v0 is not None and tuple(size for size in v0.shape if size != 1) == width,
        names[1]: pair_fits,
        names[2]: pair_fits,
    }
    unfit = [name for name in names if name in tensors.entries and not fits[name]]
    if not unfit:
        return None
    entries = {name: entry for name, entry in tensors.entries.items() if name not in unfit}
    return tensors.changed(entries, f"{', '.join(unfit)} left out: unused, and of a wrong shape or type")


def _usable(entry: Entry | None) -> Entry | None:
    return entry if entry is not None and entry.num_elements and entry.dtype in PRECISIONS else None


FORMS = (
    Form("llama.cpp", gguf.undo),
    Form("a prefix", _without_prefix),
    Form("another program's names", _renamed),
    Form("web-rwkv", web_rwkv.undo),
    Form("another name of the head", _plain_head),
    Form("a tied head", _tied_head),
    Form("unused tensors that do not fit", _without_unused),
)
