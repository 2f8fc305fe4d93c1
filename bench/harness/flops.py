"""Counting the operations of a network, and how many a second the device does at best."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness.measure import Compared, Samples, Workload, spread

#: Makes a function that computes a @ b.T from two matrices (m, k) and (n, k).
Product = Callable[[Tensor, Tensor], Callable[[], Tensor]]


def count_flops(module: nn.Module, images: Tensor) -> int:
    """The operations of the matrix products of one forward pass: two for each multiply-add of convolutions and linears.

    Biases, activations, pooling and normalisation are not counted.
    """
    flops = 0

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flops
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            flops += 2 * output.numel() * kernel * (layer.in_channels // layer.groups)
        elif isinstance(layer, nn.Linear):
            flops += 2 * output.numel() * layer.in_features

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    try:
        with torch.inference_mode():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return flops


def _blas(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: a @ b.T


def _onednn(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    a_onednn = a.to_mkldnn()
    return lambda: F.linear(a_onednn, b)


def products(device: torch.device) -> dict[str, Product]:
    """The libraries with which torch multiplies matrices on a device, by name.

    On a CPU there may be two, of which neither is always the faster: MKL is several times slower than oneDNN on AMD.
    """
    if device.type == "cuda":
        return {"cuBLAS": _blas}
    return {"BLAS": _blas, **({"oneDNN": _onednn} if torch.backends.mkldnn.is_available() else {})}


def large_products(device: torch.device) -> dict[str, Workload]:
    """Work of each library that counts in operations: large square matrices, in the type the backbone computes in."""
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
    """What is held against a stage: the fastest of some rates by name, in items of `per_item` each."""
    name = max(rates, key=lambda name: spread(rates[name]).median)
    return Compared(f"{what} ({name})", tuple(rate / per_item for rate in rates[name]))
