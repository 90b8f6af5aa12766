"""The package as a whole: the cost of importing it, and forbidden content."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rwkvbatch

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rwkvbatch"
SOURCES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "pandas", "numpy", "rwkv", "scipy", "jinja2", "prompt_toolkit", "ray")


def modules_after(code: str) -> set[str]:
    """Top-level modules that are loaded when `code` has run in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import rwkvbatch") & set(HEAVY)


def test_a_worker_process_can_be_forked_before_torch_is_loaded() -> None:
    assert "torch" not in modules_after("import rwkvbatch.replay.worker.worker")


HELP = [
    [*command, "--help"] for command in ([], ["run"], ["merge"], ["compare"], ["chat"], ["show"], ["bench"], ["model"])
]
REFUSED = [
    ["run", "script.jsonl", "--temp", "hot"],
    ["score", "text.txt", "--batch-size", "hot"],
    ["check", "run", "--batch-size", "hot"],
    ["chat", "--temp", "hot"],
    ["serve", "--temp", "hot"],
    ["bench", "--threads", "hot"],
    ["model", "verify", "--threads", "hot"],
]


def test_help_and_wrong_options_load_nothing_heavy() -> None:
    """One after the other in one interpreter."""
    code = f"""
import io, contextlib, json
from rwkvbatch.cli.app import invoke
found = []
for code, commands in ((0, {HELP!r}), (2, {REFUSED!r})):
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()):
            assert invoke(command) == code, command
        loaded = sorted(set({HEAVY!r}) & set(sys.modules))
        assert not loaded, (command, loaded)
"""
    modules_after(code)


def test_every_public_name_can_be_used() -> None:
    for name in rwkvbatch.__all__:
        assert getattr(rwkvbatch, name) is not None
    assert set(rwkvbatch.__all__) <= set(dir(rwkvbatch))


def test_the_reference_has_every_public_name_and_each_of_its_entries_exists() -> None:
    entries = re.findall(r"^::: (\S+)\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for _, name in entries} >= set(rwkvbatch.__all__) - {"__version__"}
    for module, name in entries:
        assert hasattr(importlib.import_module(module), name), (module, name)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        rwkvbatch.nonsense  # noqa: B018


def test_the_readme_leads_to_every_commands_help() -> None:
    from rwkvbatch.cli.app import COMMANDS

    readme = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"[`rwkvbatch {name}`](docs/commands.md#rwkvbatch-{name})" in readme


DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("[dr]*/README.md")]
)


def anchors(markdown: str) -> set[str]:
    """What can stand behind a `#` in a link to this document, by GitHub's rule: headings without punctuation."""
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(name: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{name}: {link}"


def described_names(node: ast.ClassDef | ast.FunctionDef) -> set[str]:
    """The names that the sections of a docstring may describe: parameters, and the annotated fields of a class."""
    names = {argument.arg for inner in ast.walk(node) if isinstance(inner, ast.arguments)
             for argument in (*inner.args, *inner.kwonlyargs)}  # fmt: skip
    fields = (inner.target for inner in ast.walk(node) if isinstance(inner, ast.AnnAssign))
    return names | {field.id for field in fields if isinstance(field, ast.Name)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_entry_of_a_docstring_s_section_begins_on_its_own_line(path: Path) -> None:
    """Or the site shows one name with the descriptions of two."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            _, _, sections = text.partition(":\n    ")
            names = "|".join(described_names(node)) or "-"
            found = re.search(rf"[.;]\s+(?<!\n    )((?:(?:{names}), )*(?:{names})): ", sections)
            assert found is None, f"line {node.lineno}: {found}"


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
ALLOWED_CALLS = {"script/checks/functions.py": ["exec", "compile"]}
"""Of the one function that runs the file of `--check-module`, which the user names."""
FORBIDDEN_MODULES = {"pickle", "shelve", "marshal", "dill", "requests", "urllib.request", "http.client", "ftplib"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_is_evaluated_unpickled_or_fetched(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    forbidden = [node.func.id for node in calls if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS]
    assert forbidden == ALLOWED_CALLS.get(path.relative_to(PACKAGE).as_posix(), [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_shell = any(
                keyword.arg == "shell" and getattr(keyword.value, "value", None) is True for keyword in node.keywords
            )
            assert not is_shell, f"line {node.lineno}"
            if node.func.attr == "load" and ast.unparse(node.func.value) == "torch":
                safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert safe.get("weights_only") == "True", f"line {node.lineno}"
        imported: list[str] = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        # The rwkv package's module is run from its installed file, fenced; nothing else is.
        assert not set(imported) & FORBIDDEN_MODULES, f"{imported} at line {getattr(node, 'lineno', 0)}"


NETWORK_MODULES = {
    "ray",
    *("socket", "socketserver", "ssl", "asyncio", "http.server", "xmlrpc", "smtplib", "telnetlib", "httpx", "aiohttp"),
    *("urllib3", "websockets", "prometheus_client", "starlette", "uvicorn", "httptools"),
}
MAY_TOUCH_THE_NETWORK = {
    "endpoint/client.py": {"urllib3"},
    "endpoint/connections.py": {"urllib3", "urllib3.connection", "urllib3.connectionpool"},
    "integrations/inspect_provider.py": {"asyncio"},
    "replay/metrics.py": {"prometheus_client"},
    "replay/pools/ray_actor.py": {"ray", "socket"},
    "replay/pools/ray_pool.py": {"ray", "socket"},
    "serve/app.py": {"asyncio", "starlette"},
    "serve/batcher.py": {"asyncio"},
    "serve/connection.py": {"asyncio", "uvicorn"},
    "serve/metrics.py": {"prometheus_client"},
    "serve/server.py": {"asyncio", "socket", "uvicorn"},
}
NAMES_THE_HOST = {"results/lock.py", "results/status.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_but_the_server_the_metrics_and_ray_touches_the_network(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    tree = ast.parse(path.read_text())
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module)
    found = {module for module in imported if module in NETWORK_MODULES or module.split(".")[0] in NETWORK_MODULES}
    if name in NAMES_THE_HOST:
        used = {
            node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and "socket" in ast.unparse(node)
        }
        assert used == {"gethostname"}
        found.discard("socket")
    assert {module.split(".")[0] for module in found} <= MAY_TOUCH_THE_NETWORK.get(name, set())


def test_nothing_in_the_repository_names_a_machine() -> None:
    suspicious = re.compile(r"/work/main|/home/[a-z]+/|/root/|\.\./shared")
    patterns = ["*.py", "*.md", "*.toml", "*.cpp", "*.hpp", "Makefile"]
    git = subprocess.run(["git", "ls-files", *patterns], capture_output=True, text=True, cwd=ROOT, check=False)
    if git.returncode != 0:
        pytest.skip(f"needs a git checkout: {git.stderr.strip()}")
    tracked = [ROOT / name for name in git.stdout.split() if name != "tests/test_package.py"]
    assert PACKAGE / "__init__.py" in tracked
    for path in tracked:
        if path.is_file():  # a deleted file is listed until the deletion is committed
            assert not suspicious.search(path.read_text(errors="replace")), path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `make` in `tmp_path` with a program that prints its arguments, each between brackets."""
    program = tmp_path / "bin/rwkvbatch"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '[%s]' \"$@\"; echo\n")
    program.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", "bin/python", ".installed"):
        (tmp_path / name).touch()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-f", str(ROOT / "Makefile"), f"VENV={tmp_path}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


@pytest.mark.parametrize("target", ["demo", "sweep", "gate"])
def test_make_removes_a_run_and_no_other_folder(
    target: str, tmp_path: Path, make: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = tmp_path / "my runs é" / target
    folder.mkdir(parents=True)
    (folder / "thesis.md").touch()
    (folder / ".lock").touch()
    (folder / "manifest.json").write_text('{"name": "of a web site", "icons": []}')
    (tmp_path / "my").mkdir()
    done = make(target, "OUT=my runs é")
    assert done.returncode == 2
    assert f"my runs é/{target} is not a run: move it, or choose another folder with OUT=FOLDER" in done.stderr
    assert (folder / "thesis.md").exists()
    (folder / "manifest.json").write_text(json.dumps({"about": {"rwkvbatch": "0.1.0"}}))
    done = make(target, "OUT=my runs é")
    assert done.returncode == 0, done.stderr
    assert f"[--out][my runs é/{target}]" in done.stdout
    assert not folder.exists()
    assert (tmp_path / "my").exists()
    assert f'rm -rf "runs/{target}"' in make("--dry-run", target, "OUT=").stdout
    assert f'rm -rf "a  b/{target}"' in make("--dry-run", target, "OUT=a  b").stdout


def test_make_compare_takes_a_folder_with_spaces(make: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    printed = make("compare", "OUT=my runs é").stdout
    assert "[compare][my runs é/sweep]" in printed
    assert "[--out][my runs é/sweep/report.html]" in printed
