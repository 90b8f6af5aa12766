"""Turns with choices: likelihoods, checks, history, and invalid choices."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.comparison.runs.loading import load
from rwkvbatch.errors import RunMismatchError, ScriptError
from rwkvbatch.fields import read_record
from rwkvbatch.model.base import Model
from rwkvbatch.replay.continuing.identity import make_identity
from rwkvbatch.replay.judging.checks import judged_again
from rwkvbatch.replay.judging.recheck import recheck
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.results.row import Row
from rwkvbatch.results.row_codec import decode_row, encode_row
from rwkvbatch.script.choices import NORMALIZE, ChoiceScore, ChoiceScores, Normalize
from rwkvbatch.script.native import native_record
from rwkvbatch.script.reader import read_scripts
from tests.replay.fakes import make_plan
from tests.replay.runs import check_invariance, results, run
from tests.script.writing import conversation, read, user, write

QUESTION = "What is my name?"
NAMES = ["Ada", "Bob", "Ada Lovelace"]


def write_conversation(path: Path, *messages: dict[str, Any]) -> str:
    return write(path, conversation(*messages, id="c"))


def rows_of(path: str, **options: Any) -> list[Row]:
    return sorted(rwkvbatch.run(path, **options).rows(), key=lambda row: (row.repeat, row.turn))


def test_each_choice_is_scored_as_the_start_of_a_reply(tmp_path: Path, model: Model) -> None:
    path = write_conversation(tmp_path / "s.jsonl", user("My name is Ada."), user(QUESTION, choices=NAMES))
    row = rows_of(path, model=model, max_tokens=4)[1]
    llm = rwkvbatch.LLM(model)
    first = rows_of(path, model=model, max_tokens=4)[0]
    history = [*llm.tokenizer.encode("User: My name is Ada.\n\nAssistant:"), *first.reply_ids]
    history += [] if first.stopped_by == "\n\n" else llm.tokenizer.encode("\n\n")
    prompt = [*history, *llm.tokenizer.encode(f"User: {QUESTION}\n\nAssistant:")]
    assert row.choices is not None
    for score, name in zip(row.choices.scores, NAMES, strict=True):
        expected = llm.score(prompt, f" {name}")
        assert score == ChoiceScore(name, expected.logprob, len(expected.token_ids), len(name), len(name))
    assert row.finish_reason == "scored"
    assert row.reply == row.choices.best().name
    assert row.reply_ids == ()
    assert decode_row(encode_row(row)) == row


def test_after_a_reply_prefix_choices_are_scored_without_an_added_space(tmp_path: Path, model: Model) -> None:
    choices = {"A": " Ada", "B": " Bob"}
    message = user(QUESTION, choices=choices, reply_prefix="It is")
    (row,) = rows_of(write_conversation(tmp_path / "s.jsonl", message), model=model, bos="on")
    llm = rwkvbatch.LLM(model)
    prompt = [0, *llm.tokenizer.encode(f"User: {QUESTION}\n\nAssistant: It is")]
    assert row.choices is not None
    assert [score.logprob for score in row.choices.scores] == [
        score.logprob for score in llm.score(prompt, list(choices.values()))
    ]


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_normalize_selects_the_measure_that_compares_choices(normalize: Normalize) -> None:
    best = {"none": "a", "token": "b", "byte": "c", "character": "d"}
    scores = ChoiceScores(
        (
            ChoiceScore("a", -4.0, 1, 10, 10),
            ChoiceScore("b", -5.0, 5, 5, 4),
            ChoiceScore("c", -9.0, 6, 40, 10),
            ChoiceScore("d", -8.0, 5, 30, 29),
        )
    )
    assert scores.best(normalize).name == best[normalize]
    assert scores.as_dict()["best"] == best


@pytest.mark.parametrize(
    ("scored", "num_bytes", "characters"),
    [
        (" Ada", 3, 3),
        ("Ada", 3, 3),
        (" Zoë Ünal. ", 12, 10),
        ("  pulls it up.", 13, 13),
        ("\nA", 2, 2),
        ("三", 3, 1),
        (" ", 1, 1),  # never divided by 0
    ],
)
def test_bytes_and_characters_are_counted_without_one_space_before_the_text(
    scored: str, num_bytes: int, characters: int
) -> None:
    score = ChoiceScore.of("a", -6.0, 2, scored.encode())
    assert (score.bytes, score.characters) == (num_bytes, characters)
    assert score.value("character") == -6.0 / characters
    assert score.value("byte") == -6.0 / num_bytes


def test_the_first_of_equally_likely_choices_is_the_best() -> None:
    scores = ChoiceScores((ChoiceScore("a", -4.0, 1, 1, 1), ChoiceScore("b", -4.0, 1, 1, 1)))
    assert scores.best().name == "a"


def test_values_for_json_are_a_copy() -> None:
    scores = ChoiceScores((ChoiceScore("a", -4.0, 1, 1, 1), ChoiceScore("b", -5.0, 1, 1, 1)))
    scores.as_dict()["scores"][0]["logprob"] = -9.0
    assert scores.scores[0].logprob == -4.0
    assert read_record(ChoiceScores, scores.as_dict()) == scores


def test_a_check_by_another_normalize_is_refused_with_the_metrics_that_need_none(tmp_path: Path, model: Model) -> None:
    scripts: list[str] = []
    for normalize in ("none", "byte"):
        message = user(QUESTION, choices=NAMES, expect={"choice": "Ada", "normalize": normalize})
        scripts.append(write_conversation(tmp_path / f"{normalize}.jsonl", message))
    rows_of(scripts[0], model=model, out=tmp_path / "run")
    before = (tmp_path / "run" / "results.jsonl").read_bytes()
    with pytest.raises(RunMismatchError, match='normalize: replayed: "none"; the script: "byte"') as caught:
        recheck(tmp_path / "run", [scripts[1]])
    assert (caught.value.hint or "").startswith("`rwkvbatch compare` has the metrics acc (sums), acc_norm")
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before


def test_choice_checks_judge_the_best_choice_and_metrics_have_its_probability(tmp_path: Path, model: Model) -> None:
    checks = [{"choice": "Ada"}, {"choice": 1}, {"any": [{"choice": 1}, {"choice": 0}]}]
    path = write_conversation(tmp_path / "s.jsonl", user("My name is Ada. " + QUESTION, choices=NAMES, expect=checks))
    (row,) = rows_of(path, model=model, out=tmp_path / "run")
    assert row.choices is not None
    best = row.choices.best().name
    assert [check.score for check in row.checks] == [best == "Ada", best == "Bob", best in ("Ada", "Bob")]
    likelihoods = [math.exp(score.logprob) for score in row.choices.scores]
    table = load(tmp_path / "run")
    assert table["probability"][0] == pytest.approx(likelihoods[0] / sum(likelihoods), rel=1e-12)
    assert math.isnan(table["tokens"][0])


@pytest.mark.parametrize("history", ["own", "gold"])
def test_the_history_has_the_chosen_text_or_the_reference(tmp_path: Path, model: Model, history: Any) -> None:
    turns = [user(QUESTION, choices=NAMES), {"role": "assistant", "content": "Nobody."}, user("Say hello.")]
    path = write_conversation(tmp_path / "s.jsonl", *turns)
    first, second = rows_of(path, model=model, history=history, max_tokens=8)
    answer = first.reply if history == "own" else "Nobody."
    llm = rwkvbatch.LLM(model)
    text = f"User: {QUESTION}\n\nAssistant: {answer}\n\nUser: Say hello.\n\nAssistant:"
    assert second.tokens.prompt == len(llm.tokenizer.encode(text))
    prompt = llm.tokenizer.encode(f"User: {QUESTION}\n\nAssistant:"), llm.tokenizer.encode(f" {answer}\n\n")
    tokens = [*prompt[0], *prompt[1], *llm.tokenizer.encode("User: Say hello.\n\nAssistant:")]
    assert llm.score(tokens, list(second.reply_ids)).logprob == pytest.approx(second.logprob.sum, abs=1e-4)


def test_with_generate_the_reply_is_that_of_a_turn_without_choices(tmp_path: Path, model: Model) -> None:
    plain = rows_of(write_conversation(tmp_path / "p.jsonl", user(QUESTION)), model=model, temperature=1.0)
    both = rows_of(
        write_conversation(tmp_path / "b.jsonl", user(QUESTION, choices=NAMES, generate=True)),
        model=model,
        temperature=1.0,
    )
    assert both[0].reply_ids == plain[0].reply_ids
    assert both[0].finish_reason == plain[0].finish_reason
    assert both[0].choices is not None


def test_rows_of_choices_depend_neither_on_the_batch_nor_on_interruptions(tmp_path: Path) -> None:
    lines = [conversation(user(f"Name {n}?", choices=NAMES, expect={"choice": 1}), user("And then?")) for n in range(6)]
    check_invariance(tmp_path, read(tmp_path, *lines).conversations, interrupt_after=[3])


def test_ten_thousand_choices_with_common_prefixes_are_scored_in_order(tmp_path: Path) -> None:
    choices = ["1" + "0" * (number % 40) + str(number) for number in range(10_000)]
    script = write_conversation(tmp_path / "s.jsonl", user("Which?", choices=choices, expect={"choice": 9_999}))
    plan = make_plan(conversations=read_scripts([script]).conversations, cells=make_cells({}), batch_size=64)
    (row,) = run(None, plan).rows()
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
def test_invalid_choices_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ScriptError, match=message):
        read_scripts([write_conversation(tmp_path / "s.jsonl", user("Which?", **more))])


def test_a_plain_prompt_with_choices_is_tokenized_verbatim(tmp_path: Path, model: Model) -> None:
    prompt = "User: Is it\n\n\nblue?\n\nAssistant: The answer is"
    line = {"id": "p", "prompt": prompt, "choices": {"A": " A", "B": " B"}, "expect": {"choice": "B"}}
    path = write(tmp_path / "s.jsonl", line)
    llm = rwkvbatch.LLM(model)
    for bos, begin in (("auto", [0]), ("on", [0]), ("off", [])):
        (row,) = rows_of(path, model=model, bos=bos, reply_prefix="Hm", think="fake")
        assert row.choices is not None
        for score, text in zip(row.choices.scores, (" A", " B"), strict=True):
            expected = llm.score([*begin, *llm.tokenizer.encode(prompt)], text)
            assert score == ChoiceScore(text.strip(), expected.logprob, len(expected.token_ids), 1, 1)
        assert row.tokens.prompt == len([*begin, *llm.tokenizer.encode(prompt)])
        assert row.reply == row.choices.best().name
        assert row.checks[0].passed == (row.reply == "B")
        assert row.reference is None
        assert decode_row(encode_row(row)) == row


def test_the_script_copy_of_a_plain_prompt_with_choices_reads_back_equal(tmp_path: Path) -> None:
    line = {"id": "p", "prompt": "The sky is", "choices": [" blue", " green"], "expect": {"choice": 0}, "tags": ["t"]}
    (original,) = read(tmp_path, line | {"params": {"bos": "off"}}).conversations
    (copied,) = read(tmp_path, native_record(original)).conversations
    assert copied == original
    assert copied.sha256 == original.sha256
    assert copied.row_contents == original.row_contents


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"choices": ["a"]}, "must be 2 to 10,000 choices"),
        ({"expect": {"choice": "c"}}, "names no choice"),
        ({"generate": True}, "unknown key 'generate'"),
        ({"continuation": ""}, "continuation: is empty, so there is nothing to score"),
        ({"continuation": 3}, "continuation: must be a string"),
        ({"choice_prefix": 3}, "choice_prefix: must be a string"),
        ({"choice_prefix": " ", "continuation": " c"}, "choice_prefix: belongs to choices that are scored"),
        ({"choice_prefix": " ", "prompt": ""}, "choice_prefix: must follow a prompt"),
        ({"prompt": None}, "prompt: must be a string"),
        ({"params": []}, "params: must be an object"),
        ({"params": {"temp": -1}}, "temperature"),
    ],
)
def test_invalid_keys_of_a_plain_prompt_with_choices_are_refused(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ScriptError, match=problem):
        read(tmp_path, {"prompt": "p", "choices": ["a", "b"]} | change)


def test_choices_without_a_prompt_have_the_scores_of_whole_texts(tmp_path: Path, model: Model) -> None:
    texts = {"good": "Ada has a red book.", "bad": "Ada have a red book."}
    lines = [{"id": name, "text": text} for name, text in texts.items()]
    both = {"id": "both", "prompt": "", "choices": texts, "expect": {"choice": "good"}}
    path = write(tmp_path / "s.jsonl", *lines, both)
    llm = rwkvbatch.LLM(model)
    for bos in ("auto", "off"):
        rows = {row.conversation: row for row in rows_of(path, model=model, bos=bos)}
        choices = rows["both"].choices
        assert choices is not None
        for score, (name, text) in zip(choices.scores, texts.items(), strict=True):
            tokens = llm.tokenizer.encode(text)
            # Without token 0, nothing precedes the first token, so that it is read and not scored.
            before, scored = ([0], tokens) if bos == "auto" else (tokens[:1], tokens[1:])
            data = b"".join(map(llm.tokenizer.token_bytes, scored))
            assert score == ChoiceScore(
                name, llm.score(before, scored).logprob, len(scored), len(data), len(data.decode().strip())
            )
            whole = rows[name].reference
            assert whole is not None
            assert (whole.logprob, whole.tokens, whole.bytes) == (score.logprob, score.tokens, score.bytes)


def test_a_choice_of_one_token_without_a_prefix_cannot_be_scored(tmp_path: Path, model: Model) -> None:
    path = write(tmp_path / "s.jsonl", {"prompt": "", "choices": ["a", "b c"]})
    (row,) = rows_of(path, model=model, bos="off")
    assert "nothing is read before it: use --bos on" in str(row.error)


@pytest.mark.parametrize(("prefix", "counts"), [("  ", (7, 14)), (" \t ", (7, 14)), ("", (7, 14)), (" so ", (7, 14))])
def test_a_choice_prefix_is_scored_with_each_choice_and_not_counted(
    prefix: str, counts: tuple[int, int], tmp_path: Path, model: Model
) -> None:
    choices = ["one two", " longer three "]
    line = {"id": "p", "prompt": "Ada has", "choices": choices, "choice_prefix": prefix, "expect": {"choice": 0}}
    (original,) = read(tmp_path, line).conversations
    (copied,) = read(tmp_path, native_record(original)).conversations
    assert (copied, copied.sha256, copied.row_contents) == (original, original.sha256, original.row_contents)
    (row,) = rows_of(write(tmp_path / "s.jsonl", line), model=model)
    llm = rwkvbatch.LLM(model)
    assert row.choices is not None
    for score, text, count in zip(row.choices.scores, choices, counts, strict=True):
        expected = llm.score([0, *llm.tokenizer.encode("Ada has")], prefix + text)
        assert score == ChoiceScore(text.strip(), expected.logprob, len(expected.token_ids), count, count)
    assert judged_again(row, original) == row


PARTIAL = {
    "id": "w", "prompt": "Ada helped Bob because ", "choices": {"1": "Ada", "2": "Bob"},
    "continuation": " was kind.", "expect": {"choice": "1"},
}  # fmt: skip


def test_a_continuation_is_scored_after_the_prompt_and_each_choice(tmp_path: Path, model: Model) -> None:
    path = write(tmp_path / "s.jsonl", PARTIAL)
    llm = rwkvbatch.LLM(model)
    for bos, begin in (("auto", [0]), ("off", [])):
        (row,) = rows_of(path, model=model, bos=bos)
        assert row.choices is not None
        for score, name in zip(row.choices.scores, ("Ada", "Bob"), strict=True):
            before = [*begin, *llm.tokenizer.encode(f"Ada helped Bob because {name}")]
            expected = llm.score(before, " was kind.")
            assert score.logprob == expected.logprob
            assert (score.tokens, score.bytes) == (len(expected.token_ids), len("was kind."))
            assert score.characters == len("was kind.")
        best = row.choices.best().name
        assert row.reply == {"1": "Ada", "2": "Bob"}[best]
        assert row.checks[0].passed == (best == "1")
        assert row.prompt == "Ada helped Bob because _ was kind."
        assert row.reference is None
        assert decode_row(encode_row(row)) == row


def test_the_choice_may_start_the_text(tmp_path: Path, model: Model) -> None:
    path = write(tmp_path / "s.jsonl", PARTIAL | {"prompt": ""})
    llm = rwkvbatch.LLM(model)
    (row,) = rows_of(path, model=model)
    assert row.choices is not None
    expected = [llm.score([0, *llm.tokenizer.encode(name)], " was kind.").logprob for name in ("Ada", "Bob")]
    assert [score.logprob for score in row.choices.scores] == expected


@pytest.mark.parametrize("change", [{}, {"prompt": ""}, {"continuation": " was glad."}])
def test_a_continuation_after_choices_is_in_the_script_copy_and_its_digests(
    change: dict[str, Any], tmp_path: Path
) -> None:
    (original,) = read(tmp_path, PARTIAL | change).conversations
    (copied,) = read(tmp_path, native_record(original)).conversations
    assert copied == original
    assert (copied.sha256, copied.row_contents) == (original.sha256, original.row_contents)
    without = {key: value for key, value in (PARTIAL | change).items() if key != "continuation"}
    (without_continuation,) = read(tmp_path, without).conversations
    assert without_continuation.sha256 != original.sha256
    assert without_continuation.row_contents != original.row_contents


def test_fields_at_their_defaults_are_not_in_the_content_of_a_turn(tmp_path: Path) -> None:
    line = {"id": "p", "prompt": "The sky is", "choices": [" blue", " green"]}
    (found,) = read(tmp_path, line).conversations
    assert found.row_contents == (
        {
            "user": "The sky is", "generate": False, "plain": True, "normalize": "none",
            "choices": [{"name": "blue", "text": " blue"}, {"name": "green", "text": " green"}],
        },
    )  # fmt: skip


def test_a_dry_run_counts_scored_tokens(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    lines = [PARTIAL, {"id": "p", "prompt": "", "choices": ["a b", "c d e"]}, {"id": "t", "text": "It is."}]
    path = write(tmp_path / "s.jsonl", *lines)
    rows = rows_of(path)
    assert invoke(["run", path, "--dry-run", "--json"]) == 0
    counts = json.loads(capsysbinary.readouterr().out)
    assert counts["first_scored_tokens"] == sum(row.scored_tokens for row in rows)
    assert counts["first_prompt_tokens"] == sum(row.tokens.prompt for row in rows)
    assert counts["max_reply_tokens"] == 0


def test_a_dry_run_does_not_count_a_text_that_cannot_be_scored(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = write(tmp_path / "s.jsonl", {"prompt": "", "choices": ["a", "b c"]})
    assert invoke(["run", path, "--dry-run", "--json", "--bos", "off"]) == 0
    counts = json.loads(capsysbinary.readouterr().out)
    assert (counts["first_scored_tokens"], counts["first_prompt_tokens"]) == (0, 0)


def _of_rules_2(name: str, logprob: float, tokens: int, scored: bytes, _prefix: str = " ") -> ChoiceScore:
    """A score as it was counted when `JUDGING_RULES` was 2."""
    return ChoiceScore(name, logprob, tokens, len(scored), max(1, len(scored.decode(errors="replace").strip())))


@pytest.mark.parametrize(
    ("scored", "texts", "counts"),
    [
        (" Ada", [" Ada"], (3, 3)),
        ("Ada", ["Ada"], (3, 3)),
        ("  pulls it up.", ["  pulls it up."], (13, 13)),
        (" Zoë. ", [" Zoë. "], (6, 5)),
        (" Zoë", [" Zoë", "Zoë"], (4, 3)),  # as a reply, before which the template writes a space
        (" Ada", [" Ada", "  Ada "], (3, 3)),
        ("\nA", ["\nA"], (2, 2)),
        (" cat", ["the cat"], (3, 3)),  # nothing precedes the first token, which is not scored
        ("bc", ["xy", "ä"], (2, 2)),  # the text is not known
    ],
)
def test_former_counts_are_counted_again_and_present_ones_kept(
    scored: str, texts: list[str], counts: tuple[int, int]
) -> None:
    new = _of_rules_2("a", -6.0, 2, scored.encode()).recounted(texts)
    assert (new.name, new.logprob, new.tokens, (new.bytes, new.characters)) == ("a", -6.0, 2, counts)
    assert new.recounted(texts) == new
    assert ChoiceScore.of("a", -6.0, 2, scored.encode()) == new


CHAT_TURNS = [
    user(QUESTION, choices=["Ada", "Zoë Ünal"], expect={"choice": 1, "normalize": "byte"}), user("And then?")
]  # fmt: skip


@pytest.mark.parametrize("has_rules", [True, False])
def test_rows_of_former_rules_become_those_of_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_rules: bool
) -> None:
    plain = {"prompt": "It", "choices": [" is", "  pulls it up.", " Zoë. "]}
    lines = [
        *(plain | {"id": normalize, "expect": {"choice": 1, "normalize": normalize}} for normalize in NORMALIZE),
        plain | {"id": "unchecked"},
        {"id": "partial", "prompt": "I saw", "choices": [" her", " them"], "continuation": " there. "},
        conversation(user(QUESTION, choices=NAMES), user("And then?"), id="chat"),
        conversation(*CHAT_TURNS, id="by-length"),
        conversation(user("Say it."), {"role": "assistant", "content": "<think>long thoughts</think>It."}, id="ref"),
    ]
    lines[-1]["messages"][0]["expect"] = {"similarity": 0.1}
    plan = make_plan(conversations=read(tmp_path, *lines).conversations)
    with monkeypatch.context() as former:
        former.setattr(ChoiceScore, "of", _of_rules_2)
        former.setattr("rwkvbatch.script.checks.text.answer_of", str.strip)
        former.setattr("rwkvbatch.replay.judging.checks.JUDGING_RULES", 2)
        former.setattr("rwkvbatch.replay.continuing.row_digests._continues_by_length", lambda *_: False)
        identity = "rwkvbatch.replay.runner.make_identity"
        changes = {"judging_rules": 2} if has_rules else {}
        without = lambda *given: {k: v for k, v in make_identity(*given).items() if k != "judging_rules"} | changes  # noqa: E731
        former.setattr(identity, without)
        run(tmp_path / "run", plan)
    run(tmp_path / "fresh", plan)
    assert results(tmp_path / "run") != results(tmp_path / "fresh")
    reuse = run(tmp_path / "run", plan).reuse
    assert results(tmp_path / "run") == results(tmp_path / "fresh")
    assert reuse is not None
    assert (reuse.to_generate, reuse.judged_again) == (4, 18)  # by-length, whose second turn may have another history
    again = run(tmp_path / "run", plan).reuse
    assert again is not None
    assert (again.to_generate, again.judged_again) == (0, 0)
