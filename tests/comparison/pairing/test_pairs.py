"""Pairs of variants and baselines: cells, runs, sweeps, explicit baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.pairing.pairs import pair_up
from rwkvbatch.comparison.report.formats import as_json
from rwkvbatch.comparison.runs.data import RunData, variants_of
from rwkvbatch.comparison.runs.loading import load_runs
from rwkvbatch.errors import RunMismatchError, UsageError
from tests.comparison.make_run import make_row, make_run, write_run
from tests.manifests import manifest_of, save_manifest


def runs(tmp_path: Path, **cells: tuple[str, ...]) -> list[RunData]:
    return load_runs(
        [str(make_run(tmp_path / name, cells=cells_of_run, conversations=1)) for name, cells_of_run in cells.items()]
    )


def paired(loaded: list[RunData], baseline: str | None = None) -> list[tuple[str, str]]:
    pairs, _ = pair_up(loaded, variants_of(loaded), baseline)
    return [(pair.baseline.label, pair.variant.label) for pair in pairs]


def test_the_first_of_two_runs_is_the_baseline(tmp_path: Path) -> None:
    assert paired(runs(tmp_path, a=("base",), b=("base",))) == [("a", "b")]


def test_cells_of_one_run_are_compared_with_the_first(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2", "t=3"))
    assert paired(loaded) == [("t=1", "t=2"), ("t=1", "t=3")]


def test_a_cell_can_be_the_baseline(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2", "t=3"))
    assert paired(loaded, "t=2") == [("t=2", "t=1"), ("t=2", "t=3")]


def test_a_run_can_be_the_baseline_by_its_path(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("base",), b=("base",))
    assert paired(loaded, f"{tmp_path}/b/") == [("b", "a")]


def test_two_sweeps_are_compared_cell_by_cell(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2"), b=("t=1", "t=2", "t=9"))
    pairs, notes = pair_up(loaded, variants_of(loaded), None)
    assert [(p.baseline.label, p.variant.label) for p in pairs] == [("a::t=1", "b::t=1"), ("a::t=2", "b::t=2")]
    assert "b::t=9" in notes[0]


def test_a_cell_is_the_baseline_within_each_of_two_sweeps(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2"), b=("t=1", "t=2"))
    assert paired(loaded, "t=2") == [("a::t=2", "a::t=1"), ("b::t=2", "b::t=1")]


def test_two_cells_of_one_run_can_be_selected(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), conversations=1)
    loaded = load_runs([f"{path}::t=3", f"{path}::t=1"])
    assert paired(loaded, f"{path}::t=3") == [("t=3", "t=1")]


def test_an_unknown_baseline_is_refused_with_the_existing_ones(tmp_path: Path) -> None:
    loaded = runs(tmp_path, a=("t=1", "t=2"))
    with pytest.raises(UsageError, match="'t=7'") as caught:
        paired(loaded, "t=7")
    assert "t=1, t=2" in (caught.value.hint or "")


def change_manifest(path: Path, **changes: Any) -> Path:
    """Change `about` and other keys of the manifest; returns the path."""
    content = manifest_of(path)
    content["about"].update(changes.pop("about", {}))
    save_manifest(path, {**content, **changes})
    return path


def test_runs_of_other_versions_and_parts_of_runs_are_noted(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")
    b = change_manifest(make_run(tmp_path / "b"), about={"rwkvbatch": "0.2.0"}, shard={"part": 1, "parts": 2})
    notes = compare([str(a), str(b)]).notes
    assert "different versions of rwkvbatch (a 0.1.0, b 0.2.0)" in notes
    assert f"{b} is one part of a run; `rwkvbatch merge` combines the parts" in notes


@pytest.mark.parametrize(
    ("of_a", "of_b", "ends"),
    [
        (
            {},
            {"only": ["memory", "n*"], "limit": 5},
            "; {b} has only a part of its script (--only memory --only 'n*' --limit 5)",
        ),
        (
            {"only": [], "limit": 3},
            {"only": ["memory"]},
            "; {b} has only a part of its script (--only memory); {a} has only a part of its script (--limit 3)",
        ),
        ({"only": ["memory"]}, {"only": ["memory"]}, ""),
    ],
)
def test_the_refusal_of_different_scripts_names_the_runs_of_a_part_of_their_script(
    tmp_path: Path, of_a: dict[str, Any], of_b: dict[str, Any], ends: str
) -> None:
    a = change_manifest(make_run(tmp_path / "a"), about=of_a)
    b = change_manifest(make_run(tmp_path / "b", identity_changes={"script": {"sha256": "99" * 32}}), about=of_b)
    with pytest.raises(RunMismatchError) as caught:
        compare([str(a), str(b)])
    message = f"{b} and {a} replayed different scripts (hash {'99' * 6}, expected {'cd' * 6})"
    assert str(caught.value) == message + ends.format(a=a, b=b)


@pytest.mark.parametrize(
    ("seed", "message"),
    [(1, "is part 2/2 of the same run: parts have no"), (2, "is part 2/2 of another: they have no conversation")],
)
def test_parts_without_a_common_conversation_are_not_compared(tmp_path: Path, seed: int, message: str) -> None:
    a = change_manifest(make_run(tmp_path / "a", conversations=2), shard={"part": 1, "parts": 2})
    b = change_manifest(make_run(tmp_path / "b", conversations=2, seed=seed), shard={"part": 2, "parts": 2})
    lines = [line.replace(b"talk-", b"other-") for line in (b / "results.jsonl").read_bytes().splitlines(keepends=True)]
    rows = [json.loads(line) for line in lines]
    write_run(b, [{k: v for k, v in row.items() if k != "crc"} for row in rows], None)
    with pytest.raises(RunMismatchError, match=message) as caught:
        compare([str(a), str(b)], force=True)
    assert "rwkvbatch merge" in str(caught.value.hint)


def test_cells_are_compared_in_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), conversations=1)
    assert paired(load_runs([f"{path}::t=3", f"{path}::t=1"])) == [("t=3", "t=1")]
    assert paired(load_runs([f"{path}::t=1", f"{path}::t=3"])) == [("t=1", "t=3")]


def test_a_cell_of_a_sweep_is_called_by_its_name(tmp_path: Path) -> None:
    sweep = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=1)
    other = make_run(tmp_path / "b", conversations=1)
    assert [variant.label for variant in variants_of(load_runs(f"{sweep}::t=2"))] == ["t=2"]
    assert paired(load_runs([f"{sweep}::t=2", str(other)])) == [("a::t=2", "b::base")]


def test_many_runs_that_differ_in_the_same_way_have_one_note(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", conversations=1, seed=0)
    others = [
        change_manifest(
            make_run(tmp_path / name, conversations=1, seed=seed, settings={"base": {"think": "on"}}),
            about={"rwkvbatch": "0.2.0"},
        )
        for seed, name in enumerate("bcdef", start=1)
    ]
    notes = compare([str(first), *map(str, others)]).notes
    assert [note.partition(":")[0] for note in notes if "different" in note] == [
        "different seeds (a 0, b 1, c 2 and 3 more)",
        "different versions of rwkvbatch (a 0.1.0, b 0.2.0, c 0.2.0 and 3 more)",
        "different thinking modes",
    ]
    assert "(a: off, b: on, c: on and 3 more)" in next(note for note in notes if "thinking" in note)
    other_script = {"script": {"sha256": "99" * 32}}
    scripts = [make_run(tmp_path / f"s{n}", conversations=1, identity_changes=other_script) for n in range(4)]
    notes = compare([str(first), *map(str, scripts)], force=True).notes
    expected = f"{scripts[0]}, {scripts[1]} and 2 more replayed another script than {first}"
    assert [note for note in notes if "script" in note] == [expected]
    copies = [make_run(tmp_path / f"copy-{number}", conversations=1, seed=0) for number in range(4)]
    (note,) = [note for note in compare([str(first), *map(str, copies)]).notes if "same weights" in note]
    assert note.startswith("a and copy-0, copy-1 and 2 more have the same weights, script, settings and seed")


def test_turns_left_out_of_many_variants_have_few_notes(tmp_path: Path) -> None:
    rows = [make_row(f"talk-{i}", cell=f"t={cell}") for cell in range(9) for i in range(3 if cell else 4)]
    write_run(tmp_path / "a", rows, manifest={})
    notes = [note for note in compare(str(tmp_path / "a")).notes if "left out" in note]
    assert len(notes) == 3
    assert notes[-1] == (
        "6 more variants have turns left out that are in only one of the two; `pairs` in --json counts them"
    )


def test_json_counts_the_turns_left_out_of_each_pair(tmp_path: Path) -> None:
    x = [make_row("x", turn=turn) for turn in range(2)]
    rows_of = {
        "a": x,
        "b": [*x, make_row("y"), make_row("z")],
        "c": [x[0], x[1] | {"prompt": "Something else?"}],
        "d": [make_row("y")],
    }
    for name, rows in rows_of.items():
        write_run(tmp_path / name, rows, manifest={})
    counts = ("num_matched", "only_baseline", "only_variant", "num_different")
    pairs = json.loads(as_json(compare([tmp_path / name for name in rows_of])))["pairs"]
    assert [(pair["baseline"], pair["variant"], *(pair[name] for name in counts)) for pair in pairs] == [
        ("a", "b", 2, 0, 2, 0),
        ("a", "c", 1, 0, 0, 1),
        ("a", "d", 0, 2, 1, 0),
    ]


def test_with_force_turns_that_ask_something_else_are_named_as_the_reason(tmp_path: Path) -> None:
    def other_question(row: dict[str, Any], rng: Any) -> None:
        row["prompt"] = "Something else?"

    a = make_run(tmp_path / "a", conversations=3)
    script = {"script": {"sha256": "99" * 32}}
    b = make_run(tmp_path / "b", conversations=3, change=other_question, identity_changes=script)
    with pytest.raises(RunMismatchError, match="12 turns with the same conversation id ask something else") as caught:
        compare([str(a), str(b)], force=True)
    assert "prompts, references and checks must be equal" in (caught.value.hint or "")
