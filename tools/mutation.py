"""Mutation testing of what must not be wrong: `python tools/mutation.py AREA [FOLDER]`, with `pip install mutmut`.

Works on a copy of the last commit, because mutmut changes the sources it runs, and an editable installation would hand
out the unchanged ones. Simulations of distributions are left out: they take long, and the other tests must suffice.
A run that was interrupted goes on when the same folder is given. `mutmut results` in the folder lists the survivors.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("rwkvbatch", "tests", "tools", "datasets", "pyproject.toml")
PREAMBLE = """import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable_")]
"""


@dataclass(frozen=True)
class Area:
    """`modules` are mutated, `tests` must notice it, but for those that `left_out` (of `pytest -k`) names.

    `functions` are patterns of what is mutated in them; none for all.
    """

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    left_out: str = ""
    functions: tuple[str, ...] = ()


AREAS = {
    "stats": Area(
        ("rwkvbatch/stats/*",),
        ("tests/stats",),
        "sweeps or stopping_on_significance or any_false_alarm or cover_the_truth or would_cover",
    ),
    "sampling": Area(
        ("rwkvbatch/engine/sampling.py", "rwkvbatch/model/ops/choosing.py"),
        (
            "tests/engine/test_sampling.py",
            "tests/model/ops/test_noise.py",
            "tests/model/ops/test_cpu_sampling.py",
            "tests/model/ops/test_choose.py",
        ),
        "distributed or another_order or cuda",
        (
            "rwkvbatch.engine.sampling*",
            *(
                f"rwkvbatch.model.ops.choosing.x_{name}*"
                for name in ("choose", "sample", "_sample_row", "_kept", "_top_p", "look_up", "philox", "gumbel")
            ),
        ),
    ),
    "store": Area(
        tuple(f"rwkvbatch/results/{name}.py" for name in ("store", "folder", "recovery", "row", "row_codec")),
        ("tests/results",),
    ),
}


def prepare(area: Area, folder: Path) -> None:
    """The last commit in `folder`, told to mutate `area`."""
    archive = subprocess.run(["git", "archive", "HEAD", *COPIED], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    from rwkvbatch import _native

    shutil.copy(str(_native.__file__), folder / "rwkvbatch")
    options = ["-x", "-q", "-p", "no:cacheprovider", *(["-k", f"not ({area.left_out})"] if area.left_out else [])]
    settings = {
        "source_paths": ["rwkvbatch"],
        "only_mutate": list(area.modules),
        "also_copy": ["tools", "datasets"],
        "pytest_add_cli_args_test_selection": list(area.tests),
        "pytest_add_cli_args": options,
        # torch does not survive a fork once it has threads.
        "process_isolation": "forkserver",
    }
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n[tool.mutmut]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        file.write("use_git_change_detection = false\ntrack_dependencies = false\n")
    tests = folder / "tests" / "conftest.py"
    first, future, rest = tests.read_text(encoding="utf-8").partition("from __future__ import annotations\n")
    tests.write_text(f"{first}{future}\n{PREAMBLE}{rest}", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Mutate an area; returns mutmut's exit code."""
    if len(arguments) not in (2, 3) or arguments[1] not in AREAS:
        print(f"usage: python tools/mutation.py {{{','.join(AREAS)}}} [FOLDER]", file=sys.stderr)
        return 2
    area = AREAS[arguments[1]]
    folder = Path(arguments[2] if len(arguments) > 2 else tempfile.mkdtemp(prefix="rwkvbatch-mutants-"))
    if not (folder / "pyproject.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        prepare(area, folder)
    print(f"in {folder}", file=sys.stderr)
    mutmut = Path(sys.executable).parent / "mutmut"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([mutmut, "run", *area.functions], cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv))
