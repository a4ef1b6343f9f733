"""The inference runtime of the temporal U-Net: the same function, remembered only while it is the same."""

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import jacfwd, jvp

from fewstep.core import paths
from fewstep.core.denoiser import Denoiser
from fewstep.core.sample import sample
from fewstep.policy.model import PolicyModel
from fewstep.policy.nets import fast, fast_layers, trained_layers
from fewstep.policy.nets.fast import FastUnet1D
from fewstep.policy.nets.unet1d import ConditionalUnet1D, Unet1dConfig
from fewstep.policy.recipe import PolicyRecipe
from fewstep.policy.runtime import quickened

KINDS = {
    "film": {"input_dim": 2, "global_cond_dim": 10, "embedding": 16, "down_dims": (16, 32, 48)},
    "local": {
        "input_dim": 3,
        "local_cond_dim": 4,
        "global_cond_dim": 10,
        "embedding": 12,
        "down_dims": (16, 24),
        "kernel": 3,
        "groups": 4,
        "condition": "add",
    },
    "alone": {"input_dim": 2, "embedding": 16, "down_dims": (8, 16, 24), "condition": "mlp_film"},
    "parts": {
        "input_dim": 2,
        "global_cond_dim": 10,
        "embedding": 16,
        "down_dims": (8, 16),
        "conditioned": ("mid",),
        "two_times": True,
    },
    "untold": {"input_dim": 2, "embedding": 16, "down_dims": (8,), "conditioned": ()},
}


def made(kind: str) -> ConditionalUnet1D:
    torch.manual_seed(0)
    net = ConditionalUnet1D(Unet1dConfig(**KINDS[kind]))
    if net.jump_encoder is not None:
        nn.init.normal_(net.jump_encoder[-1].weight)  # type: ignore[arg-type]
    return net


def told(net: ConditionalUnet1D, batch: int, dtype: torch.dtype) -> dict:
    """A noisy chunk and conditions that fit."""
    config = net.config
    given = {"x": torch.randn(batch, 16, config.input_dim, dtype=dtype)}
    if config.global_cond_dim:
        given["global_cond"] = torch.randn(batch, config.global_cond_dim, dtype=dtype)
    if config.local_cond_dim:
        given["local_cond"] = torch.randn(batch, 16, config.local_cond_dim, dtype=dtype)
    return given


def error(out: torch.Tensor, want: torch.Tensor) -> float:
    return float((out - want).abs().max() / want.abs().max())


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_network(kind, batch, dtype, bound):
    """For one level, equal ones and different ones, each asked twice (made, then remembered)."""
    net = made(kind).to(dtype)
    quick = FastUnet1D(net)
    for t in (7, torch.full((batch,), 3.0), torch.arange(batch)):
        given = told(net, batch, dtype)
        jump: dict = {"s": 0.5 * t} if net.config.two_times else {}
        with torch.no_grad():
            want = net(t=t, **given, **jump)
        assert error(quick(t=t, **given, **jump), want) < bound
        assert error(quick(t=t, **given, **jump), want) < bound


@pytest.mark.parametrize("kind", ["film", "local"])
def test_without_onednn(kind, monkeypatch):
    monkeypatch.setattr(fast_layers, "_reordered", None)
    net = made(kind)
    given = told(net, 2, torch.float32)
    with torch.no_grad():
        assert error(FastUnet1D(net)(t=5, **given), net(t=5, **given)) < 1e-5


def test_bfloat16():
    """Weights rounded to 8 bits: about a percent, and the output keeps the precision of the input."""
    net = made("film")
    given = told(net, 2, torch.float32)
    with torch.no_grad():
        want = net(t=5, **given)
    out = FastUnet1D(net, torch.bfloat16)(t=5, **given)
    assert out.dtype == torch.float32
    assert 1e-4 < error(out, want) < 5e-2


def test_conditions_are_not_confused():
    """Another condition, the same one changed in place, and one of inference mode are told anew."""
    net = made("film")
    quick, x = FastUnet1D(net), torch.randn(1, 16, 2)
    condition = torch.randn(1, 10)
    with torch.no_grad():
        for change in (lambda c: c, lambda c: c + 1, lambda c: c.mul_(-2), lambda c: c.zero_()):
            condition = change(condition)
            assert error(quick(x, 3, global_cond=condition), net(x, 3, global_cond=condition)) < 1e-5
    with torch.inference_mode():
        condition = torch.randn(1, 10)
        for _ in range(2):
            assert error(quick(x, 3, global_cond=condition), net(x, 3, global_cond=condition)) < 1e-5
            condition.add_(1.0)


def test_remembers_a_bounded_number_of_times(monkeypatch):
    monkeypatch.setattr(fast, "KEPT_TIMES", 4)
    quick, x = FastUnet1D(made("film")), torch.randn(1, 16, 2)
    for t in range(9):
        quick(x, t, global_cond=torch.zeros(1, 10))
    assert len(quick._modulations._times) <= 4


def test_in_the_sampler():
    """The core asks it as it asks the network, conditions and all."""
    net = made("film").eval()
    path, x = paths.VP.linear(), torch.randn(2, 16, 2)
    assert list(inspect.signature(FastUnet1D(net)).parameters) == list(
        inspect.signature(net.forward).parameters
    )
    results = [
        sample(Denoiser(each, path, "eps").given(global_cond=torch.ones(1, 10)), solver="ddim", steps=5, x=x)
        for each in (net, FastUnet1D(net))
    ]
    assert error(results[1], results[0]) < 1e-5


def test_refusals():
    with pytest.raises(TypeError, match="net must be a ConditionalUnet1D, got Linear"):
        FastUnet1D(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="dtype must be a floating-point type"):
        FastUnet1D(made("film"), torch.int8)
    with pytest.raises(ValueError, match=r"global_cond must be \(1, 10\), got None"):
        FastUnet1D(made("film"))(torch.zeros(1, 16, 2), 3)


@pytest.fixture
def plain(monkeypatch):
    """Layers as torch has them."""

    def off() -> None:
        monkeypatch.setattr(trained_layers, "_ours", lambda x: False)

    return off


@pytest.mark.parametrize("kind", ["film", "local", "parts"])
def test_training_layers_equal_torch(kind, plain):
    """Values, gradients, derivatives along a direction and Jacobians of our own layers, in float64."""
    net, other = made(kind).double(), copy.deepcopy(made(kind)).double()
    given, rate = told(net, 3, torch.float64), torch.randn(3, 16, net.config.input_dim, dtype=torch.float64)
    x = given.pop("x")
    t = torch.rand(3, dtype=torch.float64)

    def results(net: ConditionalUnet1D) -> list[torch.Tensor]:
        value, along = jvp(lambda x, t: net(x, t, **given), (x, t), (rate, torch.ones_like(t)))[:2]
        (value - along.detach()).square().sum().backward()
        one = {name: told[:1] for name, told in given.items()}
        jacobian = jacfwd(lambda x: net(x[None], t[:1], **one)[0, :2])(x[0])
        used = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        return [value, along, jacobian, *used]

    mine = results(net)
    plain()
    theirs = results(other)
    assert len(mine) == len(theirs) > 20
    for got, want in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_derivative_along_weights(plain):
    """Tangents of weights are carried as well."""
    layer, norm = nn.Conv1d(4, 8, 3, padding=1).double(), nn.GroupNorm(2, 8).double()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    weights = {**dict(layer.named_parameters()), **{f"norm.{n}": p for n, p in norm.named_parameters()}}
    rates = tuple(torch.randn_like(weight) for weight in weights.values())

    def asked(weight, bias, gain, offset):
        values = {"weight": weight, "bias": bias}
        h = torch.func.functional_call(_Called(layer), {f"layer.{n}": v for n, v in values.items()}, (x,))
        scale = {"norm.weight": gain, "norm.bias": offset}
        return torch.func.functional_call(_Normed(norm), scale, (h,))

    mine = jvp(asked, tuple(weights.values()), rates)[1]
    plain()
    torch.testing.assert_close(mine, jvp(asked, tuple(weights.values()), rates)[1], rtol=1e-10, atol=1e-12)


class _Called(nn.Module):
    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return trained_layers.conv1d(x, self.layer)


class _Normed(nn.Module):
    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return trained_layers.norm_mish(x, self.norm)


def test_second_derivatives_are_refused_not_wrong():
    net = made("alone")
    x = torch.randn(1, 16, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(net(x, 3).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
    along = jvp(lambda x: net(x, 3), (torch.randn(1, 16, 2),), (torch.randn(1, 16, 2),))[1]
    with pytest.raises(NotImplementedError, match="detach the derivative"):
        along.sum().backward()


@pytest.mark.parametrize("method", ["ddim", "meanflow"])
def test_a_whole_policy_gives_the_same_actions(method):
    """One call and several; the policy that it was made of stays as it was."""
    small = {"embedding": 16, "down_dims": (8, 16)}
    recipe = PolicyRecipe(method=method, environment="", network_options=small)
    torch.manual_seed(0)
    model = PolicyModel(recipe.config({"state": (5,)}, 2)).eval()
    for parameter in model.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    seen = {"state": torch.randn(3, 2, 5)}
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    quick = quickened(model)
    for steps in (1, 4):
        given, wanted = (each.predict(seen, steps=steps, seed=3) for each in (quick, model))
        assert wanted.std() > 1e-3
        assert error(given, wanted) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())
    with pytest.raises(TypeError, match="must be a ConditionalUnet1D, got ChunkMLP"):
        quickened(PolicyModel(replace(model.config, network="chunk-mlp", network_options={})))
