"""Classifier-free guidance in an interval and with rescale: formulas, number of calls, composition."""

import math

import pytest
import torch

from fewstep.core import paths, sample
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Guided, Interval
from fewstep.core.thresholding import Static, Thresholded
from fewstep.core.tiling import Tiled

VP, EDM = paths.VP.linear(), paths.EDM()


class Net:
    """A network with a label, which counts the samples of its calls."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, label):
        self.batches.append(x.shape[0])
        gain = torch.tanh(label.to(x) + t)[:, None, None]
        return torch.sin(gain * x) + 0.3 * gain


@pytest.fixture
def x():
    return torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def bound():
    return Denoiser(Net(), EDM, "eps").given(label=torch.tensor([1, 2, 3]))


def null(bound):
    return bound.given(label=torch.tensor([0]))


@pytest.mark.parametrize(
    ("sigma", "inside"), [(0.1, False), (0.2, True), (1.0, True), (5.0, True), (5.1, False)]
)
def test_outside_of_the_interval_one_call_with_the_condition(x, bound, sigma, inside):
    guided = Guided(bound, 3.0, {"label": 0}, interval=(0.2, 5.0))
    plain, without = bound.predict(x, sigma), null(bound).predict(x, sigma)
    bound.net.batches.clear()
    out = guided.predict(x, sigma)
    assert bound.net.batches == ([6] if inside else [3])
    assert guided.nfe_at(sigma) == (2 if inside else 1)
    assert guided.nfe == 2
    expected = without + 3.0 * (plain - without) if inside else plain
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_interval_is_in_sigma_over_a(x):
    bound = Denoiser(Net(), VP, "eps").given(label=torch.tensor([1, 2, 3]))
    guided = Guided(bound, 3.0, {"label": 0}, interval=Interval(0.5, 2.0))
    for ratio, calls in ((0.49, 1), (0.51, 2), (1.99, 2), (2.01, 1)):
        assert guided.nfe_at(VP.time_at(-math.log(ratio))) == calls


def test_one_time_for_each_sample_is_guided_where_it_lies_inside(x, bound):
    t = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    guided = Guided(bound, 3.0, {"label": 0}, interval=(0.2, 5.0))
    each = torch.cat(
        [Guided(bound.given(label=torch.tensor([i + 1])), 3.0, {"label": 0}, interval=(0.2, 5.0)).predict(
            x[i : i + 1], float(t[i])) for i in range(3)]
    )  # fmt: skip
    torch.testing.assert_close(guided.predict(x, t), each, rtol=1e-12, atol=1e-12)
    assert torch.equal(guided.predict(x, t)[0], bound.predict(x, t)[0])


def test_pure_noise_is_inside_only_of_an_open_interval():
    flow = paths.RectifiedFlow()
    assert Interval(1.0).contains(flow, 1.0)
    assert not Interval(1.0, 100.0).contains(flow, 1.0)


def test_an_unconditional_half_with_an_interval_is_conditional_outside(x, bound):
    guided = Guided(bound, 0.0, {"label": 0}, interval=(0.2, 5.0))
    assert torch.equal(guided.predict(x, 9.0), bound.predict(x, 9.0))
    torch.testing.assert_close(guided.predict(x, 1.0), null(bound).predict(x, 1.0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_by_hand_for_each_sample(x, bound, phi):
    conditional, without = bound.predict(x, 1.0), null(bound).predict(x, 1.0)
    out = Guided(bound, 7.5, {"label": 0}, rescale=phi).predict(x, 1.0)
    for i in range(3):
        raw = without[i] + 7.5 * (conditional[i] - without[i])
        expected = raw * (phi * conditional[i].std() / raw.std() + 1 - phi)
        torch.testing.assert_close(out[i], expected, rtol=1e-12, atol=1e-12)


def test_full_rescale_gives_the_spread_of_the_conditional_prediction(x, bound):
    out = Guided(bound, 7.5, {"label": 0}, rescale=1.0).predict(x, 1.0)
    spread = [t.flatten(1).std(1) for t in (out, bound.predict(x, 1.0))]
    torch.testing.assert_close(*spread, rtol=1e-12, atol=1e-12)


def test_rescale_of_a_constant_prediction_is_finite():
    bound = Denoiser(lambda x, t, label: 0 * x + label[:, None, None], EDM).given(label=torch.tensor([2.0]))
    out = Guided(bound, 3.0, {"label": 1.0}, rescale=0.7).predict(torch.ones(1, 1, 4), 1.0)
    assert out.tolist() == [[[4.0] * 4]]


def test_two_heads_are_rescaled_each_on_their_own(x):
    path = paths.RDDM()

    def net(x, t, label):
        gain = label.to(x)[:, None, None]
        return torch.cat([gain * x, (gain - 5) ** 2 * x.flip(-1)], dim=1)

    bound = Denoiser(net, path, "residual+noise").given(y=x, label=torch.tensor([2.0]))
    out = Guided(bound, 3.0, {"label": 1.0}, rescale=1.0).predict(x, path.t_max).chunk(2, dim=1)
    for got, wanted in zip(out, bound.predict(x, path.t_max).chunk(2, dim=1), strict=True):
        torch.testing.assert_close(got.flatten(1).std(1), wanted.flatten(1).std(1), rtol=1e-12, atol=1e-12)


def test_composes_with_thresholds_tiles_and_new_conditions(x, bound):
    guided = Guided(bound, 3.0, {"label": 0}, interval=(0.2, 5.0), rescale=0.5)
    limited = Thresholded(guided, Static(-0.5, 0.5))
    assert torch.equal(limited(x, 1.0), guided(x, 1.0).clamp(-0.5, 0.5))
    assert limited.nfe == 2
    other = limited.given(label=torch.tensor([4, 5, 6]))
    again = Guided(
        bound.given(label=torch.tensor([4, 5, 6])), 3.0, {"label": 0}, interval=(0.2, 5.0), rescale=0.5
    )
    assert torch.equal(other(x, 1.0), again(x, 1.0).clamp(-0.5, 0.5))
    plain = Guided(bound, 3.0, {"label": 0}, interval=(0.2, 5.0))  # rescale has statistics of whole samples
    torch.testing.assert_close(Tiled(plain, 4, 2)(x, 1.0), plain(x, 1.0), rtol=1e-12, atol=1e-12)


def test_a_sample_does_not_depend_on_its_batch_mates(x, bound):
    guided = Guided(bound, 3.0, {"label": 0}, interval=(0.2, 5.0), rescale=0.7)
    alone = Guided(bound.given(label=torch.tensor([2])), 3.0, {"label": 0}, interval=(0.2, 5.0), rescale=0.7)
    torch.testing.assert_close(alone(x[1:2], 1.0), guided(x, 1.0)[1:2], rtol=1e-12, atol=1e-12)


def test_a_sampler_asks_twice_only_inside_the_interval(x, bound):
    guided = Guided(bound, 3.0, {"label": 0}, interval=(0.2, 5.0))
    grid = [20.0, 6.0, 3.0, 1.0, 0.3, 0.1, 0.0]
    sample(guided, solver="ddim", grid=grid, x=x)
    assert bound.net.batches == [3, 3, 6, 6, 6, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": (2.0, 1.0)}, r"interval must be 0 <= low < high in sigma/a, not \(2.0, 1.0\)"),
        ({"interval": (-1.0, 1.0)}, "interval must be 0 <= low"),
        ({"rescale": 1.5}, r"rescale must lie in \[0, 1\], not 1.5"),
    ],
)
def test_impossible_options_are_refused(bound, options, message):
    with pytest.raises(ValueError, match=message):
        Guided(bound, 2.0, {"label": 0}, **options)


def test_an_interval_needs_a_path():
    from fewstep.core.wrapping import as_denoiser

    denoise = as_denoiser(lambda x, t, label: x).given(label=torch.tensor([1]))
    with pytest.raises(ValueError, match="needs a denoiser that knows its path"):
        Guided(denoise, 2.0, {"label": 0}, interval=(0.1, 1.0))
