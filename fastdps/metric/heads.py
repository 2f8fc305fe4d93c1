"""Heads: K adapted metrics as one matrix of non-negative channel weights, and the judges used to train them.

    moments (n, D, C) -- Heads, W (K, C) --> distances (n, D, K) -- judge --> logit of P(1 is closer) per pair

Shapes: n images, D distorted versions, C channels of all taps, K contexts; "..." stands for any leading axes.
Source: Zhang et al. 2018 (LPIPS), section 3 and its code; Wang & Manning 2013, "Fast dropout training".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fastdps.errors import ConfigError
from fastdps.metric.distances import distances, weighted_sums

#: LPIPS's probability of dropping an element of z before its 1 x 1 convolution.
DROPOUT = 0.5
#: Roots of weights that are smaller become zero. Their squares, and those of their gradients in Adam, would soon be too
#: small for normal floats, with which processors compute many times as fast.
SMALLEST_ROOT = 1e-12


def dropout_distances(weights: Tensor, mean: Tensor, var: Tensor, noise: Tensor, *, p: float = DROPOUT) -> Tensor:
    """Return distances under dropout on every element of z, without masking any element.

    Under dropout a distance is a sum of many independent terms, so it is close to a Gaussian with mean W . mean and
    variance W^2 . var * p / (1 - p) (fast dropout).

    Args:
        weights: Channel weights (K, C).
        mean: First moments (..., C); see `fastdps.metric.distances.Moments`.
        var: Second moments (..., C).
        noise: Standard normal (..., K).
        p: The dropout probability.

    Returns:
        Distances (..., K).
    """
    variance = weighted_sums(weights.square(), var) * (p / (1 - p))
    # Clamped, because the gradient of the square root is infinite at zero.
    return distances(weights, mean) + variance.clamp_min(1e-20).sqrt() * noise


class _Square(nn.Module):
    """Weights as the squares of the parameters that an optimiser changes."""

    def forward(self, roots: Tensor) -> Tensor:
        """Return the weights."""
        return roots.square()

    def right_inverse(self, weights: Tensor) -> Tensor:
        """Return the roots of weights that are assigned."""
        return weights.clamp_min(0).sqrt()


class Heads(nn.Module):
    """Channel weights (K, C) of K contexts, kept non-negative by `project_`, or as squares.

    Equal weights are the unadapted metric, up to scale. In training mode distances are drawn with dropout.

    Gradient descent on the roots of weights finds solutions with few channels, in fewer steps and from fewer images
    (Vaskevicius et al. 2019, "Implicit regularization for optimal sparse recovery").

    Args:
        contexts: K.
        channels: C.
        initial_weight: The initial value of all weights.
        p: The dropout probability.
        squares: The parameters are the roots of the weights.

    Raises:
        ConfigError: `p` is not in [0, 1).
    """

    weights: Tensor

    def __init__(
        self,
        contexts: int,
        channels: int,
        *,
        initial_weight: float = 1.0,
        p: float = DROPOUT,
        squares: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError(f"dropout must be in [0, 1), not {p}.")
        self.weights = nn.Parameter(torch.full((contexts, channels), initial_weight))
        self.p = p
        if squares:
            parametrize.register_parametrization(self, "weights", _Square())

    def forward(self, mean: Tensor, var: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the distances (n, D, K) of moments (n, D, C); `generator` draws the noise of dropout."""
        if not (self.training and self.p):
            return distances(self.weights, mean)
        weights = self.weights
        shape = (*mean.shape[:-1], len(weights))
        noise = torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return dropout_distances(weights, mean, var, noise, p=self.p)

    @torch.no_grad()
    def init_as_lpips_(self, channels: Sequence[int], generator: torch.Generator) -> None:
        """Draw the weights as torch initialises LPIPS's 1 x 1 convolutions: uniform within 1 / sqrt(C_l) per tap.

        Half of the weights are negative until the first `project_`, as in LPIPS's training; of squares they are zero.

        Args:
            channels: The channels C_l of each tap.
            generator: Draws the weights.
        """
        drawn = self.weights.detach().clone()
        for own in drawn.split(list(channels), dim=1):
            bound = 1 / math.sqrt(own.shape[1])
            own.uniform_(-bound, bound, generator=generator)
        self.set_(drawn)

    @torch.no_grad()
    def set_(self, weights: Tensor) -> None:
        """Set the weights to (K, C), in place."""
        if parametrize.is_parametrized(self):
            self.weights = weights
        else:
            self.weights.copy_(weights)

    @torch.no_grad()
    def project_(self) -> None:
        """Set negative weights to zero, as LPIPS does after every step; of squares those that are nearly zero."""
        if parametrize.is_parametrized(self):
            roots: Tensor = self.get_parameter("parametrizations.weights.original")
            roots.copy_(F.hardshrink(roots, SMALLEST_ROOT))
        else:
            self.weights.clamp_(min=0)


class LogisticJudge(nn.Module):
    """Judge with P(1 is closer) = sigmoid(t_k (d0 - d1)) and a learned temperature t_k > 0 per context.

    It cannot flip its sign, so it cannot teach the metric the reverse order.

    Args:
        contexts: K.
        initial_temperature: The initial value of all t_k.
    """

    def __init__(self, contexts: int, *, initial_temperature: float = 1.0) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.full((contexts,), math.log(initial_temperature)))

    def forward(self, d0: Tensor, d1: Tensor) -> Tensor:
        """Return the logits (..., K) of distances (..., K)."""
        return self.log_temperature.exp() * (d0 - d1)


class MLPJudge(nn.Module):
    """LPIPS's judge: a network 5-32-32-1 on d0, d1, d0 - d1, d0 / (d1 + 0.1), d1 / (d0 + 0.1), one per context.

    Weights are initialised as torch initialises 1 x 1 convolutions: uniform within 1 / sqrt(inputs).

    Args:
        contexts: K.
        hidden: The width of the hidden layers.
        generator: Draws the weights; None for the global generator.
    """

    inputs = 5
    epsilon = 0.1
    slope = 0.2

    def __init__(self, contexts: int, *, hidden: int = 32, generator: torch.Generator | None = None) -> None:
        super().__init__()
        widths = [self.inputs, hidden, hidden, 1]
        self.kernels = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(widths):
            bound = 1 / math.sqrt(fan_in)
            self.kernels.append(torch.empty(contexts, fan_in, fan_out).uniform_(-bound, bound, generator=generator))
            self.biases.append(torch.empty(contexts, 1, fan_out).uniform_(-bound, bound, generator=generator))

    def forward(self, d0: Tensor, d1: Tensor) -> Tensor:
        """Return the logits (..., K) of distances (..., K)."""
        x = torch.stack([d0, d1, d0 - d1, d0 / (d1 + self.epsilon), d1 / (d0 + self.epsilon)], dim=-1)
        x = x.flatten(0, -3).transpose(0, 1)  # (K, all leading axes, 5): one batched product per layer
        last = len(self.kernels) - 1
        for layer, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, kernel)
            if layer < last:
                x = F.leaky_relu(x, self.slope)
        return x.squeeze(-1).T.reshape(d0.shape)
