from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from benchmarks import against_rwkvserve
from benchmarks.against_rwkvserve import Reply, measure, num_differing, prompts_of
from rwkvbatch.errors import RwkvBatchError

OPTIONS = argparse.Namespace(
    python=sys.executable, shape="1x64", rows="1,2", tokens=3, rounds=1, threads=1, dtype="fp32"
)


def test_nothing_is_found_in_a_cache() -> None:
    prompts = [prompt for call in range(4) for prompt in prompts_of(3, call)]
    assert len(set(prompts)) == 12


def test_replies_are_compared_token_by_token() -> None:
    assert num_differing(Reply([[1, 2], [3]], 1.0), Reply([[1, 2], [4]], 1.0)) == 1


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (
            "import json; print(json.dumps({'ids': [[1, 2, 3]] * 2, 'seconds': 1.0}), flush=True)",
            "computes something else",
        ),
        ("sys.exit('no memory')", "ended early"),
    ],
)
def test_nothing_is_measured_if_the_other_program_gives_other_replies_or_ends(
    answer: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = "import sys; print('{}', flush=True)\nfor line in sys.stdin:\n    "
    monkeypatch.setattr(against_rwkvserve, "CHILD", ready + answer)
    with pytest.raises(RwkvBatchError, match=problem):
        measure(OPTIONS, tmp_path)
