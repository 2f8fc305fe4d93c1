"""Rows of all processes with gradients: where processes divide images, but each needs all of them for its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdps.loading.order import part_of
from fastdps.runtime.processes import Processes


def gathered(own: Tensor, rows: int, processes: Processes) -> Tensor:
    """Return the rows of all processes, (rows, F), with gradients for those of this one.

    Every process must compute the same loss from all rows.

    Args:
        own: The rows of this process, (m_r, F): the part `fastdps.loading.order.part_of` of all rows.
        rows: Number of rows of all processes.
        processes: The processes, which call this together.
    """
    if processes.num_processes == 1:
        return own
    rows_of_all: Tensor = _Gather.apply(own, rows, processes)
    return rows_of_all


class _Gather(torch.autograd.Function):
    """Collects the rows (m_r, F) of all processes, (m, F).

    Every process computes the same loss from all rows, so it has the whole gradient of its own rows already. It is
    multiplied by the number of processes, because gradients of parameters are averaged over processes.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: int, processes: Processes) -> Tensor:
        world = processes.num_processes
        parts = [part_of(rows, rank, world) for rank in range(world)]
        most = max(map(len, parts))
        padded = own.new_zeros(most, own.shape[1])
        padded[: len(own)] = own
        gathered = processes.gather(padded).view(world, most, -1)
        ctx.part, ctx.world = parts[processes.process_index], world
        return torch.cat([one[: len(part)] for one, part in zip(gathered, parts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.part.start : ctx.part.stop] * ctx.world, None, None
