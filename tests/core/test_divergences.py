"""The table of divergences: h, its theorem by quadrature, and what becomes of estimated ratios."""

import math

import pytest
import torch
from tests.core.score_cases import PATH, GaussianDenoiser, flow, formulas, tensors

from fewstep.core.objectives.score.divergences import DIVERGENCES, RatioWeight, divergence
from fewstep.core.objectives.score.families import Estimates, InnerProduct, PseudoTarget

FASTGEN = {
    "rkl": ("reverse-kl", 1),
    "kl": ("forward-kl", 1),
    "js": ("js", 1),
    "sf": ("softened-reverse-kl", 1),
    "neyman": ("neyman", 0.5),
    "sh": ("squared-hellinger", 4),
    "jf": ("jeffreys", 1),
}
TABLE = {
    "rkl": ("reverse-kl", 1),
    "kl": ("forward-kl", 1),
    "js": ("js", 1),
    "softened_rkl": ("softened-reverse-kl", 1),
    "sq_hellinger_x4": ("squared-hellinger", 4),
    "neyman_x0.5": ("neyman", 0.5),
    "jeffreys": ("jeffreys", 1),
    "chi2_x0.5": ("chi2", 0.5),
}
SHORT = {"rkl": "reverse-kl", "kl": "forward-kl", "js": "js", "jeffreys": "jeffreys"}
RATIOS = torch.tensor([0.05, 0.3, 1.0, 2.5, 20.0], dtype=torch.float64)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_h_is_r_squared_times_the_second_derivative(name):
    row, r = DIVERGENCES[name], RATIOS.clone().requires_grad_()
    (first,) = torch.autograd.grad(row.f(r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(row.second(RATIOS), second, rtol=1e-12, atol=0)
    torch.testing.assert_close(row.h(RATIOS.log()), RATIOS**2 * second, rtol=1e-12, atol=0)
    assert row.f(torch.ones(1)) == 0


@pytest.mark.parametrize("key", TABLE)
def test_h_golden_table(key):
    name, factor = TABLE[key]
    log_ratio = torch.tensor(formulas()["ratio"], dtype=torch.float64).log()
    wanted = torch.tensor(formulas()["h=r^2 f''(r)"][key], dtype=torch.float64)
    torch.testing.assert_close(factor * DIVERGENCES[name].h(log_ratio), wanted, rtol=1e-12, atol=0)


def test_h_golden_table_is_complete():
    assert set(TABLE) == set(formulas()["h=r^2 f''(r)"])
    assert {name for name, _ in TABLE.values()} == set(DIVERGENCES)
    assert {f"out.fdiv.{key}" for key in FASTGEN} == {key for key in tensors() if key.startswith("out.fdiv")}


@pytest.mark.parametrize("key", FASTGEN)
def test_h_golden_fastgen(key):
    name, factor = FASTGEN[key]
    h = DIVERGENCES[name].h(tensors()["in.fdiv.ratio"].log())
    torch.testing.assert_close(factor * h, tensors()[f"out.fdiv.{key}"], rtol=1e-10, atol=0)


def gauss_hermite(count=96):
    """Nodes and weights of E over two independent standard normals."""
    import numpy as np

    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(count))
    weights = weights / weights.sum()
    z, noise = torch.meshgrid(nodes, nodes, indexing="ij")
    return z.reshape(-1, 1), noise.reshape(-1, 1), torch.outer(weights, weights).flatten()


def true_gradient(name, m, s, sigma):
    """D_f(q‖p) of the noised Gaussians and its derivatives by m and s, by the trapezium rule."""
    mean, std = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (m, s))
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64)

    def log_normal(mean, variance):
        return -((x - mean) ** 2) / (2 * variance) - 0.5 * torch.log(2 * math.pi * variance)

    log_p = log_normal(mean, std**2 + sigma**2)
    log_q = log_normal(torch.zeros(()), torch.tensor(1 + sigma**2, dtype=torch.float64))
    value = torch.trapezoid(log_p.exp() * DIVERGENCES[name].f((log_q - log_p).exp()), x)
    return value, *torch.autograd.grad(value, (mean, std))


@pytest.mark.parametrize("family", [InnerProduct("none"), PseudoTarget("none")], ids=["product", "target"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_of_every_divergence(name, family):
    """The loss of exact denoisers and ratios has the gradient of D_f itself, up to sigma²."""
    m, s, sigma = 0.4, 1.15, 0.7
    student, teacher = GaussianDenoiser(m, s), GaussianDenoiser(0.0, 1.0)
    z, noise, weights = gauss_hermite()
    x = student.mean + student.std * z
    t = torch.full((len(x),), sigma, dtype=torch.float64)
    with torch.no_grad():
        x_t = x + sigma * noise
        log_ratio = teacher.log_density(x_t, t) - student.log_density(x_t, t)
        real, fake = flow(teacher).x0(x_t, t), flow(student).x0(x_t, t)
        h = DIVERGENCES[name].h(log_ratio)
    loss = (weights * family(Estimates(PATH, t, x, real, fake, h))).sum() / sigma**2
    got = torch.autograd.grad(loss, (student.mean, student.std))
    value, *wanted = true_gradient(name, m, s, sigma)
    torch.testing.assert_close(torch.stack(got), torch.stack(wanted), rtol=1e-6, atol=0)
    short = next((key for key, long in SHORT.items() if long == name), None)
    if short is not None:
        golden = formulas()["gaussian"]["values"][short]
        stored = torch.tensor([golden[key] for key in ("D", "dD_dm", "dD_ds")], dtype=torch.float64)
        torch.testing.assert_close(torch.stack([value.detach(), *got]), stored, rtol=1e-6, atol=0)


def test_ratios_are_clamped_and_divided_by_their_bin():
    weight = RatioWeight("forward-kl", lowest=0.5, highest=4.0, bins=2, normaliser="none")
    ratio = torch.tensor([0.1, 1.5, 2.0, 100.0], dtype=torch.float64)
    tau = torch.tensor([0.1, 0.4, 0.6, 1.0], dtype=torch.float64)
    # Clamped: 0.5 and 1.5 in the first bin, mean 1; 2 and 4 in the second, mean 3.
    wanted = torch.tensor([0.5, 1.5, 2 / 3, 4 / 3], dtype=torch.float64)
    torch.testing.assert_close(weight(ratio.log(), tau), wanted)
    plain = RatioWeight("forward-kl", clip=1.0, lowest=0.0, highest=1e9, bins=0)(ratio.log(), tau)
    clipped = ratio.clamp(math.exp(-1), math.e)
    torch.testing.assert_close(plain, clipped / clipped.mean())


def test_weights_have_no_gradient_and_mean_one():
    log_ratio = torch.randn(64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    h = RatioWeight("js")(log_ratio, torch.linspace(0, 1, 64))
    assert not h.requires_grad
    torch.testing.assert_close(h.mean(), torch.ones(()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, "divergence must be one of reverse-kl, .*got 'kl'"),
        ({"lowest": 2.0, "highest": 1.0}, "lowest must lie in"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"bins": -1}, "bins at least 0"),
        ({"normaliser": "max"}, "normaliser must be 'mean' or 'none', got 'max'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RatioWeight(**options)


def test_unknown_divergence():
    with pytest.raises(ValueError, match="js, softened"):
        divergence("total-variation")
