"""Turns of choices: likelihoods, checks, the history after them, and hostile choices."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.comparison.loading import load
from rwkvbatch.errors import ScriptError
from rwkvbatch.model.base import Model
from rwkvbatch.model.load import load_model
from rwkvbatch.replay.grid import make_cells
from rwkvbatch.results.row import Row, decode_row, encode_row
from rwkvbatch.script.choices import ChoiceScore, ChoiceScores
from rwkvbatch.script.native import native_record
from rwkvbatch.script.reader import read_scripts
from tests.replay.fakes import make_plan
from tests.replay.runs import StopAfter, results, run

QUESTION = "What is my name?"
NAMES = ["Ada", "Bob", "Ada Lovelace"]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(None)


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def write(path: Path, *messages: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"id": "c", "messages": list(messages), **more}) + "\n")
    return path


def rows_of(path: Path, **options: Any) -> list[Row]:
    return sorted(rwkvbatch.run(path, **options).rows(), key=lambda row: (row.repeat, row.turn))


def test_each_choice_is_scored_as_the_beginning_of_the_reply(tmp_path: Path, model: Model) -> None:
    path = write(tmp_path / "s.jsonl", user("My name is Ada."), user(QUESTION, choices=NAMES))
    row = rows_of(path, model=model, max_tokens=4)[1]
    llm = rwkvbatch.LLM(model)
    first = rows_of(path, model=model, max_tokens=4)[0]
    history = [*llm.tokenizer.encode("User: My name is Ada.\n\nAssistant:"), *first.reply_ids]
    history += [] if first.stopped_by == "\n\n" else llm.tokenizer.encode("\n\n")
    prompt = [*history, *llm.tokenizer.encode(f"User: {QUESTION}\n\nAssistant:")]
    assert row.choices is not None
    for score, name in zip(row.choices.scores, NAMES, strict=True):
        expected = llm.score(prompt, f" {name}")
        assert score == ChoiceScore(name, expected.logprob, len(expected.token_ids), len(f" {name}"))
    assert row.finish_reason == "scored"
    assert row.reply == row.choices.best().name
    assert row.reply_ids == ()
    assert decode_row(encode_row(row)) == row


def test_after_a_reply_prefix_a_choice_is_read_as_it_stands(tmp_path: Path, model: Model) -> None:
    choices = {"A": " Ada", "B": " Bob"}
    message = user(QUESTION, choices=choices, reply_prefix="It is")
    (row,) = rows_of(write(tmp_path / "s.jsonl", message), model=model, bos="on")
    llm = rwkvbatch.LLM(model)
    prompt = [0, *llm.tokenizer.encode(f"User: {QUESTION}\n\nAssistant: It is")]
    assert row.choices is not None
    assert [score.logprob for score in row.choices.scores] == [
        score.logprob for score in llm.score(prompt, list(choices.values()))
    ]


@pytest.mark.parametrize("normalize", ["none", "token", "byte"])
def test_the_three_ways_to_compare(normalize: Any) -> None:
    scores = ChoiceScores((ChoiceScore("a", -4.0, 1, 10), ChoiceScore("b", -5.0, 5, 5), ChoiceScore("c", -9.0, 6, 40)))
    assert scores.best(normalize).name == {"none": "a", "token": "b", "byte": "c"}[normalize]
    assert scores.as_dict()["best"] == {"none": "a", "token": "b", "byte": "c"}


def test_equally_likely_choices_go_to_the_first() -> None:
    scores = ChoiceScores((ChoiceScore("a", -4.0, 1, 1), ChoiceScore("b", -4.0, 1, 1)))
    assert scores.best().name == "a"


def test_the_check_and_the_probability_of_the_right_choice(tmp_path: Path, model: Model) -> None:
    checks = [{"choice": "Ada"}, {"choice": 1}, {"any": [{"choice": 1}, {"choice": 0}]}]
    path = write(tmp_path / "s.jsonl", user("My name is Ada. " + QUESTION, choices=NAMES, expect=checks))
    (row,) = rows_of(path, model=model, out=tmp_path / "run")
    assert row.choices is not None
    best = row.choices.best().name
    assert [check.score for check in row.checks] == [best == "Ada", best == "Bob", best in ("Ada", "Bob")]
    shares = [math.exp(score.logprob) for score in row.choices.scores]
    table = load(tmp_path / "run")
    assert table["probability"][0] == pytest.approx(shares[0] / sum(shares), rel=1e-12)
    assert math.isnan(table["tokens"][0])


@pytest.mark.parametrize("history", ["own", "gold"])
def test_the_dialogue_goes_on_with_the_chosen_text_or_the_reference(tmp_path: Path, model: Model, history: Any) -> None:
    turns = [user(QUESTION, choices=NAMES), {"role": "assistant", "content": "Nobody."}, user("Say hello.")]
    path = write(tmp_path / "s.jsonl", *turns)
    first, second = rows_of(path, model=model, history=history, max_tokens=8)
    given = first.reply if history == "own" else "Nobody."
    llm = rwkvbatch.LLM(model)
    text = f"User: {QUESTION}\n\nAssistant: {given}\n\nUser: Say hello.\n\nAssistant:"
    assert second.tokens.prompt == len(llm.tokenizer.encode(text))
    prompt = llm.tokenizer.encode(f"User: {QUESTION}\n\nAssistant:"), llm.tokenizer.encode(f" {given}\n\n")
    tokens = [*prompt[0], *prompt[1], *llm.tokenizer.encode("User: Say hello.\n\nAssistant:")]
    assert llm.score(tokens, list(second.reply_ids)).logprob == pytest.approx(second.logprob.sum, abs=1e-4)


def test_with_generate_a_reply_is_written_as_without_choices(tmp_path: Path, model: Model) -> None:
    plain = rows_of(write(tmp_path / "p.jsonl", user(QUESTION)), model=model, temperature=1.0)
    both = rows_of(
        write(tmp_path / "b.jsonl", user(QUESTION, choices=NAMES, generate=True)), model=model, temperature=1.0
    )
    assert both[0].reply_ids == plain[0].reply_ids
    assert both[0].finish_reason == plain[0].finish_reason
    assert both[0].choices is not None


def test_choices_do_not_depend_on_the_batch_and_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    lines = [
        {"messages": [user(f"Name {n}?", choices=NAMES, expect={"choice": 1}), user("And then?")]} for n in range(6)
    ]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    conversations = read_scripts([str(script)]).conversations
    whole, parts, alone = tmp_path / "whole", tmp_path / "parts", tmp_path / "alone"
    run(whole, make_plan(conversations=conversations))
    assert run(parts, make_plan(conversations=conversations), should_stop=StopAfter(3)).interrupted
    run(parts, make_plan(conversations=conversations))
    run(alone, make_plan(conversations=conversations, batch_size=1))
    assert results(parts) == results(whole) == results(alone)


def test_ten_thousand_choices_that_begin_with_each_other(tmp_path: Path) -> None:
    choices = ["1" + "0" * (number % 40) + str(number) for number in range(10_000)]
    script = write(tmp_path / "s.jsonl", user("Which?", choices=choices, expect={"choice": 9_999}))
    plan = make_plan(conversations=read_scripts([str(script)]).conversations, cells=make_cells({}), batch_size=64)
    rows = list(run(None, plan).rows())
    assert len(rows) == 1
    for row in rows:
        assert row.choices is not None
        assert [score.name for score in row.choices.scores] == choices
        assert decode_row(encode_row(row)) == row


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"choices": []}, "must be 2 to 10,000 choices, got 0"),
        ({"choices": ["a"]}, "must be 2 to 10,000 choices, got 1"),
        ({"choices": [str(number) for number in range(10_001)]}, "got 10,001"),
        ({"choices": ["a", ""]}, r"choices\[1\]: is empty"),
        ({"choices": ["a", " \n"]}, r"choices\[1\]: is empty"),
        ({"choices": {"A": "a", " ": "b"}}, "its name is empty"),
        ({"choices": ["a", " a"]}, r"choices\[1\]: is the same text as messages\[0\].choices\[0\]"),
        ({"choices": ["a", 3]}, "must be a text, got a number"),
        ({"choices": "ab"}, "must be an array of texts or an object"),
        ({"generate": True}, "`generate` belongs to `choices`"),
        ({"expect": {"choice": 0}}, "needs choices"),
        ({"choices": ["a", "b"], "expect": {"choice": "c"}}, "names no choice of the turn: 'c'"),
        ({"choices": ["a", "b"], "expect": {"not": {"choice": 2}}}, "names no choice of the turn: 2"),
        ({"choices": ["1", "2"], "expect": {"choice": 1}}, "the index of one choice and the name of another"),
        ({"choices": ["1", "2"], "expect": {"choice": 2}}, "names no choice of the turn: 2"),
        ({"choices": ["a", "b"], "expect": {"choice": 0, "normalize": "word"}}, "must be one of none, token, byte"),
        ({"choices": ["a", "b"], "expect": {"choice": True}}, "must be the name of a choice"),
    ],
)
def test_bad_choices_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ScriptError, match=message):
        read_scripts([str(write(tmp_path / "s.jsonl", user("Which?", **more)))])


def test_choices_of_a_plain_prompt_are_read_exactly_as_they_are_written(tmp_path: Path, model: Model) -> None:
    prompt = "User: Is it\n\n\nblue?\n\nAssistant: The answer is"
    line = {"id": "p", "prompt": prompt, "choices": {"A": " A", "B": " B"}, "expect": {"choice": "B"}}
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(line) + "\n")
    llm = rwkvbatch.LLM(model)
    for bos, begin in (("auto", [0]), ("on", [0]), ("off", [])):
        (row,) = rows_of(path, model=model, bos=bos, reply_prefix="Hm", think="fake")
        assert row.choices is not None
        for score, text in zip(row.choices.scores, (" A", " B"), strict=True):
            expected = llm.score([*begin, *llm.tokenizer.encode(prompt)], text)
            assert score == ChoiceScore(text.strip(), expected.logprob, len(expected.token_ids), 2)
        assert row.tokens.prompt == len([*begin, *llm.tokenizer.encode(prompt)])
        assert row.reply == row.choices.best().name
        assert row.checks[0].passed == (row.reply == "B")
        assert row.reference is None
        assert decode_row(encode_row(row)) == row


def test_choices_of_a_plain_prompt_are_in_the_script_of_the_run(tmp_path: Path) -> None:
    line = {"id": "p", "prompt": "The sky is", "choices": [" blue", " green"], "expect": {"choice": 0}, "tags": ["t"]}
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(line | {"params": {"bos": "off"}}) + "\n")
    (found,) = read_scripts([str(path)]).conversations
    path.write_text(json.dumps(native_record(found)) + "\n")
    (again,) = read_scripts([str(path)]).conversations
    assert again == found
    assert again.sha256 == found.sha256
    assert again.row_contents == found.row_contents


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"choices": ["a"]}, "must be 2 to 10,000 choices"),
        ({"expect": {"choice": "c"}}, "names no choice"),
        ({"generate": True}, "unknown key 'generate'"),
        ({"continuation": ""}, "continuation: is empty, so there is nothing to score"),
        ({"continuation": 3}, "continuation: must be a string"),
        ({"prompt": None}, "prompt: must be a string"),
        ({"params": []}, "params: must be an object"),
        ({"params": {"temp": -1}}, "temperature"),
    ],
)
def test_wrong_choices_of_a_plain_prompt_are_errors(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"prompt": "p", "choices": ["a", "b"]} | change) + "\n")
    with pytest.raises(ScriptError, match=problem):
        read_scripts([str(path)])


def test_choices_without_a_prompt_are_scored_as_whole_texts_are(tmp_path: Path, model: Model) -> None:
    texts = {"good": "Ada has a red book.", "bad": "Ada have a red book."}
    path = tmp_path / "s.jsonl"
    lines = [{"id": name, "text": text} for name, text in texts.items()]
    lines += [{"id": "both", "prompt": "", "choices": texts, "expect": {"choice": "good"}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    llm = rwkvbatch.LLM(model)
    for bos in ("auto", "off"):
        rows = {row.conversation: row for row in rows_of(path, model=model, bos=bos)}
        choices = rows["both"].choices
        assert choices is not None
        for score, (name, text) in zip(choices.scores, texts.items(), strict=True):
            tokens = llm.tokenizer.encode(text)
            # Without token 0, nothing precedes the first token, so that it is read and not scored.
            before, scored = ([0], tokens) if bos == "auto" else (tokens[:1], tokens[1:])
            num_bytes = sum(len(llm.tokenizer.token_bytes(token)) for token in scored)
            assert score == ChoiceScore(name, llm.score(before, scored).logprob, len(scored), num_bytes)
            whole = rows[name].reference
            assert whole is not None
            assert (whole.logprob, whole.tokens, whole.bytes) == (score.logprob, score.tokens, score.bytes)


def test_a_choice_of_one_token_cannot_be_scored_where_nothing_precedes_it(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"prompt": "", "choices": ["a", "b c"]}) + "\n")
    (row,) = rows_of(path, model=model, bos="off")
    assert "nothing is read before it: use --bos on" in str(row.error)


PARTIAL = {
    "id": "w", "prompt": "Ada helped Bob because ", "choices": {"1": "Ada", "2": "Bob"},
    "continuation": " was kind.", "expect": {"choice": "1"},
}  # fmt: skip


def test_a_continuation_is_scored_after_the_prompt_and_each_choice(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(PARTIAL) + "\n")
    llm = rwkvbatch.LLM(model)
    for bos, begin in (("auto", [0]), ("off", [])):
        (row,) = rows_of(path, model=model, bos=bos)
        assert row.choices is not None
        for score, name in zip(row.choices.scores, ("Ada", "Bob"), strict=True):
            before = [*begin, *llm.tokenizer.encode(f"Ada helped Bob because {name}")]
            expected = llm.score(before, " was kind.")
            assert score.logprob == expected.logprob
            assert (score.tokens, score.bytes) == (len(expected.token_ids), len(" was kind."))
        best = row.choices.best().name
        assert row.reply == {"1": "Ada", "2": "Bob"}[best]
        assert row.checks[0].passed == (best == "1")
        assert row.prompt == "Ada helped Bob because _ was kind."
        assert row.reference is None
        assert decode_row(encode_row(row)) == row


def test_a_blank_may_begin_the_text(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(PARTIAL | {"prompt": ""}) + "\n")
    llm = rwkvbatch.LLM(model)
    (row,) = rows_of(path, model=model)
    assert row.choices is not None
    expected = [llm.score([0, *llm.tokenizer.encode(name)], " was kind.").logprob for name in ("Ada", "Bob")]
    assert [score.logprob for score in row.choices.scores] == expected


@pytest.mark.parametrize("change", [{}, {"prompt": ""}, {"continuation": " was glad."}])
def test_a_continuation_after_choices_is_in_the_script_of_the_run_and_in_its_digests(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(PARTIAL | change) + "\n")
    (found,) = read_scripts([str(path)]).conversations
    path.write_text(json.dumps(native_record(found)) + "\n")
    (again,) = read_scripts([str(path)]).conversations
    assert again == found
    assert (again.sha256, again.row_contents) == (found.sha256, found.row_contents)
    without = {key: value for key, value in (PARTIAL | change).items() if key != "continuation"}
    path.write_text(json.dumps(without) + "\n")
    (other,) = read_scripts([str(path)]).conversations
    assert other.sha256 != found.sha256
    assert other.row_contents != found.row_contents


def test_digests_of_choices_without_a_continuation_are_those_of_earlier_versions(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"id": "p", "prompt": "The sky is", "choices": [" blue", " green"]}) + "\n")
    (found,) = read_scripts([str(path)]).conversations
    assert found.sha256 == "6b956f654da5f913de3896c180ea708da31cff2f18c6b859b940bfdd39e0dbd6"
    assert found.row_contents == (
        {
            "user": "The sky is", "reference": None, "generate": False, "plain": True, "normalize": "none",
            "choices": [{"name": "blue", "text": " blue"}, {"name": "green", "text": " green"}],
        },
    )  # fmt: skip


def test_a_dry_run_counts_what_is_scored_and_no_replies(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "s.jsonl"
    lines = [PARTIAL, {"id": "p", "prompt": "", "choices": ["a b", "c d e"]}, {"id": "t", "text": "It is."}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = rows_of(path)
    assert invoke(["run", str(path), "--dry-run", "--json"]) == 0
    counts = json.loads(capsysbinary.readouterr().out)
    assert counts["first_scored_tokens"] == sum(row.scored_tokens for row in rows)
    assert counts["first_prompt_tokens"] == sum(row.tokens.prompt for row in rows)
    assert counts["max_reply_tokens"] == 0


def test_a_dry_run_counts_a_text_that_cannot_be_scored_as_nothing(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"prompt": "", "choices": ["a", "b c"]}) + "\n")
    assert invoke(["run", str(path), "--dry-run", "--json", "--bos", "off"]) == 0
    counts = json.loads(capsysbinary.readouterr().out)
    assert (counts["first_scored_tokens"], counts["first_prompt_tokens"]) == (0, 0)
