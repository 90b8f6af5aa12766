"""What makes runs and pairs less comparable: other scripts, seeds or settings, missing turns; as notes or errors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.pairing.settings import OF_REPLIES, UNRESOLVED
from rwkvbatch.comparison.runs.data import RunData, RunFacts, Variant, as_integer, as_record
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.comparison.values.conversations import judged_repeats
from rwkvbatch.errors import RunMismatchError, UsageError, counted

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


def repeat_notes(
    ks: Sequence[int] | None, matched: Sequence[MatchedRows], variants: Sequence[Variant], table: pd.DataFrame
) -> list[str]:
    """Notes on each k that is larger than the number of repetitions of all, or of some conversations.

    Raises:
        UsageError: every k is larger.
    """
    if not ks:
        return []
    of_pairs: list[list[int]] = []
    for pair_rows in matched:
        baseline, variant = (judged_repeats(pair_rows.columns, side) for side in ("_a", "_b"))
        of_pairs.append([min(baseline[name], variant[name]) for name in baseline.keys() & variant.keys()])
    of_pairs = of_pairs or [list(judged_repeats(rows_of(table, variants[0])).values())]
    largest_k = max((repeats for repeats_of_pair in of_pairs for repeats in repeats_of_pair), default=0)
    too_large = [k for k in ks if k > largest_k]
    names = ", ".join(f"pass_at_{k}" for k in too_large)
    reason = f"conversations with checks have at most {counted(largest_k, 'repetition')}"
    if len(too_large) == len(ks):
        raise UsageError(f"--k: {names} cannot be estimated: {reason}", hint="run again with more --repeats")
    notes = [f"{names} cannot be estimated: {reason}"] if too_large else []
    for k in ks:
        of_pairs_with_k = [(sum(n >= k for n in of_pair), len(of_pair)) for of_pair in of_pairs]
        lacking = [(with_k, num_all) for with_k, num_all in of_pairs_with_k if with_k < num_all]
        if k <= largest_k and lacking:
            with_k, num_conversations = min(lacking)
            as_few_as = "as few as " if len(of_pairs) > 1 else ""
            notes.append(
                f"pass_at_{k}, all_{k} and majority_at_{k} are of {as_few_as}{with_k:,} of "
                f"{num_conversations:,} conversations: the others have fewer than {counted(k, 'repetition')}"
            )
    return notes


def few_conversations_note(runs: Sequence[RunData]) -> str | None:
    """A note on an unfinished run that has rows of at most half of its conversations; None if there is none.

    Its repetitions say nothing about those of the others, so that pass@k has no meaning yet.
    """
    for run in runs:
        script = as_record(run.facts.identity.get("script"))
        planned, there = as_integer(script.get("conversations")), len(run.conversations)
        if run.unfinished and run.facts.part is None and planned is not None and 2 * there <= planned:
            return (
                f"pass@k, all-k and majority@k are left out: {run.source} has rows of {there:,} of "
                f"{counted(planned, 'conversation')} so far; --k asks for them"
            )
    return None


def order_note(runs: Sequence[RunData]) -> str | None:
    """A note for runs whose names differ only in numbers, of which the first, the baseline, is not the smallest."""
    if len(runs) < 2:
        return None
    parts = [re.split(r"(\d+)", run.name) for run in runs]
    if len({tuple(of_run[::2]) for of_run in parts}) > 1:
        return None
    numbers = [tuple(map(int, of_run[1::2])) for of_run in parts]
    smallest = runs[numbers.index(min(numbers))].name
    if numbers[0] == min(numbers):
        return None
    varied = next(index for index, values in enumerate(zip(*numbers, strict=True)) if len(set(values)) > 1)
    word = re.search(r"[A-Za-z]+(?=[-_=.]?$)", parts[0][2 * varied])
    trend = f", and --over {word[0]} tests a trend" if word and len(runs) > 2 else ""
    return (
        f"the baseline is {runs[0].name}, the first run given, and {smallest} has a smaller number (a shell sorts "
        f"names as text): --baseline {smallest} compares with that one{trend}"
    )


def no_common_turn(all_pairs: Sequence[MatchedRows], runs: Sequence[RunData]) -> RunMismatchError:
    """The error for variants of which no pair has a turn in common."""
    names, num_different = "the runs", 0
    if all_pairs:
        refuse_parts(all_pairs[0].pair, runs)
        most_different = max(all_pairs, key=lambda pair_rows: pair_rows.num_different)
        names = f"{most_different.pair.variant.label} and {most_different.pair.baseline.label}"
        num_different = most_different.num_different
    if num_different:
        return RunMismatchError(
            f"{names} have no turn in common: {counted(num_different, 'turn')} with the same conversation id "
            f"{'asks' if num_different == 1 else 'ask'} something else",
            hint="compare runs of the same script: prompts, references and checks must be equal",
        )
    return RunMismatchError(
        f"{names} have no (conversation, turn, repeat) in common",
        hint="compare runs of the same script with cells of the same names, or give --baseline a run or a cell",
    )


_MOST_NOTES: Final = 3
"""The most notes of each kind on turns that are left out, one for each pair; of more pairs, a note has the number."""


def matching_notes(all_pairs: Iterable[MatchedRows]) -> list[str]:
    """What is left out of each pair; of many pairs, the first ones. Cells that a race dropped lack turns as planned."""
    unmatched: list[str] = []
    different: list[str] = []
    for matched in all_pairs:
        baseline, variant = matched.pair.baseline.label, matched.pair.variant.label
        if (matched.only_baseline or matched.only_variant) and not matched.pair.of_race:
            unmatched.append(
                f"{variant} against {baseline}: {counted(len(matched), 'turn')} matched; left out: "
                f"{matched.only_baseline} only in {baseline}, {matched.only_variant} only in {variant}"
            )
        if matched.num_different:
            different.append(
                f"{variant} against {baseline}: {counted(matched.num_different, 'turn')} left out: "
                "their prompts, references or checks differ"
            )
    notes: list[str] = []
    for kind, of_pairs in (("are in only one of the two", unmatched), ("differ", different)):
        if len(of_pairs) <= _MOST_NOTES:
            notes += of_pairs
        else:
            num_others = len(of_pairs) - _MOST_NOTES + 1
            notes += of_pairs[: _MOST_NOTES - 1]
            notes.append(f"{num_others:,} more variants have turns left out that {kind}; `pairs` in --json counts them")
    return notes


def check_runs(runs: Sequence[RunData], *, force: bool) -> list[str]:
    """Notes of the runs, and on differences between them that make the comparison less reliable.

    Raises:
        RunMismatchError: two runs replayed different scripts, and `force` is false.
    """
    notes = [note for run in runs for note in run.notes]
    with_facts = [run for run in runs if run.facts != RunFacts()]
    if len(with_facts) < 2:
        return notes
    first, *others = with_facts
    expected = first.facts
    scripts = [
        run
        for run in others
        if expected.script_sha256 and run.facts.script_sha256 and run.facts.script_sha256 != expected.script_sha256
    ]
    if scripts and not force:
        hashes = f"hash {str(scripts[0].facts.script_sha256)[:12]}, expected {str(expected.script_sha256)[:12]}"
        problems = [f"{scripts[0].source} and {first.source} replayed different scripts ({hashes})"]
        if scripts[0].facts.selection != expected.selection:
            problems += [
                f"{run.source} has only a part of its script ({run.facts.selection})"
                for run in (scripts[0], first)
                if run.facts.selection
            ]
        raise RunMismatchError(
            "; ".join(problems), hint="--force compares the turns that have the same conversation id and ask the same"
        )
    if scripts:
        notes.append(f"{_first_names([run.source for run in scripts])} replayed another script than {first.source}")
    if seeds := [f"{run.name} {run.facts.seed}" for run in others if run.facts.seed != expected.seed]:
        notes.append(
            f"different seeds ({first.name} {expected.seed}, {_first_names(seeds)}): the runs do not use common "
            "random numbers, so differences are noisier than with equal seeds"
        )
    if versions := [f"{run.name} {run.facts.version}" for run in others if run.facts.version != expected.version]:
        notes.append(f"different versions of rwkvbatch ({first.name} {expected.version}, {_first_names(versions)})")
    equal: dict[str | None, list[str]] = {}
    for run in others:
        if expected.identity and run.facts.identity == expected.identity:
            equal.setdefault(_why_replies_may_differ(expected) or _why_replies_may_differ(run.facts), []).append(
                run.name
            )
    for cause, names in equal.items():
        same = f"{first.name} and {_first_names(names)} have the same weights, script, settings and seed"
        reason = "any that differs is a fault of the program" if cause is None else f"they may differ because {cause}"
        notes.append(f"{same}, so they should have the same replies; {reason}")
    return notes


FEW_TOKENS_TOP_P: Final = 0.5
"""Where replies are all the same, a top-p of at most this is named as a reason."""


def few_tokens_notes(identical: Iterable[Pair], runs: Sequence[RunData]) -> list[str]:
    """A note on pairs with the same replies whose top-p leaves few tokens to sample from."""
    cells = {run.name: run.facts.cells for run in runs}
    labels: list[str] = []
    for pair in identical:
        settings = [cells[side.run].get(side.cell, {}) for side in (pair.baseline, pair.variant)]
        top_p = [values.get("top_p") for values in settings]
        is_varied = settings[0].get("temperature") != settings[1].get("temperature")
        if is_varied and all(isinstance(value, int | float) and value <= FEW_TOKENS_TOP_P for value in top_p):
            labels.append(pair.variant.label)
    if not labels:
        return []
    return [
        f"the replies of {_first_names(labels)} are those of the baseline: a top-p this small leaves few tokens to "
        "sample from, whatever the temperature; --top-p 1 keeps all"
    ]


_MOST_NAMED = 3


def _first_names(names: Sequence[str]) -> str:
    """The names with commas; the first ones and the number of the others if there are many."""
    if len(names) <= _MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: _MOST_NAMED - 1])} and {len(names) - _MOST_NAMED + 1:,} more"


def _why_replies_may_differ(facts: RunFacts) -> str | None:
    """Why the same run made again may have other replies; None if it has the same ones."""
    for model in facts.models:
        if model.get("bitwise") is False:
            name = str(model.get("path"))[:80]
            if "endpoint" in model:
                return f"{name} is a served model, which may reply differently at each request"
            return f"the backend of {name} does not guarantee the same replies for every batch"
    if any(settings.get("max_seconds") is not None for settings in facts.cells.values()):
        return "--max-seconds ends replies by the clock"
    return None


_PROMPT_SETTINGS = (
    ("history", "different history modes: later turns did not follow the same conversation"),
    ("think", "different thinking modes: the prompts are not the same"),
    ("template_sha256", "different templates: the prompts are not the same"),
    ("prelude_sha256", "different preludes: the prompts are not the same"),
    ("system", "different system messages: the prompts are not the same"),
    ("template", "different templates: the prompts are not the same"),
    ("prelude", "different preludes: the prompts are not the same"),
    ("bos", "different beginnings (--bos): the prompts are not the same"),
    ("reply_prefix", "different beginnings of replies (--reply-prefix): the prompts are not the same"),
    (
        "turn_end",
        "different ends of a turn, which count among the tokens of replies (tokens, logprob, distinct1, distinct2, "
        "loop); --turn-end sets one for both",
    ),
    (
        "tokenizer_sha256",
        "different vocabularies: numbers of tokens and values per token (nll and perplexity of replies, matched, "
        "tokens, logprob, distinct1, distinct2, loop) are in different units, so that their differences say nothing "
        "about quality",
    ),
)
"""Settings that are compared, with the note for each if they differ."""


def check_pairs(pairs: Sequence[Pair], runs: Sequence[RunData]) -> list[str]:
    """Notes on pairs with different settings of the prompt, the turn's end or the tokens, one for each and baseline."""
    cells = {run.name: run.facts.cells for run in runs}
    with_replies = {run.name for run in runs if run.has_replies}
    differing: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        baseline, variant = (cells[side.run].get(side.cell, {}) for side in (pair.baseline, pair.variant))
        for key, warning in _PROMPT_SETTINGS:
            if key not in baseline or key not in variant or baseline[key] == variant[key]:
                continue
            if key in OF_REPLIES and not with_replies & {pair.baseline.run, pair.variant.run}:
                continue
            if (key, baseline[key]) not in UNRESOLVED and (key, variant[key]) not in UNRESOLVED:
                expected = f"{pair.baseline.label}: {_shown(baseline[key])}"
                differing.setdefault((warning, expected), []).append(f"{pair.variant.label}: {_shown(variant[key])}")
    notes = [f"{warning} ({expected}, {_first_names(variants)})" for (warning, expected), variants in differing.items()]
    return [*notes, *_prompt_notes(pairs, runs)]


def _prompt_notes(pairs: Sequence[Pair], runs: Sequence[RunData]) -> list[str]:
    """Notes on pairs of another program's results whose prompts differ by its hashes."""
    by_name = {run.name: run for run in runs}
    notes: list[str] = []
    for names in dict.fromkeys((pair.baseline.run, pair.variant.run) for pair in pairs):
        one, other = (by_name[name] for name in names)
        common = one.prompt_hashes.keys() & other.prompt_hashes.keys()
        if num_different := sum(one.prompt_hashes[name] != other.prompt_hashes[name] for name in common):
            notes.append(
                f"{num_different:,} of {counted(len(common), 'document')} of {one.source} and {other.source} have "
                "different prompts, such as other examples or another chat template"
            )
    return notes


def _shown(value: object) -> str:
    """The first characters of a setting's value, in quotes if a text begins or ends with white space or is empty."""
    is_plain = not isinstance(value, str) or (value and value == value.strip())
    return (str(value) if is_plain else repr(value))[:24]


def refuse_parts(pair: Pair, runs: Sequence[RunData]) -> None:
    """Raise an error that explains why a pair has no common turn, if its runs are different parts (`--shard`).

    Raises:
        RunMismatchError: both sides are parts of a run, and not the same part.
    """
    run_of = {run.name: run for run in runs}
    baseline, variant = run_of[pair.baseline.run], run_of[pair.variant.run]
    if None in (baseline.facts.part, variant.facts.part) or baseline.facts.part == variant.facts.part:
        return
    baseline_part, variant_part = (f"{run.source} is part {run.facts.part}" for run in (baseline, variant))
    identity = baseline.facts.identity
    if identity != variant.facts.identity:
        raise RunMismatchError(
            f"{baseline_part} of a run and {variant_part} of another: they have no conversation in common",
            hint="merge the parts of each run with `rwkvbatch merge PART... --out DIR`, and compare those",
        )
    parts = [run.source for run in runs if run.facts.part is not None and run.facts.identity == identity]
    raise RunMismatchError(
        f"{baseline_part} and {variant_part} of the same run: parts have no conversation in common",
        hint=f"merge all parts first: rwkvbatch merge {shlex.join(parts)} --out DIR",
    )


def judge_notes(pairs: Sequence[Pair], table: pd.DataFrame) -> list[str]:
    """Notes on pairs whose two sides have checks of different judges."""
    if not bool(table["judge"].notna().any()):
        return []
    judges = {
        side: sorted(set(rows_of(table, side)["judge"].dropna().tolist()))
        for pair in pairs
        for side in (pair.baseline, pair.variant)
    }
    notes: list[str] = []
    for pair in pairs:
        baseline_judges, variant_judges = judges[pair.baseline], judges[pair.variant]
        if not baseline_judges or not variant_judges:
            continue
        if baseline_judges != variant_judges or len(baseline_judges) > 1:
            notes.append(
                f"checks were judged by different judges ({pair.baseline.label}: {', '.join(baseline_judges)}; "
                f"{pair.variant.label}: {', '.join(variant_judges)}): `rwkvbatch check RUN --judge` asks one for both"
            )
    return notes


def mixed_nll_notes(table: pd.DataFrame) -> list[str]:
    is_text = table["bits_per_byte"].notna()
    is_reference = table["nll"].notna() & ~is_text
    if not (bool(is_text.any()) and bool(is_reference.any())):
        return []
    return [
        "nll is of plain texts, which count by their tokens, and of reference replies, which count equally; "
        "compare them in separate runs, or with --by tag"
    ]
