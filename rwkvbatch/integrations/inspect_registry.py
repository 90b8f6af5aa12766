"""The entry point of Inspect: the provider `rwkvbatch`, which is imported when a model of it is asked for."""

from __future__ import annotations

from typing import Any

from inspect_ai.model import modelapi  # pyright: ignore[reportMissingImports]


@modelapi(name="rwkvbatch")
def rwkvbatch() -> Any:
    """The class of the provider."""
    from rwkvbatch.integrations.inspect_provider import RwkvBatchAPI

    return RwkvBatchAPI
