"""Error messages for extras that are not installed."""

from __future__ import annotations

import sys

import pytest

from rwkvbatch.cli.app import invoke


def test_without_lm_eval_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    # Its modules too, which other tests may have loaded.
    for name in [*sys.modules, "lm_eval"]:
        if name.partition(".")[0] == "lm_eval":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "rwkvbatch.integrations.harness", raising=False)
    monkeypatch.delattr("rwkvbatch.integrations.harness", raising=False)
    assert invoke(["lm-eval", "--tasks", "x"]) == 2
    assert b"rwkvbatch[lm-eval]" in capsysbinary.readouterr().err
