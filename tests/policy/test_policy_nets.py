"""Transformer, image and point encoders, actors and critics against the outputs of the published code."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.policy.nets.crop import Crop
from fewstep.policy.nets.mlp import ActorConfig, ActorMLP, ResidualMLP, StateValue, TwinCritic, perceptron
from fewstep.policy.nets.point_encoder import DP3Encoder
from fewstep.policy.nets.resnet import ResNet
from fewstep.policy.nets.rgb_encoder import DiffusionRgbEncoder, MultiImageObsEncoder
from fewstep.policy.nets.spatial_softmax import SpatialSoftmax
from fewstep.policy.nets.transformer import TransformerConfig, TransformerForDiffusion

GOLDEN = Path(__file__).parents[1] / "golden" / "policy"


def golden(name: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and description of a golden file."""
    return load_file(GOLDEN / f"{name}.safetensors"), json.loads((GOLDEN / f"{name}.json").read_text())


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def by_formula(net: nn.Module) -> None:
    """The weights that the golden files of large networks define instead of holding them."""
    for k, (name, parameter) in enumerate(net.named_parameters()):
        j = torch.arange(parameter.numel(), dtype=torch.float64)
        if parameter.ndim >= 2:
            value = torch.sin(0.37 * j + k) * math.sqrt(3 / (parameter.numel() / parameter.shape[0]))
        elif name.endswith("weight"):
            value = 1 + 0.2 * torch.cos(0.5 * j + k)
        else:
            value = 0.1 * torch.sin(0.3 * j + k)
        parameter.data.copy_(value.reshape(parameter.shape))


def transformer(name: str) -> tuple[TransformerForDiffusion, dict[str, Tensor], dict]:
    tensors, about = golden(name)
    given = about["config"]
    renamed = {
        "n_layer": "layers",
        "n_head": "heads",
        "n_emb": "width",
        "p_drop_emb": "drop_embedding",
        "p_drop_attn": "drop_attention",
        "causal_attn": "causal",
        "time_as_cond": "time_as_condition",
        "n_cond_layers": "condition_layers",
    }
    values: dict = {renamed.get(key, key): value for key, value in given.items()}
    del values["output_dim"], values["obs_as_cond"]
    net = TransformerForDiffusion(TransformerConfig(**values)).eval()
    net.load_state_dict(under(tensors, "sd."))
    return net, tensors, about


@pytest.mark.parametrize("name", ["transformer_0", "transformer_1"])
def test_transformer_equals_published(name):
    net, tensors, about = transformer(name)
    out = net(tensors["in.x"], tensors["in.t"], cond=tensors.get("in.cond"))
    torch.testing.assert_close(out, tensors["out.y"], rtol=0, atol=1e-5)
    assert net.without_decay() == set(about["no_decay"])


def test_transformer_sees_no_future():
    """Steps of the chunk after i, and observations after i, do not change step i."""
    net, tensors, _ = transformer("transformer_0")
    x, cond = tensors["in.x"], tensors["in.cond"]
    before = net(x, 3, cond=cond)
    later_x, later_cond = x.clone(), cond.clone()
    later_x[:, 4:] += 1
    later_cond[:, 1:] += 1
    assert torch.equal(net(later_x, 3, cond=cond)[:, :4], before[:, :4])
    changed = net(x, 3, cond=later_cond)
    torch.testing.assert_close(changed[:, :1], before[:, :1], rtol=0, atol=1e-6)
    assert (changed[:, 1:] - before[:, 1:]).abs().max() > 1e-3


def test_transformer_in_its_other_forms():
    """A condition's encoder of layers, a chunk shorter than the horizon, derivatives along a direction."""
    torch.manual_seed(0)
    net = TransformerForDiffusion(
        TransformerConfig(2, 10, cond_dim=3, layers=1, heads=2, width=16, condition_layers=1)
    ).eval()
    x, cond = torch.randn(2, 6, 2), torch.randn(2, 2, 3)
    assert net(x, torch.tensor([1, 2]), cond=cond).shape == x.shape
    with sdpa_kernel(SDPBackend.MATH):
        rate = torch.func.jvp(lambda t: net(x, t, cond=cond), (torch.rand(2),), (torch.ones(2),))[1]
    assert rate.abs().max() > 0
    for words, call in (
        (r"x must be \(batch, at most 10, 2\)", lambda: net(torch.zeros(2, 11, 2), 1, cond=cond)),
        (r"cond must be \(2, 2, 3\), got None", lambda: net(x, 1)),
        ("time_as_condition must be true", lambda: TransformerConfig(2, 8, 3, time_as_condition=False)),
        ("multiple of heads = 4, got 30", lambda: TransformerConfig(2, 8, width=30)),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_spatial_softmax_equals_published():
    tensors, _ = golden("spatial_softmax")
    pool = SpatialSoftmax((5, 7, 6))
    torch.testing.assert_close(pool(tensors["in.x"]), tensors["out.y"], rtol=0, atol=1e-6)
    torch.testing.assert_close(pool.pos_grid, tensors["out.pos_grid"], rtol=0, atol=0)
    peak = torch.full((1, 5, 7, 6), -1e4)
    peak[..., 0, 5] = 1e4  # upper right
    torch.testing.assert_close(pool(peak)[0, 0], torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"features must be \(batch, \*\(5, 7, 6\)\)"):
        pool(torch.zeros(1, 5, 6, 7))


def test_lerobot_image_encoder_equals_published():
    tensors, about = golden("lerobot_rgb_encoder")
    net = DiffusionRgbEncoder((3, 96, 96), crop=(84, 84)).eval()
    by_formula(net)
    assert [[name, list(p.shape)] for name, p in net.named_parameters()] == about["parameter_names"]
    assert [name for name, _ in net.named_buffers()] == about["buffer_names"]
    with torch.no_grad():
        out = net(tensors["in.image"])
        features = net.backbone(net.crop(tensors["in.image"]))
    torch.testing.assert_close(features, tensors["out.feature_map"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.pool(features), tensors["out.keypoints"], rtol=0, atol=1e-5)
    torch.testing.assert_close(out, tensors["out.out"], rtol=0, atol=1e-5)


def test_multi_image_encoder_equals_published():
    tensors, about = golden("multi_image_obs_encoder")
    net = MultiImageObsEncoder({"image": (3, 48, 64), "agent_pos": (2,)}).eval()
    by_formula(net)
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in about["parameter_names"]]
    with torch.no_grad():
        out = net({"image": tensors["in.image"], "agent_pos": tensors["in.agent_pos"]})
    torch.testing.assert_close(out, tensors["out.y"], rtol=1e-5, atol=1e-5)
    assert out.shape[1] == net.feature_dim


def test_cameras_that_share_a_network():
    torch.manual_seed(0)
    shapes = {"wrist": (3, 40, 40), "front": (3, 40, 40), "state": (2,)}
    net = MultiImageObsEncoder(shapes, shared=True, resize=(36, 36), crop=(32, 32)).eval()
    given = {name: torch.rand(2, *shape) for name, shape in shapes.items()}
    with torch.no_grad():
        out = net(given)
        swapped = net({**given, "wrist": given["front"], "front": given["wrist"]})
    assert list(net.key_model_map) == ["rgb"]
    torch.testing.assert_close(out[:, :512], swapped[:, 512:1024], rtol=1e-5, atol=1e-5)
    assert torch.equal(out[:, 1024:], given["state"])
    with pytest.raises(
        ValueError, match=r"observation 'front' must be \(batch, \*\(3, 40, 40\)\), got missing"
    ):
        net({name: value for name, value in given.items() if name != "front"})


def test_crops():
    """The centre in evaluation; in training every window, one for all images or one for each."""
    image = torch.arange(36.0).reshape(1, 1, 6, 6).repeat(64, 1, 1, 1)
    each, shared = Crop((4, 4)), Crop((4, 4), shared=True)
    assert torch.equal(each.eval()(image)[0, 0], image[0, 0, 1:5, 1:5])
    corners = {int(window[0, 0, 0]) for window in each.train()(image).split(1) for window in window}
    assert len(corners) > 4
    assert corners <= {0, 1, 2, 6, 7, 8, 12, 13, 14}
    assert len({int(corner) for corner in shared(image)[:, 0, 0, 0]}) == 1
    with pytest.raises(ValueError, match=r"image must be at least \(4, 4\), got \(3, 6\)"):
        each(image[:, :, :3])
    with pytest.raises(ValueError, match="crop must fit"):
        DiffusionRgbEncoder((3, 48, 48), crop=(64, 64))


def test_resnet_sizes():
    """Parameters of torchvision's networks without their last layer; 32 pixels give one position."""
    assert sum(p.numel() for p in ResNet("resnet18", norm="batch").parameters()) == 11_176_512
    assert sum(p.numel() for p in ResNet("resnet34").parameters()) == 21_284_672
    assert DiffusionRgbEncoder((3, 96, 96), crop=(84, 84)).pool.shape == (512, 3, 3)
    with pytest.raises(ValueError, match="depth must be one of resnet18, resnet34"):
        ResNet("resnet50")


def test_point_encoder_equals_published():
    tensors, _ = golden("dp3_encoder")
    net = DP3Encoder(7)
    net.load_state_dict(under(tensors, "sd."))
    points, state = tensors["in.point_cloud"], tensors["in.agent_pos"]
    out = net(points, state)
    torch.testing.assert_close(out, tensors["out.y"], rtol=0, atol=1e-5)
    torch.testing.assert_close(net(points.flip(1), state), out, rtol=0, atol=1e-6)
    assert net.feature_dim == out.shape[1]
    assert DP3Encoder(7, channels=6)(torch.zeros(2, 9, 6), state).shape == (2, 128)
    with pytest.raises(ValueError, match="channels must be 3 or 6, got 4"):
        DP3Encoder(7, channels=4)
    with pytest.raises(ValueError, match=r"state must be \(2, 7\), got \(2, 6\)"):
        net(points, state[:, :6])


def critic_by_formula(critic: TwinCritic) -> TwinCritic:
    for k, parameter in enumerate(critic.parameters()):
        j = torch.arange(parameter.numel(), dtype=torch.float64)
        wave = torch.sin(0.1 * j + k) / math.sqrt(parameter.shape[-1])
        value = wave if parameter.ndim == 2 else 0.1 * torch.cos(j + k)
        parameter.data.copy_(value.reshape(parameter.shape))
    return critic


def test_actor_and_critic_equal_published():
    """Noise prediction through its published loss, and both values of the published action."""
    tensors, _ = golden("dql_1")
    actor, critic = ActorMLP(ActorConfig(2, 5)), critic_by_formula(TwinCritic(5, 2))
    actor.load_state_dict(under(tensors, "sd.actor.model."))
    bar = tensors["sd.actor.alphas_cumprod"][tensors["in.loss_t"]][:, None]
    noisy = bar.sqrt() * tensors["in.action"] + (1 - bar).sqrt() * tensors["in.loss_noise"]
    loss = (actor(noisy, tensors["in.loss_t"], state=tensors["in.state"]) - tensors["in.loss_noise"]).square()
    torch.testing.assert_close(loss.mean(), tensors["out.bc_loss"], rtol=1e-5, atol=0)
    values = critic(tensors["in.state"], tensors["out.new_action"])
    for value, name in zip(values, ("q1_new", "q2_new"), strict=True):
        torch.testing.assert_close(value, tensors[f"out.{name}"], rtol=1e-5, atol=1e-5)
    least = critic.least(tensors["in.state"], tensors["out.new_action"])
    assert torch.equal(least, torch.minimum(*values))


def test_values_equal_published():
    """RL-100's critics and value, whose layers have other names."""
    tensors, _ = golden("rl100_iql")
    critic, value = TwinCritic(12, 4, (32, 32), "relu"), StateValue(12, (32, 32))
    nets = {f"q{i}_model.{key}": v for i in (1, 2) for key, v in under(tensors, f"sd.Q._net{i}.").items()}
    critic.load_state_dict(nets)
    value.load_state_dict({f"v_model.{key}": v for key, v in under(tensors, "sd.V._net.").items()})
    first, second = critic(tensors["in.state"], tensors["in.action"])
    torch.testing.assert_close(first, tensors["out.q1"], rtol=0, atol=1e-5)
    torch.testing.assert_close(second, tensors["out.q2"], rtol=0, atol=1e-5)
    torch.testing.assert_close(value(tensors["in.state"]), tensors["out.v"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [ActorMLP, ResidualMLP])
def test_actors_of_chunks_and_two_times(kind):
    torch.manual_seed(0)
    actor = kind(ActorConfig(action_dim=8, state_dim=6, hidden=32, depth=2, two_times=True, time_scale=10.0))
    actor.eval()
    x, state, t = torch.randn(3, 4, 2), torch.randn(3, 2, 3), torch.rand(3)
    out = actor(x, t, t, state=state)
    assert out.shape == x.shape
    assert torch.equal(actor(x, t, state=state), out)
    assert (actor(x, t, 0.5 * t, state=state) - out).abs().max() > 1e-4
    for words, call in (
        (r"x must have 8 numbers a sample, got \(3, 3, 2\)", lambda: actor(x[:, :3], t, state=state)),
        (r"state must be \(3, 6\), got \(3, 2, 2\)", lambda: actor(x, t, state=state[..., :2])),
        ("one time", lambda: kind(ActorConfig(8, 6))(x, t, t, state=state)),
        ("hidden must be positive, got 0", lambda: ActorConfig(8, 6, hidden=0)),
        ("activation must be one of", lambda: perceptron((3, 3, 3), "tanh")),
    ):
        with pytest.raises(ValueError, match=words):
            call()
