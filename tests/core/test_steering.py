"""FlowChef: the published update by hand, where it leads, and what it costs."""

import itertools

import pytest
import torch
from tests.core.solver_problems import smooth_mixture, start_noise

from fewstep.core import paths, sample
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import AveragePool, BlockSensing, Grayscale, Mask, Steering

FLOW = paths.RectifiedFlow()
SHAPE = (3, 2, 2)
MIX = smooth_mixture()
OPERATORS = {
    "mask": Mask(torch.tensor([[[1, 0], [0, 1]]])),
    "pool": AveragePool(2),
    "gray": Grayscale(),
    "blocks": BlockSensing(2, 0.5),
}
each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


@pytest.mark.parametrize(("loss", "scale"), [("mean", 2.0), ("sum", 0.3)])
@each_operator
def test_it_is_the_published_sampler_on_rectified_flow(operator, loss, scale):
    """z <- z - s·∇_z L(z - t·v) with v held, then the Euler step with the same v; not in the last step."""
    x, y = start_noise(2, SHAPE), operator.forward(0.5 * start_noise(2, SHAPE, 8))
    denoise = MIX.denoiser(FLOW)
    times = [1.0, 0.8, 0.6, 0.35, 0.1, 0.0]
    got = sample(denoise, FLOW, "ddim", grid=times, x=x, on_step=Steering(operator, y, scale, loss))
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        v = (x - denoise(x, t)) / t
        if i < 4:
            z = x.clone().requires_grad_()
            gap = (operator.forward(z - t * v) - y).square().flatten(1)
            each = gap.mean(1) if loss == "mean" else 0.5 * gap.sum(1)
            x = x - scale * torch.autograd.grad(each.sum(), z)[0]
        x = x + (s - t) * v
    torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-11)


@each_operator
def test_the_gradient_is_that_of_the_loss(operator):
    x0, y = start_noise(2, SHAPE).requires_grad_(), operator.forward(start_noise(2, SHAPE, 8))
    gap = (operator.forward(x0) - y).square().flatten(1)
    for loss, value in (("mean", gap.mean(1)), ("sum", 0.5 * gap.sum(1))):
        (wanted,) = torch.autograd.grad(value.sum(), x0, retain_graph=True)
        got = Steering(operator, y, loss=loss).gradient(x0.detach())
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [FLOW, paths.EDM(), paths.VP.linear()], ids=lambda path: type(path).__name__)
@each_operator
def test_it_brings_the_end_closer_to_the_observation(operator, path):
    x = path.coefficients(path.t_max)[2] * start_noise(8, SHAPE)
    y = operator.forward(0.5 * start_noise(8, SHAPE, 8))
    ends = [
        sample(MIX.denoiser(path), path, "ddim", 30, x=x, on_step=hook)
        for hook in (None, Steering(operator, y, 0.2, "sum"))
    ]
    plain, steered = ((operator.forward(end) - y).square().mean().sqrt() for end in ends)
    assert steered < 0.5 * plain


def test_it_costs_no_call_and_no_gradient_of_the_network():
    calls = []

    def net(x, t):
        calls.append(x.requires_grad)
        return 0.5 * x

    y = torch.ones(1, 1, 1, 1)
    sample(Denoiser(net, FLOW, "velocity"), solver="ddim", steps=6, shape=(1, 1, 2, 2),
           on_step=Steering(AveragePool(2), y, 1.0))  # fmt: skip
    assert calls == [False] * 6


def test_the_last_step_is_not_steered_and_fewer_may_be():
    y = torch.full((1, 3, 1, 1), 2.0, dtype=torch.float64)
    x, times, states = start_noise(1, SHAPE), [1.0, 0.7, 0.4, 0.0], {}
    for steps in (0, 1, 2, None):
        chef = Steering(AveragePool(2), y, 0.2, "sum", steps=steps)
        states[steps] = sample(MIX.denoiser(FLOW), FLOW, "ddim", grid=times, x=x, on_step=chef)
    assert torch.equal(states[0], sample(MIX.denoiser(FLOW), FLOW, "ddim", grid=times, x=x))
    assert torch.equal(states[2], states[None])
    assert not torch.equal(states[1], states[2])


def test_a_sample_does_not_depend_on_its_batch_mates():
    y = AveragePool(2).forward(start_noise(3, SHAPE, 8))
    x = start_noise(3, SHAPE)
    options = {"path": FLOW, "solver": "ddim", "steps": 6}
    out = sample(MIX.denoiser(FLOW), x=x, on_step=Steering(AveragePool(2), y, 1.0), **options)
    alone = sample(MIX.denoiser(FLOW), x=x[1:2], on_step=Steering(AveragePool(2), y[1:2], 1.0), **options)
    torch.testing.assert_close(alone, out[1:2], rtol=1e-12, atol=1e-12)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="loss must be one of mean, sum, not 'l1'"):
        Steering(AveragePool(2), torch.zeros(1), loss="l1")
    chef = Steering(AveragePool(2), torch.zeros(2, 1, 1, 1))
    with pytest.raises(ValueError, match="condition 'observed' has 2 entries; x has 3 samples"):
        chef.gradient(torch.zeros(3, 1, 2, 2))
