"""`LLM`: replies, streams and scores are those of the engine, for one prompt and for many, whatever else runs."""

from __future__ import annotations

import gc
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rwkvbatch
from rwkvbatch import LLM, Engine, NoiseKey, Request, SamplingParams
from rwkvbatch.config import Stopping, preset
from rwkvbatch.engine.shared import MAX_INITIAL_STATES
from rwkvbatch.errors import CheckpointError, InputError, NonFiniteLogitsError, RowError, UsageError
from rwkvbatch.prompt.templates import OfficialTemplate
from tests.engine.hash_model import HashModel

WARM = SamplingParams(temperature=1.5, top_p=1.0, max_tokens=24, seed=1)
PROMPTS = ["User: hi\n\nAssistant:", "User: What is an iron?\n\nAssistant:", "Count: 1 2 3"]
ADA = [{"role": "user", "content": "My name is Ada."}]
DIALOGUE = [*ADA, {"role": "assistant", "content": "Hi Ada!"}, {"role": "user", "content": "What is my name?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as bundled:
        yield bundled


@pytest.fixture
def hashing() -> LLM:
    return LLM(HashModel())


def contents(output: rwkvbatch.outputs.RequestOutput) -> list[tuple[Any, ...]]:
    return [(reply.text, reply.token_ids, reply.logprobs, reply.finish_reason) for reply in output.outputs]


def test_one_prompt_gives_one_output_and_a_list_gives_a_list_in_its_order(hashing: LLM) -> None:
    alone = [hashing.generate(prompt, WARM) for prompt in PROMPTS]
    assert [output.prompt for output in alone] == PROMPTS
    together = hashing.generate(PROMPTS, WARM)
    assert [contents(output) for output in together] == [contents(output) for output in alone]
    assert hashing.generate([], WARM) == []


@pytest.mark.parametrize("max_batch", [1, 3, 64])
def test_a_reply_depends_on_its_prompt_and_seed_and_not_on_the_batch(llm: LLM, max_batch: int) -> None:
    small = LLM(llm.model, max_batch=max_batch)
    replies = {prompt: contents(llm.generate(prompt, WARM, n=2)) for prompt in PROMPTS}
    for order in (PROMPTS, PROMPTS[::-1], PROMPTS[1:]):
        assert [contents(output) for output in small.generate(order, WARM, n=2)] == [replies[text] for text in order]
    assert contents(llm.generate(PROMPTS[0], WARM.replace(seed=2))) != replies[PROMPTS[0]][:1]


def test_repetitions_differ_and_do_not_depend_on_their_number(hashing: LLM) -> None:
    output = hashing.generate(PROMPTS[0], WARM, n=4)
    assert [reply.index for reply in output.outputs] == [0, 1, 2, 3]
    assert len({reply.token_ids for reply in output.outputs}) == 4
    assert contents(hashing.generate(PROMPTS[0], WARM, n=2)) == contents(output)[:2]


def test_prompts_have_randomness_of_their_own() -> None:
    """With the same noise for all prompts, errors of a mean over prompts would not average out."""
    uniform = LLM(_Uniform())
    assert len({uniform.generate(prompt, WARM).outputs[0].token_ids for prompt in PROMPTS}) == len(PROMPTS)


class _Uniform(HashModel):
    """All tokens are equally likely, so that a reply shows the noise alone."""

    def step(self, batch, pool):  # type: ignore[no-untyped-def]
        return torch.zeros_like(super().step(batch, pool))


def test_a_reply_is_the_engines(llm: LLM) -> None:
    output = llm.generate(PROMPTS[1], WARM.replace(stop=("\n\n",)))
    (reply,) = output.outputs
    tokens = tuple(llm.tokenizer.encode(PROMPTS[1]))
    assert (output.prompt_token_ids, output.num_prompt_tokens) == (tokens, len(tokens))
    # The content key of a prompt may not change, or a new version would give other replies.
    content = hashlib.blake2b(" ".join(map(str, tokens)).encode(), digest_size=16).hexdigest()
    request = Request(tokens, WARM.sampling, NoiseKey(1, content), max_tokens=24, stop=("\n\n",))
    (expected,) = Engine(llm.model).generate([request])
    assert (reply.text, reply.token_ids, reply.logprobs) == (expected.text, expected.ids, expected.logprobs)
    assert reply.stopped_by == expected.stopped_by
    assert reply.cumulative_logprob == pytest.approx(sum(expected.logprobs))
    assert reply.timing.total_s > 0


def test_token_ids_and_text_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPTS[0])
    by_ids, by_text = llm.generate(ids, WARM), llm.generate(PROMPTS[0], WARM)
    assert (by_ids.prompt, by_text.prompt) == (None, PROMPTS[0])
    assert contents(by_ids) == contents(by_text)
    for arrays in ([ids, torch.tensor(ids)], [np.array(ids)], torch.tensor([ids])):
        assert contents(llm.generate(arrays, WARM)[-1]) == contents(by_text)
    assert contents(llm.generate(np.array(ids), WARM)) == contents(by_text)


def test_top_logprobs_are_those_of_the_models_own_distribution(llm: LLM) -> None:
    output = llm.generate(PROMPTS[1], WARM, top_logprobs=3)
    (reply,) = output.outputs
    assert contents(output) == contents(llm.generate(PROMPTS[1], WARM))
    assert len(reply.top_logprobs) == len(reply.token_ids) > 2
    logits, state = llm.model.forward([list(output.prompt_token_ids)])
    for token, logprob, top in zip(reply.token_ids, reply.logprobs, reply.top_logprobs, strict=True):
        expected = torch.log_softmax(logits[0].double(), dim=-1)
        assert list(top) == expected.topk(3).indices.tolist()
        assert list(top.values()) == pytest.approx(expected.topk(3).values.tolist(), abs=1e-5)
        assert top.get(token, logprob) == logprob
        logits, state = llm.model.forward([[token]], state)


def test_top_logprobs_have_no_position_for_end_of_text(llm: LLM) -> None:
    ended = SamplingParams(temperature=0, stop=(), max_tokens=64)
    (reply,) = llm.chat(ADA, ended, top_logprobs=2).outputs
    assert reply.finish_reason in ("eos", "stop")
    assert llm.chat(ADA, ended).finish_reason == reply.finish_reason
    assert [next(iter(top)) for top in reply.top_logprobs] == list(reply.token_ids)
    assert llm.chat(ADA, ended).outputs[0].top_logprobs == ()


def test_top_logprobs_leave_out_the_end_of_text_that_ends_a_reply(hashing: LLM) -> None:
    params = SamplingParams(temperature=2.0, top_p=1.0, max_tokens=2000, stop=())
    ended = [r for r in hashing.generate("a", params, n=8, top_logprobs=1).outputs if r.finish_reason == "eos"]
    assert ended
    assert all(len(reply.top_logprobs) == len(reply.token_ids) for reply in ended)


def test_each_prompt_may_have_parameters_of_its_own(hashing: LLM) -> None:
    each = [WARM.replace(max_tokens=number) for number in (1, 2, 3)]
    assert [len(output.outputs[0].token_ids) for output in hashing.generate(PROMPTS, each)] == [1, 2, 3]


def test_only_the_given_stop_texts_end_a_generated_reply(llm: LLM) -> None:
    prompt = "User: My name is Ada.\n\nAssistant:"
    free = llm.generate(prompt, SamplingParams.from_preset("greedy", max_tokens=40))
    assert "\n\n" in free.text or free.outputs[0].finish_reason == "eos"
    stopped = llm.generate(prompt, SamplingParams.from_preset("greedy", stop=(" you",)))
    assert (stopped.text, stopped.outputs[0].stopped_by) == (" Nice to meet", " you")


def test_chat_applies_the_template(llm: LLM) -> None:
    greedy = SamplingParams.from_preset("greedy")
    template = OfficialTemplate()
    prompt = template.past_turn("My name is Ada.") + template.reply("Hi Ada!") + template.turn("What is my name?")
    output = llm.chat(DIALOGUE, greedy)
    assert (output.prompt, output.text) == (prompt, "Your name is Ada.")
    assert output.outputs[0].stopped_by == "\n\n"
    raw = llm.generate(prompt, greedy.replace(stop=("\n\n",)))
    assert raw.text.strip() == output.text
    assert [one.text for one in llm.chat([ADA, DIALOGUE], greedy)] == ["Nice to meet you, Ada.", "Your name is Ada."]


def test_chat_writes_system_message_prelude_and_thinking(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "prelude.txt").write_text("User: a\n\nAssistant: b\n\n")
    messages = [{"role": "system", "content": "Be brief."}, *ADA]
    output = llm.chat(messages, SamplingParams(max_tokens=4), prelude=str(tmp_path / "prelude.txt"), think="fake")
    opening = "System: Be brief.\n\nUser: a\n\nAssistant: b\n\n"
    assert output.prompt == f"{opening}User: My name is Ada.\n\nAssistant: <think>\n</think"
    assert output.text.startswith("<think>\n</think")


def test_chat_takes_a_template_file(llm: LLM) -> None:
    template = str(Path(__file__).parent / "prompt" / "chatml.jinja")
    output = llm.chat(DIALOGUE, SamplingParams(max_tokens=4), template=template)
    assert output.prompt is not None
    assert output.prompt.count("<|im_end|>") == 3


@pytest.mark.parametrize("think", ["off", "on", "fake"])
def test_the_pieces_of_a_stream_join_to_the_reply(llm: LLM, think: Any) -> None:
    params = WARM.replace(stop=(" the", "!"))
    pieces = list(llm.stream(DIALOGUE, params, think=think))
    assert "".join(pieces) == llm.chat(DIALOGUE, params, think=think).text
    assert len(pieces) > 1
    assert "".join(llm.stream(PROMPTS[2], params)) == llm.generate(PROMPTS[2], params).text


def test_a_stream_returns_the_output(llm: LLM) -> None:
    outputs = []

    def consume() -> Iterator[str]:
        outputs.append((yield from llm.stream(ADA, WARM, top_logprobs=2)))

    assert "".join(consume()) == outputs[0].text
    expected = llm.chat(ADA, WARM, top_logprobs=2)
    assert contents(outputs[0]) == contents(expected)
    assert outputs[0].outputs[0].top_logprobs == expected.outputs[0].top_logprobs != ()


def test_closing_a_stream_cancels_its_reply() -> None:
    model = HashModel()
    llm = LLM(model)
    stream = llm.stream([5, 6, 7], SamplingParams(max_tokens=1000, top_p=1.0, banned_token_ids=(0,)))
    next(stream)
    stream.close()
    model.num_rows.clear()
    llm.generate([8, 9], SamplingParams(max_tokens=5, banned_token_ids=(0,)))
    assert max(model.num_rows[1:]) == 1  # only the new reply is decoded
    assert not llm.engine.busy


def test_a_forgotten_stream_is_cancelled_too() -> None:
    llm = LLM(HashModel())
    stream: Any = llm.stream([5, 6, 7], SamplingParams(max_tokens=1000, banned_token_ids=(0,)))
    next(stream)
    del stream
    gc.collect()
    llm.generate([8, 9], SamplingParams(max_tokens=1))
    assert not llm.engine.busy


def test_streams_and_other_calls_run_in_turns(llm: LLM) -> None:
    expected = [llm.chat(messages, WARM).text for messages in (ADA, DIALOGUE)]
    first, second = llm.stream(ADA, WARM), llm.stream(DIALOGUE, WARM)
    texts = [next(first), next(second)]
    assert llm.generate(PROMPTS[0], WARM).text == LLM(llm.model).generate(PROMPTS[0], WARM).text
    for number, stream in enumerate((first, second)):
        texts[number] += "".join(stream)
    assert texts == expected


def test_threads_get_the_replies_that_they_asked_for(llm: LLM) -> None:
    expected = {prompt: llm.generate(prompt, WARM).text for prompt in PROMPTS}
    found: dict[str, list[str]] = {prompt: [] for prompt in PROMPTS}

    def work(prompt: str) -> None:
        for _ in range(4):
            found[prompt] += [llm.generate(prompt, WARM).text, "".join(llm.stream(prompt, WARM))]

    threads = [threading.Thread(target=work, args=[prompt]) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {prompt: [text] * 8 for prompt, text in expected.items()}


def test_after_an_interrupt_no_state_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come when a state has read tokens that the scheduler does not know about yet."""
    model = HashModel()
    llm, step, calls = LLM(model), model.step, []
    expected = llm.generate([5, 6, 7], WARM)
    stream = llm.stream([1, 2], WARM)
    next(stream)

    def interrupted(batch: Any, pool: Any) -> torch.Tensor:
        logits = step(batch, pool)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(model, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([5, 6, 7, 8], WARM)
    with pytest.raises(RowError, match="interrupted"):
        list(stream)
    assert contents(llm.generate([5, 6, 7], WARM)) == contents(expected)
    assert contents(llm.generate([5, 6, 7, 8], WARM)) == contents(LLM(HashModel()).generate([5, 6, 7, 8], WARM))


def test_scores_are_the_engines_and_the_prompt_is_read_once() -> None:
    model = HashModel()
    prompt, continuations = list(range(1, 60)), [[5, 6], [7], [5, 6]]
    engine = Engine(HashModel())
    found = LLM(model).score(prompt, continuations)
    assert [score.logprobs for score in found] == [
        tuple(engine.score(prompt, tokens).logprobs) for tokens in continuations
    ]
    assert sum(model.num_rows) < 2 * len(prompt)


def test_a_score_says_sum_mean_and_whether_it_is_greedy(llm: LLM) -> None:
    prompt = "User: My name is Ada.\n\nAssistant:"
    greedy, other = llm.score(prompt, [" Nice to meet you, Ada.\n\n", " Vienna.\n\n"])
    assert greedy.is_greedy
    assert not other.is_greedy
    assert greedy.logprob > other.logprob
    assert greedy.nll == pytest.approx(-sum(greedy.logprobs) / len(greedy.token_ids))
    assert llm.score(prompt, " Vienna.\n\n").logprobs == pytest.approx(other.logprobs)


def test_an_initial_state_stands_for_its_prompt(llm: LLM, tmp_path: Path) -> None:
    template = OfficialTemplate()
    past = template.past_turn("My name is Ada.") + template.reply("Hi Ada!")
    state = llm.state(past)
    question = [{"role": "user", "content": "What is my name?"}]
    greedy = SamplingParams.from_preset("greedy")
    assert llm.chat(question, greedy, initial_state=state).text == "Your name is Ada."
    assert "".join(llm.stream(question, greedy, initial_state=state)) == "Your name is Ada."
    turn = template.turn("What is my name?")
    assert llm.score(turn, " Ada", initial_state=state).logprobs == llm.score(past + turn, " Ada").logprobs
    rwkvbatch.save_state(tmp_path / "ada.safetensors", state, llm.spec)
    loaded = rwkvbatch.load_state(tmp_path / "ada.safetensors", llm.spec)
    assert llm.chat(question, greedy, initial_state=loaded).text == "Your name is Ada."
    further = llm.state(turn, initial_state=loaded)
    for name, tensor in llm.state(past + turn).tensors.items():
        assert torch.equal(further.tensors[name], tensor)


@pytest.mark.parametrize("memory", [2**30, 4 * 1024])
def test_any_number_of_initial_states_can_be_used_one_after_the_other(memory: int) -> None:
    llm, other = LLM(HashModel(), state_memory=memory), LLM(HashModel())
    for number in range(1, 2 * MAX_INITIAL_STATES):
        output = llm.generate([7], WARM, initial_state=other.state([number]))
        expected = other.generate([7], WARM, initial_state=other.state([number]))
        assert contents(output) == contents(expected)


def test_run_takes_an_llm(llm: LLM, tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('{"messages": [{"role": "user", "content": "My name is Ada."}]}\n')
    (row,) = rwkvbatch.run(script, model=llm, preset="greedy").rows()
    assert row.reply == llm.chat(ADA, SamplingParams.from_preset("greedy")).text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("strategy", ["cpu bf16", "cpu int4"]),
        ("backend", "reference"),
        ("adapter", "a.pth alpha=1"),
        ("endpoint", "http://127.0.0.1:1/v1"),
    ],
)
def test_run_refuses_to_load_a_loaded_model_differently(llm: LLM, name: str, value: Any) -> None:
    keywords: Any = {name: value}
    with pytest.raises(UsageError, match=f"{name} is given"):
        rwkvbatch.run("datasets/demo.jsonl", model=llm, limit=1, **keywords)


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda llm: llm.generate(""), ["prompt 0", "none"]),
        (lambda llm: llm.generate(["a", [300]]), ["prompt 1", "[0, 300)", "300"]),
        (lambda llm: llm.generate([[1.5]]), ["prompt 0", "token ids"]),
        (lambda llm: llm.generate(["a", 3]), ["prompt 1: must be text or token ids: got 3"]),
        (lambda llm: llm.generate([[1, True]]), ["prompt 0: must be text or token ids: got [1, True]"]),
        (lambda llm: llm.generate([[1, 70000]]), ["prompt 0: must be text or token ids: token ids must be in [0, "]),
        (lambda llm: llm.generate("a", n=0), ["n must", "1 to 1,000,000", "got 0"]),
        (lambda llm: llm.generate("a", top_logprobs=-1), ["top_logprobs must", "0 to 1,000", "got -1"]),
        (lambda llm: llm.generate(["a", "b"], [WARM]), ["params", "2", "1"]),
        (lambda llm: llm.generate("a", WARM.replace(banned_token_ids=(300,))), ["300"]),
        (lambda llm: llm.generate("a", n=1.5), ["n ", "1.5"]),
        (lambda llm: llm.generate("a", n=True), ["n ", "True"]),
        (lambda llm: llm.generate("a", {"max_tokens": 4}), ["SamplingParams", "max_tokens"]),
        (lambda llm: llm.generate("a", [{"max_tokens": 4}]), ["SamplingParams", "max_tokens"]),
        (lambda llm: llm.stream("a", {"max_tokens": 4}), ["SamplingParams", "max_tokens"]),
        (lambda llm: llm.generate(b"abc"), ["text", "b'abc'"]),
        (lambda llm: llm.generate([b"abc"]), ["prompt 0", "b'abc'"]),
        (lambda llm: llm.generate(None), ["None"]),
        (lambda llm: llm.generate("a", initial_state="ada.safetensors"), ["State", "ada.safetensors"]),
        (lambda llm: llm.score_pairs(["ab"]), ["pairs", "'ab'"]),
        (lambda llm: llm.score_pairs([("a", "b", "c")]), ["pairs", "'c'"]),
        (lambda llm: llm.chat("hi"), ["messages", "'hi'"]),
        (lambda llm: llm.chat([{"role": "user", "text": "hi"}]), ["message 0", "content", "text"]),
        (lambda llm: llm.chat([[*ADA], [*DIALOGUE[1:2]]]), ["conversation 1", "got assistant"]),
        (lambda llm: llm.chat(DIALOGUE[:2], reply_prefix="x"), ["reply_prefix", "both begin"]),
        (lambda llm: llm.chat(ADA, think="deep"), ["think", "deep"]),
        (lambda llm: llm.stream([]), ["none"]),
        (lambda llm: llm.stream("hi", think="on"), ["think"]),
        (lambda llm: llm.stream("hi", WARM.replace(banned_token_ids=(300,))), ["300"]),
        (lambda llm: llm.score("a", ["b", ""]), ["continuation 1", "none"]),
        (lambda llm: LLM(llm.model, strategy="cpu fp32"), ["strategy", "loaded model"]),
        (lambda llm: SamplingParams(temprature=1.0), ["SamplingParams", "temprature"]),
        (lambda llm: SamplingParams(temp=1.0), ["unknown setting 'temp', write temperature"]),
        (lambda llm: SamplingParams(top_p=1.3), ["top_p", "[0, 1]", "1.3"]),
        (lambda llm: SamplingParams(seed=True), ["seed", "[0, 9223372036854775808), got True"]),
        (lambda llm: SamplingParams(seed=10**5000), ["seed", "[0, 9223372036854775808)", "more than 4,300 digits"]),
        (lambda llm: WARM.replace(seed=-1), ["seed", "-1"]),
    ],
)
def test_wrong_arguments_are_usage_errors(hashing: LLM, call: Any, facts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call(hashing)
    for fact in facts:
        assert fact in caught.value.message
    assert not hashing.engine.busy


def test_other_errors_keep_their_type(hashing: LLM, llm: LLM) -> None:
    with pytest.raises(InputError, match=r"U\+D800.*prompt 1"):
        hashing.generate(["a", "\ud800"])
    with pytest.raises(CheckpointError):
        llm.generate("a", initial_state=hashing.state("a"))
    broken = LLM(HashModel(not_finite_after=3))
    with pytest.raises(NonFiniteLogitsError, match="prompt 0"):
        broken.generate([[1, 2]], WARM)
    with pytest.raises(NonFiniteLogitsError):
        list(broken.stream([1, 2], WARM))


def test_a_closed_llm_refuses(llm: LLM) -> None:
    with LLM(llm.model) as closing:
        stream = closing.stream(ADA, WARM)
        next(stream)
    for call in (lambda: closing.generate("a"), lambda: closing.spec, lambda: next(stream)):
        with pytest.raises(UsageError, match="closed"):
            call()
    assert "closed" in repr(closing)


def test_parameters_are_sampling_and_stopping_with_a_seed() -> None:
    greedy = SamplingParams.from_preset("greedy", max_tokens=7)
    assert greedy.sampling == preset("greedy")
    assert {name: getattr(SamplingParams(), name) for name in Stopping.model_fields} == Stopping().model_dump()
    with pytest.raises(UsageError, match="nonsense"):
        SamplingParams.from_preset("nonsense")


def test_the_number_of_replies_may_be_numpys(llm: LLM) -> None:
    replies = llm.generate(PROMPTS[0], WARM, n=np.int64(2))  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert contents(replies) == contents(llm.generate(PROMPTS[0], WARM, n=2))


def test_what_a_notebook_shows_is_short(llm: LLM) -> None:
    output = llm.generate(PROMPTS, WARM, n=3)
    for shown in (llm, output, output[0].outputs[0], llm.score("a", ["b"] * 20)):
        assert len(repr(shown)) < 2_000


def test_pairs_have_the_scores_that_each_has_alone_in_their_order(llm: LLM) -> None:
    pairs = [("User: hi\n\nAssistant:", " Hello"), ("Count: 1 2", " 3"), ("User: hi\n\nAssistant:", " Bye"), ("C", "D")]
    found = llm.score_pairs(pairs, bos=True)
    for (prompt, continuation), score in zip(pairs, found, strict=True):
        assert score == llm.score(prompt, continuation, bos=True)
    with pytest.raises(UsageError, match="continuation 1"):
        llm.score_pairs([("a", "b"), ("a", "")])
    with pytest.raises(UsageError, match="prompt 0"):
        llm.score_pairs([("", "b")])
    assert llm.score_pairs([]) == []
