"""Scripts that test recall in long contexts: a fact in a long text, and a question about it.

The task is known as "needle in a haystack"; several facts, of which one is asked, are the multi-key form of RULER
(Hsieh et al. 2024, https://arxiv.org/abs/2404.06654).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rwkvbatch.errors import UsageError, counted
from rwkvbatch.files import save_file
from rwkvbatch.script.benchmark_import import SCRIPT
from rwkvbatch.script.documents import read_documents
from rwkvbatch.targets import check_target

MAX_LENGTH = 10_000_000
MAX_COUNT = 10_000
MAX_FACTS = 100

_BEFORE, _AFTER = "Read this text. A question about it follows.\n", "\nWhat is the code of the {}?"
_FACT = "The code of the {} is {}."
_COLOURS = (
    "amber",
    "azure",
    "black",
    "brown",
    "copper",
    "crimson",
    "golden",
    "green",
    "grey",
    "ivory",
    "lilac",
    "orange",
)
_THINGS = (
    "anchor",
    "bridge",
    "castle",
    "engine",
    "garden",
    "harbour",
    "lantern",
    "library",
    "mill",
    "station",
    "tower",
)
_FILLER = (
    "The bus stops in front of the school.",
    "Most of the shops open at nine.",
    "A dog sleeps under the table.",
    "It rained in the morning, and the streets are still wet.",
    "She puts the letters into a drawer.",
    "The train to the coast was late again.",
    "Two boats wait at the pier.",
    "He has forgotten his umbrella.",
    "In the evening the wind turns to the west.",
    "The baker sells bread until noon.",
    "Nobody has seen the cat since Monday.",
    "They walk along the river and talk about the weather.",
)
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])(?=\s)|(?<=[。！？])|(?=\n)")
# A piece of a long sentence: up to a space, or of a language without spaces.
_PIECE = re.compile(r"\s*\S.{0,120}(?=\s|$)|\s*\S.{0,30}", re.DOTALL)
_SPARE_TOKENS = 4
"""Tokens at the joints of the parts of a message, which are counted one by one."""


@dataclass(frozen=True)
class RecallPlan:
    """What is asked.

    Attributes:
        lengths: numbers of tokens of a message, at least 100 each.
        depths: places of the fact that is asked, in per cent of the text before it.
        count: conversations for each length and depth.
        facts: number of facts in a text, of which one is asked.
        seed: seed of names, codes, places and texts.
    """

    lengths: Sequence[int]
    depths: Sequence[int] = (0, 25, 50, 75, 100)
    count: int = 5
    facts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range; raises `UsageError`."""
        _check_all("--lengths", self.lengths, 100, MAX_LENGTH)
        _check_all("--depths", self.depths, 0, 100)
        _check_all("--count", [self.count], 1, MAX_COUNT)
        _check_all("--facts", [self.facts], 1, MAX_FACTS)


def _check_all(option: str, values: Sequence[int], least: int, most: int) -> None:
    for value in values:
        if not least <= value <= most:
            raise UsageError(f"{option} must be in [{least:,}, {most:,}], got {value:,}")
    if not values or len(set(values)) < len(values):
        raise UsageError(f"{option} must be different numbers, at least one, got {list(values)}")


def write_recall(
    plan: RecallPlan, files: Sequence[str], out: Path, count_tokens: Callable[[str], int], *, replace: bool = False
) -> int:
    """Write the script of a plan, and return its number of conversations.

    Each message has the text and the question; its reply must contain the code, and a reference gives the sentence
    with it. Tags are `length-N` and `depth-N`. The same plan and files give the same script.

    Args:
        files: documents (as for `read_documents`) from which the texts around the facts are taken, from random places
            on; without files, plain sentences in random order.
        count_tokens: the number of tokens of a text.
        replace: whether an existing script `out` may be replaced.

    Raises:
        ScriptError: a file cannot be read.
        UsageError: a folder has no document, a length has no room for the facts and a sentence, or `out` is another
            file.
    """
    check_target(out, SCRIPT, option="--out", replace=replace, how="--force replaces it")
    if files:
        texts = (turn.reference or "" for document in read_documents(files).conversations for turn in document.turns)
        # Without blank lines, which separate the turns of a dialogue.
        sentences = _sentences(re.sub(r"\s*\n\s*", "\n", "\n".join(texts)))
    else:
        sentences = [f" {sentence}" for sentence in _FILLER]
    text = _Text(sentences, [count_tokens(sentence) for sentence in sentences], is_prose=bool(files))
    lines = [
        _line(plan, length, depth, number, text, count_tokens)
        for length in plan.lengths
        for depth in plan.depths
        for number in range(plan.count)
    ]
    save_file(out, [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines])
    return len(lines)


def _sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space before it, and long ones in pieces."""
    return [piece for sentence in _BETWEEN_SENTENCES.split(text) for piece in _PIECE.findall(sentence)]


@dataclass(frozen=True)
class _Text:
    """Sentences with their numbers of tokens; prose is read in order, from a random sentence on."""

    sentences: Sequence[str]
    sizes: Sequence[int]
    is_prose: bool

    def taken(self, tokens: int, generator: random.Random) -> list[int]:
        """The indices of sentences with about `tokens` tokens: at most as many, and less by one sentence at most."""
        taken: list[int] = []
        for index in self._indices(generator):
            if self.sizes[index] > tokens:
                break
            tokens -= self.sizes[index]
            taken.append(index)
        return taken

    def place(self, taken: Sequence[int], depth: int) -> int:
        """How many of the sentences `taken` come before a fact at `depth` per cent of their tokens."""
        ends = [0, *accumulate(self.sizes[index] for index in taken)]
        return min(range(len(ends)), key=lambda place: abs(100 * ends[place] - depth * ends[-1]))

    def _indices(self, generator: random.Random) -> Iterator[int]:
        index = generator.randrange(len(self.sentences))
        while True:
            yield index
            index = (index + 1) % len(self.sentences) if self.is_prose else generator.randrange(len(self.sentences))


def _line(
    plan: RecallPlan, length: int, depth: int, number: int, text: _Text, count_tokens: Callable[[str], int]
) -> dict[str, Any]:
    # A conversation depends on its own place in the plan, not on the other lengths and depths.
    generator = random.Random(f"{plan.seed} {length} {depth} {number}")
    names = generator.sample([f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS], plan.facts)
    facts = [_FACT.format(name, generator.randrange(1_000_000, 10_000_000)) for name in names]
    asked = _AFTER.format(names[0])
    room = length - _SPARE_TOKENS - count_tokens(_BEFORE + asked) - sum(count_tokens(f" {fact}") for fact in facts)
    taken = text.taken(room, generator) if room > 0 else []
    if not taken:
        raise UsageError(
            f"a message of {length:,} tokens has no room for {counted(plan.facts, 'fact')}, a sentence "
            "and the question",
            hint="give fewer --facts, or longer --lengths",
        )
    # At the same place, the fact that is asked is the first or the last one, towards its end of the text.
    placed = [(text.place(taken, depth), 0 if depth < 50 else 2, facts[0])]
    placed += [(generator.randint(0, len(taken)), 1, fact) for fact in facts[1:]]
    parts = [text.sentences[index] for index in taken]
    for place, _, fact in sorted(placed, reverse=True):
        parts.insert(place, f" {fact}")
    code = facts[0].rsplit(maxsplit=1)[1].rstrip(".")
    content = _BEFORE + "".join(parts).strip() + asked
    return {
        "id": f"recall-{length}-{depth}-{number}",
        "tags": [f"length-{length}", f"depth-{depth}"],
        "messages": [
            {"role": "user", "content": content, "expect": {"contains": code}},
            {"role": "assistant", "content": facts[0]},
        ],
        "params": {"temperature": 0, "max_tokens": 64},
    }
