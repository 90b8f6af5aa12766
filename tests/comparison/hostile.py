"""A run whose names and texts contain markup, control characters and formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.comparison.make_run import make_run

MARKUP = (
    '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=2">'
    "<svg onload=window.pwned=3>--></style>{{7*7}}[bold]x[/]"
)
CONTROLS = "\x1b]0;owned\x07\x1b[2J\u202eevil\u2028\u0000\r"
HOSTILE = MARKUP + CONTROLS
FORMULA = "=HYPERLINK(1)"


def hostile_run(directory: Path, seed: int = 1) -> Path:
    """A run of two cells; names, tags, prompts, replies, references, checks and the manifest are hostile."""

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        del rng
        row["conversation"] = FORMULA + HOSTILE + row["conversation"]
        row["prompt"] += HOSTILE
        row["reply"] += HOSTILE + row["cell"]
        row["tags"] = [HOSTILE]
        row["reference"]["text"] = HOSTILE
        row["checks"][0].update(kind=HOSTILE, expected=HOSTILE, detail=HOSTILE)

    return make_run(
        directory,
        cells=("=1+1", f"+{HOSTILE}"),
        conversations=3,
        repeats=1,
        seed=seed,
        change=change,
        identity_changes={"note": HOSTILE, HOSTILE: HOSTILE},
    )
