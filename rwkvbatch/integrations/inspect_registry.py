"""The entry point for Inspect: the provider `rwkvbatch`, which is imported only when one of its models is requested."""

from __future__ import annotations

from typing import Any

from inspect_ai.model import modelapi  # pyright: ignore[reportMissingImports]


@modelapi(name="rwkvbatch")
def rwkvbatch() -> Any:
    """The provider's class."""
    from rwkvbatch.integrations.inspect_provider import RwkvBatchAPI

    return RwkvBatchAPI
