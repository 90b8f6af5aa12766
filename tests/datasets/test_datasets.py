"""The example scripts: reproducible, readable, held out; the same conversation in five forms."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from rwkvbatch.script.reader import read_scripts
from tools.demo.corpus import conversation
from tools.demo.holdout import is_held_out
from tools.demo.scripts import SCRIPTS, in_forms
from tools.make_datasets import files

_DATASETS = Path(__file__).resolve().parents[2] / "datasets"
_FORMS = ("native", "openai-messages", "openai-batch", "sharegpt", "mt-bench")


@pytest.mark.parametrize("name", sorted(files()))
def test_a_checked_in_script_is_what_the_generator_makes(name: str) -> None:
    assert (_DATASETS / name).read_text(encoding="utf-8") == files()[name]


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_every_value_in_a_script_is_held_out_of_training(name: str) -> None:
    for entry in SCRIPTS[name]():
        assert entry.keys
        for key in entry.keys:
            assert is_held_out(key), (entry.record["id"], key)


def test_no_checked_question_of_a_script_turns_up_in_training() -> None:
    asked = {
        message["content"]
        for make in SCRIPTS.values()
        for entry in make()
        for message in entry.record["messages"]
        if "expect" in message and not {"memory", "system"} & set(entry.record["tags"])
    }
    rng = Random(11)
    trained = [e.user for _ in range(2000) for e in conversation(rng, "train", 400).exchanges]
    assert len(asked) > 200
    assert not asked & set(trained)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_is_read_with_all_its_checks(name: str) -> None:
    script = read_scripts([str(_DATASETS / f"{name}.jsonl")])
    lines = (_DATASETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [one.id for one in script.conversations] == [json.loads(line)["id"] for line in lines]
    assert all(any(turn.checks for turn in one.turns) for one in script.conversations)


def test_the_first_look_has_forty_conversations_of_every_family() -> None:
    conversations = read_scripts([str(_DATASETS / "demo.jsonl")]).conversations
    assert len(conversations) == 40
    counted = Counter(one.tags[0] for one in conversations)
    assert set(counted) == {
        *("memory", "sums", "copying", "backwards", "opposites", "categories", "knowledge"),
        *("numbers", "letters", "greetings", "system"),
    }


def test_facts_are_asked_back_after_none_to_ten_turns() -> None:
    conversations = read_scripts([str(_DATASETS / "memory.jsonl")]).conversations
    gaps = {len(one.turns) - 2 for one in conversations if one.id.startswith("fact-")}
    assert gaps == set(range(11))


@pytest.mark.parametrize("form", _FORMS)
def test_all_forms_say_the_same_conversations(form: str) -> None:
    def said(name: str) -> list[tuple[str | None, tuple[tuple[str, str | None], ...]]]:
        script = read_scripts([str(_DATASETS / "formats" / f"{name}.jsonl")])
        return [(one.system, tuple((turn.user, turn.reference) for turn in one.turns)) for one in script.conversations]

    assert said(form) == said("native")
    assert len(said(form)) == 6


def test_a_system_line_cannot_be_written_as_mt_bench() -> None:
    ruled = [entry for entry in SCRIPTS["demo"]() if entry.record["messages"][0]["role"] == "system"]
    with pytest.raises(ValueError, match="MT-Bench"):
        in_forms(ruled)
