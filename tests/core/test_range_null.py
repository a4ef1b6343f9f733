"""Linear operators, and samplers that agree with what an operator has seen (DDNM, DDNM+)."""

import math

import pytest
import torch
from tests.core.solver_problems import start_noise

from fewstep.core import paths, sample
from fewstep.core.guidance import (
    AveragePool,
    BlockSensing,
    Dense,
    Grayscale,
    Guided,
    Mask,
    NoisyRangeNull,
    RangeNull,
)
from fewstep.core.thresholding import Static, Thresholded
from fewstep.core.wrapping import as_denoiser

SHAPE = (3, 4, 4)
ROWS = torch.randn(7, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
ROWS[6] = ROWS[0] + ROWS[1]  # the rank is 6
OPERATORS = {
    "mask": Mask(torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.4),
    "pool": AveragePool(2),
    "gray": Grayscale((0.3, 0.5, 0.2)),
    "blocks": BlockSensing(4, 0.3),
    "dense": Dense(ROWS, SHAPE),
}
each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def matrix(operator, shape=SHAPE):
    """The operator as a matrix, column by column."""
    size = math.prod(shape)
    return operator.forward(torch.eye(size).double().reshape(size, *shape)).flatten(1).T


@each_operator
def test_adjoint_pseudo_inverse_and_filter(operator):
    x = start_noise(3, SHAPE)
    y = operator.forward(start_noise(3, SHAPE, seed=1))
    products = (operator.forward(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(*products, rtol=1e-12, atol=1e-12)
    a = matrix(operator)
    inverse = torch.linalg.pinv(a, rtol=1e-8)
    torch.testing.assert_close(operator.pseudo_inverse(y).flatten(1), y.flatten(1) @ inverse.T)
    _, s, vt = torch.linalg.svd(a)
    values = torch.zeros(48).double()
    values[: len(s)] = torch.where(s > 1e-8, s, 0)
    wanted = x.flatten(1) @ vt.T @ torch.diag((1 + values) ** -2) @ vt
    torch.testing.assert_close(operator.filtered(x, lambda v: (1 + v) ** -2).flatten(1), wanted)
    assert operator.forward(x.float()).dtype is torch.float32


@pytest.mark.parametrize("space", [(8,), (4, 8), (4, 2, 6)])
def test_blocks_of_any_number_of_axes(space):
    operators = AveragePool(2), BlockSensing(2, 0.5, axes=len(space))
    for operator in operators:
        x = start_noise(2, (3, *space))
        y = operator.forward(x)
        torch.testing.assert_close(operator.forward(operator.pseudo_inverse(y)), y, rtol=1e-12, atol=1e-12)
    pooled = operators[0].forward(x)
    expected = {
        1: torch.nn.functional.avg_pool1d,
        2: torch.nn.functional.avg_pool2d,
        3: torch.nn.functional.avg_pool3d,
    }
    torch.testing.assert_close(pooled, expected[len(space)](x, 2))


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "dpmpp-2m", "heun"])
@each_operator
def test_every_solver_ends_consistent_with_the_observation(operator, solver):
    truth = start_noise(2, SHAPE, seed=3)
    y = operator.forward(truth)
    denoise = RangeNull(as_denoiser(lambda x, t: x / (1 + t * t), paths.EDM()), operator, y)
    out = sample(denoise, solver=solver, steps=5, x=80 * start_noise(2, SHAPE))
    torch.testing.assert_close(operator.forward(out), y, rtol=1e-10, atol=1e-10)
    assert denoise.nfe == 1


@pytest.mark.parametrize("path", [paths.EDM(), paths.VP.linear(), paths.RectifiedFlow()], ids=str)
@each_operator
def test_gaussian_posterior_where_what_is_seen_says_nothing_about_the_rest(operator, path):
    """Data N(m, d²·I): the posterior is A⁺y in the range and the prior in the null space of A."""
    mean, std = start_noise(1, SHAPE, seed=4), 0.7

    def prior(x, t):
        a, _, sigma = path.coefficients(t)
        return mean + a * std**2 / (a**2 * std**2 + sigma**2) * (x - a * mean)

    y = operator.forward(start_noise(1, SHAPE, seed=3))
    a, _, sigma = path.coefficients(path.t_max)
    noise = math.hypot(a * std, sigma) * start_noise(256, SHAPE)
    x = a * mean + torch.cat([noise, -noise])  # a sample mean without statistical error
    options = {"path": path, "solver": "dpmpp-2m", "steps": 200, "x": x}
    out = sample(RangeNull(as_denoiser(prior, path), operator, y), **options)
    wanted = operator.pseudo_inverse(y) + mean - operator.project(mean)
    torch.testing.assert_close(out.mean(0, keepdim=True), wanted, rtol=0, atol=1e-3)
    null = out - operator.project(out)
    free = sample(prior, **options)
    torch.testing.assert_close(null, free - operator.project(free), rtol=0, atol=1e-10)


def naive_step(a, y, x0, z, t, s, noise, sigma_y, eta):
    """DDNM+ in the basis of the singular vectors, entry by entry."""
    u, values, vt = torch.linalg.svd(a)
    v = [float(values[i]) if i < len(values) and values[i] > 1e-8 else 0.0 for i in range(a.shape[1])]
    eps, out = (z - t[0] * x0) / t[1], torch.empty_like(z)
    fixed, w, e = ((vt @ q.T).T for q in (x0, noise, eps))
    gap = (u.T @ (a @ x0.T - y.T)).T
    for i, value in enumerate(v):
        move, fresh, kept = 0.0, eta * s[1], math.sqrt(1 - eta**2) * s[1]
        if value > 0:
            move = gap[:, i] / value
            if sigma_y > 0:
                size = s[0] * sigma_y / value
                kept = 0.0
                if s[1] >= size:
                    fresh = math.sqrt(s[1] ** 2 - size**2)
                else:
                    move = move * value * s[1] * math.sqrt(1 - eta**2) / (s[0] * sigma_y)
        out[:, i] = s[0] * (fixed[:, i] - move) + fresh * w[:, i] + kept * e[:, i]
    return (vt.T @ out.T).T


@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
@each_operator
def test_ddnm_plus_equals_its_formula_in_the_singular_basis(operator, sigma_y):
    path, grid = paths.VP.linear(), [1.0, 0.7, 0.3, 0.1, 0.02]
    y, z = operator.forward(start_noise(2, SHAPE, seed=3)), start_noise(2, SHAPE)
    draws = [start_noise(2, SHAPE, seed=20 + i) for i in range(4)]
    given = iter(draws)

    def denoise(x, t):
        return torch.tanh(x) * (1 - 0.5 * t)

    solver = NoisyRangeNull(operator, y, noise=sigma_y, eta=0.85)
    out = sample(denoise, path, solver, grid=grid, x=z, noise=lambda like: next(given))
    x, a = z.flatten(1), matrix(operator)
    for now, then, draw in zip(grid, grid[1:], draws, strict=False):
        x0 = denoise(x, now)
        t, s = (path.coefficients(time)[::2] for time in (now, then))
        x = naive_step(a, y.flatten(1), x0, x, t, s, draw.flatten(1), sigma_y, 0.85)
    torch.testing.assert_close(out.flatten(1), x, rtol=1e-10, atol=1e-10)


def test_ddnm_plus_knows_that_an_observation_is_noisy():
    """Unit normal data, mean of four values seen: plain DDNM keeps y, the posterior mean is y/(1 + 4·noise²).

    DDNM+ lies between the two, nearer to the posterior mean: it is an approximation.
    """
    operator, x, path = AveragePool(2), 80 * start_noise(2000, (1, 2, 2)), paths.EDM()
    y = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64)

    def mean(noise):
        solver = NoisyRangeNull(operator, y, noise=noise)
        out = sample(lambda x, t: x / (1 + t * t), path, solver, steps=20, x=x, noise=torch.randn_like)
        return operator.forward(out).mean()

    torch.manual_seed(0)
    torch.testing.assert_close(mean(0.0), y.squeeze())
    for noise in (0.1, 0.25, 0.5):
        exact = 0.8 / (1 + 4 * noise**2)
        assert abs(mean(noise) - exact) < 0.4 * (0.8 - exact)


def test_ddnm_reaches_consistency_and_is_the_same_in_every_path_form():
    operator = OPERATORS["dense"]
    y, z = operator.forward(start_noise(2, SHAPE, seed=3)), start_noise(2, SHAPE)
    ends = []
    for path in (paths.EDM(), paths.VP.linear(), paths.RectifiedFlow()):
        times = [path.time_at(-math.log(r)) for r in (50.0, 10.0, 2.0, 0.3)]
        sigma = path.coefficients(times[0])[2]

        def ball(x, t, path=path):
            a, _, sigma = path.coefficients(t)
            return a * x / (a * a + sigma * sigma)

        draws = iter([start_noise(2, SHAPE, seed=20 + i) for i in range(4)])
        solver = NoisyRangeNull(operator, y, noise=0.1)
        x = sample(ball, path, solver, grid=times, x=sigma * z, noise=lambda like, draws=draws: next(draws))
        ends.append(x / path.coefficients(times[-1])[0])
        out = sample(ball, path, NoisyRangeNull(operator, y), grid=[*times, path.t_clean], x=sigma * z)
        torch.testing.assert_close(operator.forward(out), y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-9)


def test_time_travel_repeats_stretches():
    solver = NoisyRangeNull(Grayscale(), torch.zeros(1, 1, 2, 2), travel=2, repeats=3)
    assert list(solver._visits(4)) == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3, 4]
    assert (solver.calls(4), NoisyRangeNull(Grayscale(), torch.zeros(1)).calls(4)) == (8, 4)
    times = []

    def denoise(x, t):
        times.append(t)
        return x / (1 + t * t)

    sample(denoise, paths.EDM(), solver, grid=[8.0, 4.0, 2.0, 1.0, 0.0], shape=(1, 3, 2, 2))
    assert times == [8, 4, 2, 4, 2, 4, 2, 1]


def test_composes_and_repeats():
    y = torch.tensor([[[1.0]], [[2.0]]])
    inner = as_denoiser(lambda x, t, gain: gain * x).given(gain=torch.ones(1, 1, 1))
    seen = RangeNull(inner, AveragePool(2), y)
    x = torch.tensor([[[0.0, 2.0]], [[0.0, 2.0]]])
    assert seen(x, 0.5).tolist() == [[[0, 2]], [[1, 3]]]
    assert seen.repeat(2)(x.repeat_interleave(2, 0), 0.5)[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert Guided(seen, 3.0, {"gain": 0.0})(x, 0.5).tolist() == [[[-2, 4]], [[-1, 5]]]
    assert Thresholded(seen, Static(0.5, 2.5))(x, 0.5).tolist() == [[[0.5, 2]], [[1, 2.5]]]
    half = RangeNull(inner, AveragePool(2), y, strength=0.5)
    assert half(x, 0.5).tolist() == [[[0, 2]], [[0.5, 2.5]]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.tensor([0.0, 0.5])), "known must hold only 0 and 1"),
        (lambda: AveragePool(0), "factor must be at least 1, not 0"),
        (lambda: AveragePool(2).forward(torch.zeros(1, 1, 3)), r"blocks of 2 must divide the size \(3,\)"),
        (lambda: Grayscale((0.0, 0.0)), "weights must hold a number other than 0"),
        (lambda: BlockSensing(2, 0.1), "ratio must give 1 to 4 measurements of a block, not 0"),
        (lambda: Dense(ROWS, (3, 4, 5)), "matrix has 48 columns"),
        (
            lambda: NoisyRangeNull(Grayscale(), torch.zeros(1), noise=-1.0),
            "noise must be at least 0, not -1.0",
        ),
        (lambda: NoisyRangeNull(Grayscale(), torch.zeros(1), eta=1.5), r"eta must lie in \[0, 1\], not 1.5"),
        (lambda: NoisyRangeNull(Grayscale(), torch.zeros(1), repeats=0), "must be at least 1, not 1 and 0"),
        (
            lambda: RangeNull(lambda x, t: x, AveragePool(2), torch.zeros(1, 1, 3))(
                torch.zeros(1, 1, 4), 0.5
            ),
            r"observed must have the shape \(batch or 1, \*\(1, 2\)\).* not \(1, 1, 3\)",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
