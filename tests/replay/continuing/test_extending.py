"""Commands that extend or change a run: unchanged rows are kept, others are judged again or generated."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import RowError, RunDamagedError, RunMismatchError
from rwkvbatch.replay.planning.grid import Cell, make_cells
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.runner import RunResult, read_rows
from rwkvbatch.results.manifest import FORMER
from rwkvbatch.results.row_codec import decode_row, encode_row
from rwkvbatch.results.status import planned_rows
from rwkvbatch.script.choices import Choice
from rwkvbatch.script.records import Check, Conversation, Probe, ReplyFacts, Turn, Verdict
from tests.replay.disks import CountedFiles
from tests.replay.fakes import FakeLoader, LongerThan, make_conversation, make_plan
from tests.replay.runs import StopAfter, results, run


class BrokenCheck:
    """A check that makes its row an error row."""

    def judge(self, facts: ReplyFacts) -> Verdict:
        raise RowError("no verdict")


TEMPERATURES = make_cells({"temperature": [0.3, 1.0]})


def length_check(minimum: int = 12, name: str = "longer") -> Check:
    return Check(name, minimum, LongerThan(minimum))


def script(num_conversations: int = 4, **changes: Any) -> list[Conversation]:
    return [make_conversation(f"c{n}", 1 + n % 3, checks=[length_check()], **changes) for n in range(num_conversations)]


def plan_of(conversations: Sequence[Conversation] | None = None, **settings: Any) -> Plan:
    replayed = script() if conversations is None else conversations
    return make_plan(conversations=replayed, **{"cells": TEMPERATURES, "repeats": 2, **settings})


def extend(directory: Path, first: Plan, second: Plan) -> tuple[RunResult, FakeLoader]:
    """Run `first`, then `second` in the same directory; its rows must be those of a new run of `second`."""
    run(directory, first)
    return continue_with(directory, second)


def continue_with(directory: Path, plan: Plan) -> tuple[RunResult, FakeLoader]:
    loader = FakeLoader()
    result = run(directory, plan, loader)
    fresh = directory.with_name(f"{directory.name}-fresh-{len(list(directory.parent.iterdir()))}")
    run(fresh, plan)
    assert results(directory) == results(fresh)
    for name in ("manifest.json", "summary.json"):
        extended, new = (json.loads((path / name).read_text()) for path in (directory, fresh))
        assert extended.keys() - {"session"} == new.keys() - {"session"}
        assert all(extended[key] == new[key] for key in extended if key not in ("about", "session"))
    assert (directory / "script.jsonl").read_bytes() == (fresh / "script.jsonl").read_bytes()
    return result, loader


def reuse_counts(result: RunResult) -> tuple[int, int, int]:
    assert result.reuse is not None
    return result.reuse.to_generate, result.reuse.judged_again, result.reuse.kept


class TestKeptRows:
    def test_more_repeats_generate_only_the_new_rows(self, tmp_path: Path) -> None:
        result, loader = extend(tmp_path / "run", plan_of(repeats=1), plan_of(repeats=3))
        rows = plan_of(repeats=1).num_rows
        assert reuse_counts(result) == (2 * rows, 0, rows)
        assert loader.num_generated == 2 * rows

    @pytest.mark.parametrize("repeats", [1, 3])
    def test_a_row_that_does_not_say_what_it_was_made_from_is_damaged(self, repeats: int, tmp_path: Path) -> None:
        directory = tmp_path / "run"
        run(directory, plan_of(repeats=1))
        *others, last = results(directory).splitlines(keepends=True)
        without_digests = encode_row(decode_row(last))
        (directory / "results.jsonl").write_bytes(b"".join([*others, without_digests]))
        with pytest.raises(RunDamagedError, match=r"it lacks `content` or `judging`") as caught:
            run(directory, plan_of(repeats=repeats))
        assert "--repair" in str(caught.value.hint)
        loader = FakeLoader()
        run(directory, plan_of(repeats=repeats), loader, repair=True)
        run(tmp_path / "fresh", plan_of(repeats=repeats))
        assert results(directory) == results(tmp_path / "fresh")
        assert loader.num_generated == (repeats - 1) * plan_of(repeats=1).num_rows + 1
        assert (directory / "results.damaged").read_bytes() == without_digests

    def test_more_cells_generate_only_their_rows(self, tmp_path: Path) -> None:
        wider = make_cells({"temperature": [0.1, 0.3, 1.0]})
        result, loader = extend(tmp_path / "run", plan_of(), plan_of(cells=wider))
        rows = plan_of().num_rows
        assert reuse_counts(result) == (rows // 2, 0, rows)
        assert loader.num_generated == rows // 2

    def test_a_single_cell_becomes_a_cell_of_a_grid(self, tmp_path: Path) -> None:
        single = plan_of(cells=[Cell("base", {})], temperature=0.3)
        result, _ = extend(tmp_path / "run", single, plan_of())
        assert reuse_counts(result) == (single.num_rows, 0, single.num_rows)

    def test_conversations_may_be_added_anywhere_and_reordered(self, tmp_path: Path) -> None:
        old = script()
        new = [make_conversation("first", 2), old[2], old[0], make_conversation("middle", 1), old[3], old[1]]
        result, loader = extend(tmp_path / "run", plan_of(old), plan_of(new))
        assert reuse_counts(result) == (3 * 4, 0, plan_of(old).num_rows)
        assert loader.num_generated == 3 * 4

    def test_a_changed_turn_and_later_turns_are_generated_again(self, tmp_path: Path) -> None:
        old = script(6)
        turns = old[5].turns
        new = [*old[:5], replace(old[5], turns=(turns[0], replace(turns[1], user="Something else"), turns[2]))]
        result, loader = extend(tmp_path / "run", plan_of(old), plan_of(new))
        assert reuse_counts(result)[0] == loader.num_generated == 2 * 4
        assert result.reuse is not None
        assert result.reuse.set_aside == 2 * 4

    @pytest.mark.parametrize(
        "change", [{"system": "Be verbose."}, {"params": {"temperature": 0.7}}, {"params": {"seed": 9}}]
    )
    def test_a_changed_system_message_or_params_generate_the_conversation_again(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        old = script()
        cells = [Cell("base", {})]
        new = [*old[:3], replace(old[3], **change)]
        result, loader = extend(tmp_path / "run", plan_of(old, cells=cells), plan_of(new, cells=cells))
        assert reuse_counts(result)[0] == loader.num_generated == 2 * len(old[3].turns)

    def test_an_added_turn_generates_only_its_rows(self, tmp_path: Path) -> None:
        old = script()
        new = [replace(old[0], turns=(*old[0].turns, Turn("And more?"))), *old[1:]]
        result, loader = extend(tmp_path / "run", plan_of(old), plan_of(new))
        assert reuse_counts(result) == (4, 0, plan_of(old).num_rows)
        assert loader.num_generated == 4

    def test_a_changed_reference_generates_its_turn_again(self, tmp_path: Path) -> None:
        old = script(reference="a reference")
        turns = old[2].turns
        new = [*old[:2], replace(old[2], turns=(*turns[:2], replace(turns[2], reference="another"))), old[3]]
        result, _ = extend(tmp_path / "run", plan_of(old), plan_of(new))
        assert reuse_counts(result)[0] == 4

    def test_changed_checks_and_tags_are_judged_again_without_generating(self, tmp_path: Path) -> None:
        old = script()
        new = [
            replace(c, tags=("new",), turns=tuple(replace(t, checks=(length_check(20),)) for t in c.turns)) for c in old
        ]
        result, loader = extend(tmp_path / "run", plan_of(old), plan_of(new))
        assert reuse_counts(result) == (0, plan_of(old).num_rows, 0)
        assert loader.num_generated == 0

    def test_an_added_broken_check_makes_the_error_rows_of_a_new_run(self, tmp_path: Path) -> None:
        old = script()
        broken = replace(old[2].turns[1], checks=(Check("broken", 1, BrokenCheck()),))
        new = [*old[:2], replace(old[2], turns=(old[2].turns[0], broken, old[2].turns[2])), old[3]]
        result, loader = extend(tmp_path / "run", plan_of(old), plan_of(new))
        assert loader.num_generated == 0
        assert result.summary.errors == 2 * 4

    def test_the_same_command_keeps_all_rows(self, tmp_path: Path) -> None:
        messages: list[str] = []
        run(tmp_path / "run", plan_of())
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name == "manifest.json"}
        result = run(tmp_path / "run", plan_of(), notify=messages.append)
        assert reuse_counts(result) == (0, 0, plan_of().num_rows)
        assert messages == [f"{tmp_path / 'run'}: 0 rows to generate, 0 judged again, {plan_of().num_rows} kept"]
        assert all(path.read_bytes() == content for path, content in before.items())

    def test_the_counts_are_reported_before_anything_is_generated(self, tmp_path: Path) -> None:
        messages: list[str] = []
        run(tmp_path / "run", plan_of(repeats=1))
        run(tmp_path / "run", plan_of(), notify=messages.append, should_stop=StopAfter(0))
        rows = plan_of(repeats=1).num_rows
        assert messages == [f"{tmp_path / 'run'}: {rows} rows to generate, 0 judged again, {rows} kept"]


class TestRowsSetAside:
    def test_rows_outside_the_plan_are_set_aside_and_taken_back(self, tmp_path: Path) -> None:
        whole, less = plan_of(), plan_of(script(2), repeats=1)
        result, loader = extend(tmp_path / "run", whole, less)
        assert loader.num_generated == 0
        assert result.reuse is not None
        assert result.reuse.set_aside == whole.num_rows - less.num_rows
        result, loader = continue_with(tmp_path / "run", whole)
        assert loader.num_generated == 0
        assert result.reuse is not None
        assert (result.reuse.taken_back, reuse_counts(result)) == (
            result.reuse.kept - less.num_rows,
            (0, 0, whole.num_rows),
        )

    def test_the_message_says_how_the_rows_come_back(self, tmp_path: Path) -> None:
        messages: list[str] = []
        whole, less = plan_of(), plan_of(repeats=1)
        run(tmp_path / "run", whole)
        run(tmp_path / "run", less, notify=messages.append)
        num_moved = whole.num_rows - less.num_rows
        assert messages == [
            f"{tmp_path / 'run'}: 0 rows to generate, 0 judged again, {less.num_rows} kept; {num_moved} not in this "
            "command, moved to kept.jsonl (the earlier command takes them back)"
        ]

    def test_rows_taken_back_are_judged_by_the_current_checks(self, tmp_path: Path) -> None:
        old = script()
        new = [replace(c, turns=tuple(replace(t, checks=(length_check(20),)) for t in c.turns)) for c in old]
        extend(tmp_path / "run", plan_of(old), plan_of(old[:1]))
        result, loader = continue_with(tmp_path / "run", plan_of(new))
        assert reuse_counts(result) == (0, plan_of(old).num_rows, 0)
        assert loader.num_generated == 0

    def test_a_script_that_is_changed_back_takes_its_rows_back(self, tmp_path: Path) -> None:
        old, changed = script(), script()
        changed[1] = replace(changed[1], system="Be long.")
        extend(tmp_path / "run", plan_of(old), plan_of(changed))
        _, loader = continue_with(tmp_path / "run", plan_of(old))
        assert loader.num_generated == 0
        _, loader = continue_with(tmp_path / "run", plan_of(changed))
        assert loader.num_generated == 0
        kept = (tmp_path / "run" / "kept.jsonl").read_bytes().splitlines()
        assert len(kept) == len(set(kept)) == 2 * 2 * 4

    def test_a_truncated_line_of_the_kept_rows_is_ignored(self, tmp_path: Path) -> None:
        old = script()
        run(tmp_path / "run", plan_of(old))
        run(tmp_path / "run", plan_of(old[:2]))
        kept = tmp_path / "run" / "kept.jsonl"
        kept.write_bytes(kept.read_bytes()[:-10])
        run(tmp_path / "run", plan_of(old[:1]))
        _, loader = continue_with(tmp_path / "run", plan_of(old))
        assert loader.num_generated == 1


class TestRefusals:
    def test_differing_weights_are_named_by_their_files(self, tmp_path: Path) -> None:
        from tests.replay.fakes import FakeSpec

        run(tmp_path / "run", plan_of(), FakeLoader(FakeSpec(path="a.pth")))
        with pytest.raises(RunMismatchError) as caught:
            run(tmp_path / "run", plan_of(repeats=3), FakeLoader(FakeSpec(path="b.pth", weights_sha256="0" * 64)))
        assert "weights_sha256 (model): existing run: a.pth" in str(caught.value)
        assert "this command: b.pth" in str(caught.value)

    def test_a_refused_command_changes_nothing(self, tmp_path: Path) -> None:
        run(tmp_path / "run", plan_of())
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        with pytest.raises(RunMismatchError, match=r"seed: existing run: 0; this command: 1"):
            run(tmp_path / "run", plan_of(script(5), seed=1))
        with pytest.raises(RunMismatchError, match=r"cells\.temp=1\.max_tokens: existing run: 256; this command: 9"):
            run(
                tmp_path / "run",
                plan_of(cells=[TEMPERATURES[0], Cell("temp=1", {"temperature": 1.0, "max_tokens": 9})]),
            )
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before

    def test_an_explicit_setting_that_overrides_params_is_refused(self, tmp_path: Path) -> None:
        conversations = script(params={"temperature": 0.5})
        cells = [Cell("base", {})]
        run(tmp_path / "run", plan_of(conversations, cells=cells))
        with pytest.raises(RunMismatchError, match=r"settings given for all conversations.*temperature"):
            run(tmp_path / "run", plan_of(conversations, cells=cells, explicit=["temperature"]))
        result, _ = continue_with(tmp_path / "run", plan_of(conversations, cells=cells, explicit=["top_k"]))
        assert reuse_counts(result)[0] == 0


class TestAfterInterruptionOrDamage:
    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_an_interrupted_run_can_be_extended(self, tmp_path: Path, steps: int) -> None:
        assert run(tmp_path / "run", plan_of(repeats=1, batch_size=3), should_stop=StopAfter(steps)).interrupted
        continue_with(tmp_path / "run", plan_of(script(6), repeats=2))

    def test_rows_are_taken_back_after_a_torn_last_line(self, tmp_path: Path) -> None:
        run(tmp_path / "run", plan_of())
        run(tmp_path / "run", plan_of(script(2)))
        path = tmp_path / "run" / "results.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        continue_with(tmp_path / "run", plan_of())

    def test_extending_with_repair_generates_damaged_rows_again(self, tmp_path: Path) -> None:
        run(tmp_path / "run", plan_of())
        path = tmp_path / "run" / "results.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[3] = lines[3].replace(b"Be", b"We").replace(b"asks", b"sask")
        path.write_bytes(b"".join(lines))
        loader = FakeLoader()
        run(tmp_path / "run", plan_of(repeats=3), loader, repair=True)
        run(tmp_path / "fresh", plan_of(repeats=3))
        assert results(tmp_path / "run") == results(tmp_path / "fresh")
        assert loader.num_generated == plan_of(repeats=1).num_rows + 1


def test_content_and_repeat_identify_a_row(tmp_path: Path) -> None:
    run(tmp_path / "run", plan_of())
    lines = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_bytes().splitlines()]
    rows = list(read_rows(tmp_path / "run"))
    contents = {(line["content"], line["repeat"]) for line in lines}
    assert len(contents) == len(lines) == len(rows)
    assert len({line["content"] for line in lines}) == len(lines) // 2


class TestAfterABrokenCheck:
    def broken(self, old: list[Conversation]) -> list[Conversation]:
        first, second, third = old[2].turns
        breaking = replace(second, checks=(Check("broken", 1, BrokenCheck()),))
        return [*old[:2], replace(old[2], turns=(first, breaking, third)), old[3]]

    def test_replies_are_reused_when_a_broken_check_is_replaced(self, tmp_path: Path) -> None:
        old = script()
        extend(tmp_path / "run", plan_of(old), plan_of(self.broken(old)))
        result, loader = continue_with(tmp_path / "run", plan_of(old))
        assert loader.num_generated == 0
        assert result.summary.errors == 0

    def test_replies_are_reused_after_two_broken_checks(self, tmp_path: Path) -> None:
        old = script()
        extend(tmp_path / "run", plan_of(old), plan_of(self.broken(old)))
        again = self.broken([replace(each, tags=("new",)) for each in old])
        _, loader = continue_with(tmp_path / "run", plan_of(again))
        assert loader.num_generated == 0
        result, loader = continue_with(tmp_path / "run", plan_of(old))
        assert (loader.num_generated, result.summary.errors) == (0, 0)


class TestProbesAndChoices:
    def asked(self, *probes: str, chosen: str = "none") -> list[Conversation]:
        turns = make_conversation("c", 3, checks=[length_check()]).turns
        check = Check("choice", "a", LongerThan(1), options={"normalize": chosen})
        choosing = Turn("Which?", None, (check,), choices=(Choice("a", "a"), Choice("b", "b b")), generate=False)
        own = [Turn(text, None, (length_check(),), probe=Probe(at, 0)) for at, text in enumerate(probes)]
        return [replace(make_conversation("c"), turns=(turns[0], choosing, turns[2], *own))]

    def test_an_added_or_changed_probe_generates_only_its_rows(self, tmp_path: Path) -> None:
        result, loader = extend(tmp_path / "run", plan_of(self.asked("What?")), plan_of(self.asked("What?", "Who?")))
        assert reuse_counts(result) == (4, 0, 4 * 4)
        result, loader = continue_with(tmp_path / "run", plan_of(self.asked("Why?", "Who?")))
        assert reuse_counts(result)[0] == loader.num_generated == 4

    def test_a_changed_choice_normalization_generates_the_turns_after_it(self, tmp_path: Path) -> None:
        result, _ = extend(tmp_path / "run", plan_of(self.asked()), plan_of(self.asked(chosen="byte")))
        assert reuse_counts(result) == (2 * 4, 0, 4)


class _ReadAtEachCall(CountedFiles):
    """Reads the directory after each call that changes the disk, as what a killed command would leave."""

    def __init__(self, directory: Path, repeats: int) -> None:
        super().__init__()
        self.directory, self.repeats = directory, repeats
        self.totals: list[int | None] = []

    def at_call(self, name: str, perform: Callable[[], Any], data: bytes = b"", descriptor: int = -1) -> Any:
        result = perform()
        try:
            manifest = json.loads((self.directory / "manifest.json").read_bytes())
        except ValueError:
            return result  # the damaged one of the test
        if manifest["identity"]["repeats"] == self.repeats and FORMER not in manifest:
            self.totals.append(planned_rows(self.directory))
        return result


# With a damaged manifest, all rows must be those of the command.
@pytest.mark.parametrize(("repeats", "damaged"), [(1, False), (3, False), (3, True)])
def test_a_killed_extension_never_leaves_the_former_total(repeats: int, damaged: bool, tmp_path: Path) -> None:
    """From the moment that the manifest is that of the new command, the total is too."""
    conversations = [make_conversation(f"c{n}", 1 + n % 3) for n in range(4)]  # without checks that no file has
    former, plan = (plan_of(conversations, repeats=number) for number in (2, repeats))
    run(tmp_path, former)
    if damaged:
        (tmp_path / "manifest.json").write_bytes(b"{")
    assert planned_rows(tmp_path) == former.num_rows
    files = _ReadAtEachCall(tmp_path, repeats)
    run(tmp_path, plan, files=files, repair=damaged)
    assert len(files.totals) > 5
    assert set(files.totals) == {plan.num_rows}
