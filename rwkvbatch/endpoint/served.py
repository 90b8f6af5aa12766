"""A served model: which one it is, what is known about it, and what an endpoint's settings exclude."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from rwkvbatch.config import NO_ADAPTER, CellSettings, EndpointApi
from rwkvbatch.endpoint.client import Client, check_url
from rwkvbatch.errors import EndpointError, UnreachableError, UsageError, WorkerError, parsing_problem
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.prompt.tokenizer import MIN_VOCAB_SIZE
from rwkvbatch.setting_names import option_name

WORLD_SIZE = 65_536
MAX_NAMES = 20
RESERVED = frozenset({"model", "prompt", "messages", "stream", "stream_options", "n", "echo"})
"""Fields of a body that are this program's."""


@dataclass(frozen=True)
class Endpoint:
    """A server and a model there, as settings name them. `model` is empty for the only one that the server lists."""

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
        """Further fields of each body; raises as `extra_fields`."""
        return extra_fields(self.body)


@dataclass(frozen=True)
class ServedSpec:
    """What is known about a served model, under the names of `ModelSpec`.

    Attributes:
        name: the model's, as the server calls it.
        weights_sha256: not of weights, which nobody can see: of the URL and the name.
        vocab_size: of the vocabulary that counts tokens: what the server's list says, as llama.cpp's (`meta.n_vocab`)
            and our own (`vocab_size`) do, or World's.
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

    @property
    def path(self) -> str:
        return f"{self.url} {self.name}"

    @property
    def in_words(self) -> str:
        return f"{self.name} at {self.url}"


@dataclass(frozen=True)
class ServedModel:
    """Takes the place of an engine's model."""

    spec: ServedSpec


def served_spec(endpoint: Endpoint, client: Client) -> ServedSpec:
    """Ask the server for its models, and take the one that the endpoint names.

    Raises:
        UsageError: the server lists several and none is named, or the key is refused. A named model that the list
            lacks is taken: servers list aliases, or nothing.
        UnreachableError: the server cannot be reached, or does not answer.
    """
    try:
        listed = client.get("models")
    except (WorkerError, EndpointError) as error:
        named = error.message if endpoint.url in error.message else f"{endpoint.url}/models: {error.message}"
        raise UnreachableError(f"--endpoint {named}", hint=error.hint) from None
    entries = _entries(listed)
    names = list(entries)
    name = endpoint.model
    if not name:
        if len(names) != 1:
            shown = ", ".join(client.words(each) for each in names[:MAX_NAMES]) or "none"
            option = client.options.names.model
            raise UsageError(f"{endpoint.url} lists {len(names)} models: {shown}", hint=f"name one with {option}")
        name = names[0]
    sha256 = hashlib.sha256(f"endpoint\0{endpoint.url}\0{name}".encode("utf-8", "replace")).hexdigest()
    shown = printable(name, keep_newlines=False)
    return ServedSpec(endpoint.url, shown, endpoint.api, sha256, entries.get(name) or WORLD_SIZE)


def _entries(listed: Mapping[str, Any] | None) -> dict[str, int | None]:
    """The names of the models that the server lists, and the sizes of their vocabularies where it says them."""
    match listed:
        case {"data": [*entries]}:
            found: dict[str, int | None] = {}
            for each in entries:
                match each:
                    case {"id": str() as name, "meta": {"n_vocab": int() as size}} if MIN_VOCAB_SIZE <= size < 2**31:
                        found[name] = size
                    case {"id": str() as name, "vocab_size": int() as size} if MIN_VOCAB_SIZE <= size < 2**31:
                        found[name] = size
                    case {"id": str() as name}:
                        found[name] = None
                    case _:
                        pass
            return found
        case _:
            return {}


def extra_fields(body: str, option: str = "--endpoint-body") -> dict[str, Any]:
    """The fields that an option gives; raises `UsageError` if it is not an object, or has a reserved one."""
    if not body:
        return {}
    example = """such as '{"chat_template_kwargs": {"enable_thinking": false}}'"""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option} is not JSON: {parsing_problem(error)}", hint=f"give an object, {example}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{option} must be a JSON object, {example}")
    fields = cast("dict[str, Any]", found)
    if own := sorted(fields.keys() & RESERVED):
        raise UsageError(f"{option} must not set {', '.join(own)}, which this program sets")
    return fields


def check_settings(settings: CellSettings, given: frozenset[str]) -> None:
    """Refuse what a server cannot do, so that no setting is ignored without a word.

    Args:
        given: names of the settings that were given for the cell or for all.

    Raises:
        UsageError: names the setting.
    """
    endpoint = Endpoint.of(settings)
    if endpoint is None:
        for name in ("endpoint_model", "endpoint_body"):
            if getattr(settings, name):
                raise UsageError(f"{option_name(name)} belongs to --endpoint, which is not given")
        return
    check_url(endpoint.url)
    _ = endpoint.extra
    of_engine = {"state": None, "adapter": NO_ADAPTER, "strategy": "auto", "backend": "auto"}
    for name, value in of_engine.items():
        if getattr(settings, name) != value:
            raise UsageError(
                f"{option_name(name)} is of a model in this process, and --endpoint is given",
                hint="leave one of the two out; the server has its own options",
            )
    if "model" in given and settings.model is not None:
        raise UsageError("--model and --endpoint are both given", hint="--endpoint-model names the model of the server")
    if endpoint.api != "chat":
        return
    of_template = {
        "think": "off",
        "reply_prefix": "",
        "template": None,
        "prelude": None,
        "bos": "auto",
        "turn_end": "auto",
    }
    for name, value in of_template.items():
        if getattr(settings, name) != value:
            raise UsageError(
                f"{option_name(name)} changes the prompt, which the server's own template makes with "
                "--endpoint-api chat",
                hint="use --endpoint-api completions, or a field of the server with --endpoint-body",
            )
