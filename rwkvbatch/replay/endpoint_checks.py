"""Checks a plan against the servers of its cells, so that no run begins whose rows could not be generated or scored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from rwkvbatch.config import CellSettings
from rwkvbatch.endpoint.served import RequestLimits, ServedSpec, weights_of
from rwkvbatch.errors import UsageError, listed
from rwkvbatch.prompt.templates import load_template
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.replay.planning.plan import Plan, Task
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.script.lines import refuse
from rwkvbatch.script.records import Conversation, Turn

SHOWN_IDS = 3
_log = logging.getLogger(__name__)
_LIMITED = frozenset({"max_tokens", "stop", "no_penalty", "turn_end"})


def check_interface(plan: Plan) -> None:
    """Refuse plain texts and texts to score where a server applies its own template; needs no server.

    Raises:
        UsageError: a cell has `--endpoint-api chat`, and a conversation has choices or a plain text.
    """
    if not any(settings.uses_chat_api for settings in plan.cell_settings):
        return
    ids = [c.id for c in map(plan.conversations.__getitem__, plan.chosen) if any(map(_is_text, c.turns))]
    if ids:
        raise UsageError(
            "--endpoint-api chat applies a template and gives no log-probabilities of given texts, so that it has "
            "neither plain texts nor choices: "
            f"{len(ids):,} of {len(plan.chosen):,} conversations have some ({listed(ids, SHOWN_IDS)})",
            hint="use --endpoint-api completions or completions-ids, or choose other conversations with --only",
        )


def _is_text(turn: Turn) -> bool:
    return turn.plain or bool(turn.choices)


def check_server(plan: Plan, setup: Setup, spec: ServedSpec, tokenizer: Tokenizer) -> None:
    """Check the prompts and settings of a setup's cells against what its server takes.

    Raises:
        UsageError: prompts begin with token 0, and are sent as text; or a setting is beyond a limit.
        ScriptError: the same for a conversation's params.
    """
    if spec.takes_ids(tokenizer):
        if spec.api == "completions":
            _log.info("%s has the same vocabulary: prompts are sent as token ids", spec.in_words)
    elif (problem := token_0_problem(plan, setup)) is not None:
        raise UsageError(problem, hint=TOKEN_0_HINT)
    if spec.own is not None:
        _check_limits(plan, setup, spec, spec.own.request_limits)


TOKEN_0_HINT = (
    "use --endpoint-api completions-ids if the server's model has the same vocabulary, "
    "or --bos off, with which the server may add it"
)


def token_0_problem(plan: Plan, setup: Setup) -> str | None:
    """The problem with a setup's prompts that begin with token 0 and are sent as text; None without such prompts."""
    if setup.endpoint is None or setup.endpoint.api != "completions":
        return None
    ids = list(dict.fromkeys(task.conversation.id for task in _tasks(plan, setup, _may_begin) if _begins(task)))
    if not ids:
        return None
    return (
        f"{len(ids):,} of {len(plan.chosen):,} conversations ({listed(ids, SHOWN_IDS)}) begin with token 0 "
        "(--bos; by default before plain texts), which --endpoint-api completions cannot send as text"
    )


def _may_begin(plan: Plan, setup: Setup, conversation: Conversation) -> bool:
    is_on = any(plan.cell_settings[cell].begins_with_bos() for cell in setup.cells)
    return is_on or "bos" in conversation.params or any(turn.plain for turn in conversation.turns)


def _begins(task: Task) -> bool:
    turns = enumerate(task.conversation.turns)
    return any(task.of_turn(number).settings.begins_with_bos(plain_text=turn.plain) for number, turn in turns)


def _tasks(plan: Plan, setup: Setup, wanted: Callable[[Plan, Setup, Conversation], bool]) -> Iterator[Task]:
    """The first repetition of the wanted conversations in each of the setup's cells."""
    for number in plan.chosen:
        if wanted(plan, setup, plan.conversations[number]):
            yield from (plan.task(plan.number_of(number, cell, 0)) for cell in setup.cells)


def _has_limited(plan: Plan, setup: Setup, conversation: Conversation) -> bool:
    del plan, setup
    return any(turn.generate and _limits_itself(conversation, turn) for turn in conversation.turns)


def _limits_itself(conversation: Conversation, turn: Turn) -> bool:
    """Whether params of the conversation or the turn give a setting that the server limits."""
    return bool(_LIMITED & (conversation.params.keys() | turn.params.keys()))


def _check_limits(plan: Plan, setup: Setup, spec: ServedSpec, limits: RequestLimits) -> None:
    """Check the settings of the turns that generate, and no others: those of cells by the names of their options."""

    def template_stops(settings: CellSettings, plain: bool) -> Sequence[str]:
        return () if plain or settings.uses_chat_api else load_template(settings.prompting, weights_of(spec)).stops

    chosen = map(plan.conversations.__getitem__, plan.chosen)
    for plain in {
        turn.plain
        for conversation in chosen
        for turn in conversation.turns
        if turn.generate and not _limits_itself(conversation, turn)
    }:
        for cell in setup.cells:
            limits.check(plan.cell_settings[cell], template_stops(plan.cell_settings[cell], plain))
    for task in _tasks(plan, setup, _has_limited):
        for number, turn in enumerate(task.conversation.turns):
            if not turn.generate or not _limits_itself(task.conversation, turn):
                continue
            settings = task.of_turn(number).settings
            try:
                limits.check(settings, template_stops(settings, turn.plain), f"params of turn {number}: ")
            except UsageError as error:
                refuse(task.conversation.source, error.message, error.hint)
