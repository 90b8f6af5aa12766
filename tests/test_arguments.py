"""Arguments of the wrong kind: every function of the library names the argument, what it must be, and what it is."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rwkvbatch
from rwkvbatch import LLM, Engine, Request, SamplingParams, load_model, load_state, save_state
from rwkvbatch.arguments import SWITCH, checks, whole_number
from rwkvbatch.errors import ArgumentError, RwkvBatchError
from tests.engine.hash_model import HashModel

USER = [{"role": "user", "content": "hi"}]
ODD: list[Any] = [
    None, 5, -1, 0, 2.5, float("nan"), float("inf"), True, "2G", "", "\0", "\ud800", b"x", [], {}, (), object(),
    np.array([1.0]), torch.zeros(3), [None], [[1]], {"a": 1}, range(3),
]  # fmt: skip


def calls(llm: LLM, directory: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """The functions of the library with valid arguments, short in time."""
    brief = SamplingParams(max_tokens=1)
    script = directory / "one.jsonl"
    script.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    state = llm.state("hi")
    result = rwkvbatch.run(script, model=llm.model, max_tokens=1, temperature=[0.0, 1.0])
    return {
        "LLM": (LLM, {"model": llm.model}),
        "generate": (llm.generate, {"prompts": "hi", "params": brief}),
        "chat": (llm.chat, {"messages": USER, "params": brief}),
        "stream": (lambda **given: list(llm.stream(**given)), {"messages": USER, "params": brief}),
        "score": (llm.score, {"prompt": "hi", "continuations": [" a"]}),
        "score_pairs": (llm.score_pairs, {"pairs": [("hi", " a")]}),
        "state": (llm.state, {"prompt": "hi"}),
        "load_model": (load_model, {"model": None}),
        "load_state": (load_state, {"path": directory / "none", "spec": llm.spec}),
        "save_state": (save_state, {"path": directory / "state", "state": state, "spec": llm.spec, "replace": True}),
        "run": (rwkvbatch.run, {"scripts": script, "model": llm.model, "max_tokens": 1}),
        "compare": (rwkvbatch.compare, {"runs": [result], "primary": "tokens"}),
        "Engine": (Engine, {"model": llm.model}),
        "Request": (Request, {"tokens": (1,)}),
        "forward": (llm.model.forward, {"tokens": [[1]]}),
    }


NAMES = ["LLM", "generate", "chat", "stream", "score", "score_pairs", "state", "load_model", "load_state", "save_state",
         "run", "compare", "Engine", "Request", "forward"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_argument_gives_a_typed_error_or_a_result(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with LLM() as llm:
        function, given = calls(llm, tmp_path)[name]
        parameters = inspect.signature(llm.stream if name == "stream" else function).parameters
        for argument in [name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD]:
            for value in ODD:
                with suppress(RwkvBatchError):  # other errors fail the test
                    function(**{**given, argument: value})
        assert not llm.engine.busy


ANY: Any = rwkvbatch
"""The library for a type checker that is not to refuse wrong types."""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda llm: ANY.LLM(5),
            "model must be a path or a mapping of names to tensors or a loaded Model, or None; got 5",
        ),
        (
            lambda llm: ANY.LLM(llm.model, state_memory="2G"),
            "state_memory must be a whole number, at least 1; got '2G'",
        ),
        (lambda llm: ANY.LLM(llm.model, max_batch=2.5), "max_batch must be a whole number, at least 1; got 2.5"),
        (
            lambda llm: ANY.LLM(llm.model, vocab=5),
            "vocab must be a path (text that is not empty, or a pathlib.Path), or N",
        ),
        (lambda llm: llm.generate("a", 5), "params must be SamplingParams or a list with one for each prompt, or None"),
        (lambda llm: llm.generate("a", bos="off"), "bos must be True or False; got 'off'"),
        (lambda llm: llm.score("a", "b", bos=0), "bos must be True or False; got 0"),
        (lambda llm: llm.generate({"a": 1}), "prompts must be text, token ids, or a list of them; got {'a': 1}"),
        (lambda llm: llm.chat(USER[0]), "messages must be a list of messages, or a list of such lists; got {'role'"),
        (lambda llm: llm.chat([None]), "conversation 0 must be a list of messages; got None"),
        (lambda llm: llm.chat(USER, prelude=5), "prelude must be a path"),
        (lambda llm: llm.chat(USER, think=["on"]), "think must be text; got ['on']"),
        (lambda llm: llm.stream(5), "messages must be text, token ids, or a list of messages; got 5"),
        (lambda llm: ANY.load_model(threads="4"), "threads must be a whole number, 1 to 1,024, or None; got '4'"),
        (lambda llm: ANY.load_state("x", None), "spec must be a ModelSpec; got None"),
        (lambda llm: ANY.save_state("x", "y", llm.spec), "state must be a State; got 'y'"),
        (lambda llm: ANY.run(5), "scripts must be a path or a mapping (a conversation) or a list of these; got 5"),
        (lambda llm: ANY.run("x", model=5), "model must be a path"),
        (lambda llm: ANY.run("x", verify_rows=-1), "verify_rows must be a whole number, at least 0; got -1"),
        (lambda llm: ANY.compare("x", by="turns"), "by must be one of turn, tag, distance, or None; got 'turns'"),
        (lambda llm: ANY.compare([5]), "runs[0] must be a path"),
        (lambda llm: ANY.compare("x", ks=[0]), "ks must be a list of whole numbers, each at least 1, or None; g"),
        (lambda llm: ANY.Request((1,), stop="END"), "stop must be a tuple of texts that are not empty; got 'END'"),
        (lambda llm: Engine(llm.model).generate([ANY.Request("ab")]), "token ids must be whole numbers, got 'ab'"),
        (lambda llm: llm.model.forward([[1, 2], [1.7]]), "tokens[1]: token ids must be whole numbers, got 1.7"),
        (lambda llm: llm.model.forward(["12"]), "tokens[0] must be a list of at least one token id; got '12'"),
        (lambda llm: llm.model.forward([[1]], "x"), "state must be a State, or None; got 'x'"),
    ],
)
def test_the_message_names_the_argument_what_it_must_be_and_what_it_is(call: Any, message: str) -> None:
    with LLM() as llm, pytest.raises(ArgumentError) as caught:
        call(llm)
    assert caught.value.message.startswith(message)


def test_numpys_numbers_and_paths_are_taken(tmp_path: Path) -> None:
    prelude = tmp_path / "prelude.txt"
    prelude.write_text("User: a\n\nAssistant: b\n\n")
    with LLM(threads=np.int64(1), max_batch=np.int32(2)) as llm:  # type: ignore[arg-type]
        brief = SamplingParams(max_tokens=1)
        by_path = llm.chat(USER, brief, bos=np.bool_(True), prelude=prelude)  # type: ignore[arg-type]
        assert by_path.prompt_token_ids == llm.chat(USER, brief, bos=True, prelude=os.fspath(prelude)).prompt_token_ids
        assert by_path.prompt_token_ids[0] == 0
        assert "Assistant: b" in (by_path.prompt or "")


def test_defaults_are_not_checked_and_wrong_names_are_pythons_errors() -> None:
    @checks(number=whole_number(1, 3), is_on=SWITCH)
    def function(number: int = -5, is_on: bool = False) -> int:
        return number

    assert function() == -5
    assert function(3) == 3
    with pytest.raises(ArgumentError, match="number must be a whole number, 1 to 3; got 4"):
        function(4)
    with pytest.raises(TypeError, match="unexpected keyword"):
        function(numbers=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="has no arguments other"):
        checks(other=SWITCH)(function)


def test_hash_models_are_models() -> None:
    """A class of one's own with the methods of `Model` is one."""
    assert LLM(HashModel()).spec.vocab_size == 300
