"""Served models: how settings name them, their description, and the settings that they cannot have."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from rwkvbatch.config import NO_ADAPTER, CellSettings, EndpointApi
from rwkvbatch.config.names import option_name
from rwkvbatch.endpoint.client import Client, check_url
from rwkvbatch.errors import EndpointError, UnreachableError, UsageError, WorkerError, parsing_problem
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.prompt.tokenizer import MIN_VOCAB_SIZE, Tokenizer
from rwkvbatch.script.lines import NotStrictError
from rwkvbatch.script.tools import interoperable_json

if TYPE_CHECKING:
    from rwkvbatch.model.base import ModelSpec

WORLD_SIZE = 65_536
MAX_NAMES = 20
_PROBE_S = 5.0
RESERVED = frozenset({"model", "prompt", "messages", "stream", "stream_options", "n", "echo"})
"""Fields of a request's body that this program sets."""

ENDPOINT_SETTINGS = ("endpoint_model", "endpoint_api", "endpoint_body")
"""Settings that need an endpoint, in each cell that has them."""
CLIENT_SETTINGS = ("max_requests", "concurrency", "endpoint_timeout", "endpoint_retries")
"""Settings that need a server: the endpoint of any cell, or a judge's."""


@dataclass(frozen=True)
class Endpoint:
    """A server and its model, as named by settings.

    Attributes:
        model: name of the model; empty for the only one that the server lists.
        api: the interface.
        body: further fields of each request's body, as JSON.
    """

    url: str
    model: str
    api: EndpointApi
    body: str

    @classmethod
    def of(cls, settings: CellSettings) -> Endpoint | None:
        """The endpoint of a cell, None for a model in this process."""
        if settings.endpoint is None:
            return None
        return cls(settings.endpoint, settings.endpoint_model or "", settings.endpoint_api, settings.endpoint_body)

    @property
    def extra(self) -> dict[str, Any]:
        """The further fields of each body; raises as `extra_fields`."""
        return extra_fields(self.body)


class RequestLimits(BaseModel):
    """The limits of requests that `rwkvbatch serve` lists, in its fields' units."""

    model_config = ConfigDict(strict=True, frozen=True)

    max_tokens: int
    prompt_tokens: int
    stop: int
    stop_characters: int
    no_penalty: int

    def check(self, settings: CellSettings, template_stops: Sequence[str], where: str = "") -> None:
        """Check settings of replies, before a server refuses each of them.

        Args:
            template_stops: the stop texts of the prompt template, which are sent with those of the settings.
            where: where the settings are, such as `params of turn 0: `; empty for options.

        Raises:
            UsageError: a setting is beyond a limit.
        """
        stops = (*template_stops, *settings.stop)
        for name, what, value, limit in (
            ("max_tokens", "", settings.max_tokens, self.max_tokens),
            ("stop", "texts, with those of the template", len(stops), self.stop),
            ("stop", "characters in a text", max(map(len, stops), default=0), self.stop_characters),
            ("no_penalty", "texts", len(settings.no_penalty), self.no_penalty),
        ):
            if value > limit:
                problem = " ".join(filter(None, ("the server allows at most", f"{limit:,}", what)))
                hint = "rwkvbatch serve has --max-reply-tokens" if name == "max_tokens" else None
                raise UsageError(
                    f"{where or ''}{name if where else option_name(name)}: {problem}; got {value:,}", hint=hint
                )


class OwnServer(BaseModel):
    """The description of a model by `rwkvbatch serve`, by which clients know its limits.

    Attributes:
        tokenizer_sha256: hash of the vocabulary, as `Tokenizer.sha256`.
        weights_sha256: hash of the weights, as that of `ModelSpec`.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    tokenizer_sha256: str
    weights_sha256: str
    request_limits: RequestLimits


@dataclass(frozen=True)
class ServedSpec:
    """The description of a served model, with the attributes of `ModelSpec`.

    Attributes:
        name: the server's name of the model.
        weights_sha256: hash of the URL and the name, because the weights are not accessible.
        vocab_size: size of the vocabulary that counts tokens, from the server's list of models if it has it (as
            llama.cpp's `meta.n_vocab` and `rwkvbatch serve`'s `vocab_size`), otherwise that of World.
        own: what `rwkvbatch serve` lists in addition; None for other servers.
    """

    url: str
    name: str
    api: EndpointApi
    weights_sha256: str
    vocab_size: int = WORLD_SIZE
    dtype: str = "served"
    backend: str = "endpoint"
    device: str = "endpoint"
    bitwise: bool = False
    vocabulary: str | None = "world"
    vocabulary_file: str | None = None
    adapter: str | None = None
    state_bytes: int = 0
    own: OwnServer | None = None

    @property
    def path(self) -> str:
        return f"{self.url} {self.name}"

    @property
    def in_words(self) -> str:
        return f"{self.name} at {self.url}"

    def takes_ids(self, tokenizer: Tokenizer) -> bool:
        """Whether prompts are sent as ids of `tokenizer`.

        With `completions`, a server that is known to have the same vocabulary gets the ids too, since they are exactly
        what a model in this process reads: segments that are encoded one by one, and token 0.
        """
        is_known = self.own is not None and self.own.tokenizer_sha256 == tokenizer.sha256
        return self.api == "completions-ids" or (self.api == "completions" and is_known)


def weights_of(spec: ModelSpec | ServedSpec) -> str:
    """The hash of a model's weights, also of those that `rwkvbatch serve` names; of another server that of its URL."""
    own = spec.own if isinstance(spec, ServedSpec) else None
    return spec.weights_sha256 if own is None else own.weights_sha256


@dataclass(frozen=True)
class ServedModel:
    """The `model` of an `EndpointEngine`, which only has a description."""

    spec: ServedSpec


def served_spec(endpoint: Endpoint, client: Client) -> ServedSpec:
    """The description of the endpoint's model, from the server's list of models.

    A named model that is not in the list is accepted, because servers may list aliases, or nothing.

    Raises:
        UsageError: the server does not list exactly one model and none is named, it refuses the key, or its interface
            is at `/v1` under the endpoint's URL.
        UnreachableError: the server cannot be reached, or does not answer.
    """
    try:
        listing = client.get("models")
    except (WorkerError, EndpointError) as error:
        problem = error.message if endpoint.url in error.message else f"{endpoint.url}/models: {error.message}"
        raise UnreachableError(f"{client.options.names.url} {problem}", hint=error.hint) from None
    sizes = _vocab_sizes(listing)
    names = list(sizes)
    if not names:
        _refuse_missing_v1(client)
    name = endpoint.model
    if not name:
        if len(names) != 1:
            listed = ", ".join(client.words(listed_name) for listed_name in names[:MAX_NAMES]) or "none"
            option = client.options.names.model
            raise UsageError(f"{endpoint.url} lists {len(names)} models: {listed}", hint=f"name one with {option}")
        name = names[0]
    sha256 = hashlib.sha256(f"endpoint\0{endpoint.url}\0{name}".encode("utf-8", "replace")).hexdigest()
    shown_name = printable(name, keep_newlines=False)
    size = sizes.get(name) or WORLD_SIZE
    return ServedSpec(endpoint.url, shown_name, endpoint.api, sha256, size, own=_own_server(listing, name))


def _refuse_missing_v1(client: Client) -> None:
    """Raise `UsageError` if the server lists models at `/v1` under a URL without it, where it lists none."""
    if client.url.endswith("/v1"):
        return
    # Once, and not among the requests that `--max-requests` counts: the answer is only for the message.
    with suppress(EndpointError, WorkerError):
        if _vocab_sizes(client.trying_once(_PROBE_S).get("v1/models")):
            option = client.options.names.url
            raise UsageError(
                f"{client.url} lists no models, and {client.url}/v1 does", hint=f"give {option} {client.url}/v1"
            )


def _own_server(listing: Mapping[str, Any] | None, name: str) -> OwnServer | None:
    """The description of the model in the list of models of `rwkvbatch serve`; None for other servers."""
    match listing:
        case {"data": [*entries]}:
            objects = [cast("dict[str, Any]", entry) for entry in entries if isinstance(entry, dict)]
            own = (entry for entry in objects if (entry.get("id"), entry.get("owned_by")) == (name, "rwkvbatch"))
            with suppress(ValidationError):
                return next((OwnServer.model_validate(entry) for entry in own), None)
        case _:
            pass
    return None


def _vocab_sizes(listing: Mapping[str, Any] | None) -> dict[str, int | None]:
    """By name of a model that the server lists, the size of its vocabulary; None if the list does not have it."""
    match listing:
        case {"data": [*entries]}:
            sizes: dict[str, int | None] = {}
            for entry in entries:
                match entry:
                    case {"id": str() as name, "meta": {"n_vocab": int() as size}} if MIN_VOCAB_SIZE <= size < 2**31:
                        sizes[name] = size
                    case {"id": str() as name, "vocab_size": int() as size} if MIN_VOCAB_SIZE <= size < 2**31:
                        sizes[name] = size
                    case {"id": str() as name}:
                        sizes[name] = None
                    case _:
                        pass
            return sizes
        case _:
            return {}


def extra_fields(body: str, option: str = "--endpoint-body") -> dict[str, Any]:
    """The fields that the JSON text of an option gives.

    Raises:
        UsageError: the text is not a JSON object, or it has a reserved field.
    """
    if not body:
        return {}
    example = """such as '{"chat_template_kwargs": {"enable_thinking": false}}'"""
    try:
        value = interoperable_json(body)
    except NotStrictError as problem:
        raise UsageError(f"{option} cannot be read: {problem}", hint=problem.hint) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option} is not JSON: {parsing_problem(error)}", hint=f"give an object, {example}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{option} must be a JSON object, {example}")
    fields = cast("dict[str, Any]", value)
    if reserved := sorted(fields.keys() & RESERVED):
        raise UsageError(f"{option} must not set {', '.join(reserved)}, which this program sets")
    return fields


def refuse_without(mains: Sequence[str], names: Sequence[str], settings: CellSettings, given: Set[str]) -> None:
    """Refuse options without the one that they belong to; they would otherwise be ignored silently.

    Values of the environment or a settings file are for the commands that use them, and not refused.

    Args:
        mains: the settings one of which the options need.
        names: the settings that need it.
        given: names of the settings that the command line, a caller or the grid gave.

    Raises:
        UsageError: none of `mains` has a value, and a given setting of `names` is not its default.
    """
    if any(getattr(settings, main) is not None for main in mains):
        return
    for name in names:
        if name in given and getattr(settings, name) != type(settings).model_fields[name].default:
            needed = " or ".join(option_name(main) for main in mains)
            verb = "are" if len(mains) > 1 else "is"
            raise UsageError(f"{option_name(name)} belongs to {needed}, which {verb} not given")


def check_settings(settings: CellSettings, given: Set[str]) -> None:
    """Refuse settings that a server cannot have, or that need one, which would otherwise be ignored silently.

    Args:
        given: names of the settings that the command line, a caller or the grid gave for the cell.

    Raises:
        UsageError: a setting is refused.
    """
    endpoint = Endpoint.of(settings)
    if endpoint is None:
        refuse_without(("endpoint",), ENDPOINT_SETTINGS, settings, given)
        return
    check_url(endpoint.url)
    _ = endpoint.extra
    engine_defaults = {"state": None, "adapter": NO_ADAPTER, "strategy": "auto", "backend": "auto"}
    for name, value in engine_defaults.items():
        if getattr(settings, name) != value:
            raise UsageError(
                f"{option_name(name)} is of a model in this process, and --endpoint is given",
                hint="leave one of the two out; the server has its own options",
            )
    if "model" in given and settings.model is not None:
        raise UsageError("--model and --endpoint are both given", hint="--endpoint-model names the model of the server")
    if endpoint.api != "chat":
        return
    template_defaults = {
        "think": "off",
        "reply_prefix": "",
        "template": None,
        "prelude": None,
        "bos": "auto",
        "turn_end": "auto",
    }
    for name, value in template_defaults.items():
        if getattr(settings, name) != value:
            raise UsageError(
                f"{option_name(name)} changes the prompt, which the server's own template makes with "
                "--endpoint-api chat",
                hint="use --endpoint-api completions, or a field of the server with --endpoint-body",
            )
