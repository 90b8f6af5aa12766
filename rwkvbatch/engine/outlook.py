"""What one can ask of the engine about a point of a dialogue, besides a reply from there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rwkvbatch.model.base import State


@dataclass(frozen=True)
class Outlook:
    """What the model expects after some tokens.

    Attributes:
        logits: of the next token, fp32, [vocab_size].
        state: the recurrent state after the tokens, batch size 1.
    """

    logits: torch.Tensor
    state: State

    def __repr__(self) -> str:
        return f"<Outlook: {len(self.logits)} logits, the highest of token {int(self.logits.argmax())}; {self.state}>"
