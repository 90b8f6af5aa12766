"""Loads the model and runs the HTTP server: address, signals, shutdown.

Starlette and uvicorn belong to the extra `serve`; only this module, `app` and `connection` import them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import ipaddress
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from rwkvbatch import __version__
from rwkvbatch.config import CellSettings, RunSettings
from rwkvbatch.engine.engine import DEFAULT_STATE_MEMORY, Engine
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import Model, State
from rwkvbatch.model.load import load_model
from rwkvbatch.model.model_files import resolve_model_path
from rwkvbatch.model.ops import rounding_rules
from rwkvbatch.model.states import load_state
from rwkvbatch.prompt.templates import load_prelude, load_template
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.prompt.vocabulary import tokenizer_of
from rwkvbatch.serve.app import Access, Service
from rwkvbatch.serve.batcher import Batcher
from rwkvbatch.serve.connection import LimitedConnection
from rwkvbatch.serve.protocol import Limits, ServerSettings
from rwkvbatch.serve.replies import Served
from rwkvbatch.signals import call_on_signal

KEY_VARIABLE = "RWKVBATCH_API_KEY"
BUNDLED_NAME = "rwkvbatch-demo"
NO_STATE = "none"
"""The name of the zero state."""
DEFAULT_STATE = "default"
"""The name of the state that --state gives."""

DEFAULT_MAX_PROMPT_TOKENS = 65_536
KEEP_ALIVE_SECONDS = 30
GRACE_SECONDS = 10
"""Time that replies under way have when the server is asked to stop."""
ERROR_SECONDS = 2
"""Time that clients have thereafter to read the errors that end the unfinished replies."""
SWITCH_SECONDS = 0.0005
"""Thread switch interval. With the default of 5 ms, the engine's thread would wait so long for the HTTP server's thread
after each forward pass."""


@dataclass(frozen=True)
class ServeArguments:
    """The arguments of the command line.

    Attributes:
        settings: settings of the model, and defaults for requests.
        seed: seed of requests without one; None draws a seed for each.
        named_states: by name, the files of initial states.
        max_queue: number of replies that may wait in addition to a full batch.
        max_reply_tokens: largest number of tokens that a request may ask for.
        key: the bearer token that clients must send; None for none.
    """

    settings: RunSettings
    host: str = "127.0.0.1"
    port: int = 8000
    served_name: str | None = None
    seed: int | None = None
    named_states: Mapping[str, str] = field(default_factory=dict[str, str])
    max_queue: int = 1024
    max_reply_tokens: int = 4096
    key: str | None = None


def named_states(texts: list[str]) -> dict[str, str]:
    """By name, the files of initial states that are given as `NAME=FILE`; raises `UsageError`."""
    paths: dict[str, str] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not sign or not name or not path or name in (NO_STATE, DEFAULT_STATE):
            problem = f"must be NAME=FILE, and {NO_STATE} and {DEFAULT_STATE} are taken"
            raise UsageError(f"--named-state {problem}; got {text!r}")
        if name in paths:
            raise UsageError(f"--named-state gives {name!r} twice")
        paths[name] = path
    return paths


class LoadedServer:
    """A loaded model, its description for the HTTP handlers, and its batcher.

    Raises:
        RwkvBatchError: the model, a state, a template or a setting cannot be used.
    """

    def __init__(self, arguments: ServeArguments) -> None:
        settings = arguments.settings
        self.arguments = arguments
        if "max_tokens" in settings.model_fields_set and settings.max_tokens > arguments.max_reply_tokens:
            raise UsageError(
                f"--max-tokens {settings.max_tokens} is more than a reply may have (--max-reply-tokens "
                f"{arguments.max_reply_tokens})",
                hint="raise --max-reply-tokens, or lower --max-tokens",
            )
        resolved = resolve_model_path(settings.model)
        defaults = settings.part(CellSettings)
        model = load_model(
            settings.model, settings.strategy, settings.backend, threads=settings.threads, adapter=settings.adapter
        )
        tokenizer = tokenizer_of(model.spec, settings.vocab)
        defaults.check_vocabulary(model.spec.vocab_size, "--ban")
        load_template(defaults.prompting)
        paths = {**({} if settings.state is None else {DEFAULT_STATE: settings.state}), **arguments.named_states}
        states = {name: load_state(path, model.spec) for name, path in paths.items()}
        self.model = model
        self.served = Served(
            spec=model.spec,
            tokenizer=tokenizer,
            name=arguments.served_name or (BUNDLED_NAME if resolved.bundled else Path(model.spec.path).stem),
            created=int(time.time()),
            settings=ServerSettings(defaults, top_p_given="top_p" in settings.model_fields_set),
            prelude=load_prelude(settings.prelude),
            roots={NO_STATE: 0, **{name: number for number, name in enumerate(states, start=1)}},
            root=0 if settings.state is None else 1,
            seed=arguments.seed,
            limits=Limits(settings.max_prompt_tokens or DEFAULT_MAX_PROMPT_TOKENS, arguments.max_reply_tokens),
            fingerprint=_fingerprint(model, tokenizer),
        )
        memory = settings.state_memory or DEFAULT_STATE_MEMORY
        self.batcher = Batcher(
            lambda: _engine(model, tokenizer, settings.batch_size, memory, states),
            settings.batch_size + arguments.max_queue,
        )

    @property
    def is_open_to_others(self) -> bool:
        """Whether other machines can use the server without a key."""
        return self.arguments.key is None and not _is_loopback(self.arguments.host)

    def service(self) -> Service:
        """The HTTP handlers."""
        arguments = self.arguments
        loopback = frozenset({"localhost", "127.0.0.1", "[::1]", arguments.host})
        return Service(
            self.served, self.batcher, Access(arguments.key, loopback if _is_loopback(arguments.host) else None)
        )


def _engine(model: Model, tokenizer: Tokenizer, batch: int, memory: int, states: Mapping[str, State]) -> Engine:
    engine = Engine(model, tokenizer=tokenizer, max_batch=batch, state_memory=memory)
    for state in states.values():
        engine.add_root(state)
    return engine


def _fingerprint(model: Model, tokenizer: Tokenizer) -> str:
    spec = model.spec
    rules = [f"{name} {version}" for name, version in rounding_rules(spec.dtype).items()]
    parts = (__version__, spec.weights_sha256, spec.backend, spec.device, spec.dtype, *rules, tokenizer.sha256)
    return "fp_" + hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    """uvicorn's server with this program's signal handling and shutdown.

    Args:
        batcher: is closed after `GRACE_SECONDS`, which ends unfinished replies with an error that clients can read.
        notify: prints a message about the shutdown.
    """

    def __init__(self, config: uvicorn.Config, batcher: Batcher, notify: Callable[[str], None]) -> None:
        super().__init__(config)
        self._batcher = batcher
        self._notify = notify

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with call_on_signal(self.stop):
            yield

    def stop(self) -> None:
        """Accept no more requests, and end when those under way have ended.

        Replies have `GRACE_SECONDS`; the server ends after at most `ERROR_SECONDS` more.
        """
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if number := self._batcher.num_unfinished:
            self._notify(
                f"stopping after the unfinished replies ({number}), which have {GRACE_SECONDS} s; the server ends "
                f"after at most {GRACE_SECONDS + ERROR_SECONDS} s, and at once after a second signal"
            )
        timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._end_replies)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _end_replies(self) -> None:
        if number := self._batcher.num_unfinished:
            self._notify(f"ended the unfinished replies ({number}) with an error, because {GRACE_SECONDS} s are over")
        self._batcher.close()


class Serving:
    """A server that listens at `url`. `run` serves until a signal arrives or a thread calls `stop`.

    Args:
        notify: is called with messages about the end.

    Raises:
        UsageError: the address cannot be used.
    """

    def __init__(self, loaded: LoadedServer, notify: Callable[[str], None] = lambda _: None) -> None:
        arguments = loaded.arguments
        self._batcher = loaded.batcher
        self.service = loaded.service()
        self._socket = _listen(arguments.host, arguments.port)
        port = self._socket.getsockname()[1]
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        self.url = f"http://{host}:{port}"
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # no warnings about clients that left during a response
        options: dict[str, Any] = {
            "http": LimitedConnection,
            "ws": "none",
            "loop": "asyncio",
            "lifespan": "off",
            "log_config": None,
            "access_log": False,
            "proxy_headers": False,
            "server_header": False,
            "timeout_keep_alive": KEEP_ALIVE_SECONDS,
            "timeout_graceful_shutdown": GRACE_SECONDS + ERROR_SECONDS,
            "limit_concurrency": max(16, min(8192, files - 128)),
        }
        self._server = _Server(uvicorn.Config(self.service.app(), **options), self._batcher, notify)

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve; `ready` is called when requests are accepted."""
        former_interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.freeze()  # excludes the permanent objects of the model and the libraries: scanning them delays all replies
        try:
            asyncio.run(self._serve(ready))
        finally:
            gc.unfreeze()
            sys.setswitchinterval(former_interval)
            self._socket.close()

    def stop(self) -> None:
        """End `run` when the replies under way have ended.

        Replies have `GRACE_SECONDS`; `run` ends after at most `ERROR_SECONDS` more.
        """
        self._server.stop()

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._batcher.start(asyncio.get_running_loop())
        try:
            ready()
            await self._server.serve(sockets=[self._socket])
        finally:
            self._batcher.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; raises `UsageError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(2048)
        except BaseException:  # also KeyboardInterrupt: nothing else would close the socket
            listening.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        problem = getattr(error, "strerror", None) or error
        is_taken = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        hint = "try --port 0" if is_taken else "give an address of this machine, such as 127.0.0.1 or 0.0.0.0"
        raise UsageError(f"--host {host} --port {port}: cannot listen there: {problem}", hint=hint) from None
    return listening


def key_from_environment() -> str | None:
    """The key that clients must send, None for none; raises `UsageError` for characters that are not allowed."""
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(f"{KEY_VARIABLE} must be ASCII characters without spaces")
    return key
