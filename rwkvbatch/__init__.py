"""Replay scripted multi-turn conversations against RWKV language models, many at once.

`LLM` generates, chats and scores; `run` and `compare` replay scripts and compare runs. Each name is imported when it is
first used, so that `import rwkvbatch` loads neither torch nor pandas.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # type checkers know this name; importing `typing` would delay the handling of signals

if sys.platform == "win32":
    raise ImportError("rwkvbatch runs on Linux and macOS; on Windows, install and use it in WSL (wsl --install)")

if TYPE_CHECKING:
    from typing import Any

    from rwkvbatch.comparison import compare as compare
    from rwkvbatch.config import Sampling as Sampling
    from rwkvbatch.config import SamplingParams as SamplingParams
    from rwkvbatch.engine.engine import Engine as Engine
    from rwkvbatch.engine.request import NoiseKey as NoiseKey
    from rwkvbatch.engine.request import Reply as Reply
    from rwkvbatch.engine.request import Request as Request
    from rwkvbatch.llm import LLM as LLM
    from rwkvbatch.model.base import Model as Model
    from rwkvbatch.model.base import ModelSpec as ModelSpec
    from rwkvbatch.model.base import State as State
    from rwkvbatch.model.load import load_model as load_model
    from rwkvbatch.model.states import load_state as load_state
    from rwkvbatch.model.states import save_state as save_state
    from rwkvbatch.replay.api import run as run

_MODULES = {
    "Engine": "rwkvbatch.engine.engine",
    "LLM": "rwkvbatch.llm",
    "Model": "rwkvbatch.model.base",
    "ModelSpec": "rwkvbatch.model.base",
    "NoiseKey": "rwkvbatch.engine.request",
    "Reply": "rwkvbatch.engine.request",
    "Request": "rwkvbatch.engine.request",
    "Sampling": "rwkvbatch.config",
    "SamplingParams": "rwkvbatch.config",
    "State": "rwkvbatch.model.base",
    "compare": "rwkvbatch.comparison",
    "load_model": "rwkvbatch.model.load",
    "load_state": "rwkvbatch.model.states",
    "run": "rwkvbatch.replay.api",
    "save_state": "rwkvbatch.model.states",
}

__all__ = [
    "LLM",
    "Engine",
    "Model",
    "ModelSpec",
    "NoiseKey",
    "Reply",
    "Request",
    "Sampling",
    "SamplingParams",
    "State",
    "__version__",
    "compare",
    "load_model",
    "load_state",
    "run",
    "save_state",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    from importlib import import_module

    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'rwkvbatch' has no attribute {name!r}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
