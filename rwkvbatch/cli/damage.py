"""`rwkvbatch model damage`."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rwkvbatch.cli.command import examples
from rwkvbatch.cli.exits import message, print_json
from rwkvbatch.cli.options import JsonOption, ModelArgument, QuietOption, option, script_limits, with_settings
from rwkvbatch.errors import InputError, UsageError, counted

if TYPE_CHECKING:
    from rwkvbatch.bench.damage import Damage, Estimate, ScoredText
    from rwkvbatch.model.base import Model
    from rwkvbatch.prompt.tokenizer import Tokenizer

DAMAGE_EPILOG = examples(
    'rwkvbatch model damage NAME --strategy "cpu int4" --against "cpu bf16" --texts wiki.jsonl',
    'rwkvbatch model damage NAME --strategy "cpu int4" --against "cpu bf16" --script chats.jsonl',
    "rwkvbatch model damage name-int4 --against NAME --texts texts/",
    "rwkvbatch model damage step-2000.pth --against step-1000.pth --texts wiki.jsonl",
    note="Do not judge a rounding by nll alone: long reasoning suffers first. Replay scripts with both too, and "
    "compare the runs.",
)

DIALOGUE_SETTINGS = (
    *("template", "think", "turn_end", "reply_prefix", "bos", "system", "prelude", "max_tokens", "only", "limit"),
)
"""Settings of `--script`."""


@with_settings("strategy", "backend", "threads", "vocab", *DIALOGUE_SETTINGS)
def damage_command(
    against: Annotated[
        str,
        option("--against", 'Reference of the comparison: a strategy, such as "cpu bf16", or a checkpoint.', "TEXT"),
    ],
    model: ModelArgument = None,
    texts: Annotated[
        list[str] | None, option("--texts", "Text files, JSON lines with text, folders; may be repeated.", "FILE")
    ] = None,
    script: Annotated[
        list[Path] | None, option("--script", "Conversations, whose references count; may be repeated.", "FILE")
    ] = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Measure on texts or dialogues what a rounding changes: next-token distributions, likeliest tokens, perplexity.

    Compares a checkpoint under --strategy with itself under the strategy --against, or with the checkpoint --against.
    Both are in memory. With --script the reference replies count, each after the dialogue before it; turns without one
    are answered greedily by the model that is compared with. Intervals are of 95 %, clustered by document or
    conversation.
    """
    from rwkvbatch.bench.damage import damage

    if texts and script:
        raise UsageError("--texts and --script are both given", hint="leave one of the two out")
    if not (texts or script):
        raise UsageError("model damage needs texts to compare on", hint="give one of --texts and --script")
    dialogue = {name: settings.pop(name) for name in DIALOGUE_SETTINGS if name in settings}
    if texts and dialogue:
        raise UsageError(f"--{next(iter(dialogue)).replace('_', '-')} belongs to --script, which is not given")
    vocab = settings.pop("vocab", None)
    reference, other = _models(model, against, settings)
    tokenizer = _tokenizer(reference, other, vocab)
    notify = partial(message, quiet=quiet)
    if texts:
        scored_texts = _of_documents(texts, tokenizer)
    else:
        scored_texts = _of_dialogues(script or [], {**dialogue, "vocab": vocab}, (reference, other), tokenizer, notify)
    result = damage(reference, other, scored_texts, notify)
    if json_output:
        print_json(asdict(result), indent=None)
    else:
        _show(result, "conversation" if script else "document")


def _models(model: str | None, against: str, settings: dict[str, Any]) -> tuple[Model, Model]:
    """The model that `--against` gives, and the measured model."""
    from rwkvbatch.config import RunSettings
    from rwkvbatch.config.sources import checked_values
    from rwkvbatch.model.load import load_model
    from rwkvbatch.model.strategy import looks_like_strategy, parse_strategy

    checked = RunSettings(**checked_values(settings))
    load = partial(load_model, backend=checked.backend, threads=checked.threads)
    if looks_like_strategy(against):
        parse_strategy(against)
        reference = load(model, against)
        model = reference.spec.path  # the same file, without the warning that several files have its name
    else:
        reference = load(against, "auto")
    return reference, load(model, checked.strategy)


def _tokenizer(reference: Model, other: Model, vocab: str | None) -> Tokenizer:
    """The tokenizer of both models; raises `UsageError` if theirs differ."""
    from rwkvbatch.prompt.vocabulary import tokenizer_of

    tokenizer = tokenizer_of(other.spec, vocab)
    try:
        reference_tokenizer = tokenizer_of(reference.spec, vocab)
    except (InputError, UsageError):  # unknown, so it is assumed to be the same
        return tokenizer
    if reference_tokenizer.sha256 != tokenizer.sha256:
        names = f"{reference_tokenizer.name} and {tokenizer.name}"
        raise UsageError(
            f"the models have different tokenizers, {names}, and cannot be compared",
            hint="--vocab FILE gives both the same one",
        )
    return tokenizer


def _of_documents(paths: list[str], tokenizer: Tokenizer) -> list[ScoredText]:
    from rwkvbatch.bench.damage import texts_of_documents
    from rwkvbatch.script.documents import read_documents

    return texts_of_documents(read_documents(paths, limits=script_limits()).conversations, tokenizer.encode)


def _of_dialogues(
    script: list[Path], settings: dict[str, Any], models: tuple[Model, Model], tokenizer: Tokenizer, notify: Any
) -> list[ScoredText]:
    from rwkvbatch.bench.damage_dialogues import texts_of_dialogues
    from rwkvbatch.engine.engine import Engine
    from rwkvbatch.replay.prepare import prepare

    reference, other = models
    run_settings: Any = {**script_limits().model_dump(), **settings, "preset": "greedy", "history": "gold"}
    plan = prepare([str(path) for path in script], **run_settings).plan
    if len(plan.cells) > 1:
        raise UsageError("model damage compares two models, and a grid of other settings has no place there")
    return texts_of_dialogues(Engine(reference, tokenizer=tokenizer), plan, other.spec.weights_sha256, notify)


def _show(result: Damage, unit: str) -> None:
    from rwkvbatch.cli.views import console, facts_table
    from rwkvbatch.prompt.escaping import printable
    from rwkvbatch.results.summary import OVERFLOW

    def text(value: float, style: str) -> str:
        return OVERFLOW if math.isinf(value) else f"{value:{style}}"

    def interval(estimate: Estimate, style: str) -> str:
        if estimate.low is None or estimate.high is None:
            reason = f"one {unit}" if result.num_documents == 1 else f"the same in every {unit}"
            return f"{text(estimate.mean, style)} (no interval: {reason})"
        return f"{text(estimate.mean, style)} ({text(estimate.low, style)} to {text(estimate.high, style)})"

    worst = result.worst
    facts = {
        "model": printable(result.other),
        "against": printable(result.reference),
        "texts": f"{counted(result.num_documents, unit)}, {counted(result.num_tokens, 'token')}",
        "KL, nats a token": interval(result.divergence, ".5f"),
        "KL, 99 %": f"{result.divergence_tail:.5f}",
        "KL, worst": f"{worst.divergence:.3f} (token {worst.position:,} of {printable(worst.document)})",
        "same likeliest token": interval(result.same_token, ".2%"),
        "perplexity": f"{text(result.other_perplexity, '.5g')} against {text(result.reference_perplexity, '.5g')}",
        "perplexity ratio": interval(result.perplexity_ratio, ".5f"),
    }
    console().print(facts_table(facts))
