"""Thresholds are those computed by hand, and those of the published code."""

from dataclasses import replace

import pytest
import torch
from tests.core.mixture import GOLDEN, mixture_x0

from fewstep.core import paths
from fewstep.core.denoiser import Denoiser
from fewstep.core.sample import sample
from fewstep.core.solvers import DPMSolverPP
from fewstep.core.thresholding import Dynamic, Static, Thresholded, magnitude_quantile


def test_static_clamps():
    x0 = torch.tensor([[-2.0, -0.5, 3.0]])
    assert Static()(x0).tolist() == [[-1.0, -0.5, 1.0]]
    assert Static(0.0, 2.0)(x0).tolist() == [[0.0, 0.0, 2.0]]


def test_dynamic_by_hand():
    # |x| sorted: 0.5 1 2 3 8; quantile 0.8 lies at rank 3.2: 3 + 0.2·(8 - 3) = 4
    x0 = torch.tensor([[1.0, -8.0, 2.0, 0.5, -3.0]], dtype=torch.float64)
    expected = torch.tensor([[0.25, -1.0, 0.5, 0.125, -0.75]], dtype=torch.float64)
    assert torch.allclose(Dynamic(0.8)(x0), expected, atol=1e-15)


def test_minimum_and_cap():
    small, large = torch.tensor([[0.1, -0.4]]), torch.tensor([[1.0, -5.0]])
    assert torch.equal(Dynamic(1.0)(small), small)
    # The published code divides by a minimum below 1 as well.
    assert torch.allclose(Dynamic(1.0, minimum=0.8)(small), small / 0.8)
    assert torch.allclose(Dynamic(1.0)(large), torch.tensor([[0.2, -1.0]]))
    assert torch.allclose(Dynamic(1.0, cap=2.0)(large), torch.tensor([[0.5, -1.0]]))
    # diffusers' default cap leaves a plain clamp.
    assert torch.equal(Dynamic(0.995, cap=1.0)(large), Static()(large))


def test_samples_are_thresholded_on_their_own():
    x0 = torch.randn(3, 4, 5, 5) * torch.tensor([0.1, 1.0, 10.0]).reshape(3, 1, 1, 1)
    rule = Dynamic(0.9)
    assert torch.equal(rule(x0), torch.cat([rule(sample) for sample in x0.split(1)]))


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 2, 11, 13)])
def test_quantile_is_that_of_a_sort(quantile, shape):
    x = torch.randn(shape, dtype=torch.float64)
    expected = torch.quantile(x.abs().flatten(1), quantile, dim=1)
    assert torch.allclose(magnitude_quantile(x, quantile), expected, rtol=1e-12)


def test_quantile_of_more_values_than_torch_sorts():
    x = torch.zeros(1, 2**24 + 2)
    x[0, :100] = 2.0
    assert magnitude_quantile(x, 0.5).item() == 0.0
    assert magnitude_quantile(x, 1.0).item() == 2.0


def test_low_precision_keeps_its_dtype():
    x0 = torch.randn(2, 3, 8).bfloat16() * 3
    out = Dynamic(0.9)(x0)
    assert out.dtype == torch.bfloat16
    assert out.abs().max() <= 1


def test_wrapper_gives_a_thresholded_x0_and_keeps_the_conditions():
    path = paths.VP.linear()
    denoise = Denoiser(lambda x, t, gain: gain * x, path, "eps").given(gain=-3.0)
    x = torch.randn(2, 3, 8)
    limited = Thresholded(denoise)
    assert limited.prediction.name == "x0"
    assert torch.equal(limited(x, 0.5), denoise(x, 0.5).clamp(-1, 1))
    assert torch.equal(limited.predict(x, 0.5), limited(x, 0.5))
    assert torch.equal(limited.given(gain=1.0)(x, 0.5), denoise.given(gain=1.0)(x, 0.5).clamp(-1, 1))
    assert limited.path is path


def test_trajectory_is_that_of_the_published_code():
    path = replace(paths.VP.linear(), time="t")

    def net(x, t):
        a, _, sigma = path.coefficients(float(t[0]))
        return (x - a * mixture_x0(x, a, sigma, "mix")) / sigma

    denoise = Thresholded(Denoiser(net, path, "eps"), Dynamic(0.9, minimum=0.8))
    times = torch.linspace(1.0, 0.001, 7, dtype=torch.float64).tolist()
    solver = DPMSolverPP(2, lower_order_below=10)
    states = []

    def keep(info):
        states.append(info.x.clone())

    out = sample(denoise, solver=solver, grid=times, x=GOLDEN["in.z"], on_step=keep)
    expected = GOLDEN["vp_linear.thresh_d2z.out.traj"]
    assert torch.allclose(torch.stack(states), expected[1:7], rtol=0, atol=1e-9)
    # The published run ends with one more estimate of x0.
    assert torch.allclose(denoise(out, 0.001), GOLDEN["vp_linear.thresh_d2z.out.x"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Static(1.0, -1.0), "low must be less than high, not 1.0 and -1.0"),
        (lambda: Dynamic(1.2), r"quantile must be in \[0, 1\], not 1.2"),
        (lambda: Dynamic(minimum=0.0), "minimum must be positive, not 0.0"),
        (lambda: Dynamic(minimum=2.0, cap=1.0), "cap must be at least the minimum"),
    ],
)
def test_impossible_rules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
