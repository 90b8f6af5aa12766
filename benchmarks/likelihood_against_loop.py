"""LAMBADA and MMLU: `rwkvbatch` compared with the evaluation loops of RWKV's authors over the `rwkv` package.

The loops are those of the authors' evaluations: RWKV-LM's
`RWKV-v7/rwkv_mmlu_eval.py` (token 0 and the published prompt, one forward pass a question, arg max over the tokens of
" A" to " D") and the LAMBADA part of `RWKV-v7/rwkv_v7_demo.py` (token 0 and all but the last word, one forward pass for
the text, accuracy: every token of the last word is the likeliest; perplexity: exp of minus the mean of the sums).

On a random checkpoint with the World vocabulary, accuracy must be equal, and perplexity equal to 6 digits with the
backend `reference`, whose operations are the package's. The native kernels round in another order: their perplexity may
differ by `KERNEL_TOLERANCE`, and the difference is printed. Then speed is measured alternately, in wall time and in CPU
seconds of all threads, which are less affected by other programs.

    python benchmarks/likelihood_against_loop.py [--shape 12x768] [--tasks LAMBADA MMLU] [--lambada FILE] [--texts 64]
        [--loop 4] [--rounds 3]

`MMLU-few-shot` is the form of hendrycks/test's `evaluate.py`: five examples of the subject before each question. Its
loop reads them for every question, `rwkvbatch` once per subject. Without shared prefixes both read all tokens, and the
ratio is limited by the share of the processor's arithmetic that the loop leaves unused.

`--lambada FILE` has lines with the key `text`; without it, texts are random words.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import rwkvbatch
from rwkvbatch.model.base import Model
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.tokenizer import Tokenizer, world_tokenizer

WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group",
)  # fmt: skip
SUBJECTS = ("abstract algebra", "world history", "anatomy")
LETTERS = "ABCD"
TASKS = ("LAMBADA", "MMLU", "MMLU-few-shot")
NUM_SHOTS = 5
KERNEL_TOLERANCE = 2e-5
"""The largest relative difference of the perplexity of the native kernels from the loop's."""


@dataclass(frozen=True)
class Cost:
    """Seconds per text: wall time, and processor time of all threads."""

    wall_s: float
    cpu_s: float

    @classmethod
    def on(cls, work: Callable[[], object], texts: int) -> Cost:
        """The cost of `work` per text."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        work()
        return cls((time.perf_counter() - wall_s) / texts, (time.process_time() - cpu_s) / texts)


@dataclass(frozen=True)
class Text:
    """All but the last word of a text, and the last word with the space before it."""

    prompt: str
    continuation: str


@dataclass(frozen=True)
class Question:
    """A question of MMLU's form with four answers; `right` is the index of the right one."""

    subject: str
    text: str
    answers: tuple[str, ...]
    right: int

    @property
    def lines(self) -> str:
        """The question and its answers, one per line."""
        return "\n".join(
            [self.text, *(f"{letter}. {text}" for letter, text in zip(LETTERS, self.answers, strict=True))]
        )

    @property
    def user(self) -> str:
        """The published prompt's user message."""
        return f"You are a very talented expert in {self.subject}. Answer this question:\n{self.lines}"

    @property
    def prompt(self) -> str:
        """The published prompt of RWKV's authors."""
        return f"User: {self.user}\n\nAssistant: The answer is"

    @property
    def few_shot_prompt(self) -> str:
        """The question after examples of its subject, in the form of hendrycks/test."""
        rng = random.Random(self.subject)
        examples = [random_question(rng, self.subject) for _ in range(NUM_SHOTS)]
        shots = "".join(f"{example.lines}\nAnswer: {LETTERS[example.right]}\n\n" for example in examples)
        header = f"The following are multiple choice questions (with answers) about {self.subject}.\n\n"
        return f"{header}{shots}{self.lines}\nAnswer:"


@dataclass(frozen=True)
class Result:
    """The result of one evaluation; `sums` are sums of log-probabilities by text."""

    accuracy: float
    perplexity: float
    sums: tuple[float, ...] = ()


def lambada_texts(path: Path | None, count: int) -> list[Text]:
    """The first `count` texts of a file, or random ones of LAMBADA's usual length."""
    if path is None:
        rng = random.Random(0)
        whole = [" ".join(rng.choices(WORDS, k=rng.randint(55, 95))) for _ in range(count)]
    else:
        with path.open(encoding="utf-8") as lines:
            whole = [json.loads(line)["text"].strip() for line, _ in zip(lines, range(count), strict=False)]
    return [Text(text.rpartition(" ")[0], " " + text.rpartition(" ")[2]) for text in whole]


def random_question(rng: random.Random, subject: str) -> Question:
    """A question of random words, of MMLU's usual length."""
    return Question(
        subject,
        " ".join(rng.choices(WORDS, k=rng.randint(20, 60))) + "?",
        tuple(" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for _ in LETTERS),
        rng.randrange(len(LETTERS)),
    )


def mmlu_questions(count: int) -> list[Question]:
    """Random questions of several subjects."""
    rng = random.Random(1)
    return [random_question(rng, rng.choice(SUBJECTS)) for _ in range(count)]


def lambada_loop(package: Model, tokenizer: Tokenizer, texts: Sequence[Text]) -> Result:
    """The authors' loop: one text at a time."""
    sums: list[float] = []
    num_right = 0
    for text in texts:
        prompt, continuation = [0, *tokenizer.encode(text.prompt)], tokenizer.encode(text.continuation)
        logits, _ = package.forward([prompt + continuation], every_token=True)
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        sums.append(sum(float(row[token]) for row, token in zip(rows, continuation, strict=True)))
        num_right += all(int(row.argmax()) == token for row, token in zip(rows, continuation, strict=True))
    return Result(num_right / len(texts), math.exp(-sum(sums) / len(sums)), tuple(sums))


def mmlu_loop(package: Model, tokenizer: Tokenizer, questions: Sequence[Question], *, few_shot: bool = False) -> Result:
    """The authors' loop: one question at a time."""
    letters = [tokenizer.encode(f" {letter}") for letter in LETTERS]
    num_right = 0
    for question in questions:
        tokens = [0, *tokenizer.encode(question.few_shot_prompt if few_shot else question.prompt)]
        logits, _ = package.forward([tokens])
        num_right += int(torch.stack([logits[0][letter[0]] for letter in letters]).argmax()) == question.right
    return Result(num_right / len(questions), math.nan)


def lambada_run(model: Model, texts: Sequence[Text], folder: Path, **settings: object) -> Result:
    """`rwkvbatch score` on the same texts, durable rows included."""
    lines = [{"prompt": text.prompt, "continuation": text.continuation} for text in texts]
    path = folder / "lambada.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = folder / f"lambada-{time.monotonic_ns()}"
    result = rwkvbatch.run(path, model=model, out=out, documents=True, batch_size=64, **settings)  # type: ignore[arg-type]
    text = result.summary.cells[0].plain_text
    assert text is not None
    assert text.accuracy is not None
    assert text.text_perplexity is not None
    rows = sorted(result.rows(), key=lambda row: int(row.conversation.removeprefix("line-")))
    sums = tuple(row.reference.logprob for row in rows if row.reference and row.reference.logprob is not None)
    return Result(text.accuracy, text.text_perplexity, sums)


def mmlu_run(
    model: Model, questions: Sequence[Question], folder: Path, *, few_shot: bool = False, **settings: object
) -> Result:
    """A script of choices with the published prompt."""
    choices = {letter: f" {letter}" for letter in LETTERS}
    path = folder / "mmlu.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for question in questions:
            fields = {"choices": choices, "expect": {"choice": question.right}}
            message = {"role": "user", "content": question.user, "reply_prefix": "The answer is", **fields}
            line = {"prompt": question.few_shot_prompt, **fields} if few_shot else {"messages": [message]}
            file.write(json.dumps(line) + "\n")
    out = folder / f"mmlu-{time.monotonic_ns()}"
    result = rwkvbatch.run(path, model=model, out=out, bos="on", batch_size=64, **settings)  # type: ignore[arg-type]
    score = result.summary.cells[0].score
    assert score is not None
    return Result(score, math.nan)


def perplexity(found: Result) -> str:
    """The perplexity for printing; empty for tasks without one."""
    return "" if math.isnan(found.perplexity) else f", perplexity {found.perplexity:.6g}"


def check_equal(ours: Result, loop: Result, name: str) -> None:
    """Exit with an error if accuracy differs, or perplexity in its first 6 digits."""
    if ours.accuracy != loop.accuracy:
        raise SystemExit(f"{name}: accuracy differs: {ours.accuracy} here, {loop.accuracy} in the loop")
    if not math.isnan(loop.perplexity) and f"{ours.perplexity:.6g}" != f"{loop.perplexity:.6g}":
        raise SystemExit(f"{name}: perplexity differs: {ours.perplexity:.9g} here, {loop.perplexity:.9g} in the loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="12x768")
    parser.add_argument("--strategy", default="cpu fp32", help="strategy of rwkvbatch; the loop has fp32")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--lambada", type=Path)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--loop", type=int, default=4, help="texts of the loop in a round")
    parser.add_argument("--check", type=int, default=24, help="texts on which equality is checked")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    layers, width = (int(part) for part in arguments.shape.split("x"))
    np.random.seed(0)
    texts, questions = lambada_texts(arguments.lambada, arguments.texts), mmlu_questions(arguments.texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(random_tensors(layers, width), folder / "random.pth")
        ours = load_model(folder / "random.pth", arguments.strategy)
        reference = load_model(folder / "random.pth", "cpu fp32", "reference")
        package = load_model(folder / "random.pth", "cpu fp32", "upstream")
        tokenizer = world_tokenizer(ours.spec.vocab_size)
        tasks: dict[str, tuple[Callable[[Model, int], Result], Callable[[int], Result]]] = {
            "LAMBADA": (
                lambda model, count: lambada_run(model, texts[:count], folder),
                lambda count: lambada_loop(package, tokenizer, texts[:count]),
            ),
            "MMLU": (
                lambda model, count: mmlu_run(model, questions[:count], folder),
                lambda count: mmlu_loop(package, tokenizer, questions[:count]),
            ),
            "MMLU-few-shot": (
                lambda model, count: mmlu_run(model, questions[:count], folder, few_shot=True),
                lambda count: mmlu_loop(package, tokenizer, questions[:count], few_shot=True),
            ),
        }
        for task in arguments.tasks:
            run, loop = tasks[task]
            expected, found = loop(arguments.check), run(reference, arguments.check)
            check_equal(found, expected, task)
            print(f"{task}: equal on {arguments.check}: accuracy {found.accuracy:.4f}{perplexity(found)}", flush=True)
            native = run(ours, arguments.check)
            difference = 0.0 if math.isnan(expected.perplexity) else abs(native.perplexity / expected.perplexity - 1)
            if native.accuracy != expected.accuracy or difference > KERNEL_TOLERANCE:
                raise SystemExit(
                    f"{task}: {ours.spec.backend} differs: {native.accuracy} and relatively {difference:.2g}"
                )
            print(
                f"{task}: {ours.spec.backend}: same accuracy, perplexity relatively {difference:.1g} apart", flush=True
            )
            costs: list[tuple[Cost, Cost]] = []
            for _ in range(arguments.rounds):
                run_cost = Cost.on(lambda run=run: run(ours, arguments.texts), arguments.texts)
                costs.append((run_cost, Cost.on(lambda loop=loop: loop(arguments.loop), arguments.loop)))
            run_s, loop_s = (statistics.median(cost.wall_s for cost in side) for side in zip(*costs, strict=True))
            print(f"{task}: {1 / run_s:.1f} texts/s here, {1 / loop_s:.2f} in the loop")
            for name, ratios in (
                ("wall time", [of_loop.wall_s / of_run.wall_s for of_run, of_loop in costs]),
                ("CPU time", [of_loop.cpu_s / of_run.cpu_s for of_run, of_loop in costs]),
            ):
                print(
                    f"{task}: ratio of {name}: median {statistics.median(ratios):.1f}, "
                    f"{min(ratios):.1f} to {max(ratios):.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
