"""The settings that differ between the two sides of pairs of runs, besides what the names of their cells say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.runs.data import RunData, as_record, varied_settings
from rwkvbatch.config import Sampling, Stopping
from rwkvbatch.errors import counted
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.results.manifest import FILLS_IN_SYSTEM, GIVEN_FOR_ALL, PARAMS

UNRESOLVED: Final = (("turn_end", "auto"), ("bos", "auto"))
"""Settings of which the run does not say what they stood for, which may be what the other side has."""

_NOT_COMPARED: Final = {"weights_sha256", "tokenizer_sha256", "model", FILLS_IN_SYSTEM}
"""Values of a cell that are the object of the comparison, or about which there is a note."""
_FILES: Final = {"state_sha256": "state", "template_sha256": "template", "prelude_sha256": "prelude"}
"""Hashes of files that a cell's settings name, with the setting."""
_RULES: Final = ("generation_rules", "judging_rules", "max_prompt_tokens")
"""Values of a whole run on which its rows depend."""
OF_REPLIES: Final = frozenset({*Sampling.model_fields, *Stopping.model_fields, "turn_end"})
"""Settings on which only generated replies depend."""
_EMPTY_IS_NONE: Final = {"endpoint_body"}
_OF_SCRIPT: Final = "params of the script"
_MAX_NAMED: Final = 3
_MAX_VALUE: Final = 24


@dataclass(frozen=True)
class SettingDifference:
    """A setting of which a baseline and some of its variants have different values.

    Attributes:
        setting: the name in the manifest, without `_sha256` for files.
        baseline, variant: the two values, as text.
        variants: labels of the variants with this value.
        is_of_all: whether these are all variants of the comparison.
    """

    setting: str
    baseline: str
    variant: str
    variants: tuple[str, ...]
    is_of_all: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("setting", "baseline", "variant")} | {
            "variants": list(self.variants)
        }


def differing_settings(pairs: Sequence[Pair], runs: Sequence[RunData]) -> list[SettingDifference]:
    """The differing settings of pairs whose sides are of different runs, in the manifests' order.

    Settings that are a dimension of the variant's own grid are left out: the cell's name says them. So are values that
    one of the sides does not have, as a rounding rule of a precision that is named itself, values that a server
    decides, and settings of replies where both sides have none.
    """
    by_name = {run.name: run for run in runs}
    varied = {run.name: varied_settings(run.facts.cells) for run in runs}
    found: dict[tuple[str, str, str], list[str]] = {}
    for pair in pairs:
        if pair.baseline.run == pair.variant.run:
            continue
        baseline, variant = (dict(_values(by_name[side.run], side.cell)) for side in (pair.baseline, pair.variant))
        replies = any(by_name[side.run].has_replies for side in (pair.baseline, pair.variant))
        for key, expected in baseline.items():
            value = variant.get(key, expected)
            if value == expected or key in _NOT_COMPARED or key in varied[pair.variant.run]:
                continue
            if any((key, side) in UNRESOLVED for side in (expected, value)):
                continue
            if (key in OF_REPLIES and not replies) or (key in _EMPTY_IS_NONE and not expected and not value):
                continue
            before = _shown(key, expected, by_name[pair.baseline.run], pair.baseline.cell)
            after = _shown(key, value, by_name[pair.variant.run], pair.variant.cell)
            found.setdefault((_FILES.get(key, key), before, after), []).append(pair.variant.label)
    return [
        SettingDifference(*names_and_values, tuple(labels), is_of_all=len(labels) == len(pairs))
        for names_and_values, labels in found.items()
    ]


def settings_sentence(differences: Sequence[SettingDifference]) -> str:
    """`settings differ: max_tokens 300/3, temperature 0.2/1.5`; empty without differences.

    Values that not all variants have are followed by the labels of those that do.
    """
    by_setting: dict[tuple[str, str], list[str]] = {}
    for difference in differences:
        labels = list(difference.variants)
        if more := len(labels) - _MAX_NAMED:
            labels = labels if more < 0 else [*labels[:_MAX_NAMED], f"{more} more"]
        owners = "" if difference.is_of_all else f" ({', '.join(labels)})"
        by_setting.setdefault((difference.setting, difference.baseline), []).append(difference.variant + owners)
    texts = [
        f"{setting} {'/'.join((baseline, *values[:_MAX_NAMED]))}"
        + (f" and {counted(len(values) - _MAX_NAMED, 'other value')}" if len(values) > _MAX_NAMED else "")
        for (setting, baseline), values in by_setting.items()
    ]
    return f"settings differ: {', '.join(texts)}" if texts else ""


def _values(run: RunData, cell: str) -> Iterator[tuple[str, Any]]:
    """The settings of a cell and the rules of its run; a setting that a script's params override is `_OF_SCRIPT`."""
    identity = run.facts.identity
    params: set[str] = set(as_record(identity.get("script")).get(PARAMS) or ())
    params -= set(identity.get(GIVEN_FOR_ALL) or ())
    for key, value in run.facts.cells.get(cell, {}).items():
        yield key, _OF_SCRIPT if key in params else value
    yield from ((key, identity[key]) for key in _RULES if key in identity)


def _shown(key: str, value: Any, run: RunData, cell: str) -> str:
    """A setting's value as a few characters; a file by its name, where the manifest has it."""
    if key in _FILES and value is not None:
        about: Mapping[str, Any] = as_record(run.manifest.get("about"))
        name = as_record(as_record(about.get("files")).get(cell)).get(_FILES[key])
        value = f"{Path(str(name)).name} ({str(value)[:8]})" if name else str(value)[:12]
    if value is None:
        return "none"
    is_plain = not isinstance(value, str) or (value and value == value.strip())
    text = printable(str(value) if is_plain else repr(value), keep_newlines=False)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"
