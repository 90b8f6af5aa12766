"""Gates for continuous integration: `--fail-if` expressions, parsed and judged."""

from __future__ import annotations

from rwkvbatch.compare.gates.judging import GateResult, GateScope, judge
from rwkvbatch.compare.gates.parser import Gate, parse_gate

__all__ = ["Gate", "GateResult", "GateScope", "judge", "parse_gate"]
