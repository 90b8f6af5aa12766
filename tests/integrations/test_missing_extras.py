"""What is said where an extra is not installed."""

from __future__ import annotations

import sys

import pytest

from rwkvbatch.cli.app import invoke


def test_without_lm_eval_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "rwkvbatch.integrations.harness", raising=False)
    monkeypatch.delattr("rwkvbatch.integrations.harness", raising=False)
    assert invoke(["lm-eval", "--tasks", "x"]) == 2
    assert b"rwkvbatch[lm-eval]" in capsysbinary.readouterr().err
