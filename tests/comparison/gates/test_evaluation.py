"""Gates on runs: rows judged, failures by errors and missing rows, significance, agreement with the table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rwkvbatch
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.comparing import compare
from rwkvbatch.comparison.gates.evaluation import judge
from rwkvbatch.comparison.gates.parsing import parse_gate
from rwkvbatch.comparison.gates.results import GateResult, gates_outcome
from rwkvbatch.comparison.gates.scopes import Column, GateScope
from rwkvbatch.comparison.pairing.matching import Dropped
from rwkvbatch.errors import UsageError
from rwkvbatch.stats.sample_size import conversations_needed
from rwkvbatch.stats.variances import variances
from tests.comparison.make_run import encode, make_row, make_run
from tests.manifests import manifest_of, save_manifest

Change = Callable[[dict[str, Any], np.random.Generator], None]


def passing(share: float, errors: int = 0) -> Change:
    """Let `share` of the conversations pass; the last `errors` conversations end in an error."""

    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        number = int(row["conversation"].removeprefix("talk-"))
        score = float(number % 10 < round(10 * share))
        row["checks"][0] |= {"passed": score == 1, "score": score}
        if errors and number >= 40 - errors:
            row |= {"finish_reason": "error", "error": "out of memory", "checks": [], "reference": None}

    return change


def runs(tmp_path: Path, baseline: Change, variant: Change, **options: Any) -> list[str]:
    shape = {"conversations": 40, "repeats": 1, "turns": 1, **options}
    return [
        str(make_run(tmp_path / name, change=change, **shape)) for name, change in (("a", baseline), ("b", variant))
    ]


def only_gate(analysis: Analysis) -> GateResult:
    (result,) = analysis.gates
    return result


def write_status(directory: str, rows_total: int, state: str = "interrupted") -> None:
    status = {"state": state, "rows_total": rows_total, "pid": 1, "host": "elsewhere", "updated": "today"}
    (Path(directory) / "status.json").write_text(json.dumps(status))


def truncate(directory: str, num_rows: int) -> None:
    results = Path(directory) / "results.jsonl"
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:num_rows]))


def test_a_gate_fails_on_errors_which_count_as_failed(tmp_path: Path) -> None:
    paths = runs(tmp_path, passing(1.0), passing(0.6, errors=20))
    gate = "score < baseline - 0.02"
    result = only_gate(compare(paths, fail_if=[gate]))
    assert result.failed
    assert result.reason == "in b, 20 turns ended in an error (--allow-missing judges the rest)"
    allowed = only_gate(compare(paths, fail_if=[gate], allow_missing=True))
    assert allowed.failed
    assert not allowed.reason
    assert (allowed.left, allowed.right) == (pytest.approx(0.3), pytest.approx(0.98))


@pytest.mark.parametrize("gate", ["score < 0.1", "tokens > 1000", "score < baseline significantly"])
def test_an_error_of_the_baseline_fails_a_gate(tmp_path: Path, gate: str) -> None:
    paths = runs(tmp_path, passing(0.5, errors=3), passing(0.5))
    result = only_gate(compare(paths, fail_if=[gate]))
    assert result.failed
    assert "in a, 3 turns ended in an error" in result.reason
    assert not only_gate(compare(paths, fail_if=[gate], allow_missing=True)).failed


def test_missing_turns_fail_a_gate_unless_they_are_allowed(tmp_path: Path) -> None:
    paths = runs(tmp_path, passing(0.5), passing(0.5))
    truncate(paths[1], 30)
    write_status(paths[1], 30, "done")
    result = only_gate(compare(paths, fail_if=["score < 0.1"]))
    assert result.failed
    assert "in b, 10 turns missing" in result.reason
    assert not only_gate(compare(paths, fail_if=["score < 0.1"], allow_missing=True)).failed


def test_gates_are_judged_on_the_pairs_of_the_table(tmp_path: Path) -> None:
    paths = runs(tmp_path, passing(0.7), passing(0.5))
    truncate(paths[1], 30)
    write_status(paths[1], 30, "done")
    analysis = compare(paths, fail_if=["score < baseline - 0.5", "score < 0.1"], allow_missing=True)
    (line,) = analysis.comparisons
    for result in analysis.gates:
        assert result.left == line.variant_mean
    assert analysis.gates[0].right == line.baseline_mean - 0.5


def test_gates_on_counts_of_errors_and_missing_turns(tmp_path: Path) -> None:
    paths = runs(tmp_path, passing(0.5), passing(0.5, errors=2))
    truncate(paths[0], 39)
    write_status(paths[0], 39, "done")
    names = ["errors > 2", "errors > 1", "missing > 0", "baseline.missing > 0", "unreached + errors > baseline.errors"]
    results = compare(paths, fail_if=names, allow_missing=True).gates
    assert [result.failed for result in results] == [False, True, False, True, True]


def test_a_gate_on_errors_does_not_fail_by_the_presence_of_errors(tmp_path: Path) -> None:
    paths = runs(tmp_path, passing(0.5), passing(0.5, errors=2))
    assert not only_gate(compare(paths, fail_if=["errors > 2"])).failed
    for name in ("failed", "error_rate"):
        assert not only_gate(compare(paths, fail_if=[f"{name} > 0.1"])).failed
        assert not only_gate(compare(paths, fail_unless=[f"{name} <= 0.1"])).failed
    assert only_gate(compare(paths, fail_if=["missing > 2"])).failed


@pytest.mark.parametrize(
    ("fail_if", "fail_unless"),
    [
        ("error_rate < 0.01", "error_rate > 0.01"),  # passes the more errors there are
        ("score < 0.1 - error_rate", ""),
        ("score < 0.1 - 0 * errors", ""),
        ("median(error_rate) > 0.5", ""),
        ("error_rate[memory] > 0.5", ""),
        ("2 * baseline.errors > 99", ""),
        ("errors - 2 * error_rate > 2", ""),
    ],
)
def test_a_gate_that_would_pass_with_more_errors_does_not_judge_them(
    tmp_path: Path, fail_if: str, fail_unless: str
) -> None:
    paths = runs(tmp_path, passing(0.5), passing(0.5, errors=2))
    gates = compare(paths, fail_if=[fail_if], fail_unless=[fail_unless] if fail_unless else []).gates
    assert all(gate.failed and "2 turns ended in an error" in gate.reason for gate in gates)


@pytest.mark.parametrize("gate", ["errors > baseline", "error_rate > baseline + 0.01"])
@pytest.mark.parametrize("of_variant", [0, 6])
def test_a_gate_does_not_judge_errors_of_the_baseline_with_which_it_passes(
    tmp_path: Path, gate: str, of_variant: int
) -> None:
    paths = runs(tmp_path, passing(0.5, errors=6), passing(0.5, errors=of_variant))
    result = only_gate(compare(paths, fail_if=[gate]))
    assert result.failed
    assert result.reason == "in a, 6 turns ended in an error (--allow-missing judges the rest)"
    assert not only_gate(compare(paths, fail_if=[gate], allow_missing=True)).failed


@pytest.mark.parametrize("gate", ["baseline.errors > 6", "errors + baseline.errors > 6"])
def test_a_gate_judges_errors_of_the_baseline_with_which_it_fails(tmp_path: Path, gate: str) -> None:
    assert not only_gate(compare(runs(tmp_path, passing(0.5, errors=6), passing(0.5)), fail_if=[gate])).failed


@pytest.mark.parametrize("unfinished", [0, 1])
def test_an_unfinished_run_fails_every_gate_unless_partial(tmp_path: Path, unfinished: int) -> None:
    paths = runs(tmp_path, passing(0.5), passing(0.5))
    truncate(paths[unfinished], 8)
    write_status(paths[unfinished], 160)
    gates = ["score < 1e-9", "errors > 100", "score < baseline significantly"]
    results = compare(paths, fail_if=gates, allow_missing=True).gates
    assert all(result.failed for result in results)
    assert all("is not finished: 152 planned turns are missing (--partial" in result.line for result in results)
    assert not any(result.failed for result in compare(paths, fail_if=gates, allow_missing=True, partial=True).gates)


def test_a_part_of_a_run_fails_every_gate_unless_partial(tmp_path: Path) -> None:
    path = runs(tmp_path, passing(0.5), passing(0.5))[0]
    save_manifest(Path(path), manifest_of(Path(path)) | {"shard": {"part": 2, "parts": 8}})
    failed = only_gate(compare([path], fail_if=["score < 1e-9"]))
    assert failed.failed
    assert "is part 2/8 of a run; `rwkvbatch merge` combines the parts (--partial" in failed.line
    assert not only_gate(compare([path], fail_if=["score < 1e-9"], partial=True)).failed


def test_the_line_of_a_gate_has_enough_digits_to_distinguish_its_sides(tmp_path: Path) -> None:
    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        row["checks"][0]["score"] = 0.9999999

    path = str(make_run(tmp_path / "run", change=change))
    assert "run has 0.9999999" in only_gate(compare([path], fail_if=["score < 1"])).line


@pytest.mark.parametrize("left", [1, 20])
def test_without_a_status_the_copy_of_the_script_says_which_rows_are_missing(tmp_path: Path, left: int) -> None:
    """The last row is missing, which is not a whole repetition of a conversation."""
    script = tmp_path / "script.jsonl"
    user = {"role": "user", "content": "My name is Ada."}
    check = {"role": "user", "content": "Who am I?", "expect": [{"contains": "Ada"}]}
    lines = [json.dumps({"id": f"talk-{number}", "messages": [user, check]}) for number in range(4)]
    script.write_text("\n".join(lines), encoding="utf-8")
    rwkvbatch.run(str(script), repeats=3, max_tokens=4, out=str(tmp_path / "a"))
    for name in ("status.json", "summary.json"):
        (tmp_path / "a" / name).unlink()
    whole = only_gate(compare(str(tmp_path / "a"), fail_if=["tokens > 99"]))
    assert not whole.failed
    truncate(str(tmp_path / "a"), 24 - left)
    result = only_gate(compare(str(tmp_path / "a"), fail_if=["tokens > 99"]))
    assert result.failed
    are = "turn is" if left == 1 else "turns are"
    assert f"is not finished: {left} planned {are} missing" in result.reason


def test_a_run_without_a_status_is_unfinished_when_its_manifest_has_more_conversations(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a", conversations=10, repeats=2, turns=2))
    assert not only_gate(compare(path, fail_if=["score < 1e-9"])).failed
    truncate(path, 30)
    result = only_gate(compare(path, fail_if=["score < 1e-9"]))
    assert result.failed
    assert "is not finished: at least 5 planned turns" in result.reason


def test_a_cell_without_rows_fails_the_gates_of_its_run(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a", cells=("x", "y", "z"), conversations=10))
    truncate(path, 80)
    write_status(path, 120)
    result = only_gate(compare([path], fail_if=["score < 1e-9"]))
    assert result.label == "y"
    assert "is not finished: 40 planned turns" in result.reason


@pytest.mark.parametrize("conversations", [1, 5])
def test_too_few_conversations_fail_a_significant_gate(tmp_path: Path, conversations: int) -> None:
    paths = runs(tmp_path, passing(1.0), passing(0.0), conversations=conversations, repeats=10)
    result = only_gate(compare(paths, fail_if=["score < baseline significantly"]))
    assert result.failed
    count = f"{conversations} conversation{'s' if conversations > 1 else ''}"
    assert result.reason == f"cannot be judged: {count} cannot show it, whatever the outcome"


def test_a_margin_that_no_outcome_can_reach_fails_a_significant_gate(tmp_path: Path) -> None:
    paths = runs(tmp_path, passing(1.0), passing(0.0), conversations=6)
    assert only_gate(compare(paths, fail_if=["score < baseline significantly"])).shown
    result = only_gate(compare(paths, fail_if=["score < baseline - 0.9 significantly"]))
    assert result.failed
    assert "6 conversations cannot show it" in result.reason


@pytest.mark.parametrize(("conversations", "reason"), [(1, "1 conversation "), (4, "4 conversations "), (40, "")])
def test_a_single_run_needs_enough_conversations(tmp_path: Path, conversations: int, reason: str) -> None:
    path = str(make_run(tmp_path / "a", change=passing(0.9), conversations=conversations))
    result = only_gate(compare(path, fail_if=["score < 0.2 significantly"]))
    assert result.failed == bool(reason)
    assert reason in result.reason


def test_a_variant_without_a_counterpart_fails_gates_that_need_one(tmp_path: Path) -> None:
    paths = [
        str(make_run(tmp_path / "a", cells=("x", "y"), change=passing(0.5))),
        str(make_run(tmp_path / "b", cells=("x", "z"), change=passing(0.5))),
    ]
    gates = compare(paths, fail_if=["score < baseline - 0.5", "score < 0.1"]).gates
    found = {(result.label, result.gate.text): result for result in gates}
    unpaired = found["b::z", "score < baseline - 0.5"]
    assert unpaired.failed
    assert unpaired.reason == "cannot be judged: there is no baseline"
    assert not found["b::z", "score < 0.1"].failed
    assert not found["b::x", "score < baseline - 0.5"].failed


def test_a_gate_on_a_pair_without_common_turns_fails(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("x", "y"), conversations=3)
    with (path / "results.jsonl").open("ab") as file:
        file.write(encode(make_row("other", cell="z")))
    results = compare(str(path), fail_if=["score < 1e-9"], allow_missing=True).gates
    assert {result.label: result.reason for result in results} == {
        "y": "",
        "z": "cannot be judged: z and x have no turn in common",
    }


def test_gates_agree_with_intervals_and_verdicts_of_the_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    shares = {"base": 0.6, "same": 0.6, "worse": 0.2, "little": 0.5}

    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        score = float(rng.random() < shares[row["cell"]])
        row["checks"][0] |= {"passed": score == 1, "score": score}

    path = str(make_run(tmp_path / "a", cells=tuple(shares), conversations=25, change=change))
    gates = ["score < baseline significantly", "score < baseline - 0.02 significantly", "nll > baseline significantly"]
    analysis = compare(path, fail_if=gates, metrics=["score", "nll"])
    lines = {(line.metric.name, line.pair.variant.label): line for line in analysis.comparisons}
    for result in analysis.gates:
        line = lines[result.gate.values[0].metric, result.label]
        margin = 0.02 if "0.02" in result.gate.text else 0.0
        assert (result.low, result.high) == (pytest.approx(line.low + margin), pytest.approx(line.high + margin))
        if margin:
            assert result.failed == (line.high < -margin)
            assert math.isnan(result.p_adjusted)
        else:
            assert result.failed == (line.verdict == "worse")
            assert result.p_adjusted == line.p_adjusted
    assert {result.label for result in analysis.gates if result.failed} == {"worse"}


def tagged(row: dict[str, Any], rng: np.random.Generator) -> None:
    """Scores by chance, and tags: `third` for every third conversation, `all` for every one."""
    third = int(row["conversation"].removeprefix("talk-")) % 3 == 0
    score = float(rng.random() < (0.9 if third else 0.3))
    row["checks"][0] |= {"passed": score == 1, "score": score}
    row["tags"] = ["all", "third"] if third else ["all"]


def test_a_gate_on_a_tag_is_judged_on_the_turns_with_the_tag_alone(tmp_path: Path) -> None:
    paths = runs(tmp_path, tagged, tagged, conversations=30, repeats=2)
    change = {"fail_if": ["score[third] < baseline + 0.02 significantly", "p95(tokens[third]) > 10"]}
    analysis = compare(paths, **change)
    table = analysis.table[[("third" in tags) for tags in analysis.table["tags"]]]
    means = table.groupby("run")["score"].mean()
    percentile = np.percentile(table.loc[table["run"] == "b", "tokens"], 95)
    significant, plain = analysis.gates
    assert (significant.left, significant.right) == (pytest.approx(means["b"]), pytest.approx(means["a"] + 0.02))
    assert plain.left == pytest.approx(percentile)

    def keep(row: dict[str, Any], rng: np.random.Generator) -> None:
        tagged(row, rng)
        row["checks"] = row["checks"] if "third" in row["tags"] else []

    alone = compare(
        runs(tmp_path / "alone", keep, keep, conversations=30, repeats=2),
        fail_if=["score < baseline + 0.02 significantly"],
    )
    expected = only_gate(alone)
    assert (significant.low, significant.high) == (expected.low, expected.high)
    everywhere, of_tag = compare(
        paths, fail_if=["score < baseline significantly", "score[all] < baseline[all] significantly"]
    ).gates
    assert (of_tag.low, of_tag.high, of_tag.p_adjusted) == (everywhere.low, everywhere.high, everywhere.p_adjusted)
    assert of_tag.low != significant.low - 0.02


def test_a_gate_on_pass_at_k_of_a_tag(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a", conversations=12, repeats=2, turns=1, change=tagged))
    analysis = compare(path, fail_if=["pass_at_2[third] < 0.5"], ks=[2])
    passed = analysis.table[[("third" in tags) for tags in analysis.table["tags"]]].groupby("conversation")["passed"]
    assert only_gate(analysis).left == pytest.approx(float(passed.max().mean()))


@pytest.mark.parametrize("gate", ["score[thrid] < 0.1", "score[thrid] < baseline significantly"])
def test_a_tag_that_no_turn_has_fails_the_gate_with_the_known_tags(tmp_path: Path, gate: str) -> None:
    for option in ("fail_if", "fail_unless"):
        folder = tmp_path / option
        result = only_gate(compare(runs(folder, tagged, tagged), **{option: [gate]}))
        assert result.failed
        assert result.reason == "cannot be judged: no turn has the tag 'thrid'; known: third, all"
    untagged = runs(tmp_path / "none", lambda row, _: row["tags"].clear(), lambda row, _: row["tags"].clear())
    assert only_gate(compare(untagged, fail_if=[gate])).reason.endswith("no turn has the tag 'thrid'; no turn has any")


def test_a_tag_without_values_of_the_metric_fails_the_gate(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        tagged(row, rng)
        row["checks"] = [] if "third" in row["tags"] else row["checks"]

    result = only_gate(compare(runs(tmp_path, change, change), fail_if=["score[third] < 0.1"]))
    assert result.failed
    assert result.reason == "cannot be judged: no pair of b and a has score[third]"


def test_non_inferiority_is_decided_by_the_lower_end_of_the_interval(tmp_path: Path) -> None:
    paths = runs(tmp_path, passing(0.5), passing(0.6), conversations=200)
    gate = "score >= baseline - 0.02 significantly"
    analysis = compare(paths, fail_unless=[gate])
    result = only_gate(analysis)
    assert not result.failed
    assert result.low == pytest.approx(analysis.comparisons[0].low + 0.02)
    assert result.line.startswith(
        f"passed: fail-unless {gate}: b has 0.6, the limit is 0.48, difference from it +0.12 ["
    )


def noisy(shift: float, seed: int) -> Change:
    rng = np.random.default_rng(seed)

    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        score = float(rng.random() < 0.5 + shift)
        row["checks"][0] |= {"passed": score == 1, "score": score}

    return change


def test_a_failed_non_inferiority_gate_has_the_conversations_needed(tmp_path: Path) -> None:
    paths = runs(tmp_path, noisy(0, 1), noisy(0, 2), repeats=3)
    result = only_gate(compare(paths, fail_unless=["score >= baseline - 0.02 significantly"]))
    assert result.failed
    assert result.conversations_needed is not None
    # Two independent yes/no outcomes, 3 repetitions: (1.96 + 0.84)^2 * (0.25 + 0.25) / 3 / 0.02^2 = 3267
    assert 2000 < result.conversations_needed < 5000
    assert f"about {result.conversations_needed:,} conversations of 3 repetitions show it" in result.line
    more = only_gate(compare(paths, fail_unless=["score >= baseline - 0.2 significantly"]))
    assert more.conversations_needed is None or more.conversations_needed < 60


def test_one_conversation_gives_no_number_of_conversations_needed(tmp_path: Path) -> None:
    paths = runs(tmp_path, noisy(0, 1), noisy(0, 2), conversations=1, repeats=5)
    result = only_gate(compare(paths, fail_unless=["score >= baseline - 0.02 significantly"]))
    assert result.failed
    assert result.note == "the number of conversations that it takes cannot be estimated from one"
    assert result.conversations_needed is None


def test_no_number_is_given_when_the_opposite_is_significant(tmp_path: Path) -> None:
    paths = runs(tmp_path, noisy(0.3, 1), noisy(-0.3, 2))
    result = only_gate(compare(paths, fail_unless=["score >= baseline - 0.02 significantly"]))
    assert result.failed
    assert result.conversations_needed is None
    assert not result.note


def test_a_superiority_gate_takes_the_difference_that_was_found(tmp_path: Path) -> None:
    paths = runs(tmp_path, noisy(0, 1), noisy(0.05, 3), conversations=20)
    result = only_gate(compare(paths, fail_unless=["score > baseline significantly"]))
    if result.left > result.right:
        assert result.conversations_needed is not None
        assert "if the true values are those found" in result.note


def test_fail_unless_without_significance_compares_the_means(tmp_path: Path) -> None:
    paths = runs(tmp_path, passing(0.5), passing(0.4))
    gates = ["score >= baseline - 0.2", "score >= baseline - 0.02"]
    assert [result.failed for result in compare(paths, fail_unless=gates).gates] == [False, True]


def test_a_single_run_has_no_baseline(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a"))
    with pytest.raises(UsageError, match="--fail-unless 'score >= baseline' needs a baseline"):
        compare(path, fail_unless=["score >= baseline"])


def scope_of(variant: np.ndarray, baseline: np.ndarray) -> GateScope:
    def column(_: str, of_baseline: bool, tag: str | None) -> Column:
        del tag
        values = (baseline if of_baseline else variant).ravel()
        each = variant.shape[1]
        return Column(values, np.repeat(np.arange(variant.shape[0]), each), np.tile(np.arange(each), variant.shape[0]))

    return GateScope("b", "a", column, dropped=(Dropped("b"), Dropped("a")))


@pytest.mark.parametrize("conversations", [8, 12])
def test_equal_variants_fail_a_significant_gate_in_at_most_5_of_100_comparisons(conversations: int) -> None:
    rng = np.random.default_rng(conversations)
    gate = parse_gate("score < baseline significantly")
    failed = 0
    for _ in range(120):
        chances = rng.beta(1, 1, (conversations, 1))
        baseline, *variants = (rng.random((3, conversations, 2)) < chances).astype(float)
        results = judge([gate], [scope_of(variant, baseline) for variant in variants])
        assert not any(result.reason for result in results)
        failed += any(result.failed for result in results)
    # One side of a 5 % family: 2.5 % of 120 are 3; more than 9 have a probability below 0.2 %.
    assert failed <= 9


def test_a_variant_at_the_margin_passes_a_non_inferiority_gate_in_at_most_5_of_100_comparisons() -> None:
    rng = np.random.default_rng(0)
    gate = parse_gate("score >= baseline - 0.3 significantly", "--fail-unless")
    passed = 0
    for _ in range(120):
        baseline = (rng.random((12, 2)) < 0.6).astype(float)
        variant = (rng.random((12, 2)) < 0.3).astype(float)
        passed += not judge([gate], [scope_of(variant, baseline)])[0].failed
    assert passed <= 9


@pytest.mark.parametrize(("metric", "discrete"), [("score", False), ("score", True), ("nll", False)])
def test_the_conversations_needed_include_the_correction_for_skewness(metric: str, discrete: bool) -> None:
    """Only differences that are not discrete are corrected."""
    rng = np.random.default_rng(3)
    baseline, variant = (np.round(rng.random((8, 2))) if discrete else rng.random((8, 2)) for _ in range(2))
    gate = parse_gate(f"{metric} >= baseline - 0.35 significantly", "--fail-unless")
    (result,) = judge([gate], [scope_of(variant, baseline)])
    conversations, repeats = (axis.ravel() for axis in np.indices(variant.shape))
    between, within, _ = variances((variant - baseline).ravel(), conversations, repeats)
    exact, corrected = (conversations_needed(0.35, between, within, 2, discrete=kind) for kind in (True, False))
    assert result.conversations_needed == (exact if discrete else corrected)
    assert exact < corrected


@pytest.mark.parametrize(("conversations", "failed"), [(183, True), (216, True), (217, False)])
def test_equal_pairs_of_several_variants_are_corrected_for_their_number(
    tmp_path: Path, conversations: int, failed: bool
) -> None:
    """With two variants each end has the level 1.25 %: ln(0.0125) / ln(1 - 0.02) = 216.9."""
    sweep = make_run(
        tmp_path / "a",
        cells=("t=1", "t=2", "t=3"),
        change=passing(0.5),
        conversations=conversations,
        repeats=1,
        turns=1,
    )
    gates = compare(str(sweep), fail_unless=["score >= baseline - 0.02 significantly"]).gates
    assert [gate.failed for gate in gates] == [failed, failed]
    assert not failed or {gate.conversations_needed for gate in gates} == {217}


@pytest.mark.parametrize(("conversations", "failed"), [(38, True), (182, True), (183, False)])
def test_equal_pairs_need_as_many_conversations_as_the_margin_allows(
    tmp_path: Path, conversations: int, failed: bool
) -> None:
    paths = runs(tmp_path, passing(0.5), passing(0.5), conversations=conversations)
    result = only_gate(compare(paths, fail_unless=["score >= baseline - 0.02 significantly"]))
    assert result.failed == failed
    if failed:
        assert result.conversations_needed == 183
        assert "about 183 conversations show it, if all pairs are equal there too" in result.line


def test_a_rare_loss_beyond_the_margin_passes_in_at_most_5_of_100_comparisons() -> None:
    """The variant fails in 6 % of all conversations, and often in none of the 12 of a sample."""
    rng = np.random.default_rng(2)
    gate = parse_gate("score >= baseline - 0.05 significantly", "--fail-unless")
    passed = 0
    for _ in range(300):
        baseline = np.ones((12, 1))
        variant = (rng.random((12, 1)) > 0.06).astype(float)
        passed += not judge([gate], [scope_of(variant, baseline)])[0].failed
    assert passed <= 15


def test_the_number_of_conversations_does_not_assume_what_the_table_rules_out(tmp_path: Path) -> None:
    """The variant is worse, by less than the margin: if they were equal, fewer conversations than these would do."""
    worse = (0, 3, 7, 11, 15, 21, 29, 33)

    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        score = float(int(row["conversation"].removeprefix("talk-")) not in worse)
        row["checks"][0] |= {"passed": score == 1, "score": score}

    paths = runs(tmp_path, passing(1), change, conversations=60)
    analysis = compare(paths, fail_unless=["score >= baseline - 0.2 significantly"])
    assert analysis.comparisons[0].verdict == "worse"
    result = only_gate(analysis)
    assert result.failed
    assert result.holds
    assert result.note.endswith("if the true values are those found")
    assert result.conversations_needed is not None
    assert result.conversations_needed > 60
    unclear = only_gate(compare(paths, fail_unless=["score >= baseline significantly"]))
    assert unclear.conversations_needed is None


@pytest.mark.parametrize(
    ("text", "left", "right", "found"),
    [
        ("median(perplexity) > 1.0001", 1.00211, 1.0001, "b has 1.002"),
        ("median(perplexity) > 1.0001", 1.000123, 1.0001, "b has 1.00012"),
        ("1.00005 < perplexity", 1.00005, 1.0004, "b has 1.0004"),
        ("first_token_s > 12345.5", 12346.25, 12345.5, "b has 1.235e+04"),
        ("score < 0.1 + 0.2", 0.25, 0.1 + 0.2, "b has 0.25, the limit is 0.3"),
        ("baseline.score < 0.9", 0.25, 0.9, "a has 0.25"),
        ("baseline > score + 0.02", 0.5, 0.31, "b has 0.31, the limit is 0.5"),
        ("score < baseline - 0.02", 0.251234, 0.58888, "b has 0.2512, the limit is 0.5889"),
    ],
)
def test_a_gate_shows_its_numbers_as_they_are_given(text: str, left: float, right: float, found: str) -> None:
    result = GateResult(parse_gate(text, "--fail-if"), "b", "a", failed=True, left=left, right=right)
    assert result.found == found


def test_the_line_of_a_gate_gives_the_cause_before_the_numbers_and_has_no_double_negative(tmp_path: Path) -> None:
    paths = runs(tmp_path, passing(0.5), passing(0.5))
    write_status(paths[1], 52)
    truncated = only_gate(compare(paths, fail_if=["score < baseline - 0.05"]))
    assert truncated.line == (
        f"FAILED: fail-if score < baseline - 0.05: b could not be judged: {paths[1]} is not finished: 12 planned turns "
        "are missing (--partial judges it as it is); as it is, it has 0.5, the limit is 0.45, and would pass"
    )
    worse = runs(tmp_path / "worse", passing(0.5, errors=2), passing(0.4))
    assert only_gate(compare(worse, fail_if=["score < baseline - 0.05"])).line.endswith("limit is 0.45, and fails, too")
    passed = only_gate(compare(paths[:1], fail_if=["score < 0.4"]))
    assert passed.line == "passed: fail-if score < 0.4: a has 0.5"
    unless = only_gate(compare(paths[:1], fail_unless=["score > 0.6"]))
    assert unless.line == "FAILED: fail-unless score > 0.6: a has 0.5"


def test_a_headline_counts_the_gates_that_failed_on_any_variant(tmp_path: Path) -> None:
    paths = [*runs(tmp_path, passing(0.5), passing(0.3)), str(make_run(tmp_path / "c", change=passing(0.5)))]
    assert gates_outcome(()) == ""
    for gates, expected in (
        (["score < 0.1"], "the gate passed"),
        (["score < 0.1", "tokens > 1000"], "all 2 gates passed"),
        (["score < 0.4"], "the gate failed"),
        (["score < 0.1", "score < 0.4"], "1 of 2 gates failed"),
    ):
        assert gates_outcome(compare(paths[:2], fail_if=gates).gates) == expected
    three = compare(paths, fail_if=["score < 0.1", "score < 0.4"], allow_missing=True)
    assert gates_outcome(three.gates) == "1 of 2 gates failed, on 1 of 2 variants"


def test_a_gate_whose_margin_chance_exceeds_is_noted_once_with_what_to_write(tmp_path: Path) -> None:
    def notes(*gates: str, unless: str = "") -> list[str]:
        found = compare(paths, fail_if=gates, fail_unless=[unless] if unless else [])
        return [note for note in found.notes if "chance" in note]

    paths = runs(tmp_path, noisy(0, 1), noisy(0, 2))
    (note,) = notes("score < baseline - 0.02")
    found = re.fullmatch(
        r"fail-if score < baseline - 0\.02: its margin of 0\.02 is below ([\d.]+), the smallest difference that this "
        r"comparison detects, so chance fails it in about (\d+) of 100 comparisons of equally good models; write "
        r"--fail-if 'score < baseline - 0\.02 significantly', or a margin of at least \1",
        note,
    )
    assert found is not None
    # 40 conversations of two independent yes/no outcomes: the error is sqrt(0.5 / 40) = 0.11, and Phi(-0.18) is 43 %.
    assert 0.28 < float(found[1]) < 0.45
    detectable = compare(paths).comparisons[0].detectable
    assert detectable <= float(found[1]) < detectable + 0.01, "that of the table, rounded up"
    assert 38 <= int(found[2]) <= 46
    assert notes(f"score < baseline - {found[1]}") == []
    assert len(notes("score < baseline", unless="score >= 0.98 * baseline")) == 2
    assert notes("score < baseline - 0.02 significantly", "score < 0.1", "errors > baseline") == []
    assert notes(unless="score > baseline + 0.1") == []  # equal models fail it
    paths = runs(tmp_path / "equal", passing(0.5), passing(0.5))
    assert notes("score < baseline - 0.02") == []
