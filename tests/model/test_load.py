"""`load_model`: the choice of file and backend, and error messages."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkvbatch.config import RunSettings
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model import load, model_files
from rwkvbatch.model.base import Model
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import SlowBackendWarning, load_model
from rwkvbatch.model.model_files import SeveralFilesWarning, is_bundled, resolve_model_path
from rwkvbatch.model.network.rwkv7_model import Rwkv7Model
from rwkvbatch.model.ops.reference import ReferenceOps
from rwkvbatch.model.weights.safetensors import save_tensors
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.worker.models import ModelLoader
from tests.model.loading_memory import memory_of_loading


@pytest.fixture(autouse=True)
def _no_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RWKVBATCH_MODEL", raising=False)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes an import fail as if the module were not there.
    monkeypatch.setitem(sys.modules, "rwkvbatch.model.ops.cpu", None)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_suffix_is_optional(suffix: str, tmp_path: Path) -> None:
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


def test_a_name_that_several_files_have_gives_a_warning(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth"):
        save_tensors(tmp_path / name, random_tensors(1, 64, 512))
    with pytest.warns(
        SeveralFilesWarning, match=r"a\.pth is read, and not a\.safetensors; give the name with its ending"
    ):
        load_model(tmp_path / "a", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(tmp_path / "a.safetensors", "cpu")


def test_a_directory_of_the_same_name_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.pth").touch()
    assert resolve_model_path(tmp_path / "a").path.name == "a.pth"


def test_model_directory_comes_before_a_file_with_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    (tmp_path / "a.pth").touch()
    assert resolve_model_path(tmp_path / "a").path == tmp_path / "a"


def test_a_path_overrides_the_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("default.pth", "given.pth"):
        (tmp_path / name).touch()
    monkeypatch.setenv("RWKVBATCH_MODEL", str(tmp_path / "default"))
    assert resolve_model_path().path.name == "default.pth"
    assert not is_bundled(None)
    assert resolve_model_path(tmp_path / "given").path.name == "given.pth"


def test_without_a_name_the_bundled_model_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "BUNDLED_MODEL", tmp_path / "demo.safetensors")
    with pytest.raises(CheckpointError, match="bundled model is missing"):
        resolve_model_path()
    (tmp_path / "demo.safetensors").touch()
    resolved = resolve_model_path()
    assert resolved.bundled
    assert is_bundled(None)
    assert not is_bundled("a")
    assert resolved.path == tmp_path / "demo.safetensors"


def test_the_error_of_a_missing_file_names_the_candidates_and_similar_files(tmp_path: Path) -> None:
    (tmp_path / "rwkv7-g1.pth").touch()
    with pytest.raises(CheckpointError, match="there is no such file") as caught:
        resolve_model_path(tmp_path / "rwkv7-g2.pth")
    assert caught.value.hint is not None
    assert "'rwkv7-g2.pth.safetensors'" in caught.value.hint
    assert "'rwkv7-g1.pth'" in caught.value.hint


def test_the_error_of_a_missing_file_names_releases_of_its_model(tmp_path: Path) -> None:
    for name in ("rwkv7-g1k-1.5b-20260801-ctx8192.pth", "rwkv7-g1k-1.5b-20260930-ctx25600.pth", "rwkv7-g1k-1.4b.pth"):
        (tmp_path / name).touch()
    for name in ("rwkv7-g1k-1.5b", "rwkv7-g1k-1.5b.pth"):
        with pytest.raises(CheckpointError) as caught:
            resolve_model_path(tmp_path / name)
        assert caught.value.hint is not None
        found = "is it 'rwkv7-g1k-1.5b-20260930-ctx25600.pth' or 'rwkv7-g1k-1.5b-20260801-ctx8192.pth'?"
        assert caught.value.hint.endswith(found)


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
    ("strategy", "dtype"),
    [("cpu", "bf16"), ("cpu bf16", "bf16"), ("cpu fp32", "fp32"), ("cpu fp16", "fp16"), ("cpu int8", "int8")],
)
def test_precision_is_that_of_the_strategy_or_the_file(strategy: str, dtype: str, tiny_file: Path) -> None:
    assert load_model(tiny_file, strategy, "reference").spec.dtype == dtype


def test_precision_rounds_the_weights(tmp_path: Path) -> None:
    torch.save(random_tensors(1, 64, 65, dtype=torch.float32), tmp_path / "a.pth")
    exact, _ = load_model(tmp_path / "a", "cpu", "reference").forward([[1, 2]])
    same, _ = load_model(tmp_path / "a", "cpu fp32", "reference").forward([[1, 2]])
    coarse, _ = load_model(tmp_path / "a", "cpu bf16", "reference").forward([[1, 2]])
    fine, _ = load_model(tmp_path / "a", "cpu fp16", "reference").forward([[1, 2]])
    assert torch.equal(exact, same)
    assert 0 < float((fine - exact).abs().max()) < float((coarse - exact).abs().max()) < 0.5


@pytest.mark.usefixtures("without_kernels")
def test_without_native_kernels_the_reference_is_used_with_one_warning(tiny_file: Path) -> None:
    with pytest.warns(SlowBackendWarning, match="reference operations") as caught:
        model = load_model(tiny_file, "cpu")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (model.spec.backend, model.spec.bitwise) == ("reference", False)


@pytest.mark.usefixtures("without_kernels")
def test_asking_for_absent_kernels_is_a_usage_error(tiny_file: Path) -> None:
    with pytest.raises(UsageError, match="--backend cpu needs the native kernels") as caught:
        load_model(tiny_file, "cpu", "cpu")
    assert "--backend reference" in str(caught.value.hint)


def test_native_kernels_are_used_if_installed(tiny_file: Path) -> None:
    pytest.importorskip("rwkvbatch._native", reason="installed without the native kernels", exc_type=ImportError)
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
        ("cpu", "cuda", "--backend cuda needs an NVIDIA GPU"),
        ("nowhere", "auto", "--strategy must be one of"),
    ],
)
def test_bad_choice_is_a_usage_error(strategy: str, backend: str, message: str, tiny_file: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(tiny_file, strategy, backend)


def test_bad_thread_count_is_a_usage_error(tiny_file: Path) -> None:
    with pytest.raises(UsageError, match="threads must be a whole number, 1 to 1,024, or None; got 0"):
        load_model(tiny_file, threads=0)


class OnCpu(ReferenceOps):
    """Operations on the CPU that record the requested device."""

    def __init__(self, device: str, dtype: torch.dtype | None = None, fixed_rows: int | None = None) -> None:
        super().__init__("cpu")
        self.requested = (device, dtype, fixed_rows)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch report an NVIDIA GPU, and run its operations on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(load, "ReferenceOps", OnCpu)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from rwkvbatch.model.network import graphs
    from rwkvbatch.model.ops import cuda

    monkeypatch.setattr(cuda, "CudaOps", OnCpu)
    monkeypatch.setattr(OnCpu, "name", "cuda", raising=False)
    monkeypatch.setattr(OnCpu, "active", lambda self: contextlib.nullcontext(), raising=False)
    monkeypatch.setattr(OnCpu, "fixed_rows", 1, raising=False)
    monkeypatch.setattr(graphs, "cuda_capture", lambda: None)


def requested(model: Model) -> tuple[str, torch.dtype | None, int | None]:
    assert isinstance(model, Rwkv7Model)
    assert isinstance(model.ops, OnCpu)
    return model.ops.requested


@pytest.mark.usefixtures("a_gpu", "kernels")
def test_gpu_strategy_picks_the_cuda_backend(tiny_file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(tiny_file, "auto")
        assert (model.spec.backend, requested(model)) == ("cuda", ("cuda", torch.bfloat16, None))
        assert model.forward([[1], [2, 3]])[0].shape == (2, 97)
        model = load_model(tiny_file, "cuda:0 fp16 rows=64")
        assert (model.spec.backend, requested(model)) == ("cuda rows=64", ("cuda:0", torch.float16, 64))
        model = load_model(tiny_file, "cuda:0 fp16", "reference")
        assert (model.spec.backend, requested(model)) == ("reference", ("cuda:0", torch.float16, None))
    with pytest.raises(UsageError, match="--backend cpu cannot run on 'cuda'"):
        load_model(tiny_file, "cuda fp16", "cpu")


def without_triton(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "rwkvbatch.model.ops.cuda", None)
    return "Triton cannot be imported"


def on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    return "compute capability 7.5"


def on_an_amd_gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    return "is an AMD GPU"


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("lacking", [without_triton, on_an_old_gpu, on_an_amd_gpu])
def test_without_gpu_kernels_the_reference_is_used_on_the_gpu_with_one_warning(
    lacking: Callable[[pytest.MonkeyPatch], str], tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = lacking(monkeypatch)
    with pytest.warns(SlowBackendWarning, match=reason) as caught:
        model = load_model(tiny_file, "cuda fp16")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (model.spec.backend, requested(model)) == ("reference", ("cuda", torch.float16, None))
    with pytest.raises(UsageError, match="rows= in --strategy needs the kernels"):
        load_model(tiny_file, "cuda fp16 rows=64")


def test_an_apple_gpu_uses_the_reference(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(load, "ReferenceOps", OnCpu)
    model = load_model(tiny_file, "mps fp16")
    assert (model.spec.backend, requested(model)) == ("reference", ("mps", torch.float16, None))
    with pytest.raises(UsageError, match="--backend cuda needs an NVIDIA GPU"):
        load_model(tiny_file, "mps fp16", "cuda")


def test_loading_takes_little_more_memory_than_the_file(tiny_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("rwkvbatch._native", reason="installed without the native kernels", exc_type=ImportError)
    path = tmp_path / "a.pth"
    torch.save(random_tensors(2, 512, 24_000), path)
    memory = memory_of_loading(path, "cpu", tiny_file)
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


def test_the_error_of_unsupported_heads_names_a_backend_that_supports_them(tmp_path: Path) -> None:
    torch.save(random_tensors(1, 512, 20, head_size=512), tmp_path / "a.pth")
    for backend in ("auto", "cpu"):
        with pytest.raises(CheckpointError, match=r"it has heads of size 512; .* support at most 256") as caught:
            load_model(tmp_path / "a.pth", "cpu", backend)
        assert "--backend reference" in str(caught.value.hint)
    assert load_model(tmp_path / "a.pth", "cpu", "reference").forward([[1]])[0].shape == (1, 20)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is said without a GPU")
def test_errors_name_the_strategy_only_if_it_was_given(tiny_file: Path) -> None:
    with pytest.raises(UsageError, match="and none was found") as caught:
        load_model(tiny_file, backend="cuda")
    assert "--strategy" not in f"{caught.value}{caught.value.hint}"
    with pytest.raises(UsageError, match="--strategy is for 'cpu'"):
        load_model(tiny_file, "cpu", "cuda")
    loader = ModelLoader(RunSettings())
    with pytest.raises(UsageError, match="--devices asks for the device 'cuda:0', but no CUDA device was found"):
        loader.model(Setup(str(tiny_file), "auto", "auto", (0,)).on_device("cuda:0"))
