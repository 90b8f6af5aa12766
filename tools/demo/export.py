"""Weights as they ship: bfloat16 safetensors with the official names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwkvbatch.files import replacing
from tools.demo.network import Network


def save_weights(network: Network, path: Path) -> None:
    """Writes the network's tensors in bfloat16, replacing `path` in one rename."""
    tensors = {
        name: value.detach().cpu().to(torch.bfloat16).contiguous() for name, value in network.state_dict().items()
    }
    _replace(tensors, path, {"format": "pt", "architecture": "RWKV-7", "vocabulary": "world", "licence": "Apache-2.0"})


def load_weights(network: Network, path: Path) -> None:
    """Fills the network from a file written by `save_weights`."""
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})


def save_initial_state(states: list[Tensor], path: Path) -> None:
    """Writes one layer's initial state a tensor: heads x N values x N keys, as state-tuned files are."""
    tensors = {
        f"blocks.{i}.att.time_state": state.detach().cpu().to(torch.bfloat16).contiguous()
        for i, state in enumerate(states)
    }
    _replace(tensors, path, {"format": "pt", "architecture": "RWKV-7 initial state", "licence": "Apache-2.0"})


def _replace(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as part:
        save_file(tensors, part, metadata)
        part.chmod(0o644)
