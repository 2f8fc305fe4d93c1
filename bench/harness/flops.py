"""Count the operations of a network, and measure the peak rate of the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.harness.measure import Compared, Samples, Workload, spread

#: Takes two matrices (m, k) and (n, k), and returns a function that computes a @ b.T.
Product = Callable[[Tensor, Tensor], Callable[[], Tensor]]


def count_flops(module: nn.Module, images: Tensor) -> int:
    """Count the floating-point operations of one forward pass, two per multiply-add of convolutions and products.

    Biases, activations, pooling and normalisation are not counted. Source: `torch.utils.flop_counter`.

    Args:
        module: The network.
        images: Its input, of which all images are counted.

    Returns:
        The number of operations.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    return counter.get_total_flops()


def _blas(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: a @ b.T


def _onednn(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    a_onednn = a.to_mkldnn()
    return lambda: F.linear(a_onednn, b)


def products(device: torch.device) -> dict[str, Product]:
    """Return the libraries with which torch multiplies matrices on a device, by name.

    On a CPU there may be two. Neither is always faster: MKL is several times slower than oneDNN on AMD.
    """
    if device.type == "cuda":
        return {"cuBLAS": _blas}
    return {"BLAS": _blas, **({"oneDNN": _onednn} if torch.backends.mkldnn.is_available() else {})}


def large_products(device: torch.device) -> dict[str, Workload]:
    """Return a workload per library: products of large square matrices in the dtype of the backbone, in operations."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def work(multiply: Callable[[], Tensor]) -> Workload:
        def repeat(amount: int) -> float:
            with torch.inference_mode():
                for _ in range(amount):
                    multiply()
            return amount * 2.0 * side**3

        return repeat

    return {library: work(product(a, b)) for library, product in products(device).items()}


def fastest(what: str, rates: Mapping[str, Samples], *, per_item: float = 1.0) -> Compared:
    """Return the fastest of several rates, as the limit of a stage.

    Args:
        what: The description of the limit, to which the name of the fastest is added.
        rates: Samples by name.
        per_item: The units of the rates per item of the stage, such as operations per image.

    Returns:
        The fastest rate, in items per second.
    """
    name = max(rates, key=lambda name: spread(rates[name]).median)
    return Compared(f"{what} ({name})", tuple(rate / per_item for rate in rates[name]))
