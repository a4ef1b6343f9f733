"""Published checkpoints of Diffusion Policy, LeRobot, DP3 and DQL: recognised and loaded; nothing is run."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.weights import CheckpointError
from fewstep.policy.converters import diffusion_policy, dql, lerobot
from fewstep.policy.nets.mlp import TwinCritic
from fewstep.policy.nets.rgb_encoder import DiffusionRgbEncoder
from fewstep.policy.nets.transformer import TransformerForDiffusion
from fewstep.policy.nets.unet1d import ConditionalUnet1D

GOLDEN = Path(__file__).parents[1] / "golden" / "policy"


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """Weights, the other tensors, and the description of a golden file."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key[3:]: value for key, value in tensors.items() if key.startswith("sd.")}
    return weights, tensors, json.loads((GOLDEN / f"{name}.json").read_text())


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


class Node:
    """Pickled like a node of OmegaConf: children in `_content`, a value in `_val`."""

    def __init__(self, value: object) -> None:
        if isinstance(value, dict):
            self._content = {key: Node(item) for key, item in value.items()}
        elif isinstance(value, list):
            self._content = [Node(item) for item in value]
        else:
            self._val = value


def test_low_dimensional_policy(tmp_path):
    """A state dictionary: network, statistics; the numbers are those of the network's golden layout."""
    weights, tensors, about = golden("lowdim_ddpm")
    assert diffusion_policy.recognises(weights)
    policy = diffusion_policy.from_official(saved(tmp_path / "policy.pth", {"state_dict": weights}))
    net, given = policy.net, about["net"]
    assert isinstance(net, ConditionalUnet1D)
    assert (net.config.down_dims, net.config.kernel) == (tuple(given["down_dims"]), given["kernel_size"])
    assert (net.config.global_cond_dim, net.config.condition) == (given["global_cond_dim"], "film")
    assert not net.training
    action = policy.statistics["action"]
    limits = tensors["in.fit_action"].amin(0), tensors["in.fit_action"].amax(0)
    torch.testing.assert_close(limits[0] * action["scale"] + action["offset"], torch.full((2,), -1.0))
    torch.testing.assert_close(limits[1] * action["scale"] + action["offset"], torch.full((2,), 1.0))
    assert torch.equal(action["max"], limits[1])


@pytest.mark.parametrize("name", ["lowdim_ddpm", "lowdim_ddim"])
def test_loaded_network_reproduces_the_published_loss(name, tmp_path):
    weights, tensors, about = golden(name)
    policy = diffusion_policy.from_official(saved(tmp_path / "policy.pth", weights))
    obs, action = policy.statistics["obs"], policy.statistics["action"]
    condition = (tensors["in.loss_obs"] * obs["scale"] + obs["offset"])[:, : about["policy"]["n_obs_steps"]]
    clean = tensors["in.loss_action"] * action["scale"] + action["offset"]
    levels = about["scheduler"]["num_train_timesteps"]
    times = torch.arange(levels + 1, dtype=torch.float64) / levels
    bars = torch.cos((times + 0.008) / 1.008 * torch.pi / 2) ** 2
    bar = torch.cumprod(1 - (1 - bars[1:] / bars[:-1]).clamp(max=0.999), 0)[tensors["in.loss_t"]].float()
    bar, noise = bar[:, None, None], tensors["in.loss_noise"]
    noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
    out = policy.net(noisy, tensors["in.loss_t"], global_cond=condition.flatten(1))
    torch.testing.assert_close((out - noise).square().mean(), tensors["out.loss"], rtol=1e-5, atol=1e-6)


def test_training_checkpoint_with_objects(tmp_path):
    """What the published training writes: averaged weights, objects that stay inert, settings."""
    weights, _, _ = golden("lowdim_ddpm")
    other = {key: value + 1 for key, value in weights.items()}
    settings = {"horizon": 16, "policy": {"n_action_steps": 8, "model": {"n_groups": 4}}, "dims": [1, 2.5]}
    content = {
        "cfg": Node(settings),
        "state_dicts": {"model": other, "ema_model": weights},
        "pickles": {"epoch": pickle.dumps(3)},
    }
    policy = diffusion_policy.from_official(saved(tmp_path / "latest.ckpt", content))
    assert policy.settings == settings
    assert isinstance(policy.net, ConditionalUnet1D)
    assert policy.net.config.groups == 4
    for key, value in policy.net.state_dict().items():
        assert torch.equal(value, weights["model." + key])


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_nothing_in_a_file_is_run(tmp_path):
    """A file that asks to run something is read without doing so."""
    weights, _, _ = golden("lowdim_ddpm")
    mark = tmp_path / "was-run"
    file = saved(tmp_path / "bad.ckpt", {"cfg": Hostile(mark), "state_dicts": {"model": weights}})
    policy = diffusion_policy.from_official(file)
    assert isinstance(policy.net, ConditionalUnet1D)
    assert policy.settings == {}
    assert not mark.exists()


def test_transformer(tmp_path):
    for name in ("transformer_0", "transformer_1"):
        weights, tensors, about = golden(name)
        wrapped = {f"model.{key}": value for key, value in weights.items()}
        file = saved(tmp_path / "net.pth", wrapped)
        net = diffusion_policy.from_official(file, heads=about["config"]["n_head"]).net
        assert isinstance(net, TransformerForDiffusion)
        out = net(tensors["in.x"], tensors["in.t"], cond=tensors.get("in.cond"))
        torch.testing.assert_close(out, tensors["out.y"], rtol=0, atol=1e-5)


def test_points(tmp_path):
    """A policy on points: network and encoder."""
    network, tensors, _ = golden("dp3_unet_film")
    encoder, clouds, _ = golden("dp3_encoder")
    state = {f"model.{key}": value for key, value in network.items()}
    state |= {f"obs_encoder.{key}": value for key, value in encoder.items()}
    policy = diffusion_policy.from_official(saved(tmp_path / "dp3.pth", state))
    out = policy.net(tensors["in.x"], tensors["in.t"], global_cond=tensors["in.global_cond"])
    torch.testing.assert_close(out, tensors["out.y"], rtol=0, atol=1e-5)
    seen = policy.encoders["points"](clouds["in.point_cloud"], clouds["in.agent_pos"])
    torch.testing.assert_close(seen, clouds["out.y"], rtol=0, atol=1e-5)


def lerobot_folder(folder: Path, weights: dict[str, Tensor], config: dict) -> Path:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"type": "diffusion", **config}))
    return folder


def test_lerobot_policy(tmp_path):
    """The network reproduces the published loss; statistics of the processor's file; names go both ways."""
    weights, tensors, about = golden("lerobot_diffusion")
    folder = lerobot_folder(tmp_path / "pretrained", weights, about["config"])
    save_file(
        {"observation.state.min": torch.zeros(2), "action.max": torch.ones(2)},
        folder / "policy_preprocessor_step_3_normalizer_processor.safetensors",
    )
    policy = lerobot.from_official(folder)
    assert set(policy.statistics) == {"state", "action"}
    assert policy.settings["num_inference_steps"] == 10
    theirs = {
        f"diffusion.unet.{key}": value for key, value in lerobot.theirs(policy.net.state_dict()).items()
    }
    assert theirs.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in theirs.items())
    state, room = tensors["in.batch.observation.state"], tensors["in.batch.observation.environment_state"]
    times = torch.arange(101, dtype=torch.float64) / 100
    bars = torch.cos((times + 0.008) / 1.008 * torch.pi / 2) ** 2
    bar = torch.cumprod(1 - (1 - bars[1:] / bars[:-1]).clamp(max=0.999), 0)[tensors["in.loss_t"]].float()
    bar, noise = bar[:, None, None], tensors["in.loss_eps"]
    noisy = bar.sqrt() * tensors["in.batch.action"] + (1 - bar).sqrt() * noise
    out = policy.net(noisy, tensors["in.loss_t"], global_cond=torch.cat([state, room], 2).flatten(1))
    torch.testing.assert_close((out - noise).square().mean(), tensors["out.loss"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("separate", [False, True])
def test_lerobot_cameras_and_old_statistics(separate, tmp_path):
    """Image encoders, one for all cameras or one for each; statistics among the weights (before 0.4)."""
    torch.manual_seed(0)
    weights, _, about = golden("lerobot_diffusion")
    cameras = ["observation.images.top", "observation.images.wrist"]
    config = about["config"] | {
        "input_features": {name: {"type": "VISUAL", "shape": [3, 40, 40]} for name in cameras},
        "crop_shape": [32, 32],
        "use_separate_rgb_encoder_per_camera": separate,
        "spatial_softmax_num_keypoints": 4,
    }
    encoders = [DiffusionRgbEncoder((3, 40, 40), (32, 32), 4).eval() for _ in range(2 if separate else 1)]
    for number, encoder in enumerate(encoders):
        prefix = f"diffusion.rgb_encoder.{number}." if separate else "diffusion.rgb_encoder."
        weights |= {prefix + key: value for key, value in encoder.state_dict().items()}
    weights |= {
        "normalize_inputs.buffer_observation_images_top.mean": torch.ones(3, 1, 1),
        "unnormalize_outputs.buffer_action.min": torch.zeros(2),
    }
    policy = lerobot.from_official(lerobot_folder(tmp_path / "old", weights, config))
    assert list(policy.encoders) == ["image.top", "image.wrist"]
    assert (policy.encoders["image.top"] is policy.encoders["image.wrist"]) == (not separate)
    image = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(policy.encoders["image.wrist"](image), encoders[-1](image))
    assert set(policy.statistics) == {"image.top", "action"}


def test_dql_agent(tmp_path):
    weights, tensors, _ = golden("dql_1")
    actor = {key[6:]: value for key, value in weights.items() if key.startswith("actor.")}
    critic = TwinCritic(5, 2)
    agent = dql.from_official(
        saved(tmp_path / "actor_1.pth", actor), saved(tmp_path / "critic_1.pth", critic.state_dict())
    )
    assert (agent.actor.config.action_dim, agent.actor.config.state_dim, len(agent.betas)) == (2, 5, 10)
    out = agent.actor(tensors["in.loss_noise"], tensors["in.loss_t"], state=tensors["in.state"])
    assert out.shape == (6, 2)
    assert agent.critic is not None
    values = critic(tensors["in.state"], tensors["in.action"])
    assert torch.equal(agent.critic(tensors["in.state"], tensors["in.action"])[0], values[0])


def test_refusals(tmp_path):
    """One sentence, the error of checkpoints, for what is none, is damaged, or is another's."""
    weights, _, about = golden("lowdim_ddpm")
    images = {"obs_encoder.obs_nets.image.backbone.weight": torch.zeros(1)}
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(saved(tmp_path / "whole.ckpt", weights).read_bytes()[:-500])
    empty = tmp_path / "empty.zip"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("data.txt", "nothing")
    fewer = {key: value for key, value in weights.items() if "final_conv" not in key}
    folder = lerobot_folder(tmp_path / "act", weights, {"type": "act"})
    for words, call in (
        (
            "is not a policy of Diffusion Policy",
            lambda: diffusion_policy.from_official(saved(tmp_path / "a", images)),
        ),
        (
            "images through an encoder",
            lambda: diffusion_policy.from_official(saved(tmp_path / "b", weights | images)),
        ),
        ("holds no temporal U-Net", lambda: diffusion_policy.from_official(saved(tmp_path / "c", fewer))),
        ("is damaged|not a file written", lambda: diffusion_policy.from_official(torn)),
        ("has no data.pkl", lambda: diffusion_policy.from_official(empty)),
        ("is not a file", lambda: diffusion_policy.from_official(tmp_path / "none.ckpt")),
        ("is not of a diffusion policy of LeRobot", lambda: lerobot.from_official(folder)),
        ("cannot be read", lambda: lerobot.from_official(tmp_path / "nowhere")),
        (
            "is not an actor of Diffusion Q-Learning",
            lambda: dql.from_official(saved(tmp_path / "d", weights)),
        ),
    ):
        with pytest.raises(CheckpointError, match=words):
            call()
    assert about["policy"]["horizon"] == 16
