"""Valid checkpoints of every form are read exactly; rounding that cannot be done is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.weights.named_tensors import check_finite
from tests.model.hostile.case import tiny

Tensors = dict[str, torch.Tensor]


def write(tensors: Tensors, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


def read(path: Path) -> Tensors:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint[name] for name in checkpoint}


def assert_same(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("form", ["a.pth", "a.safetensors", "no-suffix"])
def test_every_form_and_precision_is_read_exactly(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = random_tensors(2, 64, 97, head_size=32, dtype=dtype)
    assert_same(read(write(tensors, tmp_path / form)), tensors)


def test_unusual_tensors_are_read_as_they_look(tmp_path: Path) -> None:
    tensors = tiny()
    big = torch.arange(64 * 200, dtype=torch.float32).view(64, 200) / 12800
    tensors["blocks.0.att.key.weight"] = big[:, 3:67].t()
    tensors["blocks.0.att.value.weight"] = big[:, ::3][:, :64]
    tensors["blocks.0.ln1.weight"] = big[5, 10:74]
    tensors["blocks.0.ln1.bias"] = big[5, 10:74]
    tensors["head.weight"] = tensors["emb.weight"]
    tensors["ln_out.weight"] = torch.nn.Parameter(tensors["ln_out.weight"].float())
    tensors["blocks.1.ln1.weight"] = torch.ones(1).expand(64)
    assert_same(read(write(tensors, tmp_path / "a.pth")), tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_torch_save_is_read(protocol: int, tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "a.pth", pickle_protocol=protocol)
    assert_same(read(tmp_path / "a.pth"), tiny())


def test_state_dict_of_a_module_is_read(tmp_path: Path) -> None:
    module = torch.nn.Module()
    for name, tensor in tiny().items():
        parent = module
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.register_parameter(leaf, torch.nn.Parameter(tensor))
    assert hasattr(module.state_dict(), "_metadata")
    torch.save(module.state_dict(), tmp_path / "a.pth")
    assert_same(
        read(tmp_path / "a.pth"),
        dict(sorted(tiny().items(), key=lambda item: list(module.state_dict()).index(item[0]))),
    )


def test_sizes_are_read_off_the_tensors(tmp_path: Path) -> None:
    tensors = random_tensors(3, 96, 51, head_size=24, hidden=100, ranks=LowRankWidths(5, 6, 7, 8))
    with open_checkpoint(write(tensors, tmp_path / "a.pth")) as checkpoint:
        actual = checkpoint.architecture
    assert (actual.generation, actual.num_layers, actual.width, actual.vocab_size) == ("7", 3, 96, 51)
    assert (actual.num_heads, actual.head_size, actual.precision) == (4, 24, "bf16")
    assert actual.num_parameters == sum(tensor.numel() for tensor in tensors.values())


def test_ranks_and_hidden_width_may_differ_by_layer(tmp_path: Path) -> None:
    tensors = tiny()
    tensors["blocks.1.att.g1"], tensors["blocks.1.att.g2"] = torch.ones(64, 3), torch.ones(3, 64)
    tensors["blocks.1.ffn.key.weight"], tensors["blocks.1.ffn.value.weight"] = (torch.ones(9, 64), torch.ones(64, 9))
    assert_same(read(write(tensors, tmp_path / "a.pth")), tensors)


@pytest.mark.parametrize("present", [(), ("v0",), ("v0", "v1", "v2")])
def test_value_residual_of_the_first_layer_is_optional(present: tuple[str, ...], tmp_path: Path) -> None:
    tensors = tiny()
    for name in {"v0", "v1", "v2"} - set(present):
        del tensors[f"blocks.0.att.{name}"]
    assert_same(read(write(tensors, tmp_path / "a.pth")), tensors)


def test_vectors_may_have_axes_of_one(tmp_path: Path) -> None:
    tensors = tiny()
    tensors["blocks.0.att.x_r"] = tensors["blocks.0.att.x_r"].flatten()
    tensors["ln_out.weight"] = tensors["ln_out.weight"].view(1, 1, -1)
    assert_same(read(write(tensors, tmp_path / "a.pth")), tensors)


def test_mixed_precision_is_named_by_most_weights(tmp_path: Path) -> None:
    tensors = {name: tensor.float() if tensor.numel() <= 64 else tensor for name, tensor in tiny().items()}
    with open_checkpoint(write(tensors, tmp_path / "a.safetensors")) as checkpoint:
        assert checkpoint.architecture.precision == "bf16"


def test_rounding_narrows_and_never_widens(tmp_path: Path) -> None:
    tensors = tiny()
    with open_checkpoint(write(tensors, tmp_path / "a.pth")) as opened:
        half = Checkpoint(opened.file, opened.architecture, torch.float16)
        assert torch.equal(half["head.weight"], tensors["head.weight"].half())
        wide = Checkpoint(opened.file, opened.architecture, torch.float32)
        assert wide["head.weight"].dtype == torch.bfloat16


def test_number_too_large_for_fp16_is_named(tmp_path: Path) -> None:
    tensors = tiny()
    tensors["head.weight"][0, 0] = 1e6
    with open_checkpoint(write(tensors, tmp_path / "a.pth")) as opened:
        half = Checkpoint(opened.file, opened.architecture, torch.float16)
        with pytest.raises(CheckpointError, match=r"'head.weight' has numbers too large for fp16"):
            half["head.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_finite_is_told_from_infinite_at_the_limits(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    edge = torch.tensor([limits.max, limits.min, limits.tiny, -0.0, limits.smallest_normal / 2], dtype=dtype)
    check_finite(edge, "edge", Path("a"))
    for bad in (float("nan"), float("inf"), -float("inf")):
        values = torch.zeros(3_000_001, dtype=dtype)
        values[2_000_000] = bad
        with pytest.raises(CheckpointError, match=r"'x' contains NaN or infinity \(1 of 3,000,001 numbers\)"):
            check_finite(values, "x", Path("a"))


def test_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = write(tiny(), tmp_path / "a.pth")
    with open_checkpoint(path) as checkpoint:
        with path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(CheckpointError, match="changed while it was being read"):
            checkpoint.file.sha256()


def test_file_that_is_cut_off_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tiny(), tmp_path / "a.pth")
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(CheckpointError, match="cut off while it was being read"):
            checkpoint["head.weight"]
