"""`rwkvbatch plan`: sample sizes from a script, with and without a pilot run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.comparison import compare
from rwkvbatch.stats.family import compare_family
from rwkvbatch.stats.sample_size import conversations_needed, smallest_detectable
from rwkvbatch.stats.variances import discreteness, variances
from tests.comparison.make_run import make_run


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.jsonl"
    lines: list[dict[str, Any]] = [
        {"id": f"c{n}", "messages": [{"role": "user", "content": "Say boat.", "expect": [{"contains": "boat"}]}]}
        for n in range(50)
    ]
    lines.append(
        {"id": "plain", "messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi!"}]}
    )
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


def planned(capsysbinary: pytest.CaptureFixture[bytes], *arguments: str) -> dict[str, Any]:
    assert invoke(["plan", *arguments, "--json"]) == ExitCode.DONE
    return json.loads(capsysbinary.readouterr().out)


def test_without_a_pilot_a_cautious_guess_is_stated(script: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    found = planned(capsysbinary, script, "--detect", "0.2")
    assert (found["conversations"], found["judged_conversations"], found["metric"]) == (51, 50, "score")
    assert [design["repetitions"] for design in found["designs"]] == [1, 2, 3, 5, 10]
    # (1.96 sqrt(0.5 + 0.2^2) + 0.84 sqrt(0.5))^2 / 0.2^2 = 103.4, and more for the steps of the exact test.
    assert {design["conversations"] for design in found["designs"]} == {112}
    assert "no pilot" in found["variances"]["source"]


def test_the_table_says_what_the_script_finds_and_whether_that_is_enough(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["plan", script, "--detect", "0.5"]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert "To find a difference of 0.5 in score with a probability of 80 %" in out
    assert "the script's 50 conversations find" in " ".join(out.split())
    assert "50 of 51 conversations of the script have score" in err
    assert "the script is large enough with --repeats 1" in err


def pilot(path: Path, cells: Sequence[str], repeats: int, conversations: int = 60) -> str:
    """Yes/no scores; chances differ between conversations, and between cells by an effect of each conversation."""
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.3, 0.7, conversations)
    effects = rng.choice([-0.2, 0.2], (conversations, len(cells)))

    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        number = int(row["conversation"].removeprefix("talk-"))
        chance = chances[number] + effects[number, cells.index(row["cell"])]
        score = float(rng.random() < chance)
        row["checks"][0] |= {"passed": score == 1, "score": score}

    shape: dict[str, Any] = {"conversations": conversations, "repeats": repeats, "turns": 1}
    return str(make_run(path, cells=cells, change=change, **shape))


def test_a_pilot_with_two_cells_separates_the_variances(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = pilot(tmp_path / "pilot", ("a", "b"), repeats=10, conversations=300)
    found = planned(capsysbinary, script, "--detect", "0.05", "--pilot", run)
    # The effects differ by 0 or by 0.4: variance 0.08. Each outcome has p (1 - p), about 0.2.
    assert found["variances"]["between"] == pytest.approx(0.08, abs=0.02)
    assert found["variances"]["within"] == pytest.approx(0.4, abs=0.04)
    needed = [design["conversations"] for design in found["designs"]]
    assert needed == sorted(needed, reverse=True)
    assert needed[0] > 2 * needed[-1]


def test_a_pilot_with_one_cell_needs_two_repetitions(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = pilot(tmp_path / "two", ("a",), repeats=2, conversations=100)
    found = planned(capsysbinary, script, "--detect", "0.05", "--pilot", run)
    assert "correlation of 0.5" in found["variances"]["source"]
    assert found["variances"]["within"] == pytest.approx(0.4, abs=0.1)
    alone = pilot(tmp_path / "one", ("a",), repeats=1)
    assert invoke(["plan", script, "--detect", "0.05", "--pilot", alone]) == ExitCode.USAGE
    assert b"at least two cells or two repetitions" in capsysbinary.readouterr().err


def test_more_variants_and_more_power_take_more_conversations(
    script: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    sizes = [
        planned(capsysbinary, script, "--detect", "0.1", *more)["designs"][0]["conversations"]
        for more in ([], ["--power", "0.9"], ["--power", "0.9", "--variants", "5"])
    ]
    assert sizes == sorted(set(sizes))


def test_a_script_that_is_too_small_is_told_and_quiet_tells_nothing(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["plan", script, "--detect", "0.01"]) == ExitCode.DONE
    assert "the script is too small for each of these" in capsys.readouterr().err
    assert invoke(["plan", script, "--detect", "0.01", "--quiet"]) == ExitCode.DONE
    assert capsys.readouterr().err == ""


def test_of_several_pairs_the_one_that_varies_most_counts(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        score = 0.5 + (row["cell"] == "wild") * float(rng.uniform(-0.5, 0.5))
        row["checks"][0] |= {"passed": False, "score": score}

    run = str(make_run(tmp_path / "pilot", cells=("a", "calm", "wild"), change=change))
    found = planned(capsysbinary, script, "--detect", "0.2", "--pilot", run)
    assert found["variances"]["source"] == "pilot: of all pairs the one that varies most, wild against a"
    assert found["variances"]["between"] + found["variances"]["within"] > 0


def written(path: Path, *messages: dict[str, Any]) -> str:
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi."}, *messages]}) + "\n")
    return str(path)


CHECK: dict[str, Any] = {"contains": "boat"}
REPLIED: dict[str, Any] = {"role": "assistant", "content": "Hi!"}


def test_a_script_of_references_alone_is_planned_for_their_nll(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = str(make_run(tmp_path / "pilot", cells=("a", "b")))
    found = planned(capsysbinary, written(tmp_path / "s.jsonl", REPLIED), "--detect", "0.2", "--pilot", run)
    assert (found["metric"], found["judged_conversations"]) == ("nll", 1)


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ((), [], "the script has neither checks (score) nor reference replies (nll)"),
        ((), ["--metric", "nll"], "--metric nll: no conversation of the script has references to judge"),
        (
            (REPLIED,),
            ["--metric", "pass_at_2"],
            "--metric pass_at_2: no conversation of the script has checks to judge",
        ),
        ((REPLIED,), [], "the spread of nll cannot be guessed"),
    ],
)
def test_a_script_without_what_the_metric_judges_is_refused(
    messages: tuple[dict[str, Any], ...],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = written(tmp_path / "s.jsonl", *messages)
    assert invoke(["plan", script, "--detect", "0.1", *options]) == ExitCode.USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cells", "conversations", "metric", "message"),
    [
        (("a", "b"), 1, "score", "no pair of cells has 2 conversations with score"),
        (("a",), 4, "all_2", "all_2 needs a pilot with two cells"),
        (("a",), 1, "score", "this one has 1 cell, 2 repetitions and 1 of those conversations"),
    ],
)
def test_a_pilot_that_is_too_small_is_refused(
    cells: tuple[str, ...],
    conversations: int,
    metric: str,
    message: str,
    script: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(make_run(tmp_path / "pilot", cells=cells, conversations=conversations))
    arguments = ["plan", script, "--detect", "0.1", "--metric", metric, "--pilot", run]
    assert invoke(arguments) == ExitCode.USAGE
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detect", "0"], "--detect must be at least 1e-06; got 0"),
        (["--detect", "nan"], "--detect must be at least"),
        (["--detect", "1.5"], "--detect must be at most 1, the range of score; got 1.5"),
        (["--detect", "0.1", "--power", "1"], "--power must be between 0 and 1; got 1"),
        (["--detect", "0.1", "--metric", "speed"], "differences in it are not tested"),
        (["--detect", "0.1", "--metric", "nll"], "the spread of nll cannot be guessed"),
        (["--detect", "0.1", "--baseline", "a"], "it needs --pilot RUN"),
    ],
)
def test_a_wrong_wish_is_an_error_of_usage(
    script: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["plan", script, *arguments]) == ExitCode.USAGE
    assert message in capsys.readouterr().err


def test_a_pilot_that_is_not_there_is_bad_input(script: str) -> None:
    assert invoke(["plan", script, "--detect", "0.1", "--pilot", "nowhere"]) == ExitCode.BAD_INPUT


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(("difference", "power"), [(0.05, 0.9), (0.1, 0.8), (0.3, 0.8), (0.6, 0.8)])
def test_the_size_and_the_detectable_difference_are_inverse(difference: float, power: float, discrete: bool) -> None:
    size = conversations_needed(difference, 0.04, 0.3, 3, power=power, discrete=discrete)
    found, not_found = (smallest_detectable(n, 0.04, 0.3, 3, power=power, discrete=discrete) for n in (size, size - 1))
    assert found <= difference
    assert math.isnan(not_found) or not_found > difference


def test_five_conversations_find_nothing() -> None:
    assert math.isnan(smallest_detectable(5, 0.04, 0.3, 3))


def test_variances_are_those_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 0.3, 400)
    values = true[:, None] + rng.normal(0, 0.5, (400, 4))
    codes, repeats = (axis.ravel() for axis in np.indices(values.shape))
    order = rng.permutation(values.size)
    between, within, repetitions = variances(values.ravel()[order], codes[order], repeats[order])
    assert (between, within, repetitions) == (pytest.approx(0.09, abs=0.02), pytest.approx(0.25, abs=0.02), 4)


def test_a_design_of_the_planned_size_finds_the_difference_4_times_in_5() -> None:
    """With the exact test that `compare` uses, on yes/no outcomes."""
    size = conversations_needed(0.35, 0.0, 0.48, 2)
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(150):
        baseline = (rng.random((size, 2)) < 0.375).sum(axis=1)
        variant = (rng.random((size, 2)) < 0.725).sum(axis=1)
        sums = (variant - baseline).astype(float)[:, None]
        found += compare_family(sums, np.full_like(sums, 2.0), widest=1.0).differences[0].significant
    assert 0.7 <= found / 150 <= 0.92


def test_a_pilot_without_a_difference_does_not_promise_that_a_handful_is_enough(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def same(row: dict[str, Any], _: np.random.Generator) -> None:
        row["checks"][0] |= {"passed": True, "score": 1.0}
        row["reference"]["nll"] = 1.0

    run = str(make_run(tmp_path / "pilot", cells=("a", "b"), change=same, conversations=30))
    found = planned(capsysbinary, script, "--detect", "0.05", "--pilot", run)
    assert found["variances"]["between"] == pytest.approx(1 - 0.05 ** (1 / 30))
    assert found["designs"][0]["conversations"] > 200
    assert "all equal" in found["variances"]["source"]
    assert invoke(["plan", script, "--metric", "nll", "--detect", "0.05", "--pilot", run]) == ExitCode.USAGE


def test_a_pilot_with_few_differences_does_not_promise_that_a_handful_is_enough(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Differences of one conversation in twenty by 0.2: samples of a handful have none, and so prove nothing."""

    def few(row: dict[str, Any], _: np.random.Generator) -> None:
        row["checks"][0]["score"] = 0.8 if row["conversation"] == "talk-0" and row["cell"] == "b" else 1.0

    shape: dict[str, Any] = {"conversations": 20, "repeats": 1, "turns": 1, "cells": ("a", "b")}
    run = str(make_run(tmp_path / "pilot", change=few, **shape))
    found = planned(capsysbinary, script, "--detect", "0.05", "--pilot", run)
    size = found["designs"][0]["conversations"]
    assert size == conversations_needed(0.05, found["variances"]["between"], 0.0, 1, reach=1.0, step=0.2)
    assert 5 * conversations_needed(0.05, found["variances"]["between"], 0.0, 1) < size < 80
    # What the table of this pilot calls detectable is what the plan says that its number of conversations finds.
    (line,) = compare([run]).comparisons
    assert line.detectable == pytest.approx(
        smallest_detectable(20, line.standard_error**2 * 20, 0.0, 1, reach=1.0, step=0.2), 0.1
    )


@pytest.mark.parametrize(("share", "size", "margin"), [(0.05, 0.2, 0.05), (0.1, 0.3, 0.1), (0.3, 1.0, 0.2)])
def test_the_planned_number_of_conversations_shows_that_a_score_is_no_lower(
    share: float, size: float, margin: float
) -> None:
    """Of equal variants whose conversations differ seldom: the interval is below -`margin` in at most one in four."""
    number = conversations_needed(margin, share * size**2, 0.0, 1, reach=1.0, step=size)
    rng = np.random.default_rng(0)
    samples = size * rng.choice([-1.0, 0.0, 1.0], p=[share / 2, 1 - share, share / 2], size=(60, number, 1))
    samples = samples[samples.any(axis=(1, 2))]
    low = [compare_family(sums, np.ones_like(sums), widest=1.0).differences[0].low for sums in samples]
    assert np.mean(np.array(low) > -margin) > 0.7


def numbers(row: dict[str, Any], rng: np.random.Generator) -> None:
    """Scores without steps."""
    row["checks"][0]["score"] = float(rng.uniform(0.2, 0.8))


@pytest.mark.parametrize("cells", [("a", "b"), ("a",)])
def test_scores_without_steps_take_as_many_conversations_as_numbers_without_limits(
    cells: Sequence[str], script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """`compare` corrects their skewness, which costs power where conversations are few; not that of yes/no outcomes."""
    shape: dict[str, Any] = {"conversations": 12, "repeats": 2, "turns": 1, "cells": cells}
    for name, change, steps in (("numbers", numbers, False), ("steps", None, True)):
        run = str(make_run(tmp_path / name, change=change, **shape))
        found = planned(capsysbinary, script, "--detect", "0.3", "--pilot", run)
        between, within = (found["variances"][part] for part in ("between", "within"))
        assert found["variances"]["steps"] == steps
        sizes = [design["conversations"] for design in found["designs"]]
        how: dict[str, Any] = {"discrete": steps, "reach": float(steps)}
        assert sizes == [conversations_needed(0.3, between, within, n, **how) for n in (1, 2, 3, 5, 10)]


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0, 0.0], [0.5, -0.5, 0.25, -0.25]])
def test_differences_that_cancel_are_steps(values: list[float]) -> None:
    with np.errstate(all="raise"):
        assert discreteness(np.array(values), np.array([0, 0, 1, 1]), 1.0)[:2] == (True, 1.0)
        assert discreteness(np.array(values), np.array([0, 0, 1, 1]), math.inf)[:2] == (False, 0.0)


def test_a_planned_number_of_conversations_finds_a_difference_in_nll_4_times_in_5() -> None:
    size = conversations_needed(1.0, 1.0, 0.0, 1, discrete=False)
    rng = np.random.default_rng(2)
    samples = rng.normal(1.0, 1.0, (400, size, 1))
    found = [compare_family(sums, np.ones_like(sums)).differences[0].significant for sums in samples]
    assert 0.74 <= np.mean(found) <= 0.88


def test_long_texts_count_as_much_in_the_variance_as_in_the_mean(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """nll is over all tokens: with texts of 1 and of 99 tokens, half as many conversations decide as there are."""

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        tokens = 99 if int(row["conversation"].removeprefix("talk-")) % 2 else 1
        row["reference"] |= {"nll": float(rng.normal(5, 1)), "bytes": 4 * tokens, "tokens": tokens, "logprob": -5.0}

    run = str(make_run(tmp_path / "texts", cells=("a", "b"), conversations=400, repeats=1, turns=1, change=change))
    found = planned(capsysbinary, script, "--detect", "1", "--metric", "nll", "--pilot", run)
    assert found["variances"]["between"] == pytest.approx(2 * 2, rel=0.2)


def test_a_pilot_leaves_out_texts_that_its_cells_split_into_different_numbers_of_tokens(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        tokens = 9 if (row["cell"], row["conversation"]) == ("b", "talk-0") else 8
        row["reference"] |= {"nll": float(rng.normal(5, 1)), "bytes": 30, "tokens": tokens, "logprob": -5.0}

    run = str(make_run(tmp_path / "texts", cells=("a", "b"), conversations=20, repeats=2, turns=1, change=change))
    found = planned(capsysbinary, script, "--detect", "1", "--metric", "nll", "--pilot", run)
    assert found["variances"]["num_conversations"] == 19


def test_of_pass_at_k_the_pilots_repetitions_are_planned_for(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = pilot(tmp_path / "pilot", ("a", "b"), repeats=4)
    found = planned(capsysbinary, script, "--detect", "0.2", "--metric", "pass_at_3", "--pilot", run)
    assert [design["repetitions"] for design in found["designs"]] == [4]
    assert found["variances"]["repetitions"] == 4
    assert "one repetition" not in found["variances"]["source"]
    alone = planned(capsysbinary, script, "--detect", "0.2", "--metric", "pass_at_3")
    assert [design["repetitions"] for design in alone["designs"]] == [3]


def test_turns_of_the_pilot_that_ended_in_an_error_are_named(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        if row["conversation"] == "talk-3":
            row.update(error="out of memory", finish_reason="error", checks=[], reference=None, reply="", reply_ids=[])

    run = str(make_run(tmp_path / "pilot", cells=("a", "b"), conversations=8, turns=1, change=change))
    assert invoke(["plan", script, "--detect", "0.2", "--pilot", run]) == ExitCode.DONE
    assert "4 of its turns ended in an error and count as failed" in capsys.readouterr().err
    assert invoke(["plan", script, "--detect", "2", "--metric", "tokens", "--pilot", run]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert "4 of its turns ended in an error and are left out" in err
    assert "a difference of 2 in tokens" in out


def test_a_pilot_of_another_script_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(make_run(tmp_path / "pilot", cells=("a", "b"), conversations=4, turns=1))
    lines = [
        {"id": f"talk-{n}", "messages": [{"role": "user", "content": f"Question 0 of talk-{n}?", "expect": CHECK}]}
        for n in range(5)
    ]

    def remarks() -> str:
        path = tmp_path / "s.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        assert invoke(["plan", str(path), "--detect", "0.2", "--pilot", run]) == ExitCode.DONE
        return capsys.readouterr().err

    assert "note:" not in remarks()
    lines[1]["messages"][0]["content"] = "Another one?"
    assert "note: the script lacks 1 of the pilot's 4 conversations, or has them with other messages" in remarks()
    lines = [{**line, "id": f"other-{n}"} for n, line in enumerate(lines)]
    assert "note: the script lacks 4 of the pilot's 4 conversations" in remarks()


def test_conversations_of_a_pilot_of_another_program_are_known_by_their_ids(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    table = tmp_path / "pilot.csv"
    rows = [f"c{n},{model},{int(model == 'b' and n % 3 == 0)}" for model in "ab" for n in range(45, 55)]
    table.write_text("\n".join(["id,variant,score", *rows]) + "\n")
    found = planned(capsysbinary, script, "--detect", "0.2", "--pilot", str(table))
    assert (found["variances"]["replayed"], found["variances"]["in_script"]) == (10, 5)


def test_json_counts_the_conversations_that_pilot_and_script_share(
    script: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = pilot(tmp_path / "pilot", ("a", "b"), repeats=1, conversations=5)
    found = planned(capsysbinary, script, "--detect", "0.2", "--pilot", run)
    assert (found["variances"]["replayed"], found["variances"]["in_script"]) == (5, 0)


def test_a_pilot_with_long_texts_is_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = tmp_path / "texts.jsonl", str(tmp_path / "run")
    path.write_text("".join(json.dumps({"id": name, "text": f"{name} cat. " * 300}) + "\n" for name in "abc"))
    assert invoke(["run", str(path), "--out", run, "--strategy", "cpu bf16,cpu int8", "--quiet"]) == ExitCode.DONE
    assert invoke(["plan", str(path), "--detect", "0.2", "--pilot", run]) == ExitCode.DONE
    assert "note: the script lacks" not in capsys.readouterr().err


def test_repetitions_that_save_no_conversation_are_not_listed(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["plan", script, "--detect", "0.2"]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines() if line[:1] == " " and line.split()[0].isdigit()] == [
        ["1", "112"]
    ]
    assert "more repetitions save no conversation\n" in err


def checkpoints(folder: Path, conversations: int) -> list[str]:
    """Runs of two checkpoints that agree on most conversations."""
    runs: list[str] = []
    for name, share in (("before", 0.0), ("after", 0.1)):

        def change(row: dict[str, Any], _: np.random.Generator, share: float = share) -> None:
            number = int(row["conversation"].removeprefix("talk-"))
            own = np.random.default_rng(number)
            passed = bool(own.random() < 0.5) != bool(own.random() < share)
            row["checks"][0] |= {"passed": passed, "score": float(passed)}

        run = make_run(folder / name, conversations=conversations, repeats=1, turns=1, change=change)
        runs.append(str(run))
    return runs


def large_script(folder: Path, conversations: int) -> str:
    path = folder / "large.jsonl"
    messages = [{"role": "user", "content": "Say boat.", "expect": [{"contains": "boat"}]}]
    path.write_text("".join(json.dumps({"id": f"c{n}", "messages": messages}) + "\n" for n in range(conversations)))
    return str(path)


@pytest.mark.parametrize(("pilot_size", "tolerance"), [(400, 0.03), (80, 0.35)])
def test_a_pilot_of_two_runs_promises_what_compare_finds_detectable(
    pilot_size: int, tolerance: float, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    (line,) = compare(checkpoints(tmp_path / "whole", 400)).comparisons
    before, after = checkpoints(tmp_path / "pilot", pilot_size)
    script = large_script(tmp_path, 400)
    found = planned(capsysbinary, script, "--detect", "0.05", "--pilot", before, "--pilot", after)
    assert found["designs"][0]["detectable"] == pytest.approx(line.detectable, rel=tolerance)
    assert not found["variances"]["of_one_cell"]


def test_a_pilot_of_one_cell_is_called_an_upper_estimate_with_the_way_out(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pilot(tmp_path / "one", ("a",), repeats=2, conversations=100)
    assert invoke(["plan", script, "--detect", "0.05", "--pilot", run]) == ExitCode.DONE
    warning = capsys.readouterr().err.splitlines()[1]
    assert warning.startswith("warning: these numbers are upper estimates, and may be many times too large")
    assert "--model before,after --limit 20 --shuffle-seed 1" in warning
    both = pilot(tmp_path / "both", ("a", "b"), repeats=1)
    assert invoke(["plan", script, "--detect", "0.05", "--pilot", both]) == ExitCode.DONE
    assert "upper estimate" not in capsys.readouterr().err


def test_a_run_in_the_place_of_a_script_is_sent_to_pilot(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = checkpoints(tmp_path, 20)
    assert invoke(["plan", script, "--detect", "0.05", "--pilot", before, after]) == ExitCode.USAGE
    assert f"--pilot {after}" in capsys.readouterr().err


def test_pilots_of_different_scripts_are_refused(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, _ = checkpoints(tmp_path, 20)
    other = make_run(tmp_path / "other", identity_changes={"script": {"sha256": "ab" * 32, "conversations": 12}})
    assert invoke(["plan", script, "--detect", "0.05", "--pilot", before, "--pilot", str(other)]) == ExitCode.BAD_INPUT
    assert "replayed different scripts" in capsys.readouterr().err
