"""Settings of one reply: how tokens are sampled, when the reply ends, and presets of both.

Formulas and the order of the sampling steps are those of the `rwkv` package (`PIPELINE.sample_logits`) and of
ChatRWKV's `API_DEMO_CHAT.py`; see `docs/sampling.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self, cast, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from rwkvbatch.config.prompting import TurnEnd
from rwkvbatch.config.setting import Settings, explain, setting
from rwkvbatch.errors import UsageError, listed
from rwkvbatch.fields import MAX_COUNT


class CutOrder(NamedTuple):
    """Whether the temperature is applied before the cuts, and whether top-k cuts before top-p.

    With top-k first, top-p is a share of the probability that top-k keeps.
    """

    temperature_first: bool
    top_k_first: bool


Order = Literal["top-p-first", "top-k-first", "temperature-first", "temperature-top-k"]
ORDERS: Mapping[str, CutOrder] = {
    "top-p-first": CutOrder(temperature_first=False, top_k_first=False),
    "top-k-first": CutOrder(temperature_first=False, top_k_first=True),
    "temperature-first": CutOrder(temperature_first=True, top_k_first=False),
    "temperature-top-k": CutOrder(temperature_first=True, top_k_first=True),
}
"""Orders of the sampling steps. `top-p-first` is that of the `rwkv` package. `temperature-top-k` is that of the
evaluation engines for RWKV-7, which apply the temperature, keep `top_k` tokens, renormalise, and then cut at
`top_p`."""


def _texts(value: object) -> object:
    """Convert one text to a list, and remove empty texts from a list."""
    if isinstance(value, str):
        value = (value,)
    return [text for text in cast("list[object]", value) if text != ""] if isinstance(value, list | tuple) else value


_Share = Annotated[float, Field(ge=0, le=1)]
_Penalty = Annotated[float, Field(ge=-100, le=100)]


class Sampling(Settings):
    """How a token is chosen from the logits; `temperature` 0, `top_p` 0 or `top_k` 1 is greedy.

    - `temperature`: the kept probabilities are raised to 1 / temperature.
    - `top_p`: the likeliest tokens are kept up to this probability, and all tokens as likely as the last of them.
    - `min_p`: tokens less likely than this share of the likeliest token's probability are dropped.
    - `presence_penalty` is subtracted once from the logit of every token that is already in the reply,
      `frequency_penalty` once for each occurrence. Occurrence counts are multiplied by `penalty_decay` at each step.
    - `no_penalty`: tokens whose text is a part of one of these texts are not counted: only `presence_penalty` is
      subtracted from their logits.
    - `order`: whether the temperature is applied before or after the cuts, and whether top-p or top-k cuts first, see
      `ORDERS`.
    """

    temperature: float = setting(1.0, "Temperature; 0 is greedy.", "X", "Sampling", ge=0, le=100)
    top_p: _Share = setting(0.3, "Keep the likeliest tokens up to this probability; 0 is greedy.", "X", "Sampling")
    top_k: int = setting(0, "Keep at most N tokens; 0 keeps all.", "N", "Sampling", ge=0, le=MAX_COUNT)
    min_p: _Share = setting(
        0.0, "Drop tokens less likely than X times the likeliest one; 0 keeps all.", "X", "Sampling"
    )
    presence_penalty: _Penalty = setting(0.0, "Penalty for tokens that the reply already contains.", "X", "Sampling")
    frequency_penalty: _Penalty = setting(0.0, "Penalty per occurrence of a token in the reply.", "X", "Sampling")
    penalty_decay: _Share = setting(0.996, "Factor on the occurrence counts at each step.", "X", "Sampling")
    order: Order = setting(
        "top-p-first", f"Order of the sampling steps: {', '.join(get_args(Order))}.", "NAME", "Sampling"
    )
    no_penalty: Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], BeforeValidator(_texts)] = setting(
        (),
        "Tokens that are a part of TEXT are exempt from --frequency; may be repeated. An empty TEXT exempts none.",
        "TEXT",
        "Sampling",
        allowed="must be text of at most 1000 characters",
        max_length=100,
    )
    banned_token_ids: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = setting(
        (),
        "Token ids that are never chosen; may be repeated.",
        "ID",
        "Sampling",
        allowed="must be token ids, whole numbers in [0, 2147483647]",
        split=True,
    )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1

    def check_vocabulary(self, vocab_size: int, name: str = "banned_token_ids") -> None:
        """Check banned token ids against a model's vocabulary.

        Args:
            name: the setting's name in the error message.

        Raises:
            UsageError: a banned id is not in [0, vocab_size).
        """
        unknown = sorted({token for token in self.banned_token_ids if token >= vocab_size})
        if unknown:
            raise UsageError(
                f"{name}: the model's vocabulary has {vocab_size:,} token ids, 0 to {vocab_size - 1}; "
                f"got {listed(unknown, 5)}",
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
    # The rwkv package's PIPELINE_ARGS, and the tokens that `PIPELINE.generate` does not count.
    "rwkv-package": Sampling(
        temperature=1.0, top_p=0.85, presence_penalty=0.2, frequency_penalty=0.2, no_penalty=(" \t0123456789",)
    ),
    # The evaluation teams' settings for RWKV-7 G1, by thinking mode, and those of the demonstration.
    "g1-think": Sampling(
        temperature=0.96,
        top_p=0.76,
        top_k=32,
        presence_penalty=1.0,
        frequency_penalty=0.1,
        penalty_decay=0.988,
        order="temperature-top-k",
    ),
    "g1-fake-think": Sampling(temperature=1.0, top_p=0.28, top_k=32, order="temperature-top-k"),
    "g1-tools": Sampling(temperature=0.96, top_p=0.76, top_k=32, order="temperature-top-k"),
    "g1-demo": Sampling(
        temperature=1.0,
        top_p=0.5,
        top_k=500,
        presence_penalty=1.0,
        frequency_penalty=0.1,
        penalty_decay=0.99,
        order="temperature-top-k",
    ),
    "creative": Sampling(temperature=1.2, top_p=0.7, presence_penalty=0.4, frequency_penalty=0.4),
    "precise": Sampling(temperature=1.0, top_p=0.1),
    "model": Sampling(temperature=1.0, top_p=1.0),
}
"""Known-good combinations, by the name for `--preset`. `model` samples from the model's own distribution. Sources and
dates are in `docs/sampling.md`."""


PRESET_TURN_ENDS: Mapping[str, TurnEnd] = {"api-demo-chat": "blank-line", "api-demo-chat-state": "blank-line"}
"""The `turn_end` of presets of other programs."""


def preset_settings(name: str) -> dict[str, Any]:
    """All settings of `--preset NAME`; raises as `preset`."""
    settings: dict[str, Any] = dict(preset(name))
    if name in PRESET_TURN_ENDS:
        settings["turn_end"] = PRESET_TURN_ENDS[name]
    return settings


def preset(name: str) -> Sampling:
    """The sampling preset called `name`.

    Raises:
        UsageError: there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]


def _as_texts(value: object) -> object:
    """One text as a list of it."""
    return (value,) if isinstance(value, str) else value


class Stopping(Settings):
    """When a reply ends. Token 0 (end of text) always ends it too, unless it is banned.

    `max_seconds` counts from the reply's first step. A reply that it ends has the `finish_reason` `time` and is not
    reproducible. The texts of `stop` apply in addition to `turn_end`.
    """

    max_tokens: int = setting(256, "Maximum number of tokens in a reply.", "N", "End of a reply", ge=1, le=1_000_000)
    max_seconds: float | None = setting(
        None,
        "Maximum seconds for a reply. A reply that ends so is not reproducible.",
        "X",
        "End of a reply",
        gt=0,
        le=10**9,
    )
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_texts)] = setting(
        (),
        "Text that ends a reply; may be repeated.",
        "TEXT",
        "End of a reply",
        allowed="must be texts, none of them empty",
    )


class ReplySettings(Sampling, Stopping):
    """How one reply is sampled and when it ends."""

    @cached_property
    def sampling(self) -> Sampling:
        """The fields of `Sampling` alone."""
        return self.part(Sampling)


_SHOWN = ("temperature", "top_p", "max_tokens", "seed")


class SamplingParams(ReplySettings):
    """How one reply of `LLM` is sampled and when it ends: the fields of `Sampling` and `Stopping`, and a seed.

    `top_p` is 0.3 unless it is given, also with another temperature.

    Attributes:
        seed: seed of the reply's randomness. The same seed and prompt give the same reply.

    Raises:
        UsageError: an unknown field, or a value out of range.
    """

    seed: int = setting(0, "Random seed.", "N", None, ge=0, lt=2**63)

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """The settings that decide most, and the others that are not the defaults."""
        for name in (*_SHOWN, *(name for name in type(self).model_fields if name not in _SHOWN)):
            value = getattr(self, name)
            if name in _SHOWN or value != type(self).model_fields[name].default:
                yield name, value

    @model_validator(mode="wrap")
    @classmethod
    def _raise_usage_error(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            hint = f"the fields are {', '.join(cls.model_fields)}"
            raise UsageError(explain(error, cls.__name__, cls), hint=hint) from None

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """The preset called `name` (see `PRESETS`), with `changes` applied.

        Raises:
            UsageError: there is no such preset, or as the constructor.
        """
        return cls(**{**preset(name).model_dump(), **changes})
