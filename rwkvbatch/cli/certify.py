"""`rwkvbatch certify`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import ExitCode, message, print_json
from rwkvbatch.cli.options import JsonOption, QuietOption, only_variables, option, with_settings

if TYPE_CHECKING:
    from rwkvbatch.bench.certify import Certificate

app = command_app()


@app.command(
    "certify",
    cls=Command,
    epilog=examples(
        "rwkvbatch certify http://127.0.0.1:8080/v1 --model models/rwkv7-g1k-1.5b.pth",
        "rwkvbatch certify http://127.0.0.1:8080/v1 --model m.pth --script chats.jsonl --json",
    ),
)
@with_settings(
    *("model", "strategy", "backend", "vocab", "endpoint_model", "endpoint_api", "endpoint_timeout"),
    *("endpoint_retries", "concurrency", "max_tokens", "limit"),
    endpoint_api="completions-ids (prompts as token ids), or completions (as text). [dim]Default: completions-ids[/]",
    concurrency="Concurrent requests under load. [dim]Default: 16[/]",
    max_tokens="Maximum number of tokens in a reply. [dim]Default: 48[/]",
    endpoint_model="The model's name at the server. [dim]Default: the only one that it lists.[/]",
)
def certify_command(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Base URL of the server, such as http://127.0.0.1:8080/v1.")
    ],
    script: Annotated[
        Path | None, option("--script", "Conversations to compare on. [dim]Default: a few short ones[/]", "FILE")
    ] = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Say whether a served model is the network in a file: the same, rounded (how much), or damaged.

    Also whether it gives the same answer twice, and under load. Exit code 1 if it is damaged.
    """
    from rwkvbatch.bench.certify import certify, options_of
    from rwkvbatch.config import ScriptLimits
    from rwkvbatch.config.sources import naming_origins, resolve_settings

    resolved = resolve_settings(settings, environment=only_variables("model", "vocab", *ScriptLimits.model_fields))
    with naming_origins(resolved.origins):
        certificate = certify(url, options_of(resolved.settings, script), partial(message, quiet=quiet))
    if json_output:
        print_json(certificate.as_dict(), indent=None)
    else:
        _show(certificate)
    if certificate.verdict == "damaged":
        raise typer.Exit(ExitCode.FAILED)


def _show(result: Certificate) -> None:
    from rwkvbatch.prompt.escaping import printable

    def line(text: str) -> None:
        typer.echo(printable(text, keep_newlines=False))

    words = {
        "same": "THE SAME network",
        "rounded": "the same network, ROUNDED",
        "damaged": "DAMAGED: not the network in the file",
    }
    line(f"here    {result.model}")
    line(f"there   {result.server}")
    if result.begins_with_0:
        line("        it reads token 0 before each prompt, which was done here too")
    if result.mean_gap is None:
        line("log-probabilities: the server gives none; the verdict is by the tokens alone, and coarse")
    else:
        scored = f"{result.num_scored:,} of {result.num_tokens:,} tokens"
        gaps = f"{result.mean_gap:.2g} on average, {result.largest_gap:.2g} at most"
        line(f"log-probabilities of {scored} differ by {gaps}")
        line(f"        the most at {result.worst}")
    line(f"greedy tokens of the server that are greedy here too: {result.agreement:.1%}")
    line(f"replies: {result.same_replies} of {result.num_replies} are the same text as here")
    line(f"asked twice: {result.repeated} of {result.num_replies} answers are the same")
    line(f"under load, {result.at_once} at a time: {result.under_load} of {result.num_replies} are as alone")
    line(f"verdict: {words[result.verdict]}")
