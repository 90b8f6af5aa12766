"""`rwkvbatch run --dry-run`: the plan, and traps in the script."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rwkvbatch.run.planning.prepare import Prepared

MAX_WARNINGS = 50


def show_plan(prepared: Prepared, *, as_json: bool) -> None:
    """Print what would be run; loads the tokenizer and nothing else."""
    from rich.text import Text

    from rwkvbatch.cli.tables import console, facts_table
    from rwkvbatch.run.preview import preview
    from rwkvbatch.run.turns import Desk
    from rwkvbatch.script.lint import lint
    from rwkvbatch.text.safe import printable
    from rwkvbatch.text.tokenizer import world_tokenizer

    found = preview(prepared.plan, Desk(world_tokenizer()))
    warnings = lint(prepared.plan.conversations)
    if as_json:
        content = {**found.as_dict(), "warnings": [str(warning) for warning in warnings]}
        typer.echo(json.dumps(content, indent=2))
        return
    shared = found.first_prompt_tokens - found.first_prompt_distinct
    facts = {
        "rows": f"{found.rows:,}",
        "conversations": f"{found.conversations:,}",
        "cells": f"{len(found.cells):,}: {'; '.join(found.cells[:8])}{' ...' if len(found.cells) > 8 else ''}",
        "repeats": f"{found.repeats:,}",
        "tokens of first prompts": f"{found.first_prompt_tokens:,}, of which {shared:,} are shared prefixes",
        "tokens of later turns": f"{found.later_turn_tokens:,}, and the replies before them",
        "tokens of replies": f"at most {found.max_reply_tokens:,}",
    }
    console().print(facts_table({name: printable(fact) for name, fact in facts.items()}))
    err = console(stderr=True)
    for warning in warnings[:MAX_WARNINGS]:
        err.print(Text(printable(f"warning: {warning}", keep_newlines=False)), soft_wrap=True)
    if len(warnings) > MAX_WARNINGS:
        err.print(f"and {len(warnings) - MAX_WARNINGS} more warnings")
