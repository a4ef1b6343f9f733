"""Autoguidance combines two denoisers in x0, whatever each of them predicts on whichever path."""

import math

import pytest
import torch
from tests.core.solver_problems import Mixture, smooth_mixture, start_noise

from fewstep.core import paths, sample
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Autoguided, Guided
from fewstep.core.thresholding import Static, Thresholded
from fewstep.core.tiling import Tiled

GOOD = smooth_mixture()
BAD = Mixture(GOOD.mean, 1.5 * GOOD.std, GOOD.weight)
VP, EDM, FLOW = paths.VP.linear(), paths.EDM(), paths.RectifiedFlow()


def asked(mixture, path, prediction="x0", y=None):
    """An exact denoiser whose network predicts `prediction`."""

    class Exact(Denoiser):
        calls = 0

        def predict(self, x, t):
            self.calls += 1
            return self.prediction.from_x0(path, t, x, mixture.denoiser(path, y)(x, t), y)

    return Exact(lambda x, t: x, path, prediction)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "edm"])
@pytest.mark.parametrize("other", [VP, EDM, FLOW], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("path", [VP, EDM, FLOW], ids=lambda path: type(path).__name__)
def test_the_bad_model_may_have_another_prediction_and_path(path, other, prediction):
    x = start_noise()
    guided = Autoguided(asked(GOOD, path), asked(BAD, other, prediction), 2.0)
    for ratio in (0.1, 1.0, 30.0):
        t = path.time_at(-math.log(ratio))
        wanted = 2 * GOOD.denoiser(path)(x, t) - BAD.denoiser(path)(x, t)
        torch.testing.assert_close(guided(x, t), wanted, rtol=1e-8, atol=1e-8)
    assert guided.nfe == 2


def test_one_time_for_each_sample_on_another_path():
    x = start_noise()
    times = torch.tensor([VP.time_at(-math.log(r)) for r in (0.1, 0.5, 2.0, 9.0)], dtype=torch.float64)
    guided = Autoguided(asked(GOOD, VP), asked(BAD, EDM), 1.7, interval=(0.3, 5.0))
    scale = torch.tensor([1.0, 1.7, 1.7, 1.0]).double().view(-1, 1, 1, 1)
    good, bad = GOOD.denoiser(VP)(x, times), BAD.denoiser(VP)(x, times)
    torch.testing.assert_close(guided(x, times), bad + scale * (good - bad), rtol=1e-8, atol=1e-8)


def test_pure_noise_reaches_the_end_of_the_other_path():
    x = start_noise()
    guided = Autoguided(asked(GOOD, FLOW), asked(BAD, EDM), 2.0)
    wanted = 2 * GOOD.denoiser(FLOW)(x, 1.0) - BAD.denoiser(EDM)(EDM.t_max * x, EDM.t_max)
    torch.testing.assert_close(guided(x, 1.0), wanted)


def test_a_degraded_input_is_taken_out_and_put_in():
    path, other = paths.ResShift(), paths.OUVE()
    y = 0.4 * start_noise(seed=7)
    x = start_noise()
    good, bad = asked(GOOD, path, y=y).given(y=y), asked(BAD, other, y=y)
    guided = Autoguided(good, bad, 2.0).given(y=y)
    t = path.time_at(-math.log(0.4))
    wanted = 2 * GOOD.denoiser(path, y)(x, t) - BAD.denoiser(path, y)(x, t)
    torch.testing.assert_close(guided(x, t), wanted, rtol=1e-8, atol=1e-8)


def test_outside_of_the_interval_and_with_scale_one_only_the_good_one_is_asked():
    good, bad = asked(GOOD, EDM), asked(BAD, EDM)
    guided = Autoguided(good, bad, 2.0, interval=(0.2, 5.0))
    sample(guided, EDM, "ddim", grid=[20.0, 6.0, 3.0, 1.0, 0.1, 0.0], x=start_noise())
    assert (good.calls, bad.calls) == (5, 2)
    assert [guided.nfe_at(t) for t in (6.0, 3.0)] == [1, 2]
    assert Autoguided(good, bad, 1.0).nfe == 1


def test_conditions_reach_those_who_have_them():
    def net(x, t, label):
        return label.to(x)[:, None, None] * x

    x = torch.ones(2, 1, 4)
    good = Denoiser(net, VP).given(label=torch.tensor([3, 5]))
    bad = Denoiser(net, VP).given(label=torch.tensor([1, 2]))
    guided = Autoguided(good, bad, 2.0)
    assert guided(x, 0.5)[:, 0, 0].tolist() == [5, 8]
    assert guided.given(label=torch.tensor([4]))(x, 0.5)[:, 0, 0].tolist() == [4, 4]
    assert guided.repeat(2)(torch.ones(4, 1, 4), 0.5)[:, 0, 0].tolist() == [5, 5, 8, 8]
    free = Autoguided(good, lambda x, t: 0 * x, 2.0)
    assert free.given(label=torch.tensor([4]))(x, 0.5)[:, 0, 0].tolist() == [8, 8]


def test_composes():
    def net(x, t, label):
        return label.to(x)[:, None, None] * x

    x = torch.ones(2, 1, 4)
    good = Denoiser(net, VP).given(label=torch.tensor([3, 5]))
    bad = Denoiser(net, VP).given(label=torch.tensor([1, 2]))
    guided = Autoguided(good, bad, 2.0)
    assert torch.equal(Tiled(guided, 2, 1)(x, 0.5), guided(x, 0.5))
    assert Thresholded(guided, Static(0.0, 6.0))(x, 0.5)[:, 0, 0].tolist() == [5, 6]
    # both denoisers get the null label: 2·(5, 8) - 2·0 + …
    both = Guided(guided, 2.0, {"label": 0})
    assert both(x, 0.5)[:, 0, 0].tolist() == [10, 16]
    assert both.nfe == 4
    inside = Autoguided(Guided(good, 2.0, {"label": 0}), bad, 2.0)
    assert inside(x, 0.5)[:, 0, 0].tolist() == [11, 18]
    assert inside.nfe == 3


def test_guidance_by_a_wider_model_gathers_the_samples():
    x = 80.0 * start_noise(200, (12,))
    plain = sample(GOOD.denoiser(EDM), EDM, steps=10, x=x)
    guided = sample(Autoguided(asked(GOOD, EDM), asked(BAD, EDM), 1.5), steps=10, x=x)
    assert guided.std() < 0.9 * plain.std()


def test_an_empty_interval_is_refused():
    with pytest.raises(ValueError, match="interval must be 0 <= low < high"):
        Autoguided(asked(GOOD, EDM), asked(BAD, EDM), interval=(1.0, 1.0))
    with pytest.raises(ValueError, match="needs a denoiser that knows its path"):
        Autoguided(lambda x, t: x, lambda x, t: x, interval=(0.5, 1.0))
