"""Trains the bundled demo model from nothing: `python -m tools.train_demo_model`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tools.demo.network import Shape  # noqa: E402
from tools.demo.training import Progress, Recipe, Trainer, describe  # noqa: E402


def _say(line: Progress) -> None:
    print(
        f"step {line.step:5d}  loss {line.loss:.4f}  reply tokens right {line.reply_accuracy:.4f}"
        f"  lr {line.learning_rate:.2e}  {line.tokens / 1e6:.2f} M tokens  {line.elapsed_s:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    """Reads the options, trains (or goes on with) the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "runs" / "demo-model" / "checkpoint.pt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(Shape(), Recipe(steps=options.steps), options.checkpoint, device)
    if options.compile:
        trainer.compile()
    print(describe(trainer.network), file=sys.stderr)
    trainer.run(_say)


if __name__ == "__main__":
    main()
