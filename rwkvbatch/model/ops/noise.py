"""Counter-based random numbers: the noise of one token choice, as a pure function of its place.

Philox 4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
The key is the row's 64-bit noise key; the counter is (token id // 4, step, turn, 0), and word `token id % 4` of
the block belongs to the token. Nothing depends on the batch, the worker or the order of calls.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
ROUNDS = 10


def philox_4x32(counter: npt.NDArray[np.uint32], key: int) -> npt.NDArray[np.uint32]:
    """The Philox 4x32-10 block of each counter.

    Args:
        counter: [n, 4] uint32.
        key: 64 bits; the low word is the first key word.

    Returns:
        [n, 4] uint32.
    """
    words = [counter[:, i].astype(np.uint64) for i in range(4)]
    key_words = [key & _MASK, (key >> 32) & _MASK]
    mask = np.uint64(_MASK)
    for _ in range(ROUNDS):
        products = [words[0] * np.uint64(_MULTIPLIERS[0]), words[2] * np.uint64(_MULTIPLIERS[1])]
        high = [product >> np.uint64(32) for product in products]
        low = [product & mask for product in products]
        words = [
            high[1] ^ words[1] ^ np.uint64(key_words[0]),
            low[1],
            high[0] ^ words[3] ^ np.uint64(key_words[1]),
            low[0],
        ]
        key_words = [(key_words[i] + _WEYL[i]) & _MASK for i in range(2)]
    return np.stack(words, axis=1).astype(np.uint32)


def gumbel(key: int, turn: int, step: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of `tokens` [n] at one place of one conversation; [n] float64.

    -ln(-ln u) with u = (word + 1/2) / 2^32, so that adding it to log-probabilities and taking the largest draws
    from them (the Gumbel-max trick).
    """
    blocks, inverse = np.unique(tokens // 4, return_inverse=True)
    counter = np.zeros((len(blocks), 4), dtype=np.uint32)
    counter[:, 0] = blocks
    counter[:, 1] = step
    counter[:, 2] = turn
    words = philox_4x32(counter, key)[inverse, tokens % 4]
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    return -np.log(-np.log(uniform))
