"""Guidance in one batch is the two-call formula, and agrees with the published code."""

from dataclasses import replace

import pytest
import torch
from tests.core.mixture import GOLDEN, mixture_x0

from fewstep.core import paths
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Guided
from fewstep.core.layout import Window
from fewstep.core.sample import sample
from fewstep.core.solvers import DPMSolverPP


class Net:
    """A network with a class and a spatial condition that counts its calls."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, label, image):
        self.batches.append(x.shape[0])
        gain = torch.tanh(label.to(x) + t)[:, None, None]
        return torch.sin(gain * x) + image.repeat_interleave(x.shape[-1] // image.shape[-1], -1)


@pytest.fixture
def x():
    return torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def bound():
    image = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoise = Denoiser(Net(), paths.VP.linear(), "eps")
    return denoise.given(label=torch.tensor([1, 2, 3]), image=image, spatial=("image",))


@pytest.mark.parametrize("scale", [-0.5, 0.3, 2.0, 7.5])
@pytest.mark.parametrize("t", [0.4, torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)])
def test_one_doubled_batch_equals_two_calls(x, bound, scale, t):
    without = bound.given(label=torch.tensor([0]))
    expected = without.predict(x, t) + scale * (bound.predict(x, t) - without.predict(x, t))
    bound.net.batches.clear()
    guided = Guided(bound, scale, null={"label": torch.tensor([0])})
    assert torch.allclose(guided.predict(x, t), expected, rtol=1e-12, atol=1e-12)
    assert bound.net.batches == [6]
    assert guided.nfe == 2


def test_guided_x0_is_the_same_rule_on_x0(x, bound):
    without = bound.given(label=torch.tensor([0]))
    expected = without(x, 0.4) + 3.0 * (bound(x, 0.4) - without(x, 0.4))
    assert torch.allclose(Guided(bound, 3.0, null={"label": 0})(x, 0.4), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_trivial_scales_ask_once(x, bound, scale):
    guided = Guided(bound, scale, null={"label": 0})
    half = bound if scale else bound.given(label=torch.tensor([0]))
    expected = half.predict(x, 0.4)
    bound.net.batches.clear()
    assert torch.equal(guided.predict(x, 0.4), expected)
    assert bound.net.batches == [3]
    assert guided.nfe == 1


def test_several_conditions_can_be_null_and_batches_may_change(x, bound):
    null = {"label": torch.tensor([9, 8, 7]), "image": 0.0}
    guided = Guided(bound, 2.0, null)
    without = bound.given(label=torch.tensor([9, 8, 7]), image=torch.zeros(1, 2, 4).double())
    expected = 2 * bound.predict(x, 0.4) - without.predict(x, 0.4)
    assert torch.allclose(guided.predict(x, 0.4), expected, atol=1e-12)
    one = Guided(bound.given(label=torch.tensor([1])), 2.0, {"label": 0})
    assert torch.allclose(one.predict(x, 0.4)[:1], one.predict(x[:1], 0.4), atol=1e-12)


def test_given_rebinds_the_guided_half_only(x, bound):
    guided = Guided(bound, 2.0, null={"label": 0})
    other = guided.given(label=torch.tensor([4, 4, 4]))
    guided.predict(x, 0.4)
    with_four, without = bound.given(label=torch.tensor([4])), bound.given(label=torch.tensor([0]))
    assert torch.allclose(
        other.predict(x, 0.4), 2 * with_four.predict(x, 0.4) - without.predict(x, 0.4), atol=1e-12
    )
    assert dict(guided.bound)["label"].tolist() == [1, 2, 3]


def test_crop_and_repeat_reach_both_halves(x, bound):
    null = {"image": torch.randn(1, 2, 4, dtype=torch.float64)}
    guided = Guided(bound, 3.0, null)
    window = Window((4,), (4,))
    cut = guided.crop([window], size=(8,), batch=3)
    assert torch.allclose(cut.predict(window.crop(x), 0.4), window.crop(guided.predict(x, 0.4)), atol=1e-12)
    twice = guided.repeat(2).predict(x.repeat_interleave(2, 0), 0.4)
    assert torch.allclose(twice, guided.predict(x, 0.4).repeat_interleave(2, 0), atol=1e-12)


def golden_guided():
    path = replace(paths.VP.linear(), time="t")

    def net(x, t, second):
        # The path tells the network t; the eps of the mixture at that time.
        a, _, sigma = path.coefficients(float(t[0]))
        eps = [(x - a * mixture_x0(x, a, sigma, name)) / sigma for name in ("mix", "mixB")]
        return torch.where(second.view(-1, 1, 1, 1), eps[1], eps[0])

    denoise = Denoiser(net, path, "eps").given(second=torch.tensor([True]))
    return Guided(denoise, 2.5, null={"second": torch.tensor([False])})


def test_prediction_is_that_of_the_published_code():
    eps = golden_guided().predict(GOLDEN["in.z"], 0.6)
    assert torch.allclose(eps, GOLDEN["cfg.eval.out.eps"], rtol=0, atol=1e-10)


def test_trajectory_is_that_of_the_published_code():
    times = torch.linspace(1.0, 0.001, 9, dtype=torch.float64).tolist()
    solver = DPMSolverPP(2, lower_order_below=10)
    out = sample(golden_guided(), solver=solver, grid=times, x=GOLDEN["in.z"])
    assert torch.allclose(out, GOLDEN["cfg.sample.out.x"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("null", "error", "message"),
    [
        ({}, ValueError, "null must name at least one bound condition"),
        ({"text": 0}, ValueError, r"null names 'text', which is not bound; bound: \['image', 'label'\]"),
        ({"image": torch.zeros(1, 2, 3)}, ValueError, r"null for 'image' must have the shape .*\(2, 4\)"),
    ],
)
def test_impossible_nulls_are_refused(bound, null, error, message):
    with pytest.raises(error, match=message):
        Guided(bound, 2.0, null)


def test_null_needs_a_batched_condition_and_cannot_be_the_y_of_the_prediction(x):
    denoise = Denoiser(lambda x, t, label: x, paths.VP.linear()).given(label="cat")
    with pytest.raises(TypeError, match="'label' must be a tensor with the batch first, not 'cat'"):
        Guided(denoise, 2.0, {"label": 0})
    denoise = Denoiser(lambda x, t, y: x, paths.ResShift(), "residual").given(y=x)
    with pytest.raises(ValueError, match="null cannot replace y"):
        Guided(denoise, 2.0, {"y": 0})
