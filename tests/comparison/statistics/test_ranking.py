"""Rankings of variants on synthetic runs with known effects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rwkvbatch.comparison import compare, load
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.statistics.differences import compare_metric
from rwkvbatch.comparison.statistics.ranking import Candidate, Ranking, rank_values
from rwkvbatch.comparison.values.all_variants import VariantValues
from rwkvbatch.comparison.wording import common_rows, ranking_sentence
from tests.comparison.make_run import RowChange, make_row, make_run, write_run

CELLS = ("t=1", "t=2", "t=3", "t=4")


def passing(**probabilities: float) -> RowChange:
    """Let checks pass with the probability of the row's cell (`t1` for `t=1`), by default 1."""

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        passed = bool(rng.random() < probabilities.get(row["cell"].replace("=", ""), 1.0))
        row["checks"][0].update(passed=passed, score=float(passed))

    return change


def labels(candidates: tuple[Candidate, ...]) -> list[str]:
    return [candidate.variant.label for candidate in candidates]


def only_ranking(*paths: Path, **options: Any) -> Ranking:
    (ranking,) = compare([str(path) for path in paths], **options).rankings
    return ranking


def test_a_clear_winner_is_best_with_any_baseline(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=CELLS, conversations=30, change=passing(t1=0.2, t2=0.2, t4=0.3))
    for baseline in CELLS:
        ranking = only_ranking(path, baseline=baseline)
        assert ranking.best.variant.label == "t=3"
        assert ranking.indistinguishable == ()
        assert sorted(labels(ranking.worse)) == ["t=1", "t=2", "t=4"]


def test_indistinguishable_variants_are_ordered_by_their_means(tmp_path: Path) -> None:
    probabilities = {"t1": 0.1, "t2": 0.87, "t3": 0.9, "t4": 0.88}
    path = make_run(tmp_path / "a", cells=CELLS, conversations=30, change=passing(**probabilities))
    ranking = only_ranking(path)
    assert sorted(labels((ranking.best, *ranking.indistinguishable))) == ["t=2", "t=3", "t=4"]
    means = load(path).groupby("cell")["score"].mean()
    assert [candidate.mean for candidate in ranking.candidates] == pytest.approx(sorted(means, reverse=True))
    assert all(candidate.mean == means[candidate.variant.cell] for candidate in ranking.candidates)
    assert labels(ranking.worse) == ["t=1"]


def test_the_lowest_mean_is_first_for_a_metric_of_which_lower_is_better(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["reference"]["nll"] += 5.0 * (row["cell"] != "t=2")

    path = make_run(tmp_path / "a", cells=CELLS[:3], conversations=20, change=change)
    ranking = only_ranking(path, metrics=["nll"])
    assert (ranking.best.variant.label, labels(ranking.worse)) == ("t=2", labels(ranking.candidates[1:]))
    assert ranking.best.mean == min(candidate.mean for candidate in ranking.candidates)


def test_the_ranking_agrees_with_the_verdicts_of_the_table(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=CELLS, conversations=30, change=passing(t1=0.2, t2=0.2, t4=0.3))
    analysis = compare([str(path)], baseline="t=3")
    (ranking,) = analysis.rankings
    worse = {line.pair.variant.label for line in analysis.comparisons if line.verdict == "worse"}
    assert worse == {candidate.variant.label for candidate in ranking.worse} == {"t=1", "t=2", "t=4"}
    assert {candidate.beaten_by for candidate in ranking.worse} == {"t=3"}


def test_runs_are_ranked_like_cells(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / name, conversations=30, seed=seed, change=passing(base=probability))
        for seed, (name, probability) in enumerate({"a": 0.2, "b": 0.9, "c": 0.3}.items())
    ]
    ranking = only_ranking(*paths)
    assert (ranking.best.variant.label, sorted(labels(ranking.worse))) == ("b", ["a", "c"])


def test_two_variants_have_no_ranking(tmp_path: Path) -> None:
    assert compare([str(make_run(tmp_path / "a", cells=CELLS[:2]))]).rankings == ()


def test_the_default_ranking_is_by_score_or_else_by_nll(tmp_path: Path) -> None:
    def unchecked(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"] = []

    checked = make_run(tmp_path / "a", cells=CELLS)
    scripted = make_run(tmp_path / "b", cells=CELLS, change=unchecked)
    assert only_ranking(checked).metric.name == "score"
    assert only_ranking(scripted).metric.name == "nll"


@pytest.mark.parametrize("metric", ["tokens", "first_token_s", "perplexity"])
def test_metrics_without_direction_or_test_have_no_ranking(tmp_path: Path, metric: str) -> None:
    assert compare([str(make_run(tmp_path / "a", cells=CELLS))], metrics=[metric]).rankings == ()


def test_pass_at_k_is_ranked_by_conversation(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=CELLS, conversations=7, change=passing(t1=0.1))
    ranking = only_ranking(path, metrics=["all_2"])
    assert (ranking.num_values, ranking.num_conversations) == (7, 7)
    assert ranking.candidates[-1].variant.label == "t=1"
    assert ranking.best.mean == 1.0


def test_means_are_relative_to_the_rows_shared_with_the_baseline(tmp_path: Path) -> None:
    for name, (common_nll, other_nll) in {"a": (1.0, 1.0), "b": (2.0, 9.0), "c": (3.0, 0.0)}.items():
        rows = [
            make_row(talk, reference={"text": "r", "nll": nll, "matched": 0.5, "tokens": 2})
            for talk, nll in (("x", common_nll), ("y", common_nll), (f"only-{name}", other_nll))
        ]
        write_run(tmp_path / name, rows, manifest={})
    ranking = only_ranking(*(tmp_path / name for name in "abc"), metrics=["nll"])
    assert [candidate.mean for candidate in ranking.candidates] == [1.0, 2.0, 3.0]
    expected = "2 turns of 2 conversations in all variants, 3 turns in some only; means relative to the baseline's, "
    assert common_rows(ranking) == expected + "over what each shares with it"


def test_variants_without_common_turns_have_no_ranking(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, cells=("s", "t"), conversations=3, seed=seed) for seed, name in enumerate("ab")]
    without_common_turn = make_run(tmp_path / "c", cells=("s", "t"), conversations=1)
    for path, cell in ((runs[1], "t"), (without_common_turn, "s")):
        lines = (path / "results.jsonl").read_bytes().splitlines(keepends=True)
        (path / "results.jsonl").write_bytes(b"".join(line for line in lines if f'"cell":"{cell}"'.encode() in line))
    result = compare([str(path) for path in (*runs, without_common_turn)])
    assert len(result.rankings) == 1


def test_one_conversation_shows_no_variant_to_be_worse(tmp_path: Path) -> None:
    ranking = only_ranking(make_run(tmp_path / "a", cells=CELLS, conversations=1, change=passing(t1=0.0)))
    assert ranking.worse == ()


@pytest.mark.parametrize(
    ("probabilities", "sentence"),
    [
        ({"t1": 0.0, "t2": 0.0, "t4": 0.0}, "score: best t=3 (1.000); worse than another: all 3 others"),
        (
            {"t1": 0.0, "t2": 0.0},
            "score: best t=3 (1.000); not distinguishable: t=4 (1.000); worse than another: 2 others",
        ),
        ({"t1": 0.0}, "score: best t=2 (1.000); not distinguishable: t=3 (1.000), 1 more; worse than another: 1 other"),
        ({}, "score: best t=1 (1.000); not distinguishable: t=2 (1.000), 2 more"),
    ],
)
def test_the_sentence_names_best_and_indistinguishable_variants_and_counts_others(
    tmp_path: Path, probabilities: dict[str, float], sentence: str
) -> None:
    path = make_run(tmp_path / "a", cells=CELLS, conversations=30, change=passing(**probabilities))
    assert ranking_sentence(only_ranking(path), max_named=1) == sentence


@pytest.mark.parametrize("effect", [0.0, 0.4], ids=["all equal", "one best"])
def test_the_best_variant_is_beaten_in_at_most_5_of_100_sweeps(effect: float) -> None:
    """The last of five variants is best or as good as all others; scores are 0 or 1."""
    rng = np.random.default_rng(7)
    variants = [Variant("run", str(number), str(number)) for number in range(5)]
    num_sweeps, num_beaten = 300, 0
    for _ in range(num_sweeps):
        difficulty = rng.random((9, 1)) - 0.5
        rows = (rng.random((9, 5)) + difficulty < [0.5, 0.5, 0.5, 0.5, 0.5 + effect]).astype(float)
        lines, _ = compare_metric(metric_named("score"), [pair(variants, rows, number) for number in range(1, 5)])
        codes = np.arange(9)
        values = VariantValues(metric_named("score"), rows, codes, np.zeros(9, dtype=np.int64), 9)
        ranking, _ = rank_values(variants, values, lines)
        assert ranking is not None
        num_beaten += next(c for c in ranking.candidates if c.variant == variants[-1]).beaten_by is not None
    assert num_beaten / num_sweeps <= 0.05


def pair(variants: list[Variant], rows: np.ndarray[Any, Any], number: int) -> MatchedRows:
    columns = {"score_a": rows[:, 0], "score_b": rows[:, number], "conversation_code": np.arange(len(rows))}
    return MatchedRows(Pair(variants[0], variants[number]), pd.DataFrame(columns), 0, 0, 0)
