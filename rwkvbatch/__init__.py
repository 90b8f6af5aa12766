"""Replay scripted multi-turn conversations against RWKV language models, many at once.

The names below are imported when they are first used, so that `import rwkvbatch` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvbatch.config import Sampling as Sampling
    from rwkvbatch.config import Stopping as Stopping
    from rwkvbatch.engine.engine import Engine as Engine
    from rwkvbatch.engine.request import NoiseKey as NoiseKey
    from rwkvbatch.engine.request import Reply as Reply
    from rwkvbatch.engine.request import Request as Request
    from rwkvbatch.model.base import Model as Model
    from rwkvbatch.model.base import ModelSpec as ModelSpec
    from rwkvbatch.model.base import State as State
    from rwkvbatch.model.load import load_model as load_model
    from rwkvbatch.replay.api import run as run

_HOMES = {
    "Engine": "rwkvbatch.engine.engine",
    "Model": "rwkvbatch.model.base",
    "ModelSpec": "rwkvbatch.model.base",
    "NoiseKey": "rwkvbatch.engine.request",
    "Reply": "rwkvbatch.engine.request",
    "Request": "rwkvbatch.engine.request",
    "Sampling": "rwkvbatch.config",
    "State": "rwkvbatch.model.base",
    "Stopping": "rwkvbatch.config",
    "load_model": "rwkvbatch.model.load",
    "run": "rwkvbatch.replay.api",
}

__all__ = [
    "Engine",
    "Model",
    "ModelSpec",
    "NoiseKey",
    "Reply",
    "Request",
    "Sampling",
    "State",
    "Stopping",
    "__version__",
    "load_model",
    "run",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'rwkvbatch' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
