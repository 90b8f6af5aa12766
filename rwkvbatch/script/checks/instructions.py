"""The check `ifeval`: IFEval's verifiable instructions, by the package lm-evaluation-harness, which maintains them.

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
    """The answer follows all of these instructions; the score is the share of them that it follows.

    `loose` also tries the answer without its first line, its last line and asterisks, as the benchmark's loose score.
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
            name, given = entry["id"], {key: value for key, value in entry.items() if key != "id"}
            if name not in registry:
                wrong("must name instructions of IFEval", name, hint=f"they are {', '.join(sorted(registry))}")
            if name in _WITH_SENTENCES:
                _check_data(name)
            try:
                with _unchanging_random():
                    registry[name](name).build_description(**given)
            except Exception as error:  # its own assertions and signatures
                wrong(f"has arguments that the instruction {name} does not take ({error})", given)
            entries.append((name, given))
        return cls(tuple(entries), loose)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        try:
            with deadline(DEADLINE_S):
                failed = [name for name, given in self.entries if not self._follows(text, name, given)]
        except TimeoutError as error:
            return Verdict(False, 0.0, f"gave up: {error}", undecided=True)
        detail = f"does not follow {', '.join(failed)}" if failed else None
        return Verdict(not failed, 1 - len(failed) / len(self.entries), detail)

    def _follows(self, text: str, name: str, given: Mapping[str, Any]) -> bool:
        with _unchanging_random():
            instruction = _registry()[name](name)
            instruction.build_description(**given)
            found = _variants(text) if self.loose else [text]
            return any(variant.strip() and instruction.check_following(variant) for variant in found)


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [variant.replace("*", "") for variant in cut]


@contextmanager
def _unchanging_random() -> Generator[None]:
    """Instructions choose what their arguments leave open by random; a verdict must not."""
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


_WITH_SENTENCES = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})
"""Instructions that nltk counts sentences or words for, by a data set that is not part of its package."""


@lru_cache(maxsize=1)
def _registry() -> Mapping[str, Any]:
    """The classes of instructions by name. Nothing is downloaded: lm_eval would do so at import, in its first rank."""
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


def _check_data(name: str) -> None:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        raise MissingExtraError(
            f"the instruction {name} needs nltk's data set punkt_tab, which is not on this machine",
            hint="python -m nltk.downloader punkt_tab",
        ) from None
