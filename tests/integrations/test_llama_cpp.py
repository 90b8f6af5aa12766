"""`certify` and `run --endpoint` against a real server of llama.cpp, with GGUF files made from the bundled model.

`LLAMA_CPP` names the folder of a build with the targets llama-server and llama-quantize.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rwkvbatch
from benchmarks.gguf_file import write_gguf
from rwkvbatch.bench.certify import Certificate, CertifyOptions, certify
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.model_files import resolve_model_path

BUILD = os.environ.get("LLAMA_CPP")
TRANSPOSED = "blocks.1.att.output.weight"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BUILD is None, reason="needs LLAMA_CPP=FOLDER, a build of llama.cpp"),
]


def program(name: str) -> Path:
    folder = Path(BUILD or "")
    return next(
        place for place in (folder / name, folder / "bin" / name, folder / "build/bin" / name) if place.exists()
    )


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "F16.gguf"
    with open_checkpoint(Path(resolve_model_path(None).path)) as checkpoint:
        write_gguf(path, checkpoint)
    return path


@contextmanager
def llama_server(model: Path) -> Iterator[str]:
    """The base URL of a server of `model` on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program("llama-server"), "-m", model, "--port", str(port), "-c", "4096", "-np", "4", "-t", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                try:
                    urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except (URLError, OSError):
                    assert process.poll() is None, "llama-server ended"
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def certificate(model: Path) -> Certificate:
    with llama_server(model) as url:
        return certify(url, CertifyOptions(max_tokens=24))


@pytest.mark.parametrize(("kind", "least", "most"), [("F16", 0.0, 0.001), ("Q8_0", 0.001, 0.02), ("Q4_0", 0.01, 0.1)])
def test_files_of_the_same_network_are_rounded_by_so_much(f16: Path, kind: str, least: float, most: float) -> None:
    path = f16.with_name(f"{kind}.gguf")
    if kind != "F16":
        subprocess.run([program("llama-quantize"), f16, path, kind], check=True, capture_output=True)
    found = certificate(path)
    assert found.verdict in ("same", "rounded")
    assert found.mean_gap is not None
    assert least <= found.mean_gap <= most
    assert found.num_scored == found.num_tokens
    assert found.repeated == found.num_replies


def test_a_transposed_matrix_is_damage(tmp_path: Path) -> None:
    source = resolve_model_path(None).path
    tensors = load_file(source)
    tensors[TRANSPOSED] = tensors[TRANSPOSED].T.contiguous()
    with safe_open(source, "pt") as opened:
        save_file(tensors, tmp_path / "damaged.safetensors", metadata=opened.metadata())
    with open_checkpoint(tmp_path / "damaged.safetensors") as checkpoint:
        write_gguf(tmp_path / "damaged.gguf", checkpoint)
    assert certificate(tmp_path / "damaged.gguf").verdict == "damaged"


def test_a_run_gets_the_replies_of_the_same_run_here(f16: Path, tmp_path: Path) -> None:
    """Greedy replies of F16 weights and of the bundled file's bf16 weights are the same for almost all turns."""
    script = tmp_path / "names.jsonl"
    turns = [[f"My name is {name}.", "Who am I?"] for name in ("Ada", "Eli", "Mia", "Tom")]
    lines = [{"messages": [{"role": "user", "content": text} for text in each]} for each in turns]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with llama_server(f16) as url:
        there = rwkvbatch.run(script, endpoint=url, temperature=0, max_tokens=24, endpoint_api="completions-ids")
        rows = {row.key: row for row in there.rows()}
    here = {row.key: row for row in rwkvbatch.run(script, temperature=0, max_tokens=24).rows()}
    assert len(here) == len(rows) == 8
    assert all(row.error is None for row in rows.values())
    same = sum(rows[key].reply == row.reply for key, row in here.items())
    assert same >= len(here) - 1
