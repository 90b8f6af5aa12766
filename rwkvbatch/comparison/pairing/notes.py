"""What a comparison says of its pairs: repetitions and turns that are missing, and runs without a turn in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.pairing.pairs import Variant, refuse_parts
from rwkvbatch.comparison.runs.data import RunData
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.comparison.values.metric_values import judged_repeats
from rwkvbatch.errors import RunMismatchError, UsageError, counted

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
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
    """What is left out of each pair; of many pairs, the first ones."""
    unmatched: list[str] = []
    different: list[str] = []
    for matched in all_pairs:
        baseline, variant = matched.pair.baseline.label, matched.pair.variant.label
        if matched.only_baseline or matched.only_variant:
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
