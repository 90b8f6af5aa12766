"""`adapter_config.json` of Hugging Face's PEFT: LoRA's factor, what is not computed, and a quantised base.

Source: huggingface/peft 0.21.2, `src/peft/tuners/lora/config.py` (`LoraConfig`), `layer.py` beside it (what an
initialisation does to the base) and `src/peft/peft_model.py` (the model card names bitsandbytes' quantisation).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkvbatch.errors import CheckpointError
from rwkvbatch.files import read_file
from rwkvbatch.model.containers import read_json

NAME = "adapter_config.json"
MAX_CARD_BYTES = 1_000_000

_USUAL: Mapping[str, Any] = {"fan_in_fan_out": False, "bias": "none", "alpha_pattern": {}, "rank_pattern": {}}
_OTHER_COMPUTATIONS = (
    *("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("monteclora_config", "layer_replication", "lora_bias"),
)
"""Keys with which PEFT computes something else than W + alpha / rank * B A."""

_CHANGES_THE_BASE = re.compile(r"pissa.*|corda.*|olora|loftq|lora_ga", re.IGNORECASE | re.DOTALL)
"""Initialisations that put other weights in the place of the base's before training."""

_QUANTISED_NAME = re.compile(r"bnb|[48]-?bit|nf4|fp4|int[48]|gptq|awq", re.IGNORECASE)
_QUANTISED_IN_CARD = re.compile(r"^- ((?:_?load_in_(?:4|8)bit): True)\s*$", re.MULTILINE)


class QuantisedBaseWarning(UserWarning):
    """An adapter was trained over weights that were quantised, which those that it is merged into are not."""


def read_config(path: Path) -> Mapping[str, Any]:
    """The configuration in an adapter's directory; empty for other adapters."""
    return read_json(path / NAME) if path.is_dir() and (path / NAME).is_file() else {}


def factor(config: Mapping[str, Any], rank: int, path: Path) -> float:
    """The factor of B A; raises `CheckpointError` for what is not computed here."""
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"an adapter of PEFT's type {config.get('peft_type')!r:.40}; LORA is read", path=path)
    odd = [key for key, usual in _USUAL.items() if config.get(key, usual) not in (usual, None)]
    for key in (*odd, *(key for key in _OTHER_COMPUTATIONS if config.get(key))):
        raise CheckpointError(f"its {NAME} has {key} = {config[key]!r:.60}, which is not computed", path=path)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and _CHANGES_THE_BASE.fullmatch(start):
        raise CheckpointError(
            f"its {NAME} has init_lora_weights = {start!r:.40}: the training began by changing the base's weights, so "
            "that this adapter is not for the checkpoint as it is",
            path=path,
            hint="save it with PEFT's path_initial_model_for_weight_conversion, or merge it with PEFT: --model MERGED",
        )
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"its {NAME} has lora_alpha = {alpha!r:.40}, not a number", path=path)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def quantised_base(config: Mapping[str, Any], path: Path) -> str | None:
    """What says that the adapter was trained over quantised weights (QLoRA); None if nothing does."""
    for key in ("quantization_config", "load_in_4bit", "load_in_8bit"):
        if config.get(key):
            return f"its {NAME} has {key} = {config[key]!r:.80}"
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and _QUANTISED_NAME.search(Path(base).name):
        return f"its {NAME} names the base {base!r:.80}"
    try:
        card = read_file(path / "README.md", MAX_CARD_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
    found = _QUANTISED_IN_CARD.search(card)
    return None if found is None else f"its README.md has {found[1]}"
