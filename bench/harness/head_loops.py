"""Baselines of the heads: the same step of K contexts, written in the two usual ways.

`torch.func.vmap` over stacked parameters of one context's module; a loop over a `ModuleDict` with a module per context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import Ranking, labels, pairs
from fastdps.training.recipes import fast


class OneContext(nn.Module):
    """The head and the judge of one context: the expected error of the moments (n, D, C) on labels (T,)."""

    log_temperature: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        config = fast()
        self.roots = nn.Parameter(torch.full((channels,), config.initial_weight).sqrt())
        self.log_temperature = nn.Parameter(torch.tensor(config.initial_temperature).log())

    def forward(self, mean: Tensor, first: Tensor, second: Tensor, label: Tensor) -> Tensor:
        """Return the sum over images of the mean over pairs."""
        d = mean @ self.roots.square()
        error = (self.log_temperature.exp() * (d[:, first] - d[:, second])).sigmoid()
        return (label + (1 - 2 * label) * error).mean(dim=1).sum()


def module_dict_step(mean: Tensor, rankings: Sequence[Ranking]) -> Callable[[], Tensor]:
    """Return a training step of a `ModuleDict` on moments (n, D, C), context by context.

    It returns the weights (K, C).
    """
    heads = {",".join(ranking): OneContext(mean.shape[-1]).to(mean.device) for ranking in rankings}
    modules = nn.ModuleDict(heads)
    optimizer = torch.optim.Adam(modules.parameters(), lr=fast().learning_rate, betas=fast().adam_betas)
    first, second = pairs(len(NAMES)).to(mean.device).unbind(dim=1)
    votes = labels(rankings, NAMES).to(mean.device)

    def step() -> Tensor:
        errors: list[Tensor] = [head(mean, first, second, votes[:, k]) for k, head in enumerate(heads.values())]
        (torch.stack(errors).sum() / len(mean)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack([head.roots.detach().square() for head in heads.values()])

    return step


def vmap_step(mean: Tensor, rankings: Sequence[Ranking]) -> Callable[[], Tensor]:
    """Return a training step of stacked modules on moments (n, D, C), all contexts by `vmap`.

    It returns the weights (K, C).
    """
    modules = [OneContext(mean.shape[-1]).to(mean.device) for _ in rankings]
    parameters, _ = stack_module_state(modules)
    optimizer = torch.optim.Adam(parameters.values(), lr=fast().learning_rate, betas=fast().adam_betas, fused=True)
    first, second = pairs(len(NAMES)).to(mean.device).unbind(dim=1)
    votes = labels(rankings, NAMES).to(mean.device)

    def loss(own: dict[str, Tensor], label: Tensor) -> Tensor:
        found: Tensor = functional_call(modules[0], own, (mean, first, second, label))
        return found

    gradients = vmap(grad(loss), in_dims=(0, 1))

    def step() -> Tensor:
        for name, gradient in gradients(parameters, votes).items():
            parameters[name].grad = (gradient / len(mean)).contiguous()  # fused Adam ignores strides
        optimizer.step()
        return parameters["roots"].detach().square()

    return step
