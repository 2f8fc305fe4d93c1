"""The counter-based random number generator Philox4x32-10: random numbers as a pure function.

With a stateful generator the numbers of a sample depend on the batch, the number of processes and the starting point of
the run. A counter-based generator hashes a counter (sample, epoch, stream) with a key (the seed), so every number can
be computed at any time, on any device, in any order.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Hash four 32-bit counter words with two 32-bit key words into four 32-bit words.

    Args:
        counter: int64 tensors with values in [0, 2^32). Their shapes broadcast.
        key: Values in [0, 2^32).

    Returns:
        Four int64 tensors with values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap around modulo 2^64, so both 32-bit halves are correct although the sign is not.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniforms(seed: int, epoch: int, ids: Tensor, streams: int | Sequence[int], *, first_stream: int = 0) -> Tensor:
    """Return four numbers, uniform in [0, 1), for every sample and stream.

    Row i of stream s depends only on (seed, epoch, ids[i], s).

    Args:
        seed: Taken modulo 2^64.
        epoch: Taken modulo 2^32.
        ids: Sample ids, int64 (n,).
        streams: Number of streams, or their numbers.
        first_stream: Number of the first stream, where only their number is given.

    Returns:
        (n, streams, 4) float64 on the device of `ids`.

    Raises:
        ValueError: `ids` is not a vector of int64.

    Example:
        >>> uniforms(0, 0, torch.arange(2), streams=1).shape
        torch.Size([2, 1, 4])
    """
    if ids.dtype != torch.int64 or ids.dim() != 1:
        raise ValueError(f"ids must be a vector of int64, not {ids.dtype} of shape {tuple(ids.shape)}")
    sample = ids[:, None]
    numbers = range(first_stream, first_stream + streams) if isinstance(streams, int) else streams
    stream = torch.tensor(numbers, device=ids.device)[None, :]
    words = philox(
        (sample & _MASK, (sample >> 32) & _MASK, torch.full_like(sample, epoch & _MASK), stream),
        (seed & _MASK, (seed >> 32) & _MASK),
    )
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).to(torch.float64) * 2.0**-32
