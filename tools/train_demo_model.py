"""Trains the bundled demo model from nothing, measures it and writes its card: `python tools/train_demo_model.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tools.demo.card import figures_text, measure, with_figures  # noqa: E402
from tools.demo.curve import loss_curve  # noqa: E402
from tools.demo.export import save_weights  # noqa: E402
from tools.demo.network import Shape  # noqa: E402
from tools.demo.training import Progress, Recipe, Trainer, averaged, describe  # noqa: E402


def _say(line: Progress) -> None:
    print(
        f"step {line.step:5d}  loss {line.loss:.4f}  reply tokens right {line.reply_accuracy:.4f}"
        f"  lr {line.learning_rate:.2e}  {line.tokens / 1e6:.2f} M tokens  {line.elapsed_s:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--decay-share", type=float, default=Recipe.decay_share)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "runs" / "demo-model" / "checkpoint.pt")
    parser.add_argument("--model", type=Path, default=ROOT / "rwkvbatch" / "demo" / "rwkv7-demo.safetensors")
    parser.add_argument("--card", type=Path, default=ROOT / "docs" / "demo-model.md")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True,
                        help="without: write weights and card of the last saves")  # fmt: skip
    parser.add_argument("--conversations", type=int, default=150, help="held-out conversations to measure on; 0: none")
    return parser.parse_args()


def main() -> None:
    """Reads the options, trains (or goes on with) the model, writes weights, loss curve and figures."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Recipe(steps=options.steps, decay_share=options.decay_share)
    trainer = Trainer(Shape(), recipe, options.checkpoint, device)
    print(describe(trainer.network), file=sys.stderr)
    if options.train:
        if options.compile:
            trainer.compile()
        trainer.run(_say)
    trainer.network.load_state_dict(averaged(trainer.kept_weights()))
    save_weights(trainer.network, options.model)
    if options.conversations:
        figures = measure(options.model, options.conversations)
        text = figures_text(trainer.network, recipe, trainer.log, figures)
        options.card.with_name("demo-model-loss.svg").write_text(loss_curve(trainer.log), encoding="utf-8")
        options.card.write_text(with_figures(options.card.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
