"""Checkpoints of training programs: tensors inside other dicts, next to arguments and optimizer states."""

from __future__ import annotations

import argparse
import datetime
import io
import pickle
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.load import SeveralNetworksWarning, load_model

Tensors = dict[str, torch.Tensor]


@dataclass
class TrainArgs:
    """As a trainer's own module would define its arguments."""

    lr: float = 1e-4


def beside() -> dict[str, Any]:
    """What training programs save with the tensors."""
    numbers = {"loss": np.float64(1.5), "step": np.int64(3), "flag": np.bool_(True), "seen": np.arange(5)}
    return {
        "epoch": 3,
        "global_step": 2**40,
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": argparse.Namespace(
            **numbers, load_model=Path("a/b.pth"), betas=(0.9, 0.99), dtype=torch.bfloat16
        ),
        "own": TrainArgs(),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": float("inf")}, TrainArgs: 1},
        "loops": OrderedDict(
            fit=OrderedDict(state={}), counts=Counter("aab"), d=defaultdict(list, a=[1]), q=deque([1])
        ),
        "more": [{1, 2}, frozenset({3}), b"bytes", 1 + 2j, range(3), slice(1), None, datetime.datetime(2026, 1, 2)],
        "others": (SimpleNamespace(a=1), Fraction(1, 3), torch.device("cpu"), torch.Size([1, 2]), bytearray(b"x")),
        "keys": {1.5: 1, None: 2, ("exp_avg", 0): 3, True: 4, b"k": 5},
        "optimizer_states": [
            {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2)}}, "param_groups": []}
        ],
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("keys", [("state_dict",), ("model",), ("module",), ("module", "state_dict"), ("network",)])
def test_tensors_inside_other_dicts_give_the_same_logits(
    keys: tuple[str, ...], protocol: int, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    value: Any = tiny_tensors
    for key in reversed(keys):
        value = {**beside(), key: value}
    path = tmp_path / "last.ckpt"
    torch.save(value, path, pickle_protocol=protocol)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.file.undone == tuple(f"the wrapper {key!r}" for key in keys)
        assert all(torch.equal(checkpoint[name], tensor) for name, tensor in tiny_tensors.items())
    logits = [load_model(each, "cpu", threads=1).forward([[1, 2, 3]])[0] for each in (path, tiny_file)]
    assert torch.equal(*logits)


def test_another_network_in_the_file_is_named(tiny_tensors: Tensors, tmp_path: Path) -> None:
    torch.save({"ema": tiny_tensors, "model": tiny_tensors}, tmp_path / "two.pth")
    with open_checkpoint(tmp_path / "two.pth") as checkpoint:
        assert checkpoint.file.undone == ("the wrapper 'model' (not read: 'ema')",)
    with pytest.warns(SeveralNetworksWarning, match="two.pth: 'model' in it is read, and 'ema' in it is not; to use"):
        load_model(tmp_path / "two.pth", "cpu", threads=1)


def test_a_file_with_one_network_gives_no_warning(
    tiny_tensors: Tensors, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    torch.save({**beside(), "model": tiny_tensors}, tmp_path / "one.pth")
    load_model(tmp_path / "one.pth", "cpu", threads=1)
    assert not recwarn.list


def test_the_negative_bit_is_applied(tiny_tensors: Tensors, tmp_path: Path) -> None:
    tensors = dict(tiny_tensors)
    name = "blocks.0.att.key.weight"
    tensors[name] = torch._neg_view(tensors[name])
    assert tensors[name].is_neg()
    torch.save(tensors, tmp_path / "a.pth")
    with open_checkpoint(tmp_path / "a.pth") as checkpoint:
        assert torch.equal(checkpoint[name], -tiny_tensors[name])


def archive(data: bytes, folder: Path) -> Path:
    path = folder / "a.pth"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a/data.pkl", data)
    return path


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (b"N.",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (_Evil(), "it asks to run pickle.loads, which no checkpoint needs"),
        (TrainArgs(), "found one tests.model.checkpoints.test_wrappers.TrainArgs"),
        (io.StringIO(), "it asks to run"),
        ({"a": {((1,),): 2}}, "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_named(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(archive(pickle.dumps(value, protocol=2), tmp_path))


def test_names_of_the_file_are_escaped_in_messages(tmp_path: Path) -> None:
    # STACK_GLOBAL of two texts, called without arguments.
    calls = b"\x80\x04\x8c\x04os\n!\x8c\x06\x1b[2Jrm\x93)R."
    with pytest.raises(CheckpointError) as caught:
        load_model(archive(calls, tmp_path))
    assert r"a.pth: it asks to run os\n!.\x1b[2Jrm, which no checkpoint needs" in caught.value.message


def test_a_module_pickled_whole_is_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "a.pth")
    assert "torch.nn.modules.linear.Linear" in caught.value.message


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: torch.eye(4).to_sparse(), "a sparse tensor"),
        (lambda: torch.ones(2, device="meta"), "a tensor without values"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "must be bf16, fp16 or fp32, it is complex64"),
        (lambda: torch.ones(2).to(torch.float8_e4m3fn), "must be bf16, fp16 or fp32, it is float8_e4m3fn"),
        (lambda: torch.ones(2, dtype=torch.uint16), "'head.weight' must be bf16, fp16 or fp32, it is uint16"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "a quantised tensor"),
    ],
)
def test_tensors_of_other_kinds_are_named(make: Any, name: str, tiny_tensors: Tensors, tmp_path: Path) -> None:
    torch.save({**tiny_tensors, "head.weight": make()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=name) as caught:
        load_model(tmp_path / "a.pth")
    assert "run" not in caught.value.message


def test_tensors_of_other_types_beside_the_weights_do_no_harm(
    tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    """An optimizer's state may hold float8, which is not read."""
    moments = {"exp_avg": torch.ones(2).to(torch.float8_e5m2), "step": torch.ones(2, dtype=torch.complex64)}
    torch.save({"model": tiny_tensors, "optimizer": {"state": {0: moments}}}, tmp_path / "a.pth")
    assert torch.equal(load_model(tmp_path / "a.pth").forward([[1]])[0], load_model(tiny_file).forward([[1]])[0])


def test_parts_of_deepspeed_checkpoints(tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "global_step10").mkdir(parents=True)
    (folder / "zero_to_fp32.py").write_text("print()")
    (folder / "latest").write_text("global_step10")
    shapes = [OrderedDict((name, tensor.shape) for name, tensor in tiny_tensors.items())]
    states = folder / "global_step10" / "mp_rank_00_model_states.pt"
    torch.save({"module": tiny_tensors, "param_shapes": shapes, "ds_version": "0.16"}, states)
    torch.save({"optimizer_state_dict": {}}, folder / "global_step10" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for path in (folder, folder / "global_step10"):
        with pytest.raises(CheckpointError, match="a DeepSpeed ZeRO checkpoint") as caught:
            load_model(path)
        assert f"python -m deepspeed.utils.zero_to_fp32 {folder} merged" in str(caught.value.hint)
    # The half-precision weights of ZeRO-1 and 2 are whole in one file.
    assert torch.equal(load_model(states).forward([[1]])[0], load_model(tiny_file).forward([[1]])[0])
    torch.save({"module": {name: torch.empty(0) for name in tiny_tensors}, "param_shapes": shapes}, states)
    with pytest.raises(CheckpointError, match="a part of a DeepSpeed ZeRO-3 checkpoint"):
        load_model(states)


def test_distributed_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"x")
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"a torch\.distributed checkpoint") as caught:
        load_model(tmp_path)
    assert "dcp_to_torch" in str(caught.value.hint)
