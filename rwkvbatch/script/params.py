"""`params` of a conversation: settings that take the place of the run's, under the names of `config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rwkvbatch.config import Sampling, Settings, Stopping
from rwkvbatch.errors import UsageError
from rwkvbatch.script.records import SourceLine
from rwkvbatch.script.source import refuse, refuse_unknown_keys, shown

SEED = "seed"
_RECORDS: tuple[type[Settings], ...] = (Sampling, Stopping)
PARAM_NAMES = frozenset({SEED}.union(*(record.model_fields for record in _RECORDS)))

_OPENAI_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": SEED,
    "stop": "stop",
    "presence_penalty": "presence",
    "frequency_penalty": "frequency",
}
OPENAI_PARAM_NAMES = frozenset(_OPENAI_NAMES)


def parse_params(raw: Mapping[str, Any], source: SourceLine, where: str = "params") -> Mapping[str, Any]:
    """Validated overrides, by the names of `config.Sampling` and `config.Stopping`, and `seed`.

    Raises:
        ScriptError: an unknown name, or a value that the setting cannot have.
    """
    refuse_unknown_keys(raw, PARAM_NAMES, source, where)
    for name, value in raw.items():
        if isinstance(value, bool):
            refuse(source, f"{where}.{name}: must not be a boolean, got {str(value).lower()}")
    found: dict[str, Any] = {}
    for record in _RECORDS:
        given = {name: value for name, value in raw.items() if name in record.model_fields}
        try:
            parsed = record.parse(given, where=where)
        except UsageError as error:
            refuse(source, error.message, "see `docs/scripts.md` for the settings a conversation may have")
        found |= {name: getattr(parsed, name) for name in given}
    if SEED in raw:
        seed = raw[SEED]
        if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
            refuse(source, f"{where}.seed: must be an integer of at most 64 bits, got {shown(seed)}")
        found[SEED] = seed
    return found


def from_openai(raw: Mapping[str, Any], source: SourceLine, where: str) -> Mapping[str, Any]:
    """The sampling fields of an OpenAI request as `params`; null stands for a field that is not there.

    Raises:
        ScriptError: a value that the setting cannot have.
    """
    renamed: dict[str, Any] = {}
    for name, ours in _OPENAI_NAMES.items():
        value = raw.get(name)
        if value is not None:
            renamed[ours] = [value] if ours == "stop" and isinstance(value, str) else value
    return parse_params(renamed, source, where)
