"""The temporal U-Net against the outputs and gradients of the published code, and its further abilities."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.denoiser import Denoiser
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.derivative import value_and_rate
from fewstep.policy.nets.unet1d import ConditionalUnet1D, Unet1dConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "policy"
PUBLISHED = ["unet1d_0", "unet1d_1", "unet1d_2", "dp3_unet_film"]


def published(name: str) -> tuple[ConditionalUnet1D, dict[str, Tensor]]:
    """The network of a golden file with its weights, and the file's tensors."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    values = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    condition = values.get("condition_type") or ("film" if values["cond_predict_scale"] else "add")
    net = ConditionalUnet1D(
        Unet1dConfig(
            values["input_dim"],
            values["local_cond_dim"],
            values["global_cond_dim"],
            values["diffusion_step_embed_dim"],
            tuple(values["down_dims"]),
            values["kernel_size"],
            values["n_groups"],
            condition,
        )
    )
    net.load_state_dict({key[3:]: value for key, value in tensors.items() if key[:3] == "sd."})
    return net, tensors


def told(tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
    return {"local_cond": tensors.get("in.local_cond"), "global_cond": tensors.get("in.global_cond")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_published(name):
    """Weights of every published name fit strictly; outputs for a batch of levels and for one number."""
    net, tensors = published(name)
    out = net(tensors["in.x"], tensors["in.t"], **told(tensors))
    torch.testing.assert_close(out, tensors["out.y"], rtol=0, atol=1e-5)
    if "out.y_scalar_t5" in tensors:
        torch.testing.assert_close(
            net(tensors["in.x"], 5, **told(tensors)), tensors["out.y_scalar_t5"], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("name", PUBLISHED[:3])
def test_gradients_equal_published(name):
    net, tensors = published(name)
    x = tensors["in.x"].clone().requires_grad_()
    net(x, tensors["in.t"], **told(tensors)).square().sum().backward()
    first = net.get_parameter("down_modules.0.0.blocks.0.block.0.weight")
    assert first.grad is not None
    assert x.grad is not None
    for slope, name in ((x.grad, "grad_x_of_sum_y2"), (first.grad, "grad_first_conv")):
        want = tensors[f"out.{name}"]
        # Sums of many terms: rounding is that of the largest.
        assert (slope - want).abs().max() <= 1e-5 * want.abs().max()


def test_float64_agrees_with_the_published_numbers():
    net, tensors = published("unet1d_0")
    out = net.double()(
        tensors["in.x"].double(), tensors["in.t"], global_cond=tensors["in.global_cond"].double()
    )
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), tensors["out.y"], rtol=0, atol=1e-5)


def test_samples_do_not_depend_on_their_batch():
    net, tensors = published("unet1d_0")
    x, t, condition = (tensors[f"in.{name}"] for name in ("x", "t", "global_cond"))
    whole = net(x, t, global_cond=condition)
    for i in range(len(x)):
        one = net(x[i : i + 1], t[i : i + 1], global_cond=condition[i : i + 1])
        torch.testing.assert_close(one, whole[i : i + 1], rtol=0, atol=1e-5)


def small(**changes) -> ConditionalUnet1D:
    torch.manual_seed(0)
    values = {"input_dim": 2, "global_cond_dim": 5, "embedding": 16, "down_dims": (8, 16)}
    return ConditionalUnet1D(Unet1dConfig(**(values | changes)))


def awake(net: ConditionalUnet1D) -> ConditionalUnet1D:
    """The network with a second time that counts."""
    assert net.jump_encoder is not None
    nn.init.normal_(net.jump_encoder[-1].weight)  # type: ignore[arg-type]
    return net


def test_second_time_begins_without_effect():
    one, two = small(), small(two_times=True)
    two.load_state_dict(one.state_dict(), strict=False)
    x, t, condition = torch.randn(3, 8, 2), torch.tensor([0.9, 0.5, 0.1]), torch.randn(3, 5)
    torch.testing.assert_close(
        two(x, t, 0.3 * t, global_cond=condition), one(x, t, global_cond=condition), rtol=0, atol=0
    )
    awake(two)
    same, other = two(x, t, t, global_cond=condition), two(x, t, 0.3 * t, global_cond=condition)
    torch.testing.assert_close(two(x, t, global_cond=condition), same, rtol=0, atol=0)
    assert (other - same).abs().max() > 1e-3


def test_time_scale():
    """A factor on the times is the same as times that many times as large."""
    far, near = small(time_scale=100.0), small()
    x, t, condition = torch.randn(2, 8, 2), torch.tensor([0.25, 0.5]), torch.randn(2, 5)
    torch.testing.assert_close(far(x, t, global_cond=condition), near(x, 100 * t, global_cond=condition))


def test_derivative_along_the_path():
    """Forward-mode derivative of a network with two times against a difference quotient in float64."""
    net = awake(small(two_times=True, time_scale=3.0)).double()
    condition = torch.randn(4, 5, dtype=torch.float64)
    flow = FlowMap(net, paths.RectifiedFlow(), "velocity").given(global_cond=condition)
    assert flow.takes_target
    x, v = torch.randn(2, 4, 8, 2, dtype=torch.float64)
    t = torch.linspace(0.2, 0.9, 4, dtype=torch.float64)
    point, direction = (x, t, 0.5 * t), (v, torch.ones_like(t), torch.zeros_like(t))

    def asked(flow: FlowMap, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return flow.net(x, t, s=s, global_cond=condition)

    value, rate = value_and_rate(asked, flow, point, direction)
    _, quotient = value_and_rate(asked, flow, point, direction, mode="difference", step=1e-5)
    torch.testing.assert_close(value, net(*point, global_cond=condition))
    torch.testing.assert_close(rate, quotient, rtol=1e-6, atol=1e-8)
    value.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_serves_as_denoiser():
    net = small()
    denoise = Denoiser(net, paths.VP.cosine(), "eps").given(global_cond=torch.randn(1, 5))
    assert denoise(torch.randn(3, 8, 2), 0.5).shape == (3, 8, 2)


@pytest.mark.parametrize("parts", [(), ("mid",), ("down", "up")])
def test_parts_without_condition(parts):
    """Only the named parts are told; with none the output does not depend on what is told."""
    net = small(conditioned=parts)
    x, conditions = torch.randn(2, 8, 2), torch.randn(2, 2, 5)
    first, second = (net(x, 3, global_cond=condition) for condition in conditions)
    assert torch.equal(first, second) == (not parts)


def test_perceptron_film():
    net = small(condition="mlp_film")
    encoder = net.get_submodule("mid_modules.0.cond_encoder")
    assert [type(layer).__name__ for layer in encoder] == ["Mish", "Linear", "Mish", "Linear"]  # type: ignore[arg-type]
    assert net(torch.randn(2, 8, 2), 3, global_cond=torch.randn(2, 5)).shape == (2, 8, 2)


def test_bfloat16_keeps_levels_apart():
    """Times are embedded in float32: bfloat16 knows no 257."""
    net = copy.deepcopy(small()).bfloat16()
    x, condition = torch.randn(2, 8, 2).bfloat16(), torch.randn(2, 5).bfloat16()
    first, second = (net(x, torch.full((2,), t), global_cond=condition) for t in (256.0, 257.0))
    assert first.dtype == torch.bfloat16
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_dim": 0}, "input_dim must be positive, got 0"),
        ({"down_dims": ()}, "down_dims must be multiples"),
        ({"down_dims": (12, 16)}, "down_dims must be multiples of groups = 8"),
        ({"down_dims": (12, 16), "groups": 4}, "down_dims must begin with a multiple of 8"),
        ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"condition": "attention"}, "condition must be one of film, add, mlp_film, got 'attention'"),
        ({"embedding": 7}, "embedding must be even"),
        ({"conditioned": ("middle",)}, "conditioned must name some of down, mid, up"),
    ],
)
def test_refused_configurations(changes, words):
    with pytest.raises(ValueError, match=words):
        small(**changes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": torch.zeros(3, 8, 3)}, r"x must be \(batch, horizon, 2\), got \(3, 8, 3\)"),
        ({"x": torch.zeros(3, 7, 2)}, "horizon must be a multiple of 2 for 2 levels, got 7"),
        ({"global_cond": torch.zeros(3, 4)}, r"global_cond must be \(3, 5\), got \(3, 4\)"),
        ({"global_cond": None}, r"global_cond must be \(3, 5\), got None"),
        ({"local_cond": torch.zeros(3, 8, 1)}, "local_cond must be left out"),
        ({"s": 0.5}, "one time"),
    ],
)
def test_refused_inputs(arguments, words):
    given = {"x": torch.zeros(3, 8, 2), "t": 1, "global_cond": torch.zeros(3, 5)} | arguments
    with pytest.raises(ValueError, match=words):
        small()(**given)
