"""Adapters with random values, and the weights into which each is merged by its formula."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from rwkvbatch.model.load import load_model
from tests.model.made_forms import Tensors

RANK = 8
TARGETS = ("blocks.0.att.receptance", "blocks.1.att.key", "blocks.1.ffn.key", "blocks.0.ffn.value")


def normal(*shape: int, seed: int, scale: float = 0.1) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def shapes(tensors: Tensors) -> dict[str, tuple[int, int]]:
    return {target: (*tensors[f"{target}.weight"].shape,) for target in TARGETS}  # pyright: ignore[reportReturnType]


def lora(tensors: Tensors, seed: int = 0, prefix: str = "") -> Tensors:
    made: Tensors = {}
    for number, (target, (out, width)) in enumerate(shapes(tensors).items()):
        made[f"{target}.{prefix}lora_A"] = normal(RANK, width, seed=seed + 2 * number)
        made[f"{target}.{prefix}lora_B"] = normal(out, RANK, seed=seed + 2 * number + 1)
    return made


def bone(tensors: Tensors, name: str = "bone") -> Tensors:
    sizes = shapes(tensors).items()
    return {
        f"{target}.{name}": normal(width // RANK, RANK, RANK, seed=number)
        for number, (target, (_, width)) in enumerate(sizes)
    }


def disha(tensors: Tensors, rank: int = RANK) -> Tensors:
    sizes = shapes(tensors).items()
    return {f"{target}.disha": normal(rank, out, seed=number) for number, (target, (out, _)) in enumerate(sizes)}


def of(tensors: Tensors, target: str) -> torch.Tensor:
    return tensors[f"{target}.weight"].double()


def merged(tensors: Tensors, change: Callable[[str], torch.Tensor]) -> Tensors:
    return {**tensors, **{f"{target}.weight": change(target).to(torch.bfloat16) for target in TARGETS}}


def with_lora(tensors: Tensors, parts: Tensors, factor: float) -> Tensors:
    def change(target: str) -> torch.Tensor:
        return of(tensors, target) + factor * parts[f"{target}.lora_B"].double() @ parts[f"{target}.lora_A"].double()

    return merged(tensors, change)


def with_pissa(tensors: Tensors, parts: Tensors, init: Tensors) -> Tensors:
    def change(target: str) -> torch.Tensor:
        before = init[f"{target}.init_lora_B"].double() @ init[f"{target}.init_lora_A"].double()
        return of(tensors, target) - before + parts[f"{target}.lora_B"].double() @ parts[f"{target}.lora_A"].double()

    return merged(tensors, change)


def with_bone(tensors: Tensors, parts: Tensors) -> Tensors:
    def change(target: str) -> torch.Tensor:
        result, blocks = of(tensors, target), parts[f"{target}.bone"].double()
        for row in range(0, result.shape[0], RANK):
            for number, block in enumerate(blocks):
                place = slice(row, row + RANK), slice(number * RANK, (number + 1) * RANK)
                result[place] = result[place] + result[place] @ block + block
        return result

    return merged(tensors, change)


def with_disha(tensors: Tensors, parts: Tensors) -> Tensors:
    def change(target: str) -> torch.Tensor:
        result, shard = of(tensors, target), parts[f"{target}.disha"].double()
        for column in range(result.shape[1]):
            result[:, column] += shard[column % len(shard)]
        return result

    return merged(tensors, change)


def logits(path: Path, adapter: str = "none", backend: str = "auto") -> torch.Tensor:
    strategy = "cpu fp32" if backend == "upstream" else "cpu"
    model = load_model(path, strategy, backend, adapter=adapter)
    return model.forward([[1, 2, 3, 4, 5]], every_token=True)[0]


def saved(path: Path, tensors: Tensors) -> Path:
    torch.save(tensors, path)
    return path


def assert_merged(base: Path, adapter: str, expected: Tensors, folder: Path, parts: tuple[str, ...] = ()) -> None:
    actual = logits(base, adapter)
    torch.testing.assert_close(actual, logits(saved(folder / "merged.pth", expected)), rtol=0, atol=2e-3)
    assert (actual - logits(base)).abs().max() > 0.05


def peft_directory(folder: Path, tensors: Tensors, **config: object) -> Path:
    folder.mkdir()
    made = {f"base_model.model.{name}.weight": part.contiguous() for name, part in lora(tensors).items()}
    save_file(made, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
