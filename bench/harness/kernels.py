"""Kernels and bytes of a computation on paper: counted from its operations on tensors without data.

On the device "meta" torch computes shapes only. So a computation that needs a value on the host (`.item()`, a shape
that depends on data) fails there, as it would when a CUDA graph is captured; and a copy from the host is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations without a kernel: they only describe memory, or reserve it.
_WITHOUT_KERNEL = ("empty", "new_empty", "detach", "alias", "lift_fresh", "_unsafe_view", "resolve", "result_type")


class KernelCount(TorchDispatchMode):
    """Counts the operations of a context, of which eager torch makes one kernel each, and the bytes they touch.

    It is a lower bound: some operations are several kernels.

    Attributes:
        kernels: Number of operations by name.
        bytes: Bytes of their inputs and outputs, each counted once per operation.
        host_copies: Names of operations that read a tensor of the host with more than a number.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()
        self.bytes = 0
        self.host_copies: list[str] = []

    @property
    def launches(self) -> int:
        """The number of kernels."""
        return sum(self.kernels.values())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        inputs, outputs = list(_tensors((args, kwargs))), list(_tensors(found))
        name = func.overloadpacket.__name__
        if any(tensor.device.type == "meta" for tensor in outputs):
            self.host_copies += [name for tensor in inputs if tensor.device.type == "cpu" and tensor.dim()]
            # A view of the same memory has no kernel.
            if not func.is_view and name not in _WITHOUT_KERNEL:
                self.kernels[name] += 1
                # What an operation in place writes is its input as well.
                written = [tensor for tensor in outputs if all(tensor is not other for other in inputs)]
                self.bytes += sum(_bytes_of(tensor) for tensor in [*inputs, *(written or outputs)])
        return found


def count(compute: Callable[[], object]) -> KernelCount:
    """Return the kernels of a computation on the device "meta".

    Args:
        compute: The computation.

    Raises:
        NotImplementedError: It needs a value of a tensor, which has no data.
    """
    with torch.no_grad(), KernelCount() as counted:
        compute()
    return counted


def _tensors(values: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree.tree_leaves(values) if isinstance(leaf, Tensor))


def _bytes_of(tensor: Tensor) -> int:
    """Return the bytes that a kernel reads or writes of a tensor; expanded dimensions are read once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    elements = 1
    for size in sizes:
        elements *= size
    return elements * tensor.element_size()
