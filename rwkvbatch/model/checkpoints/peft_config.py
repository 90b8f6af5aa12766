"""`adapter_config.json` of Hugging Face's PEFT: LoRA's factor, unsupported settings, and quantised bases.

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
from rwkvbatch.model.weights.containers import read_json

NAME = "adapter_config.json"
MAX_CARD_BYTES = 1_000_000

_SUPPORTED: Mapping[str, Any] = {"fan_in_fan_out": False, "bias": "none", "alpha_pattern": {}, "rank_pattern": {}}
_OTHER_COMPUTATIONS = (
    *("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("monteclora_config", "layer_replication", "lora_bias"),
)
"""Keys of settings with which PEFT does not compute W + alpha / rank * B A."""

_CHANGES_THE_BASE = re.compile(r"pissa.*|corda.*|olora|loftq|lora_ga", re.IGNORECASE | re.DOTALL)
"""Initialisations that replace the base's weights before training."""

_QUANTISED_NAME = re.compile(r"bnb|[48]-?bit|nf4|fp4|int[48]|gptq|awq", re.IGNORECASE)
_QUANTISED_IN_CARD = re.compile(r"^- ((?:_?load_in_(?:4|8)bit): True)\s*$", re.MULTILINE)


class QuantisedBaseWarning(UserWarning):
    """An adapter was trained over quantised weights and is merged into unquantised ones."""


def read_config(path: Path) -> Mapping[str, Any]:
    """The configuration in an adapter's directory; empty for other adapters."""
    return read_json(path / NAME) if path.is_dir() and (path / NAME).is_file() else {}


def factor(config: Mapping[str, Any], rank: int, path: Path) -> float:
    """The factor of B A.

    Raises:
        CheckpointError: the configuration has unsupported settings.
    """
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"an adapter of PEFT's type {config.get('peft_type')!r:.40}; LORA is read", path=path)
    changed = [key for key, value in _SUPPORTED.items() if config.get(key, value) not in (value, None)]
    for key in (*changed, *(key for key in _OTHER_COMPUTATIONS if config.get(key))):
        raise CheckpointError(f"its {NAME} has {key} = {config[key]!r:.60}, which is not supported", path=path)
    initialisation = config.get("init_lora_weights")
    if isinstance(initialisation, str) and _CHANGES_THE_BASE.fullmatch(initialisation):
        raise CheckpointError(
            f"its {NAME} has init_lora_weights = {initialisation!r:.40}: it changes the base's weights, so the "
            "adapter is not for the original checkpoint",
            path=path,
            hint="save it with PEFT's path_initial_model_for_weight_conversion, or merge it with PEFT: --model MERGED",
        )
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"its {NAME} has lora_alpha = {alpha!r:.40}, not a number", path=path)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def quantised_base(config: Mapping[str, Any], path: Path) -> str | None:
    """The evidence that the adapter was trained over quantised weights (QLoRA); None if there is none."""
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
    match = _QUANTISED_IN_CARD.search(card)
    return None if match is None else f"its README.md has {match[1]}"
