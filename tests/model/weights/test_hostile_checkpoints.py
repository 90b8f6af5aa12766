"""Damaged and malicious weights files: one clear message, in bounded time and memory, and no code runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from tests.model.hostile.case import WITNESS, tiny
from tests.model.hostile.corpus import corpus
from tests.model.hostile.packing import pth
from tests.model.made_forms import write_gguf

ROOT = Path(__file__).parents[3]
CPU_LIMIT_S = 2.0
MEMORY_LIMIT_MIB = 200.0

NAMES = [case.name for case in corpus()]


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def outcomes(corpus_folder: Path) -> dict[str, dict[str, Any]]:
    """Every file of the corpus, opened one after the other in one fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.model.hostile.corpus", str(corpus_folder), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("name", NAMES)
def test_file_is_refused_with_one_clear_message(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes[name]
    assert outcome["error"] == "CheckpointError", outcome
    assert outcome["expected"] in outcome["message"]
    assert any(f"/{name}{end}" in outcome["message"] for end in ":/")
    assert "\n" not in outcome["message"]
    assert len(outcome["message"]) < 1000
    assert outcome["cpu_s"] < CPU_LIMIT_S
    assert outcome["memory_mib"] < MEMORY_LIMIT_MIB


def test_no_file_runs_code_or_stays_open(outcomes: dict[str, dict[str, Any]], corpus_folder: Path) -> None:
    assert {path.name for path in corpus_folder.iterdir()} <= set(NAMES)
    assert not (corpus_folder / WITNESS).exists()
    assert len({outcome["open_files"] for outcome in outcomes.values()}) == 1


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    from safetensors.torch import save

    gguf = write_gguf(tmp_path_factory.mktemp("sound") / "tiny.gguf", tiny(), matrices="Q8_0").read_bytes()
    return {"pth": pth(tiny()), "safetensors": save(tiny()), "gguf": gguf}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_refused_or_harmless(
    data: st.DataObject, sound_files: dict[str, bytes], tmp_path: Path
) -> None:
    changed = bytearray(sound_files[data.draw(st.sampled_from(sorted(sound_files)))])
    # The tables of contents are at the ends; the middle is numbers.
    places = st.integers(0, 3000) | st.integers(len(changed) - 12_000, len(changed) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        changed[place] = value
    path = tmp_path / "changed"
    path.write_bytes(changed)
    try:
        with open_checkpoint(path) as checkpoint:
            assert all(checkpoint[name].numel() for name in checkpoint)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.usefixtures("outcomes")
def test_reader_alone_refuses_what_the_loader_refuses(corpus_folder: Path) -> None:
    accepted: list[str] = []
    # Those that are only long cost most of the time, and show nothing new here.
    for name in sorted(set(NAMES) - {"endless", "many-marks", "many-dicts"}):
        try:
            with open_checkpoint(corpus_folder / name) as checkpoint:
                for tensor in checkpoint:
                    checkpoint.check(tensor)
            accepted.append(name)
        except CheckpointError:
            continue
    # Only the package itself knows what the older generations need.
    assert accepted == ["older-incomplete"]
