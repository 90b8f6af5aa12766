"""Runs of real models: several in one grid, and with initial states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rwkvbatch
from rwkvbatch.errors import InputError
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.replay.planning.setups import setups_of
from rwkvbatch.results.manifest import read_manifest
from tests.replay.fakes import make_conversation, make_plan

LINE = '{"id": "c", "messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "And?"}]}\n'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        torch.save(random_tensors(2, 64, vocab_size=300, seed=seed), directory / f"{name}.pth")
    return directory


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "s.jsonl"
    path.write_text(LINE)
    return path


def replies(script: Path, **settings: object) -> dict[str, list[tuple[int, ...]]]:
    result = rwkvbatch.run(script, max_tokens=6, top_p=0.9, **settings)
    found: dict[str, list[tuple[int, ...]]] = {}
    for row in result.rows():
        found.setdefault(row.cell, []).append(row.reply_ids)
    return found


def test_cells_are_grouped_by_model() -> None:
    cells = make_cells({"model": ["b", "a"], "temperature": [0, 1]})
    plan = make_plan(conversations=[make_conversation("c")], cells=cells)
    assert [(setup.model, setup.cells) for setup in setups_of(plan)] == [("b", (0, 1)), ("a", (2, 3))]


def test_models_of_a_grid_give_the_replies_that_each_gives_alone(models: Path, script: Path) -> None:
    names = [str(models / "one"), str(models / "two")]
    swept = replies(script, model=names, temperature=0.7)
    assert list(swept) == ["model=one", "model=two"]
    assert swept["model=one"] == replies(script, model=names[0], temperature=0.7)["base"]
    assert swept["model=two"] == replies(script, model=names[1], temperature=0.7)["base"]
    assert swept["model=one"] != swept["model=two"]


def test_a_run_of_several_models_is_resumed(models: Path, script: Path, tmp_path: Path) -> None:
    torch.save(random_tensors(1, 64, vocab_size=400, seed=5), models / "wider.pth")
    names = [str(models / "one"), str(models / "wider")]
    steps = iter(range(100))
    first = rwkvbatch.run(script, model=names, max_tokens=6, out=tmp_path / "out", should_stop=lambda: next(steps) > 9)
    assert first.interrupted
    second = rwkvbatch.run(script, model=names, max_tokens=6, out=tmp_path / "out")
    assert [row.reply_ids for row in second.rows()] == [
        row.reply_ids for row in rwkvbatch.run(script, model=names, max_tokens=6).rows()
    ]
    cells = read_manifest(tmp_path / "out")["identity"]["cells"]  # type: ignore[index]
    assert cells["model=one"]["tokenizer_sha256"] != cells["model=wider"]["tokenizer_sha256"]
    assert cells["model=one"]["weights_sha256"] != cells["model=wider"]["weights_sha256"]


def test_an_interrupted_run_of_the_bundled_model_ends_with_the_same_rows(tmp_path: Path) -> None:
    demo = Path(__file__).parents[3] / "datasets" / "demo.jsonl"
    settings = {"limit": 4, "max_tokens": 12, "top_p": 0.9, "temperature": [0.5, 1.0]}
    whole = list(rwkvbatch.run(demo, **settings).rows())
    parts = tmp_path / "parts"
    for batch_size in (2, 5, 3):
        steps = iter(range(1000))
        rwkvbatch.run(demo, out=parts, batch_size=batch_size, should_stop=lambda s=steps: next(s) > 40, **settings)
    resumed = list(rwkvbatch.run(demo, out=parts, **settings).rows())
    assert any(row.reference for row in whole)
    for expected, row in zip(whole, resumed, strict=True):
        assert row.key == expected.key
        assert (row.reply, row.reply_ids, row.finish_reason, row.checks) == (
            expected.reply,
            expected.reply_ids,
            expected.finish_reason,
            expected.checks,
        )
        # Equal bit for bit with the native kernels; the rounding of the reference operations depends on the batch.
        assert row.logprob.sum == pytest.approx(expected.logprob.sum, abs=1e-3)


def test_an_initial_state_changes_replies_and_a_grid_can_vary_it(models: Path, script: Path, tmp_path: Path) -> None:
    state = tmp_path / "tuned.pth"
    generator = torch.Generator().manual_seed(3)
    tensors = {f"blocks.{i}.att.time_state": torch.randn(1, 64, 64, generator=generator) for i in range(2)}
    torch.save(tensors, state)
    model = str(models / "one")
    plain = replies(script, model=model)["base"]
    tuned = replies(script, model=model, state=str(state))["base"]
    assert tuned != plain
    grid = tmp_path / "grid.toml"
    grid.write_text(f"[cells.plain]\ntop_k = 0\n[cells.tuned]\nstate = {str(state)!r}\n")
    swept = replies(script, model=model, grid=grid)
    assert swept == {"plain": plain, "tuned": tuned}


def test_a_missing_state_file_is_refused(models: Path, script: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--state nowhere\.pth: cannot be read"):
        rwkvbatch.run(script, model=str(models / "one"), state="nowhere.pth", out=tmp_path / "out")


def test_unusable_states_and_templates_leave_no_directory(models: Path, script: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("hello")
    for values in ({"state": str(models / "one.pth")}, {"template": str(template)}):
        with pytest.raises(InputError, match=r"not a state file|defines no macro"):
            rwkvbatch.run(script, model=str(models / "one"), out=tmp_path / "out", **values)
        assert not (tmp_path / "out").exists()


def test_a_loaded_model_gives_the_replies_of_its_file(models: Path, script: Path) -> None:
    model = rwkvbatch.load_model(models / "one")
    assert replies(script, model=model) == replies(script, model=str(models / "one"))
