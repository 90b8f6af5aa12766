"""What rounding each class of matrices costs: one class at a time, and all but one, against the unrounded model.

    python benchmarks/rounding_by_class.py [--model NAME] [--texts FILE ...] [--to int4]

Without --texts the dialogues of datasets/ are read, as plain text. Prints for each class the divergence of the
next-token distributions, how often the likeliest token is the same, and the bytes that the rounding saves of the
class in bf16: the recipe of `model quantize` (`model/quantised.py`) is to round what saves much and costs little.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from rwkvbatch import _native
from rwkvbatch.bench.damage import Damage, ScoredPart, ScoredText, damage, texts_of_documents
from rwkvbatch.bench.damage_dialogues import texts_of_dialogues
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.model.base import Model
from rwkvbatch.model.checkpoint import open_checkpoint
from rwkvbatch.model.load import load_model, resolve_model_path
from rwkvbatch.model.ops import Activation, Rounding
from rwkvbatch.model.ops.cpu import CpuModel, CpuOps
from rwkvbatch.model.ops.reference import ROUNDINGS
from rwkvbatch.model.rwkv7 import Network
from rwkvbatch.prompt.vocabulary import tokenizer_of
from rwkvbatch.replay.api import prepare
from rwkvbatch.script.documents import read_documents

DATASETS = Path(__file__).resolve().parents[1] / "datasets"
SCRIPTS = ("memory", "copying", "arithmetic", "styles")
CLASSES: dict[str, str] = {
    "att.receptance": r"blocks\.\d+\.att\.receptance\.weight",
    "att.key": r"blocks\.\d+\.att\.key\.weight",
    "att.value": r"blocks\.\d+\.att\.value\.weight",
    "att.output": r"blocks\.\d+\.att\.output\.weight",
    "ffn.key": r"blocks\.\d+\.ffn\.key\.weight",
    "ffn.value": r"blocks\.\d+\.ffn\.value\.weight",
    "head": r"head\.weight",
    "emb": r"emb\.weight",
    "low-rank chains": r"blocks\.\d+\.att\.[wavg][12]",
}
"""Names of tensors by class."""
USUAL = tuple(name for name in CLASSES if name not in ("emb", "low-rank chains"))
"""The classes that `model quantize` rounds."""


class ChosenOps(CpuOps):
    """Native operations that round the linear layers that `is_chosen` names, whatever the network says is large."""

    def __init__(
        self, rounding: Rounding, names: Mapping[int, str], is_chosen: Callable[[str], bool], threads: int | None
    ) -> None:
        super().__init__(threads, rounding=rounding)
        self._names, self._is_chosen = names, is_chosen

    def linear_layer(
        self, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none", *, large: bool = False
    ) -> _native.LinearLayer:
        large = self._is_chosen(self._names[weight.data_ptr()])
        return super().linear_layer(weight, bias, activation, large=large)


@dataclass(frozen=True)
class Checkpointed:
    """A checkpoint in memory."""

    tensors: dict[str, Tensor]
    unrounded: Model
    threads: int | None

    @classmethod
    def load(cls, model: str | None, threads: int | None) -> Checkpointed:
        with open_checkpoint(resolve_model_path(model).path) as checkpoint:
            tensors = {name: checkpoint[name] for name in checkpoint}
        return cls(tensors, load_model(model, "cpu", "cpu", threads=threads), threads)

    def rounded(self, rounding: Rounding, is_chosen: Callable[[str], bool]) -> Model:
        """The model with only the chosen tensors rounded, and their inputs where the rounding says so."""
        rule = ROUNDINGS[rounding]
        tensors = dict(self.tensors)
        if is_chosen("emb.weight"):
            tensors["emb.weight"] = rule.weights(tensors["emb.weight"])
        names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
        ops = ChosenOps(rounding, names, is_chosen, self.threads)
        spec = self.unrounded.spec
        return CpuModel(Network.build(tensors, spec.num_layers, ops), ops, spec)

    def bytes_saved(self, rounding: Rounding, is_chosen: Callable[[str], bool]) -> int:
        """Of weights in bf16."""
        count = sum(tensor.numel() for name, tensor in self.tensors.items() if is_chosen(name))
        return round(count * (2 - ROUNDINGS[rounding].bytes_per_weight))


def one_of(*classes: str) -> Callable[[str], bool]:
    """Whether a tensor's name is of one of these classes."""
    pattern = re.compile("|".join(CLASSES[name] for name in classes) or "(?!)")
    return lambda name: pattern.fullmatch(name) is not None


def dialogues(model: Model, names: tuple[str, ...] = SCRIPTS) -> list[ScoredText]:
    """The dialogues of scripts in datasets/, of which every token after the first counts."""
    engine = Engine(model, tokenizer=tokenizer_of(model.spec, None))
    plan = prepare([DATASETS / f"{name}.jsonl" for name in names], preset="greedy", history="gold").plan
    found: list[ScoredText] = []
    for text in texts_of_dialogues(engine, plan, model.spec.weights_sha256):
        last = text.parts[-1]
        found.append(ScoredText(text.id, (ScoredPart((0,), (*last.prefix, *last.scored)),)))
    return found


def texts_of(arguments: argparse.Namespace, model: Model) -> list[ScoredText]:
    if not arguments.texts:
        return dialogues(model)
    encode = tokenizer_of(model.spec, None).encode
    return texts_of_documents(read_documents(arguments.texts).conversations, encode)


def variants(rounding: Rounding) -> dict[str, tuple[str, ...]]:
    """What is rounded, by the name of the measurement."""
    found = {f"only {name}": (name,) for name in CLASSES}
    found |= {f"usual, not {left}": tuple(name for name in USUAL if name != left) for left in USUAL}
    found |= {"usual": USUAL, "usual and low-rank chains": (*USUAL, "low-rank chains"), "all": tuple(CLASSES)}
    return found


def line(name: str, found: Damage, saved: int) -> str:
    kl = found.divergence
    interval = "" if kl.low is None else f"({kl.low:.5f} to {kl.high:.5f})"
    return (
        f"{name:26} KL {kl.mean:.5f} {interval:22} 99 % {found.divergence_tail:.4f}  same token "
        f"{found.same_token.mean:.2%}  perplexity x {found.perplexity_ratio.mean:.4f}  saves {saved / 1e6:,.2f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="the bundled one unless given")
    parser.add_argument("--texts", nargs="+", default=[])
    parser.add_argument("--to", choices=("int8", "w8a8", "int4"), default="int4")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--limit", type=int, default=None, help="texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rounding = cast("Rounding", arguments.to)
    try:
        checkpoint = Checkpointed.load(arguments.model, arguments.threads)
        texts = texts_of(arguments, checkpoint.unrounded)[: arguments.limit]
        results: dict[str, dict[str, object]] = {}
        for name, classes in variants(rounding).items():
            chosen = one_of(*classes)
            found = damage(checkpoint.unrounded, checkpoint.rounded(rounding, chosen), texts)
            saved = checkpoint.bytes_saved(rounding, chosen)
            results[name] = {**asdict(found), "bytes_saved": saved}
            print(line(name, found, saved), file=sys.stderr if arguments.json else sys.stdout, flush=True)
    except RwkvBatchError as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
