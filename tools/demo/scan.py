"""The state recurrence of RWKV-7 over a whole sequence, differentiable: a plain loop and a chunked form.

Per head, with S of shape (values, keys):

    S_t = S_{t-1} diag(w_t) + (S_{t-1} z_t) b_t^T + v_t k_t^T,    y_t = S_t r_t

where z = -kk and b = kk * a. The chunked form unrolls this over L steps with the running products
W_t = w_1 ... w_t: the unknown vectors u_t = S_{t-1} z_t solve a unit lower triangular system of size L, after
which outputs and the next chunk's state are matrix products. Decays are at least exp(-exp(-1/2)) = 0.545, so
1 / W_16 stays below 2e4 and float32 is enough at the chunk length of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 16


def naive_scan(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, z: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as written, one step at a time.

    Args: r, w, k, v, z, b of shape (batch, time, heads, N); `state` (batch, heads, N values, N keys).
    Returns: y (batch, time, heads, N) and the last state.
    """
    outputs: list[Tensor] = []
    for t in range(r.shape[1]):
        read = state @ z[:, t, :, :, None]
        state = state * w[:, t, :, None, :] + read * b[:, t, :, None, :] + v[:, t, :, :, None] * k[:, t, :, None, :]
        outputs.append((state @ r[:, t, :, :, None]).squeeze(-1))
    return torch.stack(outputs, 1), state


def chunked_scan(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, z: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`naive_scan` in chunks of 16 steps: the same arguments and results; `time` must be a multiple of 16.

    Raises:
        ValueError: when it is not.
    """
    batch, time, heads, size = r.shape
    if time % CHUNK:
        raise ValueError(f"time must be a multiple of {CHUNK}, got {time}")
    chunks = time // CHUNK

    def split(x: Tensor) -> Tensor:
        return x.reshape(batch, chunks, CHUNK, heads, size).permute(1, 0, 3, 2, 4).reshape(chunks, -1, CHUNK, size)

    r, w, k, v, z, b = (split(x) for x in (r, w, k, v, z, b))
    log_w = w.log()
    upto = log_w.cumsum(2)
    decay = upto.exp()
    decay_before = (upto - log_w).exp()
    growth = (-upto).exp()
    r, z = r * decay, z * decay_before
    k, b = k * growth, b * growth
    last = decay[:, :, -1:, :]

    square = (chunks, batch * heads, CHUNK, CHUNK)
    keys_t = torch.cat([k, b], 2).transpose(-1, -2)
    products = (torch.cat([z, r], 2).flatten(0, 1) @ keys_t.flatten(0, 1)).view(chunks, -1, 2 * CHUNK, 2 * CHUNK)
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=r.device).tril()
    strict = lower.tril(-1)
    zk = products[:, :, :CHUNK, :CHUNK].masked_fill(~strict, 0.0)
    zb = products[:, :, :CHUNK, CHUNK:].masked_fill(~strict, 0.0)
    rk = products[:, :, CHUNK:, :CHUNK].masked_fill(~lower, 0.0)
    rb = products[:, :, CHUNK:, CHUNK:].masked_fill(~lower, 0.0)

    inverse = _unit_lower_inverse(zb.flatten(0, 1)).view(square)
    from_state = inverse @ z
    from_values = inverse @ (zk @ v)
    carried = torch.cat([b, k], 2) * last
    state = state.reshape(batch * heads, size, size)
    starts: list[Tensor] = []
    reads: list[Tensor] = []
    for c in range(chunks):
        starts.append(state)
        read = torch.baddbmm(from_values[c], from_state[c], state.transpose(1, 2))
        reads.append(read)
        state = torch.baddbmm(state * last[c], torch.cat([read, v[c]], 1).transpose(1, 2), carried[c])
    y = r @ torch.stack(starts).transpose(-1, -2) + torch.cat([rb, rk], 3) @ torch.cat([torch.stack(reads), v], 2)
    y = y.view(chunks, batch, heads, CHUNK, size).permute(1, 0, 3, 2, 4).reshape(batch, time, heads, size)
    return y, state.view(batch, heads, size, size)


def _unit_lower_inverse(strict: Tensor) -> Tensor:
    """(I - A)^-1 for strictly lower triangular A of size 16, by doubling the series, which ends at A^15."""
    identity = torch.eye(CHUNK, dtype=strict.dtype, device=strict.device)
    inverse, power = identity + strict, strict
    for _ in range(3):
        power = power @ power
        inverse = inverse + inverse @ power
    return inverse
