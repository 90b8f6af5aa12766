"""Frozen settings records: what a reply and a run depend on. No torch here.

Every record refuses unknown keys and values out of range; `replace` makes a changed, validated copy.
Formulas and the order of the sampling steps are those of the `rwkv` package (`PIPELINE.sample_logits`) and of
ChatRWKV's `API_DEMO_CHAT.py`; see `docs/sampling.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvbatch.errors import UsageError

ThinkMode = Literal["off", "on", "fake", "short", "long"]
HistoryMode = Literal["own", "gold"]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_LIMITS = ("ge", "gt", "le", "lt")

PENALTY_ALIASES: Mapping[str, str] = {
    "presence": "presence_penalty",
    "frequency": "frequency_penalty",
    "decay": "penalty_decay",
    "ban": "banned_token_ids",
}
"""Short names of settings, which files written by earlier versions use as keys."""

ALIASES: Mapping[str, str] = {"temp": "temperature", **PENALTY_ALIASES}
"""Short names, accepted wherever a setting is named, and the settings' names."""

SHORT_NAMES: Mapping[str, str] = {name: alias for alias, name in ALIASES.items()}
"""The name of a setting in options and cell names, where it is not the setting's own."""


def full_name(key: str) -> str:
    """The setting's own name: aliases are resolved, `-` is read as `_`."""
    key = key.replace("-", "_")
    return ALIASES.get(key, key)


def with_full_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings out of a file under their present names; files of earlier versions have the short ones."""
    return {ALIASES.get(key, key): value for key, value in values.items()}


def identity_with_full_names(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The `identity` of a manifest with the settings' present names."""
    result = dict(identity)
    if isinstance(cells := result.get("cells"), dict):
        result["cells"] = {
            name: with_full_names(cast("dict[str, Any]", values)) if isinstance(values, dict) else values
            for name, values in cast("dict[str, Any]", cells).items()
        }
    if isinstance(given := result.get("given_for_all"), list):
        result["given_for_all"] = sorted(ALIASES.get(str(name), str(name)) for name in cast("list[Any]", given))
    return result


class Settings(BaseModel):
    """A frozen record that refuses unknown keys; invalid values raise `UsageError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Validate `values`; `where` names their origin (a file, an option) in the error.

        Raises:
            UsageError: names the key, what was allowed and what was there.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UsageError(
                _explain(error, where, cls), hint="see `rwkvbatch run --help` for what is allowed"
            ) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes` applied and validated.

        Raises:
            UsageError: as `parse`.
        """
        return self.parse({**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


class Sampling(Settings):
    """How a token is chosen from the logits. Frozen; `temperature` 0 or `top_p` 0 is greedy.

    Attributes:
        temperature: the kept probabilities are raised to 1 / temperature.
        top_p: keep the likeliest tokens whose probabilities reach this sum (ties with the last one are kept).
        top_k: keep at most this many tokens; 0 keeps all.
        presence_penalty: subtracted from the logit of every token that is already in the reply.
        frequency_penalty: subtracted from it once more for every (decayed) occurrence.
        penalty_decay: all occurrence counts are multiplied by this at each step.
        order: `top-p-first` cuts before the temperature is applied (the `rwkv` package), `temperature-first`
            after it (most other programs).
        banned_token_ids: token ids that are never chosen.
    """

    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=0.3, ge=0, le=1)
    top_k: int = Field(default=0, ge=0)
    presence_penalty: float = Field(default=0.0, ge=-100, le=100)
    frequency_penalty: float = Field(default=0.0, ge=-100, le=100)
    penalty_decay: float = Field(default=0.996, ge=0, le=1)
    order: Literal["top-p-first", "temperature-first"] = "top-p-first"
    banned_token_ids: tuple[TokenId, ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1

    def check_vocabulary(self, vocab_size: int, name: str = "banned_token_ids") -> None:
        """Refuse what a model with `vocab_size` token ids cannot have; `name` is the setting's for the error.

        Raises:
            UsageError: a banned id is none of the model's.
        """
        beyond = sorted({token for token in self.banned_token_ids if token >= vocab_size})
        if beyond:
            shown = ", ".join(map(str, beyond[:5])) + (", ..." if len(beyond) > 5 else "")
            raise UsageError(
                f"{name}: the model's vocabulary has {vocab_size:,} token ids, 0 to {vocab_size - 1}; got {shown}",
                hint="leave it out; /tokens in `rwkvbatch chat` shows the ids of a reply",
            )


PRESETS: Mapping[str, Sampling] = {
    "default": Sampling(),
    "greedy": Sampling(temperature=0.0, top_p=1.0),
    # ChatRWKV, API_DEMO_CHAT.py: with the initial prompt, and with a custom initial state.
    "api-demo-chat": Sampling(
        temperature=1.0, top_p=0.3, presence_penalty=0.5, frequency_penalty=0.5, banned_token_ids=(0,)
    ),
    "api-demo-chat-state": Sampling(
        temperature=1.0, top_p=0.2, presence_penalty=0.3, frequency_penalty=0.3, banned_token_ids=(0,)
    ),
    # The rwkv package's PIPELINE_ARGS.
    "rwkv-package": Sampling(temperature=1.0, top_p=0.85, presence_penalty=0.2, frequency_penalty=0.2),
    "creative": Sampling(temperature=1.2, top_p=0.7, presence_penalty=0.4, frequency_penalty=0.4),
    "precise": Sampling(temperature=1.0, top_p=0.1),
    "model": Sampling(temperature=1.0, top_p=1.0),
}
"""Known-good combinations, by the name that `--preset` takes; `model` samples the model's own distribution."""


def preset(name: str) -> Sampling:
    """The sampling preset called `name`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]


class Stopping(Settings):
    """When a reply ends, besides token 0 (end of text), which always ends it unless it is banned.

    Attributes:
        max_tokens: at most this many tokens in one reply.
        max_seconds: at most this long in one reply, from the first step on; None for no limit. A reply that
            ends by it is not reproducible, and its `finish_reason` says `time`.
        stop: texts that end a reply, besides the template's own (a blank line, or `\\nUser:` in thinking modes).
    """

    max_tokens: int = Field(default=256, ge=1, le=1_000_000)
    max_seconds: float | None = Field(default=None, gt=0)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()


class Prompting(Settings):
    """How turns become text.

    Attributes:
        think: thinking mode, see `rwkvbatch.prompt.templates`.
        history: `own` feeds the model's own replies to the next turn, `gold` the script's reference replies.
        template: a Jinja2 template file that replaces the official template.
        prelude: text read before the first turn (an initial exchange); None for none.
    """

    think: ThinkMode = "off"
    history: HistoryMode = "own"
    template: str | None = None
    prelude: str | None = None


_IN_WORDS: Mapping[str, str] = {
    "banned_token_ids": "must be token ids, whole numbers from 0 up",
    "stop": "must be a text that is not empty",
}


def allowed_values(record: type[BaseModel], key: str, message: str) -> str:
    """What the setting `key` may be, in words: `must be a number in [0, 1]`.

    Args:
        message: pydantic's, for settings that are no single number.
    """
    return _IN_WORDS.get(key) or _range(record, key) or message.replace("Input should", "must")


def _range(record: type[BaseModel], key: str) -> str | None:
    info = record.model_fields[key]
    annotation: Any = info.annotation
    kind = {int: "a whole number", float: "a number"}
    name = next((text for number, text in kind.items() if annotation in (number, number | None)), None)
    if name is None:
        return None
    bounds = {limit: getattr(item, limit) for item in info.metadata for limit in _LIMITS if hasattr(item, limit)}
    low = f"[{bounds['ge']}" if "ge" in bounds else f"({bounds['gt']}" if "gt" in bounds else ""
    high = f"{bounds['le']}]" if "le" in bounds else f"{bounds['lt']})" if "lt" in bounds else ""
    if low and high:
        return f"must be {name} in {low}, {high}"
    if low:
        return f"must be {name}, {'at least' if 'ge' in bounds else 'above'} {low[1:]}"
    return f"must be {name}"


def _explain(error: ValidationError, where: str, record: type[BaseModel]) -> str:
    parts: list[str] = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "value"
        prefix = f"{where}: " if where else ""
        if item["type"] == "extra_forbidden":
            parts.append(f"{prefix}unknown setting {name!r}")
        else:
            words = allowed_values(record, str(item["loc"][0]), item["msg"]) if item["loc"] else item["msg"]
            parts.append(f"{prefix}{name}: {words}, got {_shown(item['input'])}")
    return "; ".join(parts)


def _shown(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
