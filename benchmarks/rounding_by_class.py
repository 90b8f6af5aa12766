"""Cost of rounding each class of matrices, one at a time and all but one, compared with the unrounded model.

    python benchmarks/rounding_by_class.py [--model NAME] [--texts FILE ...] [--to int4] [--fit 16384 | --half-lives]

Without --texts the dialogues of datasets/ are read as plain text. Prints for each class the divergence of the
next-token distributions, how often the likeliest token is the same, and the bytes saved relative to the
class in bf16. `model quantize` (`model/weights/quantised.py`) rounds the classes that save much and cost little.
With --fit TOKENS the default classes are instead rounded to 4 bits fitted to every other text, and this and rounding
to nearest are measured on the remaining texts.
With --half-lives it prints how much rounding changes the half-lives of the states, with low-rank chains rounded as well
and without. A change of the decays may add up over a long context, which texts as short as these do not show.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
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
from rwkvbatch.model.base import Model, RaggedBatch
from rwkvbatch.model.checkpoints.calibration import fitted, pieces
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.load import load_model
from rwkvbatch.model.model_files import resolve_model_path
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.network.traced import CpuModel
from rwkvbatch.model.ops import Activation, MatrixKind, Product, Rounding, matrix_rounding
from rwkvbatch.model.ops.cpu import CpuOps
from rwkvbatch.model.ops.reference import ROUNDINGS, ReferenceOps, TorchLinear
from rwkvbatch.prompt.vocabulary import tokenizer_of
from rwkvbatch.replay.prepare import prepare
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
LARGE_CLASSES = tuple(name for name in CLASSES if name not in ("emb", "low-rank chains"))
"""The classes that `model quantize` rounds."""


Recipe = Callable[[str], Rounding | None]
"""The rounding of a tensor, by its name."""


class RecipeOps(CpuOps):
    """Native operations that round each linear layer by a recipe, instead of only the large ones."""

    def __init__(self, recipe: Recipe, names: Mapping[int, str], threads: int | None) -> None:
        super().__init__(threads)
        self._names, self._recipe = names, recipe

    def linear_layer(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        *,
        kind: MatrixKind = "other",
        sparse_inputs: bool = False,
    ) -> _native.LinearLayer:
        self._rounding = self._recipe(self._names[weight.data_ptr()])
        return super().linear_layer(weight, bias, activation, kind="large", sparse_inputs=sparse_inputs)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory."""

    tensors: dict[str, Tensor]
    unrounded: Model
    threads: int | None

    @classmethod
    def load(cls, model: str | None, threads: int | None) -> LoadedCheckpoint:
        with open_checkpoint(resolve_model_path(model).path) as checkpoint:
            tensors = {name: checkpoint[name] for name in checkpoint}
        return cls(tensors, load_model(model, "cpu", "cpu", threads=threads), threads)

    def rounded(self, recipe: Recipe, weights: Mapping[str, Tensor] | None = None) -> Model:
        """The model with tensors rounded by the recipe, and their inputs where the rounding says so.

        Args:
            weights: replace tensors of the checkpoint before rounding.
        """
        tensors = {**self.tensors, **(weights or {})}
        if (rounding := recipe("emb.weight")) is not None:
            tensors["emb.weight"] = ROUNDINGS[rounding].rounded(tensors["emb.weight"])
        names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
        ops = RecipeOps(recipe, names, self.threads)
        spec = self.unrounded.spec
        return CpuModel(Network.build(tensors, spec.num_layers, ops), ops, spec)

    def bytes_saved(self, recipe: Recipe) -> int:
        """Bytes saved by the recipe, relative to weights in bf16."""
        saved_bytes = 0.0
        for name, tensor in self.tensors.items():
            if (rounding := recipe(name)) is not None:
                saved_bytes += tensor.numel() * (2 - ROUNDINGS[rounding].bytes_per_weight)
        return round(saved_bytes)

    def fitted(self, model: str | None, texts: list[ScoredText], tokens: int) -> dict[str, Tensor]:
        """The large matrices rounded to 4 bits fitted to texts, dequantized."""
        with open_checkpoint(resolve_model_path(model).path) as checkpoint:
            chunks = pieces((text.parts[0].scored for text in texts), tokens)
            found = fitted(checkpoint, chunks, lambda *_: None)
            return {name: ROUNDINGS["int4"].dequantize(*rounded) for name, rounded in found}


def recipe_of(by_class: Mapping[str, Rounding]) -> Recipe:
    """The recipe that rounds the tensors of these classes."""
    patterns: dict[re.Pattern[str], Rounding] = {
        re.compile(CLASSES[name]): rounding for name, rounding in by_class.items()
    }

    def recipe(name: str) -> Rounding | None:
        return next((found for pattern, found in patterns.items() if pattern.fullmatch(name)), None)

    return recipe


def dialogues(model: Model, names: tuple[str, ...] = SCRIPTS) -> list[ScoredText]:
    """The dialogues of scripts in datasets/; every token after the first is scored."""
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


def variants(rounding: Rounding) -> dict[str, dict[str, Rounding]]:
    """The rounding of each class, by the name of the measurement."""
    chains = matrix_rounding(rounding, "low_rank")
    assert chains is not None
    default: dict[str, Rounding] = {**dict.fromkeys(LARGE_CLASSES, rounding), "low-rank chains": chains}
    found: dict[str, dict[str, Rounding]] = {f"only {name}": {name: rounding} for name in CLASSES}
    if chains != rounding:
        found[f"only low-rank chains, {chains}"] = {"low-rank chains": chains}
        found[f"default, chains in {rounding}"] = {**default, "low-rank chains": rounding}
        found[f"default, head in {chains}"] = {**default, "head": chains}
    for omitted in default:
        found[f"default, not {omitted}"] = {name: kept for name, kept in default.items() if name != omitted}
    found |= {"default": default, "all": dict.fromkeys(CLASSES, rounding)}
    return found


class DecayOps(ReferenceOps):
    """Reference operations that record the logarithms of the decays.

    Args:
        rounding: see `ReferenceOps`.
        rounds_chains: whether low-rank chains are rounded as well.
    """

    def __init__(self, rounding: Rounding | None, *, rounds_chains: bool) -> None:
        super().__init__(rounding=rounding)
        self._rounds_chains = rounds_chains
        self.log_decays: list[Tensor] = []

    def linear_layer(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        *,
        kind: MatrixKind = "other",
        sparse_inputs: bool = False,
    ) -> TorchLinear:
        kept: MatrixKind = "other" if kind == "low_rank" and not self._rounds_chains else kind
        return super().linear_layer(weight, bias, activation, kind=kept, sparse_inputs=sparse_inputs)

    def linears(self, products: Sequence[Product]) -> list[Tensor]:
        results = super().linears(products)
        decays = [y for product, y in zip(products, results, strict=True) if product.layer.activation == "decay"]
        self.log_decays += [y.double().log().flatten() for y in decays]
        return results


def log_decays(
    checkpoint: LoadedCheckpoint, texts: Sequence[ScoredText], rounding: Rounding | None, *, rounds_chains: bool
) -> Tensor:
    """The logarithms of all decays while texts are read, fp64; inversely proportional to half-lives."""
    ops, spec = DecayOps(rounding, rounds_chains=rounds_chains), checkpoint.unrounded.spec
    network = Network.build(checkpoint.tensors, spec.num_layers, ops)
    pool, slots = ops.make_pool(len(texts), spec.num_layers, spec.num_heads, spec.head_size), range(len(texts))
    network.step(ops, RaggedBatch.of([text.parts[0].scored for text in texts], slots), pool)
    return torch.cat(ops.log_decays)


def print_half_lives(checkpoint: LoadedCheckpoint, texts: Sequence[ScoredText]) -> None:
    """Print the relative changes of half-lives that rounding causes."""
    exact = log_decays(checkpoint, texts, None, rounds_chains=False)
    roundings: tuple[Rounding, ...] = ("w8a8", "int4")
    for rounding in roundings:
        for rounds_chains in (False, True):
            change = exact / log_decays(checkpoint, texts, rounding, rounds_chains=rounds_chains) - 1
            print(
                f"{rounding}, chains {'rounded' if rounds_chains else 'as stored'}: half-lives change by "
                f"{change.square().mean().sqrt():.2%} (root of the mean square), {change.mean():+.2%} (mean)",
                flush=True,
            )


def line(name: str, found: Damage, saved_bytes: int) -> str:
    kl = found.divergence
    interval = "" if kl.low is None else f"({kl.low:.5f} to {kl.high:.5f})"
    return (
        f"{name:26} KL {kl.mean:.5f} {interval:22} 99 % {found.divergence_tail:.4f}  same token "
        f"{found.same_token.mean:.2%}  perplexity x {found.perplexity_ratio.mean:.4f}  "
        f"saves {saved_bytes / 1e6:,.2f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="default: the bundled model")
    parser.add_argument("--texts", nargs="+", default=[])
    parser.add_argument("--to", choices=("int8", "w8a8", "int4"), default="int4")
    parser.add_argument(
        "--fit",
        type=int,
        default=0,
        metavar="TOKENS",
        help="measure weights that are fitted to TOKENS tokens of the texts",
    )
    parser.add_argument("--half-lives", action="store_true", help="changes of the half-lives of the states")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--limit", type=int, default=None, help="maximum number of texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rounding = cast("Rounding", arguments.to)
    try:
        checkpoint = LoadedCheckpoint.load(arguments.model, arguments.threads)
        texts = texts_of(arguments, checkpoint.unrounded)[: arguments.limit]
        results: dict[str, dict[str, object]] = {}

        def measure(name: str, recipe: Recipe, measured_texts: list[ScoredText], weights: dict[str, Tensor]) -> None:
            found = damage(checkpoint.unrounded, checkpoint.rounded(recipe, weights), measured_texts)
            saved_bytes = checkpoint.bytes_saved(recipe)
            results[name] = {**asdict(found), "bytes_saved": saved_bytes}
            print(line(name, found, saved_bytes), file=sys.stderr if arguments.json else sys.stdout, flush=True)

        if arguments.half_lives:
            print_half_lives(checkpoint, texts)
        elif arguments.fit:
            default = recipe_of(variants("int4")["default"])
            weights = checkpoint.fitted(arguments.model, texts[::2], arguments.fit)
            measure("held out, to nearest", default, texts[1::2], {})
            measure("held out, fitted", default, texts[1::2], weights)
        else:
            for name, by_class in variants(rounding).items():
                measure(name, recipe_of(by_class), texts, {})
    except RwkvBatchError as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
