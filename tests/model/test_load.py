"""`load_model`: which file, which backend, and what is said when it cannot be."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model import load
from rwkvbatch.model.load import SlowBackendWarning, load_model, resolve_model_path
from rwkvbatch.model.ops.reference import ReferenceOps


@pytest.fixture(autouse=True)
def _no_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RWKVBATCH_MODEL", raising=False)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes an import fail as if the module were not there.
    monkeypatch.setitem(sys.modules, "rwkvbatch.model.ops.cpu", None)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_suffix_may_be_left_off(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"my.model-1.5{suffix}").touch()
    resolved = resolve_model_path(tmp_path / "my.model-1.5")
    assert resolved.path == tmp_path / f"my.model-1.5{suffix}"
    assert not resolved.bundled


def test_exact_name_comes_first_and_pth_before_safetensors(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).touch()
    assert resolve_model_path(tmp_path / "a").path.name == "a.pth"
    (tmp_path / "a").touch()
    assert resolve_model_path(str(tmp_path / "a")).path.name == "a"


def test_directory_of_the_same_name_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.pth").touch()
    assert resolve_model_path(tmp_path / "a").path.name == "a.pth"


def test_environment_names_the_default_and_a_path_overrides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("default.pth", "given.pth"):
        (tmp_path / name).touch()
    monkeypatch.setenv("RWKVBATCH_MODEL", str(tmp_path / "default"))
    assert resolve_model_path().path.name == "default.pth"
    assert resolve_model_path(tmp_path / "given").path.name == "given.pth"


def test_without_any_name_the_bundled_model_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "BUNDLED_MODEL", tmp_path / "demo.safetensors")
    with pytest.raises(CheckpointError, match="belongs in the package is not there"):
        resolve_model_path()
    (tmp_path / "demo.safetensors").touch()
    resolved = resolve_model_path()
    assert resolved.bundled
    assert resolved.path == tmp_path / "demo.safetensors"


def test_missing_file_names_what_was_tried_and_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "rwkv7-g1.pth").touch()
    with pytest.raises(CheckpointError, match="there is no such file") as caught:
        resolve_model_path(tmp_path / "rwkv7-g2.pth")
    assert caught.value.hint is not None
    assert "'rwkv7-g2.pth.safetensors'" in caught.value.hint
    assert "'rwkv7-g1.pth'" in caught.value.hint


def test_missing_directory_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        resolve_model_path(tmp_path / "absent" / "a.pth")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "/", "."])
def test_impossible_names_are_checkpoint_errors(name: str) -> None:
    with pytest.raises(CheckpointError):
        load_model(name)


def test_hash_is_that_of_the_file(tiny_file: Path) -> None:
    model = load_model(tiny_file, backend="reference")
    assert model.spec.weights_sha256 == hashlib.sha256(tiny_file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("strategy", "dtype"), [("cpu", "bf16"), ("cpu bf16", "bf16"), ("cpu fp32", "fp32"), ("cpu fp16", "fp16")]
)
def test_precision_is_that_of_the_strategy_or_the_file(strategy: str, dtype: str, tiny_file: Path) -> None:
    assert load_model(tiny_file, strategy, "reference").spec.dtype == dtype


def test_precision_rounds_the_weights(tmp_path: Path) -> None:
    from rwkvbatch.model.random_checkpoint import random_tensors

    torch.save(random_tensors(1, 64, 65, dtype=torch.float32), tmp_path / "a.pth")
    exact, _ = load_model(tmp_path / "a", "cpu", "reference").forward([[1, 2]])
    same, _ = load_model(tmp_path / "a", "cpu fp32", "reference").forward([[1, 2]])
    coarse, _ = load_model(tmp_path / "a", "cpu bf16", "reference").forward([[1, 2]])
    fine, _ = load_model(tmp_path / "a", "cpu fp16", "reference").forward([[1, 2]])
    assert torch.equal(exact, same)
    assert 0 < float((fine - exact).abs().max()) < float((coarse - exact).abs().max()) < 0.5


@pytest.mark.usefixtures("without_kernels")
def test_without_native_kernels_the_reference_serves_with_one_warning(tiny_file: Path) -> None:
    with pytest.warns(SlowBackendWarning, match="reference operations serve") as caught:
        model = load_model(tiny_file, "cpu")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (model.spec.backend, model.spec.bitwise) == ("reference", False)


@pytest.mark.usefixtures("without_kernels")
def test_asking_for_absent_kernels_is_a_usage_error(tiny_file: Path) -> None:
    with pytest.raises(UsageError, match="--backend cpu needs the native kernels") as caught:
        load_model(tiny_file, "cpu", "cpu")
    assert "--backend reference" in str(caught.value.hint)


def test_native_kernels_serve_where_they_are(tiny_file: Path) -> None:
    pytest.importorskip(
        "rwkvbatch._native", reason="installed without the native kernels", exc_type=ImportError
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(tiny_file, "cpu")
    assert (model.spec.backend, model.spec.bitwise, model.spec.dtype) == ("cpu", True, "bf16")
    expected, _ = load_model(tiny_file, "cpu", "reference").forward([[1, 2, 3]])
    torch.testing.assert_close(model.forward([[1, 2, 3]])[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("strategy", "backend", "message"),
    [
        ("cpu", "gpu", "--backend must be one of auto, cpu, reference, cuda, upstream; got 'gpu'"),
        ("cpu", "cuda", "--backend cuda needs a GPU"),
        ("nowhere", "auto", "--strategy must be one of"),
    ],
)
def test_bad_choice_is_a_usage_error(strategy: str, backend: str, message: str, tiny_file: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(tiny_file, strategy, backend)


def test_bad_thread_count_is_a_usage_error(tiny_file: Path) -> None:
    with pytest.raises(UsageError, match="--threads must be at least 1, got 0"):
        load_model(tiny_file, threads=0)


def test_gpu_strategy_picks_the_cuda_backend(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    asked: list[tuple[str, torch.dtype | None]] = []

    class OnCpu(ReferenceOps):
        def __init__(self, device: str, dtype: torch.dtype | None = None) -> None:
            asked.append((device, dtype))
            super().__init__("cpu")

    monkeypatch.setattr(load, "ReferenceOps", OnCpu)
    assert load_model(tiny_file, "auto").spec.backend == "cuda"
    assert load_model(tiny_file, "cuda:0 fp16", "reference").spec.backend == "reference"
    assert asked == [("cuda", torch.bfloat16), ("cuda:0", torch.float16)]
    with pytest.raises(UsageError, match="--backend cpu cannot run on 'cuda'"):
        load_model(tiny_file, "cuda fp16", "cpu")


_MEMORY = """
import json, sys
from rwkvbatch.model.load import load_model

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

load_model(sys.argv[1], "cpu", "cpu").forward([[1, 2]])
before = resident("VmRSS")
model = load_model(sys.argv[2], "cpu", "cpu")
print(json.dumps({"peak": resident("VmHWM") - before, "after": resident("VmRSS") - before}))
"""


def test_loading_takes_little_more_memory_than_the_file(tiny_file: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        "rwkvbatch._native", reason="installed without the native kernels", exc_type=ImportError
    )
    from rwkvbatch.model.random_checkpoint import random_tensors

    path = tmp_path / "a.pth"
    torch.save(random_tensors(2, 512, 24_000), path)
    command = [sys.executable, "-c", _MEMORY, str(tiny_file), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    memory = json.loads(done.stdout)
    size = path.stat().st_size
    assert 0.9 * size < memory["after"] < 1.2 * size
    # The head is packed first, the embedding second: for a moment it exists twice.
    assert memory["peak"] < 1.35 * size


def test_loading_frees_the_file(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    shutil.copy(tiny_file, path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    model = load_model(path, "cpu", "reference")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    path.unlink()
    assert model.forward([[1]])[0].shape == (1, 97)
