"""Accuracy of the bundled model: the figures of docs/demo-model.md that gates depend on."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch

import rwkvbatch
from rwkvbatch.model.base import State
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.tokenizer import world_tokenizer
from rwkvbatch.script.reader import read_scripts

DATASETS = Path(__file__).parents[2] / "datasets"


def test_greedy_replies_to_the_demo_script_pass_nineteen_checks_in_twenty() -> None:
    passed: dict[str, list[bool]] = defaultdict(list)
    for row in rwkvbatch.run(DATASETS / "demo.jsonl", preset="greedy").rows():
        passed[row.tags[0]] += [check.passed for check in row.checks]
    everything = [verdict for verdicts in passed.values() for verdict in verdicts]
    assert sum(everything) / len(everything) >= 0.95
    assert all(sum(verdicts) / len(verdicts) >= 0.85 for verdicts in passed.values()), passed


def test_thinking_pays_for_long_sums() -> None:
    def score(think: str) -> float:
        rows = rwkvbatch.run(
            DATASETS / "arithmetic.jsonl", preset="greedy", think=think, only=["long-sums"], max_tokens=200
        ).rows()
        verdicts = [check.passed for row in rows for check in row.checks]
        return sum(verdicts) / len(verdicts)

    assert score("on") >= 0.9
    assert score("off") < 0.6


def test_the_rwkv_package_gives_the_same_replies() -> None:
    script = DATASETS / "demo.jsonl"
    package = load_model(strategy="cpu fp32", backend="upstream")
    tokenizer = world_tokenizer(package.spec.vocab_size)
    rows = list(rwkvbatch.run(script, preset="greedy", limit=3).rows())
    for conversation in read_scripts([str(script)]).conversations[:3]:
        state: State | None = None
        for number, turn in enumerate(conversation.turns):
            text = f"User: {turn.user}\n\nAssistant:"
            if number == 0 and conversation.system:
                text = f"System: {conversation.system}\n\n" + text
            logits, state = package.forward([tokenizer.encode(text)], state)
            reply: list[int] = []
            while "\n\n" not in tokenizer.decode(reply):
                reply.append(int(torch.argmax(logits[0])))
                logits, state = package.forward([reply[-1:]], state)
            row = next(row for row in rows if (row.conversation, row.turn) == (conversation.id, number))
            assert list(row.reply_ids) == reply
