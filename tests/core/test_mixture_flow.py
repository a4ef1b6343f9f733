"""MixtureFlow: the formula, exactness against other solutions, and the law of the tokens."""

import math

import pytest
import torch

from fewstep.core import paths, sample
from fewstep.core.mixture_flow import MixtureFlow

CODES, FEATURES = 12, 3


def draws(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def problem(count=2000, path=None):
    flow = MixtureFlow(draws(0, CODES, FEATURES), path)
    log_p = (1.5 * draws(1, count, CODES)).log_softmax(-1)
    return flow, draws(2, count, FEATURES), log_p


def expected_wrong(share, count):
    """`share` of `count` and five standard errors of what is counted."""
    return share + 5 * math.sqrt(share / count)


@pytest.mark.parametrize("path", [paths.RectifiedFlow(), paths.VP.linear(), paths.EDM()], ids=str)
def test_the_posterior_is_bayes_rule(path):
    flow, x, log_p = problem(5, path)
    t = 0.3 * path.t_max if not path.is_discrete else 300.0
    a, _, sigma = path.coefficients(t)
    joint = log_p + torch.distributions.Normal(a * flow.embeddings, sigma).log_prob(x[:, None]).sum(-1)
    posterior = (joint - joint.logsumexp(-1, keepdim=True)).exp()
    assert (flow.log_posterior(x, t, log_p).exp() - posterior).abs().max() < 1e-12
    assert (flow.x0(x, t, log_p) - posterior @ flow.embeddings).abs().max() < 1e-12


@pytest.mark.parametrize("path", [paths.RectifiedFlow(), paths.EDM()], ids=str)
def test_the_score_is_the_gradient_of_the_density(path):
    flow, x, log_p = problem(4, path)
    t = 0.4
    a, _, sigma = path.coefficients(t)
    x = x.requires_grad_()
    density = log_p + torch.distributions.Normal(a * flow.embeddings, sigma).log_prob(x[:, None]).sum(-1)
    (gradient,) = torch.autograd.grad(density.logsumexp(-1).sum(), x)
    assert (flow.score(x, t, log_p) - gradient).abs().max() < 1e-10 * gradient.abs().max()


def test_the_velocity_of_rectified_flow_is_the_mean_direction():
    flow, x, log_p = problem(6)
    t = torch.tensor([0.1, 0.2, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    wanted = (x - flow.x0(x, t, log_p)) / t[:, None]
    assert (flow.velocity(x, t, log_p) - wanted).abs().max() < 1e-10


def test_the_velocity_solves_the_continuity_equation():
    """∂p/∂t + ∇·(p v) = 0 for one feature, by central differences."""
    flow = MixtureFlow(torch.tensor([[-1.0], [0.3], [0.9]], dtype=torch.float64), paths.VP.cosine())
    log_p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    x, t, h = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], 0.45 * flow.path.t_max, 1e-5

    def density(x, t):
        a, _, sigma = flow.path.coefficients(t)
        points = torch.distributions.Normal(a * flow.embeddings.squeeze(1), sigma)
        return (log_p + points.log_prob(x)).exp().sum(-1)

    def flux(x, t):
        return density(x, t) * flow.velocity(x, t, log_p)[:, 0]

    by_time = (density(x, t + h) - density(x, t - h)) / (2 * h)
    divergence = (flux(x + h, t) - flux(x - h, t)) / (2 * h)
    assert (by_time + divergence).abs().max() < 1e-7 * by_time.abs().max() / h**0.2


def test_one_feature_has_the_map_of_the_quantiles():
    """In one dimension trajectories keep their order, so eps belongs to the point at its own quantile."""
    points = torch.tensor([[-1.2], [-0.4], [0.1], [1.5]], dtype=torch.float64)
    chances = torch.tensor([0.1, 0.35, 0.15, 0.4], dtype=torch.float64)
    noise = draws(3, 8_000, 1)
    found = MixtureFlow(points).tokens(noise, chances.log(), steps=128)
    wanted = torch.searchsorted(chances.cumsum(0), torch.special.ndtr(noise[:, 0])).clamp_max(3)
    assert (found != wanted).double().mean() < expected_wrong(0.001, 8_000)


def test_twice_the_steps_leave_a_quarter_of_the_wrong_tokens():
    """Heun's rule is of second order: so is how far it moves the border between two tokens."""
    flow, noise, log_p = problem(10_000)
    fine = flow.tokens(noise, log_p, steps=160)
    coarse, finer = (int((flow.tokens(noise, log_p, steps) != fine).sum()) for steps in (8, 16))
    deviation = math.sqrt(finer + coarse / 16)  # of what is counted
    assert abs(finer - coarse / 4) < 5 * deviation
    assert coarse > 10 * deviation


@pytest.mark.parametrize("path", [paths.RectifiedFlow(), paths.EDM()], ids=str)
def test_another_solver_on_any_path_ends_in_the_same_points(path):
    """The endpoint of the core's own Runge–Kutta solution is an embedding, that of `tokens`."""
    flow, noise, log_p = problem(200, path)
    ask = flow.denoiser(log_p)
    start = noise * path.coefficients(path.t_max)[2]
    end = sample(ask, path, "rho-rk4", steps=120, grid="karras", x=start)
    tokens = flow.tokens(noise, log_p, steps=256)
    apart = (end - flow.embeddings[tokens]).norm(dim=-1)
    assert (apart > 1e-6).double().mean() < expected_wrong(0.001, 200)


def test_the_share_of_every_token_is_its_probability():
    count = 10_000
    flow, _, log_p = problem(1)
    found = flow.tokens(draws(4, count, FEATURES), log_p, steps=96)
    chances = log_p[0].exp()
    counts = torch.bincount(found, minlength=CODES)
    chi = ((counts - count * chances).square() / (count * chances)).sum()
    freedom = CODES - 1
    assert chi < freedom + 5 * math.sqrt(2 * freedom)
    uniform = ((counts - count / CODES).square() / (count / CODES)).sum()
    assert uniform > 30 * chi


def test_an_impossible_token_never_comes_and_a_certain_one_always():
    flow, noise, log_p = problem(200)
    log_p[:, 4] = -torch.inf
    assert (flow.tokens(noise, log_p, 16) != 4).all()
    certain = torch.full((CODES,), -torch.inf)
    certain[7] = 0
    assert (flow.tokens(noise, certain, 4) == 7).all()


def test_positions_and_samples_are_independent_and_single_precision_agrees():
    flow, noise, log_p = problem(60)
    noise, log_p = noise.view(10, 6, FEATURES), log_p.view(10, 6, CODES)
    t = torch.rand(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    whole, tokens = flow.x0(noise, t, log_p), flow.tokens(noise, log_p, 16)
    assert tokens.shape == (10, 6)
    alone = flow.x0(noise[3, 2][None], t[3, 2].item(), log_p[3, 2])
    assert (whole[3, 2] - alone[0]).abs().max() < 1e-14
    assert (flow.tokens(noise[3:4, 2], log_p[3:4, 2], 16) == tokens[3, 2]).all()
    by_sample = flow.x0(noise, t[:, 0], log_p)
    assert (by_sample[:, 0] - whole[:, 0]).abs().max() < 1e-14
    single = flow.x0(noise.float(), t, log_p.float())
    assert single.dtype is torch.float32
    # The exponents reach 1/sigma² = 400, so that float32's 6e-8 become 3e-5 of the weights.
    assert (single - whole).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MixtureFlow(torch.zeros(1, 3)), "two codes"),
        (lambda: MixtureFlow(torch.ones(2, 3)), "different"),
        (lambda: MixtureFlow(draws(0, 3, 2), paths.ResShift()), "without y"),
        (lambda: problem(4)[0].tokens(torch.zeros(4, 2), torch.zeros(CODES)), "x must be"),
        (lambda: problem(4)[0].tokens(torch.zeros(4, 3), torch.zeros(5)), "log_p"),
        (lambda: problem(4)[0].tokens(torch.zeros(4, 3), torch.zeros(CODES), 0), "steps"),
        (lambda: problem(4)[0].x0(torch.zeros(4, 3), torch.zeros(5), torch.zeros(CODES)), "t must be"),
    ],
)
def test_bad_input_is_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()
