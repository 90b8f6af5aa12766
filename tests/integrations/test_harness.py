"""lm-evaluation-harness with the model `rwkvbatch`, against a plain loop over the `rwkv` package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import rwkvbatch
from rwkvbatch.errors import UsageError
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.tokenizer import world_tokenizer

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: make test-ecosystem")

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from rwkvbatch.integrations.harness import RwkvBatchLM
from tests.integrations.harness_tasks import TASKS, evaluated, samples_of, write_tasks


class PlainLoop(TemplateLM):
    """One request after another, one token after another."""

    def __init__(self) -> None:
        super().__init__()
        self._model = load_model(strategy="cpu fp32", backend="upstream")
        self._tokenizer = world_tokenizer(self._model.spec.vocab_size)
        self._helper = RwkvBatchLM()

    @property
    def eot_token_id(self) -> int:
        return 0

    tokenizer_name = "plain"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return ""

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        return self._helper.apply_chat_template(chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        return [self._score(context if context == [0] else [0, *context], target) for _, context, target in requests]

    def _score(self, context: Sequence[int], target: Sequence[int]) -> tuple[float, bool]:
        logits, state = self._model.forward([list(context)], None)
        total, greedy = 0.0, True
        for token in target:
            logprobs = torch.log_softmax(logits[0].double(), dim=-1)
            total += float(logprobs[token])
            greedy &= int(torch.argmax(logits[0])) == token
            logits, state = self._model.forward([[token]], state)
        return total, greedy

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        return [self._score([0], self.tok_encode(request.args[0]))[0] for request in requests]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, given: Mapping[str, Any]) -> str:
        logits, state = self._model.forward([[0, *self.tok_encode(context)]], None)
        reply: list[int] = []
        for _ in range(given["max_gen_toks"]):
            token = int(torch.argmax(logits[0]))
            if token == 0:
                break
            reply.append(token)
            logits, state = self._model.forward([[token]], state)
        text = self._tokenizer.decode(reply)
        for stop in (*given["until"], "\nUser:"):
            text = text.partition(stop)[0]
        return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop()


@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        (tuple(TASKS), {}),
        (("sums", "words"), {"num_fewshot": 2}),
        (("sums", "replies"), {"num_fewshot": 2, "apply_chat_template": True, "fewshot_as_multiturn": True}),
        (("replies",), {"num_fewshot": 1, "apply_chat_template": True, "system_instruction": "Be brief."}),
    ],
    ids=["plain", "few-shot", "multi-turn chat", "chat"],
)
def test_results_equal_those_of_a_plain_loop(
    tasks: Sequence[str], options: dict[str, Any], folder: Path, loop: PlainLoop
) -> None:
    found = evaluated(RwkvBatchLM(), folder, tasks, **options)
    expected = evaluated(loop, folder, tasks, **options)
    assert len(expected) >= len(tasks)
    assert found == pytest.approx(expected, rel=1e-6)


def test_choices_of_a_script_have_the_accuracies_of_the_harness(folder: Path, tmp_path: Path) -> None:
    samples = samples_of(RwkvBatchLM(), folder, "lengths")
    lines: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        prompt = sample["arguments"][0][0]
        choices = {str(index): text for index, (_, text) in enumerate(sample["arguments"])}
        for normalize in ("none", "character", "byte"):
            expect = {"choice": str(sample["target"]), "normalize": normalize}
            name = f"{number} {normalize}"
            lines.append({"id": name, "prompt": prompt, "choices": choices, "expect": expect})
    script = tmp_path / "s.jsonl"
    script.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = {row.conversation: row.checks[0].score for row in rwkvbatch.run(str(script)).rows()}
    expected = {
        f"{number} {normalize}": sample[metric]
        for number, sample in enumerate(samples)
        for normalize, metric in (("none", "acc"), ("character", "acc_norm"), ("byte", "acc_bytes"))
    }
    assert found == expected
    assert any(sample["acc"] != sample["acc_norm"] for sample in samples)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=at, metadata=("t", at, 1))  # type: ignore[arg-type]
        for at, each in enumerate(arguments)
    ]


def test_results_are_in_the_order_of_the_requests_and_equal_alone() -> None:
    lm = RwkvBatchLM()
    pairs = [("Zebras are", " black"), ("", "A text"), ("Ants are", " small"), ("Zebras are", " tall")]
    found = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    for pair, one in zip(pairs, found, strict=True):
        assert RwkvBatchLM().loglikelihood(requests("loglikelihood", pair), disable_tqdm=True) == [one]


def test_repeats_of_a_sampled_document_differ_and_come_again() -> None:
    given = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "until": []}
    several = requests("generate_until", *[("Once upon a time", given)] * 4)
    found = RwkvBatchLM(seed=5).generate_until(several, disable_tqdm=True)
    assert len(set(found)) > 1
    assert RwkvBatchLM(seed=5).generate_until(several, disable_tqdm=True) == found


def test_a_beginning_of_the_reply_is_continued_in_chat() -> None:
    lm = RwkvBatchLM()
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "2 + 2?"},
    ]
    begin = "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: 2 + 2?\n\nAssistant:"
    assert lm.apply_chat_template(history) == begin
    ended = [*history, {"role": "assistant", "content": "The answer is"}]
    assert lm.apply_chat_template(ended, add_generation_prompt=False) == f"{begin} The answer is"


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretained": "x"},
        {"bos": "maybe"},
        {"think": "x"},
        {"batch_size": "many"},
        {"batch_size": "9" * 5000},
        {"strategy": "x"},
        {"device": "tpu"},
    ],
)
def test_wrong_arguments_of_the_model_are_usage_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RwkvBatchLM(**arguments)


def test_generation_arguments_without_a_counterpart_are_refused() -> None:
    lm = RwkvBatchLM()
    neutral = requests("generate_until", ("Hi", {"until": [], "max_gen_toks": 2, "num_beams": 1}))
    assert len(lm.generate_until(neutral, disable_tqdm=True)) == 1
    for changing in ({"num_beams": 4}, {"repetition_penalty": 1.3}, {"bad_words_ids": [[1]]}):
        with pytest.raises(UsageError, match="has no counterpart"):
            lm.generate_until(requests("generate_until", ("Hi", {"until": [], **changing})), disable_tqdm=True)


def test_the_command_hands_over_to_the_harness(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rwkvbatch.cli.app import invoke
    from rwkvbatch.comparison.runs.foreign import read_foreign

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    common = ["lm-eval", "--include_path", str(folder)]
    out = ["--output_path", str(tmp_path / "out"), "--log_samples", "--limit", "4"]
    assert invoke([*common, "--tasks", "own_sums", "--model_args", "bos=off,think=fake", *out]) == 0
    found = read_foreign(next((tmp_path / "out").iterdir()))
    assert found is not None
    assert len({row.conversation for row in found.rows}) == 4
    assert invoke([*common, "--tasks", "own_sums", "--model_args", "nonsense=1"]) == 2
    assert invoke([*common, "--tasks", "own_sums", "--model_args", f"pretrained={tmp_path}/none.pth"]) == 3
