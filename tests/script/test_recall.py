"""Scripts that test recall: lengths, places, facts, and their answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.tokenizer import world_tokenizer
from rwkvbatch.script.lint import lint
from rwkvbatch.script.reader import read_scripts
from rwkvbatch.script.recall import RecallPlan, write_recall

FACT = re.compile(r"The code of the (\w+ \w+) is (\d{7})\.")


def count_tokens(text: str) -> int:
    return len(world_tokenizer().encode(text))


def written(tmp_path: Path, plan: RecallPlan, *files: Path) -> list[dict[str, Any]]:
    out = tmp_path / "recall.jsonl"
    assert write_recall(plan, [str(file) for file in files], out, count_tokens, replace=True) == len(
        out.read_text().splitlines()
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text("".join(f"Sentence {n} of the text ends here.\n\nAnd {n} more " for n in range(2000)))
    return path


@pytest.mark.parametrize("has_files", [False, True])
def test_messages_have_nearly_the_length_and_the_fact_at_the_depth(
    has_files: bool, prose: Path, tmp_path: Path
) -> None:
    plan = RecallPlan([400, 1500], [0, 25, 100], count=2)
    lines = written(tmp_path, plan, *([prose] if has_files else []))
    assert len(lines) == 12
    for line in lines:
        _, length, depth, _ = line["id"].split("-")
        assert line["tags"] == [f"length-{length}", f"depth-{depth}"]
        message, reference = line["messages"]
        first, *text, question = message["content"].split("\n")
        body = "\n".join(text)
        assert int(length) - 25 <= count_tokens(message["content"]) <= int(length)
        assert "\n\n" not in message["content"]
        ((name, code),) = FACT.findall(body)
        place = body.index(f"The code of the {name}")
        before = place / (len(body) - len(reference["content"]))
        assert before == pytest.approx(int(depth) / 100, abs=0.05)
        assert (name in question, message["expect"]) == (True, {"contains": code})
        assert reference == {"role": "assistant", "content": f"The code of the {name} is {code}."}
        assert first


def test_prose_keeps_its_order(prose: Path, tmp_path: Path) -> None:
    sentences = [f"Sentence {number} of the text." for number in range(300)]
    prose.write_text("\n".join(sentences))
    (line,) = written(tmp_path, RecallPlan([400], [0], count=1), prose)
    numbers = [int(number) for number in re.findall(r"Sentence (\d+)", line["messages"][0]["content"])]
    assert len(numbers) > 20
    assert numbers == [(numbers[0] + index) % 300 for index in range(len(numbers))]


def test_one_of_several_facts_is_asked(tmp_path: Path) -> None:
    for line in written(tmp_path, RecallPlan([150, 600], [0, 100], count=3, facts=5)):
        content = line["messages"][0]["content"]
        facts = FACT.findall(content)
        assert len(dict(facts)) == 5
        asked = facts[0] if "depth-0" in line["tags"] else facts[-1]
        assert line["messages"][0]["expect"] == {"contains": asked[1]}
        assert content.endswith(f"What is the code of the {asked[0]}?")


def test_conversations_depend_on_the_seed_and_their_own_place_only(prose: Path, tmp_path: Path) -> None:
    few = written(tmp_path, RecallPlan([300], [50], count=2), prose)
    many = {line["id"]: line for line in written(tmp_path, RecallPlan([300, 500], [0, 50], count=3), prose)}
    assert [many[line["id"]] for line in few] == few
    assert written(tmp_path, RecallPlan([300], [50], count=2, seed=1), prose) != few


def test_the_script_is_read_without_warnings(tmp_path: Path) -> None:
    written(tmp_path, RecallPlan([200], [0, 100], count=1))
    script = read_scripts([str(tmp_path / "recall.jsonl")])
    assert len(script.conversations) == 2
    assert list(lint(script.conversations)) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"lengths": [50]}, r"--lengths must be in \[100, 10,000,000\], got 50"),
        ({"lengths": [200, 200]}, "--lengths must be different numbers"),
        ({"lengths": [200], "depths": []}, "--depths must be different numbers, at least one"),
        ({"lengths": [200], "depths": [101]}, r"--depths must be in \[0, 100\], got 101"),
        ({"lengths": [200], "count": 0}, r"--count must be in \[1, 10,000\], got 0"),
        ({"lengths": [200], "facts": 101}, r"--facts must be in \[1, 100\], got 101"),
    ],
)
def test_wrong_plans_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        RecallPlan(**options)


def test_a_length_without_room_for_the_facts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a message of 100 tokens has no room for 20 facts, a sentence and the"):
        written(tmp_path, RecallPlan([100], facts=20))


def test_depth_is_a_part_of_the_text_and_not_of_its_sentences(tmp_path: Path) -> None:
    path = tmp_path / "uneven.txt"
    path.write_text("No.\n" * 60 + "This sentence is much longer than all of those that come before it here.\n" * 60)
    for line in written(tmp_path, RecallPlan([1500], [25, 50, 75], count=3), path):
        content = line["messages"][0]["content"]
        body = content[content.index("\n") : content.rindex("\n")]
        before = count_tokens(body[: body.index("The code of")]) / count_tokens(body)
        assert before == pytest.approx(int(line["id"].split("-")[2]) / 100, abs=0.05)


@pytest.mark.parametrize("text", ["山" * 5000, "word " * 5000])
def test_texts_without_sentences_fill_the_message(text: str, tmp_path: Path) -> None:
    path = tmp_path / "endless.txt"
    path.write_text(text)
    for line in written(tmp_path, RecallPlan([200, 600], [0, 50], count=1), path):
        length = int(line["id"].split("-")[1])
        assert length - 60 <= count_tokens(line["messages"][0]["content"]) <= length


def test_the_command_says_what_it_wrote_and_replaces_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.jsonl")
    command = ["script", "recall", "--out", out, "--lengths", "200,300", "--count", "1", "--json"]
    assert invoke(command) == 0
    assert json.loads(capsys.readouterr().out) == {"conversations": 10, "out": out}
    assert invoke(command) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert invoke([*command, "--lengths", "many"]) == 2
