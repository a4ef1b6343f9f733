"""A Denoiser tells its network exactly what path and conditions say, and gives x0."""

import pytest
import torch
from torch import nn

from fewstep.core import paths, predictions
from fewstep.core.denoiser import Denoiser
from fewstep.core.layout import Window
from fewstep.core.wrapping import FunctionDenoiser, as_denoiser


class Recorder(nn.Module):
    """A small network that remembers what it was told."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x, t, image=None, label=None):
        self.told = {"x": x, "t": t, "image": image, "label": label}
        out = self.conv(x)
        return out if image is None else out + image.mean()


@pytest.fixture
def x():
    return torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))


def test_network_is_told_the_scaled_input_and_its_own_time(x):
    net = Recorder()
    path = paths.EDM()
    denoise = Denoiser(net, path, "edm")
    denoise.predict(x, 2.0)
    assert torch.allclose(net.told["x"], x / (2.0**2 + 0.5**2) ** 0.5)
    assert torch.allclose(net.told["t"], torch.full((4,), torch.tensor(2.0).log().item() / 4))


@pytest.mark.parametrize("name", ["x0", "eps", "v", "score", "velocity"])
def test_call_turns_the_prediction_into_x0(x, name):
    path = paths.VP.linear()
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    prediction = predictions.get(name)
    t = torch.full((4,), 0.4, dtype=torch.float64)
    out = prediction.target(path, t, x, eps)
    noisy = path.corrupt(x, t, eps)
    assert torch.allclose(Denoiser(lambda x, t: out, path, name)(noisy, 0.4), x, atol=1e-5)
    assert torch.allclose(Denoiser(lambda x, t: out, path, name)(noisy, t), x, atol=1e-5)


def test_prediction_relative_to_y_uses_the_bound_y(x):
    path = paths.ResShift()
    y = x + 0.1
    denoise = Denoiser(lambda x, t: 0.25 * torch.ones_like(x), path, "residual")
    assert torch.allclose(denoise.given(y=y)(x, 2.0), y - 0.25)
    with pytest.raises(ValueError, match="y"):
        denoise(x, 2.0)


def test_y_reaches_only_a_network_that_has_an_argument_y(x):
    path = paths.ResShift()
    scaled = path.input_scale(1.0) * x
    assert torch.equal(Denoiser(lambda x, t: x, path).given(y=x).predict(x, 1.0), scaled)
    assert torch.equal(Denoiser(lambda x, t, y: y, path).given(y=2 * x).predict(x, 1.0), 2 * x)
    assert "y" in Denoiser(lambda x, t: x, path).given(y=x).spatial
    assert Denoiser(lambda x, t: x, path).given(y=x[:, :, 0]).spatial == frozenset()


def test_one_time_for_each_sample_equals_single_calls(x):
    path = paths.EDM()
    net = Recorder().requires_grad_(False)
    denoise = Denoiser(net, path, "edm")
    times = torch.tensor([0.1, 1.0, 5.0, 40.0], dtype=torch.float64)
    together = denoise(x, times)
    single = torch.cat([denoise(x[i : i + 1], float(t)) for i, t in enumerate(times)])
    assert torch.allclose(together, single, atol=1e-5)


def test_time_tensors_are_made_once(x):
    net = Recorder()
    denoise = Denoiser(net, paths.VP.linear(), "eps")
    denoise.predict(x, 0.5)
    first = net.told["t"]
    denoise.given(label=3).predict(x, 0.5)
    assert net.told["t"] is first
    denoise.predict(x[:2], 0.5)
    assert net.told["t"].shape == (2,)
    denoise.predict(x, torch.tensor(0.5))
    assert net.told["t"] is first


def test_time_tensors_do_not_pile_up(x):
    denoise = Denoiser(lambda x, t: x, paths.VP.linear())
    for i in range(3000):
        denoise.predict(x[:1], 0.1 + i * 1e-4)
    assert len(denoise._times) <= 1024


def test_bfloat16_network_under_a_float32_state(x):
    net = Recorder().requires_grad_(False)
    path = paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000).tolist())
    exact = Denoiser(net, path, "eps").predict(x, 999.0)
    denoise = Denoiser(net.bfloat16(), path, "eps").given(image=torch.zeros(1, 3, 16))
    out = denoise.predict(x, 999.0)
    assert out.dtype == torch.float32
    assert net.told["x"].dtype == net.told["image"].dtype == torch.bfloat16
    assert net.told["t"].dtype == torch.float32
    assert net.told["t"][0] == 999.0  # bfloat16 would say 1000
    # Inputs, weights and result are rounded to 8 bits: relative 2^-9 each.
    assert (out - exact).abs().max() < 4 * 2**-9 * exact.abs().max()


def test_autocast_keeps_the_parameters_and_gives_the_state_dtype(x):
    net = Recorder().requires_grad_(False)
    exact = Denoiser(net, paths.VP.linear(), "eps").predict(x, 0.3)
    out = Denoiser(net, paths.VP.linear(), "eps", autocast=torch.bfloat16).predict(x, 0.3)
    assert out.dtype == torch.float32
    assert net.conv.weight.dtype == torch.float32
    assert 0 < (out - exact).abs().max() < 4 * 2**-9 * exact.abs().max()


def test_double_state_gives_a_double_time_and_a_function_computes_in_the_state_dtype(x):
    told = {}
    denoise = Denoiser(lambda x, t: told.update(x=x, t=t) or x, paths.VP.linear(), "eps")
    assert denoise.predict(x.double(), 0.3).dtype == torch.float64
    assert told["x"].dtype == told["t"].dtype == torch.float64


def test_conditions_are_bound_on_a_copy_and_cannot_be_changed(x):
    net = Recorder()
    plain = Denoiser(net, paths.VP.linear(), "eps")
    bound = plain.given(label=1)
    other = bound.given(label=2, image=torch.ones(1, 3, 4), spatial=("image",))
    assert (dict(plain.bound), dict(bound.bound), other.bound["label"]) == ({}, {"label": 1}, 2)
    assert (plain.spatial, other.spatial) == (frozenset(), {"image"})
    with pytest.raises(TypeError):
        bound.bound["label"] = 3  # type: ignore[index]
    bound.predict(x, 0.5)
    assert (net.told["label"], net.told["image"]) == (1, None)
    # A condition that is replaced stays spatial.
    assert other.given(image=torch.zeros(1, 3, 8)).spatial == {"image"}


def test_one_entry_serves_the_whole_batch(x):
    net = Recorder()
    denoise = Denoiser(net, paths.VP.linear(), "eps").given(
        image=torch.ones(1, 3, 4), label=torch.tensor([7])
    )
    denoise.predict(x, 0.5)
    assert net.told["image"].shape == (4, 3, 4)
    assert net.told["label"].tolist() == [7, 7, 7, 7]
    denoise.predict(x[:2], 0.5)
    assert net.told["image"].shape == (2, 3, 4)


def test_repeat_serves_several_samples_of_each_input():
    net = Recorder()
    denoise = Denoiser(net, paths.VP.linear(), "eps").given(
        label=torch.tensor([3, 5]), image=torch.ones(1, 3, 4)
    )
    denoise.repeat(3).predict(torch.zeros(6, 3, 16), 0.5)
    assert net.told["label"].tolist() == [3, 3, 3, 5, 5, 5]
    with pytest.raises(ValueError, match="count must be at least 1, not 0"):
        denoise.repeat(0)


def test_crop_takes_spatial_conditions_at_their_own_scale():
    net = Recorder()
    image = torch.arange(16.0).reshape(2, 1, 8)
    denoise = Denoiser(net, paths.VP.linear(), "eps").given(
        image=image, label=torch.tensor([3, 5]), spatial=("image",)
    )
    cut = denoise.crop([Window((0,), (16,)), Window((8,), (16,))], size=(32,), batch=2)
    assert cut.bound["image"][:, 0].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11], [2, 3, 4, 5], [10, 11, 12, 13]]
    assert cut.bound["label"].tolist() == [3, 5, 3, 5]
    with pytest.raises(ValueError, match="not on a sample at scale 1/4"):
        denoise.crop([Window((2,), (16,))], size=(32,), batch=2)


def test_gradients_reach_conditions_and_repeat(x):
    net = Recorder().requires_grad_(False)
    image = torch.ones(1, 3, 4, requires_grad=True)
    denoise = Denoiser(net, paths.VP.linear(), "eps").given(image=image)
    with torch.inference_mode():
        denoise.predict(x, 0.5)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(denoise.predict(x, 0.5).sum(), image)
        assert torch.allclose(gradient, torch.full_like(gradient, x.numel() / image.numel()))


def test_training_works_after_inference_mode(x):
    net = Recorder()
    label = torch.zeros(1, 3, 16)
    denoise = Denoiser(lambda x, t, image: net(x, t) * image * t[:, None, None], paths.VP.linear(), "eps")
    denoise = denoise.given(image=label)
    with torch.inference_mode():
        denoise.predict(x, 0.5)
    denoise.predict(x, 0.5).sum().backward()
    assert net.conv.weight.grad is not None


def test_two_heads_come_back_whole():
    path = paths.RDDM()
    denoise = Denoiser(lambda x, t: torch.cat([x, x], dim=1), path, "residual+noise")
    assert denoise.predict(torch.zeros(2, 3, 8), path.t_max).shape == (2, 6, 8)


def test_any_callable_becomes_a_denoiser(x):
    plain = as_denoiser(lambda x, t: t * x)
    assert torch.equal(plain(x, 0.5), 0.5 * x)
    assert plain.prediction.name == "x0"
    assert as_denoiser(plain) is plain
    bound = FunctionDenoiser(lambda x, t, gain: gain * x).given(gain=torch.full((1, 1, 1), 3.0), y=x)
    assert torch.equal(bound.predict(x, 0.5), 3 * x)


def bad_net(x, t):
    return x[:, :1]


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ({"text": 1}, ValueError, r"no condition 'text'; it takes \['image', 'label'\]"),
        (
            {"label": 1, "spatial": ("label",)},
            ValueError,
            r"'label' must be \(batch, channels, \*space\), not int",
        ),
        ({"spatial": ("image",)}, ValueError, "spatial names 'image', which is not bound"),
        (
            {"image": torch.ones(1, 3, 4), "spatial": "image"},
            TypeError,
            "spatial must be a sequence",
        ),
    ],
)
def test_impossible_conditions_are_refused(conditions, error, message):
    with pytest.raises(error, match=message):
        Denoiser(Recorder(), paths.VP.linear()).given(**conditions)


def test_impossible_denoisers_are_refused():
    # Where the types are checked by the test run as well, either check names the argument.
    with pytest.raises(TypeError, match="net"):
        Denoiser(3, paths.VP.linear())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="path"):
        Denoiser(bad_net, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise"):
        Denoiser(bad_net, paths.VP.linear(), "noise")
    with pytest.raises(TypeError, match="denoise"):
        as_denoiser(3)  # type: ignore[arg-type]


def test_impossible_calls_are_refused(x):
    path = paths.VP.linear()
    with pytest.raises(ValueError, match=r"returned \(4, 1, 16\) for x of \(4, 3, 16\); prediction 'eps'"):
        Denoiser(bad_net, path, "eps").predict(x, 0.5)
    with pytest.raises(ValueError, match="network returned tuple"):
        Denoiser(lambda x, t: (x,), path, "eps").predict(x, 0.5)
    with pytest.raises(ValueError, match="condition 'label' has 3 entries; x has 4"):
        Denoiser(Recorder(), path, "eps").given(label=torch.zeros(3)).predict(x, 0.5)
    with pytest.raises((ValueError, TypeError), match=r"t must be one number|parameter 't'"):
        Denoiser(Recorder(), path, "eps").predict(x, torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="t must lie in"):
        Denoiser(Recorder(), path, "eps").predict(x, 7.0)
