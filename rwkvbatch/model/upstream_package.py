"""The fence around the `rwkv` package.

At import that package reads and sets environment variables, prints, and switches on TF32 for the whole process;
RWKV-7 support is chosen there too, and an RWKV-7 model's precision and device are module globals that the next one
overwrites. So every model gets its own copy of the module, executed under a made-up environment, with its printing
swallowed and the process's settings put back.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.checkpoint import Checkpoint
from rwkvbatch.model.settings import tf32

_COPIES = itertools.count()

# Its CUDA extension is compiled at import, by whatever compiler is around: not wanted in a slow twin. TorchScript is
# not optional for RWKV-7 and of no use for the others.
_SWITCHES = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_DML_ON": "0", "RWKV_DE_VERSION": "0"}


def load_package_model(checkpoint: Checkpoint, strategy: str) -> Any:
    """The `rwkv` package's own model object for `checkpoint`, whose tensors are all checked on the way.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, or the package cannot load it.
        UsageError: the package is not installed.
    """
    generation = checkpoint.architecture.generation
    with tempfile.TemporaryDirectory(prefix="rwkvbatch-") as folder, _fence():
        module = _own_copy(generation)
        name = str(_as_plain_pth(checkpoint, Path(folder)))
        try:
            if generation == "7":
                return module.RWKV_x070(name.removesuffix(".pth"), strategy)
            return module.RWKV(name, strategy, verbose=False)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise CheckpointError(
                f"the `rwkv` package cannot load it with the strategy {strategy!r} ({reason})",
                path=checkpoint.file.path,
            ) from error


def _own_copy(generation: str) -> types.ModuleType:
    package = importlib.util.find_spec("rwkv")
    if package is None or not package.submodule_search_locations:
        raise UsageError("--backend upstream needs the `rwkv` package", hint="pip install rwkv")
    source = Path(next(iter(package.submodule_search_locations))) / "model.py"
    name = f"_rwkvbatch_upstream_{next(_COPIES)}"
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    environment = {**_SWITCHES, "RWKV_V7_ON": "1" if generation == "7" else "0"}
    if "RWKV_RESCALE_LAYER" in os.environ:
        environment["RWKV_RESCALE_LAYER"] = os.environ["RWKV_RESCALE_LAYER"]
    # TorchScript looks its functions' module up by name while they are compiled.
    sys.modules[name] = module
    try:
        with _environment(environment):
            spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    # It asks the environment again when it loads and at every call.
    module.os = types.SimpleNamespace(environ=environment, path=os.path, name=os.name)  # pyright: ignore[reportAttributeAccessIssue]
    # It collects garbage once a layer, a third of a second each in a large process; its tensors are counted anyway.
    module.gc = types.SimpleNamespace(collect=int)  # pyright: ignore[reportAttributeAccessIssue]
    return module


def _as_plain_pth(checkpoint: Checkpoint, folder: Path) -> Path:
    """A `.pth` file that the package can load, under a name that it understands."""
    target = folder / "model.pth"
    if checkpoint.file.kind == "pth":
        for name in checkpoint:
            checkpoint.check(name)
        target.symlink_to(checkpoint.file.path.resolve())
    else:
        torch.save({name: checkpoint[name] for name in checkpoint}, target)
    return target


@contextlib.contextmanager
def _fence() -> Iterator[None]:
    autocast = torch._C._jit_set_autocast_mode(True)
    benchmark = torch.backends.cudnn.benchmark
    try:
        with (
            tf32(False),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            _environment(
                {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}, without=("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",)
            ),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_set_autocast_mode(autocast)
        torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def _environment(changes: Mapping[str, str], without: tuple[str, ...] = ()) -> Iterator[None]:
    """The process's environment has `changes` inside, and is afterwards what it was."""
    before = dict(os.environ)
    os.environ.update(changes)
    for name in without:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
