"""Learns `uppercase-state.safetensors` for the bundled demo model: `python tools/train_demo_state.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tools.demo.export import load_weights, save_initial_state  # noqa: E402
from tools.demo.network import Network, Shape  # noqa: E402
from tools.demo.state_tuning import StateRecipe, held_out_upper, score, tune  # noqa: E402


def _say(step: int, loss: float, right: float) -> None:
    print(f"step {step:4d}  loss {loss:.4f}  reply tokens right {right:.4f}", file=sys.stderr, flush=True)


def main() -> None:
    """Reads the options, learns the state, measures and writes it."""
    demo = ROOT / "rwkvbatch" / "demo"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=demo / "rwkv7-demo.safetensors")
    parser.add_argument("--into", type=Path, default=demo / "uppercase-state.safetensors")
    parser.add_argument("--steps", type=int, default=StateRecipe.steps)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    network = Network(Shape())
    load_weights(network, options.model)
    made = held_out_upper(40, 250)
    before = score(network, None, made)
    learnt = tune(network, StateRecipe(steps=options.steps), _say)
    learnt = [state.bfloat16().float() for state in learnt]
    after = score(network, learnt, made)
    print(
        f"replies without a lower-case letter: {before.upper_share:.1%} -> {after.upper_share:.1%};"
        f" replies as expected: {before.right_share:.1%} -> {after.right_share:.1%}"
    )
    save_initial_state(learnt, options.into)


if __name__ == "__main__":
    main()
