"""`rwkvbatch serve`."""

from __future__ import annotations

import os
from typing import Annotated, Any

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import message, print_json
from rwkvbatch.cli.options import OUTPUT_PANEL, ConfigOption, QuietOption, option, with_settings
from rwkvbatch.config import DialoguePrompt, Sampling, Stopping

PANEL = "The server"

app = command_app()


@app.command(
    "serve",
    cls=Command,
    epilog=examples(
        "rwkvbatch serve",
        "rwkvbatch serve --model rwkv7-g1k-1.5b --preset g1-demo --served-name g1",
        "RWKVBATCH_API_KEY=secret rwkvbatch serve --host 0.0.0.0 --port 8080",
        "rwkvbatch serve --named-state poet=poet.pth --named-state coder=coder.pth",
    ),
)
@with_settings(
    *("model", "adapter", "strategy", "backend", "state", "threads", "batch_size", "state_memory", "vocab"),
    *("preset", *Sampling.model_fields, "seed", *Stopping.model_fields),
    *(*DialoguePrompt.model_fields, "template", "prelude", "max_prompt_tokens"),
    seed="Seed of requests without one. [dim]Default: a new seed for each, named in the response[/]",
    batch_size="Replies generated at the same time. Changes no reply. [dim]Default: 32[/]",
    bos="Token 0 before the first token: on, off; auto is off.",
    max_prompt_tokens="A request with a longer prompt is refused. [dim]Default: 65536[/]",
)
def serve_command(
    host: Annotated[str, option("--host", "Address to listen at.", "ADDRESS", PANEL)] = "127.0.0.1",
    port: Annotated[
        int, option("--port", "Port to listen at; 0 takes a free one.", "N", PANEL, min=0, max=65535)
    ] = 8000,
    served_name: Annotated[
        str | None, option("--served-name", "The model's name for clients. [dim]Default: the file's[/]", "NAME", PANEL)
    ] = None,
    named_state: Annotated[
        list[str] | None,
        option("--named-state", "An initial state that requests may name; may be repeated.", "NAME=FILE", PANEL),
    ] = None,
    max_queue: Annotated[
        int, option("--max-queue", "Replies that may wait; more are refused with status 429.", "N", PANEL, min=0)
    ] = 1024,
    max_reply_tokens: Annotated[
        int, option("--max-reply-tokens", "The most that a request may ask for.", "N", PANEL, min=1, max=1_000_000)
    ] = 4096,
    json_output: Annotated[
        bool,
        option(
            "--json", "Print the address as one JSON object on standard output when it is ready.", panel=OUTPUT_PANEL
        ),
    ] = False,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Serve a model over HTTP with OpenAI's interface.

    Routes: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health and /metrics.
    All requests share one batch and one prefix cache; a reply depends on its request and seed alone. If
    $RWKVBATCH_API_KEY is set, clients must send it. Ctrl-C ends the server after the unfinished replies.
    """
    from rwkvbatch.config.sources import naming_origins, resolve_settings
    from rwkvbatch.errors import MissingExtraError

    resolved = resolve_settings(settings, environment=os.environ, config=config)
    try:
        from rwkvbatch.serve.server import LoadedServer, ServeArguments, Serving, key_from_environment, named_states
    except ModuleNotFoundError as error:
        text = f"rwkvbatch serve needs the package {error.name}, which is not installed"
        raise MissingExtraError(text, extra="serve") from None

    with naming_origins(resolved.origins):
        chosen = resolved.settings
        loaded = LoadedServer(
            ServeArguments(
                settings=chosen,
                host=host,
                port=port,
                served_name=served_name,
                seed=chosen.seed if "seed" in chosen.model_fields_set else None,
                named_states=named_states(named_state or []),
                max_queue=max_queue,
                max_reply_tokens=max_reply_tokens,
                key=key_from_environment(),
            )
        )
    serving = Serving(loaded, lambda text: message(text, quiet=quiet))
    spec = loaded.model.spec

    def ready() -> None:
        message(f"serving {loaded.served.name} ({spec.in_words}) at {serving.url}/v1", quiet=quiet)
        if loaded.is_open_to_others:
            message("anyone who can reach this address may use it: RWKVBATCH_API_KEY sets a key", quiet=quiet)
        if json_output:
            print_json({"url": serving.url, "model": loaded.served.name, "pid": os.getpid()}, indent=None)

    serving.run(ready)
