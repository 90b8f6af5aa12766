"""The check `ifeval`: IFEval's verifiable instructions, as implemented by the package lm-evaluation-harness.

Zhou et al. (2023), Instruction-Following Evaluation for Large Language Models, arXiv:2311.07911. Entries have the names
and arguments of google-research `instruction_following_eval/data/input_data.jsonl`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

from rwkvbatch.deadline import deadline
from rwkvbatch.errors import MissingExtraError
from rwkvbatch.script.checks.text import answer, flag, wrong
from rwkvbatch.script.lines import is_array, is_object
from rwkvbatch.script.records import ReplyFacts, Verdict

# lm_eval and nltk have no types.
# pyright: reportMissingImports=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

DEADLINE_S = 10.0


@dataclass(frozen=True)
class Instructions:
    """The answer follows all of these instructions; the score is the share that it follows.

    Attributes:
        entries: name and arguments of each instruction.
        loose: whether the answer is also tried without its first line, its last line and asterisks, as in the
            benchmark's loose score.
    """

    options: ClassVar[frozenset[str]] = frozenset({"loose"})
    entries: tuple[tuple[str, Mapping[str, Any]], ...]
    loose: bool

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        if not is_array(expected) or not expected or not all(is_object(entry) and "id" in entry for entry in expected):
            wrong('must be an array of instructions such as {"id": "punctuation:no_comma"}', expected)
        loose = flag(options, "loose")
        registry = _registry()
        entries: list[tuple[str, Mapping[str, Any]]] = []
        for entry in expected:
            name, arguments = entry["id"], {key: value for key, value in entry.items() if key != "id"}
            if not isinstance(name, str) or name not in registry:
                wrong("must name instructions of IFEval", name, hint=f"they are {', '.join(sorted(registry))}")
            if name in _NEED_NLTK_DATA:
                _check_nltk_data(name)
            try:
                with _fixed_random_state():
                    registry[name](name).build_description(**arguments)
            except Exception as error:  # the instruction asserts, or has no such argument
                wrong(f"has arguments that the instruction {name} does not take ({error})", arguments)
            entries.append((name, arguments))
        return cls(tuple(entries), loose)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        try:
            with deadline(DEADLINE_S):
                failed = [name for name, arguments in self.entries if not self._follows(text, name, arguments)]
        except TimeoutError as error:
            return Verdict(False, 0.0, f"gave up: {error}", undecided=True)
        detail = f"does not follow {', '.join(failed)}" if failed else None
        return Verdict(not failed, 1 - len(failed) / len(self.entries), detail)

    def _follows(self, text: str, name: str, arguments: Mapping[str, Any]) -> bool:
        with _fixed_random_state():
            instruction = _registry()[name](name)
            instruction.build_description(**arguments)
            variants = _variants(text) if self.loose else [text]
            return any(variant.strip() and instruction.check_following(variant) for variant in variants)


def _variants(text: str) -> list[str]:
    """The variants of an answer for the loose score."""
    lines = text.split("\n")
    shortened = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return shortened + [variant.replace("*", "") for variant in shortened]


@contextmanager
def _fixed_random_state() -> Generator[None]:
    """Seed `random` within the context, because instructions draw missing arguments and verdicts must not change."""
    former_state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(former_state)


_NEED_NLTK_DATA = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})
"""Instructions for which nltk counts sentences or words, with a data set that is not part of its package."""


@lru_cache(maxsize=1)
def _registry() -> Mapping[str, Any]:
    """By name, the classes of the instructions.

    `LOCAL_RANK` is set because lm_eval downloads data when it is imported in the process of rank 0.
    """
    rank = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        import langdetect
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    except ImportError:
        raise MissingExtraError(
            "the check `ifeval` needs the instructions of lm-evaluation-harness, which are not installed",
            extra="ifeval",
        ) from None
    finally:
        if rank is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = rank
    langdetect.DetectorFactory.seed = 0
    return INSTRUCTION_DICT


def _check_nltk_data(name: str) -> None:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        raise MissingExtraError(
            f"the instruction {name} needs nltk's data set punkt_tab, which is not on this machine",
            hint="python -m nltk.downloader punkt_tab",
        ) from None
