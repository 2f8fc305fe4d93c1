"""Heads and judges: closed-form dropout against literal masking, the MLP judge against LPIPS's network."""

import lpips
import pytest
import torch
from torch.nn import functional as F

from fastdps.errors import ConfigError
from fastdps.metric.distances import CONVOLVED_CONTEXTS, distances, moments, unit_normalize
from fastdps.metric.heads import DROPOUT, Heads, LogisticJudge, MLPJudge, dropout_distances

DRAWS = 4000


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_dropout_against_literal_masking(p):
    """Mean and variance over many draws: masking every element of z as LPIPS does, and the closed form."""
    generator = torch.Generator().manual_seed(1)
    features = [torch.rand(2, 16, 12, 12, generator=generator), torch.rand(2, 32, 6, 6, generator=generator)]
    weights = torch.rand(3, 48, generator=generator)
    mean, var = moments(features, 1)

    masked = torch.zeros(DRAWS, 3)
    offset = 0
    for feature in features:
        reference, other = unit_normalize(feature)
        z = (reference - other).square()
        own = weights[:, offset : offset + len(z)]
        offset += len(z)
        for draw in range(DRAWS):
            kept = torch.rand(z.shape, generator=generator) >= p
            dropped = (z * kept / (1 - p)).mean(dim=(1, 2))
            masked[draw] += own @ dropped

    noise = torch.randn(DRAWS, 1, 1, 3, generator=generator)
    drawn = dropout_distances(weights, mean, var, noise, p=p)[:, 0, 0]
    # Standard errors of a mean of 4000: std / 63; of a standard deviation: std / 89. Five of them each.
    std = masked.std(dim=0)
    assert ((drawn.mean(0) - masked.mean(0)).abs() < 5 * std * (2 / DRAWS) ** 0.5).all()
    assert ((drawn.std(0) / std - 1).abs() < 5 * (1 / DRAWS) ** 0.5).all()
    # The shape is Gaussian: skewness and excess kurtosis of the masked draws are within chance.
    standard = (masked - masked.mean(0)) / std
    assert (standard.pow(3).mean(0).abs() < 5 * (6 / DRAWS) ** 0.5).all()
    assert ((standard.pow(4).mean(0) - 3).abs() < 5 * (24 / DRAWS) ** 0.5).all()


def test_contexts_are_rows_of_one_matrix():
    weights, mean = torch.rand(4, 9), torch.rand(5, 6, 9)
    expected = torch.stack([(mean * w).sum(-1) for w in weights], dim=-1)
    assert torch.allclose(distances(weights, mean), expected, rtol=1e-5)


@pytest.mark.parametrize("contexts", [1, CONVOLVED_CONTEXTS - 1, CONVOLVED_CONTEXTS, 5 * CONVOLVED_CONTEXTS + 3])
@pytest.mark.parametrize("leading", [(), (5,), (3, 6), (0, 6)])
def test_few_and_many_contexts_are_the_same_product(contexts, leading):
    """Values and gradients of both ways equal the matrix product in double precision."""
    generator = torch.Generator().manual_seed(contexts)
    drawn = [torch.rand(*leading, n, generator=generator, dtype=torch.float64) for n in (40, 40, contexts)]
    (mean, var), noise = (tensor.requires_grad_() for tensor in drawn[:2]), drawn[2]
    weights = torch.rand(contexts, 40, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = mean @ weights.T + (var @ weights.square().T).sqrt() * noise
    ours = dropout_distances(weights, mean, var, noise, p=0.5)
    assert torch.allclose(distances(weights, mean), mean @ weights.T)
    assert torch.allclose(ours, expected)
    for inputs in (weights, mean, var):
        gradients = [torch.autograd.grad(d.square().sum(), inputs, retain_graph=True)[0] for d in (ours, expected)]
        assert torch.allclose(*gradients)


def test_heads_start_as_the_baseline_and_drop_only_in_training():
    heads = Heads(3, 10, initial_weight=0.1)
    mean, var = torch.rand(2, 6, 10), torch.rand(2, 6, 10)
    heads.eval()
    assert torch.allclose(heads(mean, var), 0.1 * mean.sum(-1, keepdim=True).expand(-1, -1, 3))
    heads.train()
    drawn = [heads(mean, var, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_gradient_where_nothing_varies():
    heads = Heads(1, 4)
    heads(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), torch.Generator().manual_seed(0)).sum().backward()
    assert torch.isfinite(heads.weights.grad).all()


def test_projection_keeps_weights_non_negative():
    heads = Heads(2, 3)
    heads.weights.data = torch.tensor([[1.0, -1.0, 0.0], [-0.5, 2.0, -0.0]])
    heads.project_()
    assert heads.weights.tolist() == [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_squares_are_the_same_heads_with_other_parameters(p):
    """Distances are those of the weights, and gradients of roots follow by the chain rule."""
    mean, var = torch.rand(2, 6, 5, dtype=torch.float64), torch.rand(2, 6, 5, dtype=torch.float64)
    weights = torch.rand(3, 5, dtype=torch.float64)
    plain, squares = (Heads(3, 5, p=p, squares=squares).double() for squares in (False, True))
    found = []
    for heads in (plain, squares):
        heads.set_(weights)
        torch.testing.assert_close(heads.weights.detach(), weights)
        d = heads(mean, var, torch.Generator().manual_seed(4))
        found.append((d, *torch.autograd.grad(d.square().sum(), list(heads.parameters()))))
    (of_plain, by_weights), (of_squares, by_roots) = found
    torch.testing.assert_close(of_squares, of_plain)
    torch.testing.assert_close(by_roots, 2 * weights.sqrt() * by_weights)


def test_squares_stay_non_negative_without_projection():
    heads = Heads(2, 3, squares=True)
    optimizer = torch.optim.Adam(heads.parameters(), lr=10.0)
    for _ in range(3):
        heads(torch.rand(1, 6, 3), torch.rand(1, 6, 3), torch.Generator().manual_seed(0)).sum().backward()
        optimizer.step()
        before = heads.weights.clone()
        heads.project_()
        assert torch.equal(heads.weights, before)
        assert (before >= 0).all()
    heads.set_(torch.tensor([[1.0, -1.0, 0.0], [-0.5, 4.0, 2.25]]))
    assert heads.weights.tolist() == [[1.0, 0.0, 0.0], [0.0, 4.0, 2.25]]


def test_roots_become_zero_before_their_squares_are_no_normal_floats():
    heads = Heads(1, 5, squares=True)
    roots = heads.get_parameter("parametrizations.weights.original")
    with torch.no_grad():
        roots.copy_(torch.tensor([[1e-20, -1e-13, -2e-12, 1e-3, -5.0]]))
    heads.project_()
    assert roots.tolist() == torch.tensor([[0.0, 0.0, -2e-12, 1e-3, -5.0]]).tolist()
    # Also the squares of gradients that Adam averages, of which it takes a thousandth.
    gradients = 2 * roots * 1e-3
    assert (1e-3 * gradients[roots != 0].square() >= torch.finfo(torch.float32).tiny).all()


def test_squares_are_saved_and_loaded():
    heads, again = Heads(2, 3, squares=True), Heads(2, 3, squares=True)
    heads.set_(torch.rand(2, 3))
    again.load_state_dict(heads.state_dict())
    assert torch.equal(again.weights, heads.weights)
    with pytest.raises(RuntimeError, match="Unexpected key"):  # a checkpoint of the other parameters
        Heads(2, 3).load_state_dict(heads.state_dict())


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_impossible_dropout(p):
    with pytest.raises(ConfigError, match=r"dropout must be in \[0, 1\)"):
        Heads(1, 1, p=p)


def test_logistic_judge():
    judge = LogisticJudge(2, initial_temperature=3.0)
    d0, d1 = torch.rand(5, 15, 2), torch.rand(5, 15, 2)
    assert torch.allclose(judge(d0, d1), 3 * (d0 - d1))
    judge.log_temperature.data.fill_(-20.0)
    assert (torch.sign(judge(d0, d1)) == torch.sign(d0 - d1)).all()


def test_mlp_judge_against_lpips():
    """Each context's network is LPIPS's Dist2LogitLayer with the same weights."""
    judge = MLPJudge(3, generator=torch.Generator().manual_seed(0))
    d0, d1 = torch.rand(4, 15, 3), torch.rand(4, 15, 3)
    ours = torch.sigmoid(judge(d0, d1))
    for context in range(3):
        oracle = lpips.Dist2LogitLayer(chn_mid=32)
        convolutions = [layer for layer in oracle.model if isinstance(layer, torch.nn.Conv2d)]
        for layer, kernel, bias in zip(convolutions, judge.kernels, judge.biases, strict=True):
            layer.weight.data = kernel[context].T[:, :, None, None].clone()
            layer.bias.data = bias[context, 0].clone()
        pairs = [d[..., context].reshape(-1, 1, 1, 1) for d in (d0, d1)]
        theirs = oracle(*pairs, eps=0.1).reshape(4, 15)
        assert torch.allclose(ours[..., context], theirs, atol=1e-6)


def test_mlp_judges_are_independent():
    judge = MLPJudge(2, generator=torch.Generator().manual_seed(0))
    d0, d1 = torch.rand(4, 15, 2), torch.rand(4, 15, 2)
    F.softplus(judge(d0, d1)[..., 0]).sum().backward()
    for parameter in judge.parameters():
        assert (parameter.grad[1] == 0).all()
        assert (parameter.grad[0] != 0).any()


def assert_uniform(values: torch.Tensor, bound: float) -> None:
    """Many values are uniform in [-bound, bound]: their largest and smallest, mean, and variance of bound^2 / 3."""
    n = values.numel()
    assert n >= 500
    assert bound * (1 - 20 / n) < values.max() <= bound
    assert -bound <= values.min() < -bound * (1 - 20 / n)
    assert values.mean().abs() < 5 * bound / (3 * n) ** 0.5
    assert (values.var() / (bound**2 / 3) - 1).abs() < 5 * (0.8 / n) ** 0.5


def test_heads_are_drawn_as_the_convolutions_of_lpips():
    """Against the bound of torch's own 1 x 1 convolutions, tap by tap, from the given generator alone."""
    channels, heads = (16, 100, 9), Heads(400, 125)
    before = torch.random.get_rng_state()
    heads.init_as_lpips_(channels, torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    again = Heads(400, 125)
    again.init_as_lpips_(channels, torch.Generator().manual_seed(3))
    assert torch.equal(heads.weights, again.weights)
    assert heads.weights.requires_grad
    for count, own in zip(channels, heads.weights.detach().split(channels, dim=1), strict=True):
        oracle = lpips.NetLinLayer(count).model[-1]
        bound = 1 / count**0.5
        assert oracle.weight.abs().max() <= bound
        assert_uniform(own, bound)


def test_dropout_is_that_of_lpips_by_default():
    oracle = lpips.NetLinLayer(4, use_dropout=True).model[0]
    assert DROPOUT == oracle.p == Heads(1, 4).p
    mean, var, noise = torch.rand(2, 3, 4), torch.rand(2, 3, 4), torch.randn(2, 3, 1)
    weights = torch.rand(1, 4)
    by_default = dropout_distances(weights, mean, var, noise)
    assert torch.equal(by_default, dropout_distances(weights, mean, var, noise, p=oracle.p))
    assert not torch.equal(by_default, dropout_distances(weights, mean, var, noise, p=0.4))


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_each_distance_has_its_own_noise(p):
    heads = Heads(3, 8, p=p)
    mean, var = torch.rand(5, 6, 8, dtype=torch.float64), torch.rand(5, 6, 8, dtype=torch.float64)
    heads.double().train()
    found = heads(mean, var, torch.Generator().manual_seed(2))
    noise = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(found, dropout_distances(heads.weights, mean, var, noise, p=p))


def test_without_dropout_training_is_exact():
    heads = Heads(2, 8, p=0.0).train()
    assert (heads(torch.zeros(3, 6, 8), torch.rand(3, 6, 8)) == 0).all()


def test_heads_and_judges_begin_as_the_unadapted_metric():
    assert (Heads(2, 3).weights == 1).all()
    d0, d1 = torch.rand(4, 2), torch.rand(4, 2)
    assert torch.equal(LogisticJudge(2)(d0, d1), d0 - d1)


def test_the_mlp_judge_is_drawn_as_the_layers_of_lpips():
    judge = MLPJudge(300, generator=torch.Generator().manual_seed(5))
    before = torch.random.get_rng_state()
    again = MLPJudge(300, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.random.get_rng_state(), before)
    convolutions = [layer for layer in lpips.Dist2LogitLayer().model if isinstance(layer, torch.nn.Conv2d)]
    for layer, kernel, bias in zip(convolutions, judge.kernels, judge.biases, strict=True):
        assert kernel.shape == (300, layer.in_channels, layer.out_channels)
        assert bias.shape == (300, 1, layer.out_channels)
        bound = 1 / layer.in_channels**0.5
        assert max(layer.weight.abs().max(), layer.bias.abs().max()) <= bound
        assert_uniform(kernel.detach(), bound)
        if bias.numel() >= 500:
            assert_uniform(bias.detach(), bound)
        assert bias.min() < -0.9 * bound
        assert bias.max() > 0.9 * bound
    for parameter, other in zip(judge.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other)
