"""`--adapter` gives the logits of a `.pth` into which the adapter was merged by its formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.checkpoints.adapters import Adapter, parse_adapter, product
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.description import describe
from rwkvbatch.model.load import load_model
from tests.model.made_adapters import (
    RANK,
    assert_merged,
    bone,
    disha,
    logits,
    lora,
    normal,
    peft_directory,
    saved,
    with_bone,
    with_disha,
    with_lora,
    with_pissa,
)
from tests.model.made_forms import Tensors


def test_lora(tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    parts = lora(tiny_tensors)
    path = saved(tmp_path / "lora.pth", parts)
    assert_merged(tiny_file, f"{path} alpha=24", with_lora(tiny_tensors, parts, 24 / RANK), tmp_path)


@pytest.mark.parametrize("backend", ["reference", "upstream"])
def test_other_backends_merge_too(backend: str, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "lora.pth", lora(tiny_tensors))
    actual = logits(tiny_file, f"{path} alpha=24", backend)
    torch.testing.assert_close(actual, logits(tiny_file, f"{path} alpha=24"), rtol=0, atol=2e-3)


def test_pissa(tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    parts, init = lora(tiny_tensors), lora(tiny_tensors, seed=50, prefix="init_")
    path, first = saved(tmp_path / "rwkv-0.pth", parts), saved(tmp_path / "init_lora.pth", init)
    assert_merged(tiny_file, f"{path} init={first}", with_pissa(tiny_tensors, parts, init), tmp_path)


@pytest.mark.parametrize("name", ["bone", "disha"])
def test_bone_and_bat(name: str, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "bone.pth", bone(tiny_tensors, name))
    assert_merged(tiny_file, str(path), with_bone(tiny_tensors, bone(tiny_tensors)), tmp_path)


@pytest.mark.parametrize("rank", [8, 24])
def test_disha_also_of_a_rank_that_does_not_divide_the_width(
    rank: int, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    parts = disha(tiny_tensors, rank)
    path = saved(tmp_path / "disha.pth", parts)
    assert_merged(tiny_file, str(path), with_disha(tiny_tensors, parts), tmp_path)


@pytest.mark.parametrize("turned", [False, True])
def test_lora_as_web_rwkv_converts_it(turned: bool, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    parts = lora(tiny_tensors)
    made = {
        name.replace("lora_A", "lora.0").replace("lora_B", "lora.1"): (
            part.t() if turned and name.endswith("lora_A") else part
        )
        .half()
        .contiguous()
        for name, part in parts.items()
    }
    save_file(made, tmp_path / "made.lora")
    expected = with_lora(tiny_tensors, {name: part.half() for name, part in parts.items()}, 2.0)
    assert_merged(tiny_file, f"{tmp_path / 'made.lora'} alpha=16", expected, tmp_path)


def test_lora_without_alpha_or_init_is_refused(tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "lora.pth", lora(tiny_tensors))
    with pytest.raises(CheckpointError, match="either LoRA or PiSSA") as refusal:
        logits(tiny_file, str(path))
    assert "alpha=NUMBER" in str(refusal.value.hint)
    assert "init=init_lora.pth" in str(refusal.value.hint)


def test_options_that_do_not_apply_are_refused(tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "disha.pth", disha(tiny_tensors))
    for option in ("alpha=16", f"init={path}"):
        with pytest.raises(UsageError, match="neither LoRA nor PiSSA"):
            logits(tiny_file, f"{path} {option}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.att.key.lora_A": normal(RANK, 64, seed=1)}, "is incomplete: it has only lora_A"),
        (
            {"blocks.7.att.key.lora_A": normal(RANK, 64, seed=1), "blocks.7.att.key.lora_B": normal(64, RANK, seed=1)},
            "has no tensor 'blocks.7.att.key.weight'",
        ),
        ({"blocks.0.att.receptance.lora_A": normal(RANK, 65, seed=1)}, "its parts of 'blocks.0.att.receptance.weight'"),
        ({"blocks.0.att.receptance.lora_A": normal(RANK + 1, 64, seed=1)}, "its parts of"),
        ({"blocks.0.att.receptance.lora_B": normal(64, 0, seed=1)}, "no columns"),
        ({"blocks.0.att.receptance.bone": normal(8, 8, 8, seed=1)}, "is incomplete"),
        ({"something.else": normal(3, seed=1)}, "belongs neither to an adapter nor to the model"),
        ({"blocks.0.ln1.weight": normal(65, seed=1)}, "'blocks.0.ln1.weight' is"),
        ({"blocks.0.att.receptance.lora_A": torch.ones(RANK, 64, dtype=torch.int64)}, "must contain bf16"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    change: Tensors, message: str, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path / "lora.pth", {**lora(tiny_tensors), **change})
    with pytest.raises(CheckpointError, match=message):
        logits(tiny_file, f"{path} alpha=16")


@pytest.mark.parametrize("shape", [(9, 8, 8), (8, 8, 7), (64, 8)])
def test_a_bone_of_another_shape_is_refused(
    shape: tuple[int, ...], tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path / "bone.pth", {**bone(tiny_tensors), "blocks.0.att.receptance.bone": normal(*shape, seed=1)})
    with pytest.raises(CheckpointError, match="for another model: its parts of"):
        logits(tiny_file, str(path))


def test_not_an_adapter_and_an_adapter_as_a_model_are_named(
    tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="not an adapter: expected tensors such as"):
        logits(tiny_file, f"{tiny_file} alpha=3")
    path = saved(tmp_path / "lora.pth", lora(tiny_tensors))
    with pytest.raises(CheckpointError, match="this is an adapter, not a model") as refusal:
        load_model(path)
    assert "--adapter" in str(refusal.value.hint)
    init = saved(tmp_path / "init.pth", lora(tiny_tensors, prefix="init_"))
    with pytest.raises(CheckpointError, match="the initial adapter of PiSSA"):
        logits(tiny_file, f"{init} alpha=3")


def test_an_adapter_left_in_a_full_file(tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    # DiSHA needs no option: it is merged, and the description says so.
    path = saved(tmp_path / "disha.pth", {**tiny_tensors, **disha(tiny_tensors)})
    expected = saved(tmp_path / "expected.pth", with_disha(tiny_tensors, disha(tiny_tensors)))
    torch.testing.assert_close(logits(path), logits(expected), rtol=0, atol=2e-3)
    with open_checkpoint(path) as checkpoint:
        assert describe(checkpoint).undone == ("the DiSHA adapter in the file merged into 4 matrices",)
    # LoRA needs alpha, which is not in the file.
    path = saved(tmp_path / "lora.pth", {**tiny_tensors, **lora(tiny_tensors)})
    with pytest.raises(CheckpointError, match="either LoRA or PiSSA"):
        load_model(path)
    other = saved(tmp_path / "alone.pth", lora(tiny_tensors))
    assert torch.equal(logits(path, f"{path} alpha=16"), logits(tiny_file, f"{other} alpha=16"))
    with pytest.raises(CheckpointError, match="already contains an adapter"):
        logits(path, f"{other} alpha=16")


def test_the_hash_is_that_of_weights_adapter_and_factor(tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "lora.pth", lora(tiny_tensors))
    copy = saved(tmp_path / "other-name.pth", lora(tiny_tensors))
    other = saved(tmp_path / "other.pth", lora(tiny_tensors, seed=99))
    adapters = ["none", f"{path} alpha=16", f"{path} alpha=17", f"{other} alpha=16"]
    hashes = [load_model(tiny_file, "cpu", adapter=adapter).spec.weights_sha256 for adapter in adapters]
    assert len(set(hashes)) == 4
    assert hashes[0] == load_model(tiny_file, "cpu").spec.weights_sha256
    again = load_model(tiny_file, "cpu", adapter=f"{copy} alpha=16").spec
    assert again.adapter == f"{copy} alpha=16"
    folder = peft_directory(tmp_path / "peft", tiny_tensors)
    first = load_model(tiny_file, "cpu", adapter=str(folder)).spec.weights_sha256
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 33}))
    assert load_model(tiny_file, "cpu", adapter=str(folder)).spec.weights_sha256 != first


def test_products_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from rwkvbatch.model.ops import cpu

    x, y = normal(70, 40, seed=1).float(), normal(40, 130, seed=2).float()
    expected = (x.double() @ y.double()).float()
    actual = product(x, y)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    ops = cpu.CpuOps
    monkeypatch.setattr(cpu, "CpuOps", lambda: ops(5, "portable"))
    assert torch.equal(product(x, y), actual)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_of_an_adapter_are_refused_or_harmless(
    data: st.DataObject, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "changed.safetensors"
    save_file({name: part.contiguous() for name, part in lora(tiny_tensors).items()}, path)
    changed = bytearray(path.read_bytes())
    for offset, value in data.draw(
        st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        changed[offset] = value
    path.write_bytes(changed)
    try:
        with open_checkpoint(tiny_file, Adapter(path, 16.0)) as checkpoint:
            assert all(checkpoint[name].numel() for name in checkpoint)
    except CheckpointError as error:
        assert str(path) in str(error) or str(tiny_file) in str(error)  # noqa: PT017


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_adapter_with_numbers_that_are_not_finite_is_refused(
    number: float, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    parts = lora(tiny_tensors)
    parts["blocks.0.att.receptance.lora_B"][0, 0] = number
    path = saved(tmp_path / "lora.pth", parts)
    with pytest.raises(CheckpointError, match=r"lora\.pth: the tensor 'blocks.0.att.receptance.lora_B' contains NaN"):
        logits(tiny_file, f"{path} alpha=16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("a.pth", Adapter(Path("a.pth"))),
        ("a b.pth alpha=16", Adapter(Path("a b.pth"), 16.0)),
        ("a.pth init=b c.pth", Adapter(Path("a.pth"), None, Path("b c.pth"))),
    ],
)
def test_the_option_is_parsed(text: str, expected: Adapter | None) -> None:
    assert parse_adapter(text) == expected


@pytest.mark.parametrize(
    "text", ["", " alpha=3", "a.pth alpha=x", "a.pth alpha=0", "a.pth alpha=nan", "a.pth alpha=-1"]
)
def test_an_invalid_option_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--adapter"):
        parse_adapter(text)


def test_the_library_takes_an_adapter(tmp_path: Path) -> None:
    from rwkvbatch import LLM

    path = saved(tmp_path / "disha.pth", {"blocks.0.att.output.disha": normal(8, 128, seed=1)})
    with LLM(strategy="cpu", adapter=str(path)) as llm:
        assert llm.spec.adapter == str(path)
        assert llm.spec.in_words.endswith(f"adapter {path}")
    with pytest.raises(UsageError, match="adapter need a checkpoint"):
        LLM(load_model(strategy="cpu"), adapter=str(path))
