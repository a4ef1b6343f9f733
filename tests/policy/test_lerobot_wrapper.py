"""Published policies as whole models, and ours behind LeRobot's methods: the numbers of the originals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.weights import CheckpointError
from fewstep.policy import objective
from fewstep.policy.config import PolicyConfig
from fewstep.policy.convert import from_official, sampler
from fewstep.policy.lerobot_wrapper import LeRobotPolicy
from fewstep.policy.model import PolicyModel
from fewstep.policy.nets.rgb_encoder import DiffusionRgbEncoder
from fewstep.policy.policy import Policy

GOLDEN = Path(__file__).parents[1] / "golden" / "policy"
TINY = {"embedding": 16, "down_dims": (8, 16)}


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key[3:]: value for key, value in tensors.items() if key.startswith("sd.")}
    return weights, tensors, json.loads((GOLDEN / f"{name}.json").read_text())


def lerobot_folder(folder: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    """A policy as LeRobot saves it; in the golden one nothing is normalised."""
    config = golden("lerobot_diffusion")[2]["config"] | {"type": "diffusion", "normalization_mapping": {}}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def given(noise: Tensor):
    draws = iter(noise)
    return lambda like: next(draws)


@pytest.mark.parametrize("name", ["lowdim_ddpm", "lowdim_ddim"])
def test_a_file_of_diffusion_policy_acts_as_the_original(name: str, tmp_path: Path) -> None:
    weights, tensors, about = golden(name)
    file = tmp_path / "policy.safetensors"
    save_file({key: value.clone() for key, value in weights.items()}, file)
    scheduler = {**about["scheduler"], "_target_": f"diffusers.{about['scheduler_class']}"}
    settings = {
        "horizon": 16,
        "n_action_steps": 8,
        "policy": {"noise_scheduler": scheduler, "num_inference_steps": about["num_inference_steps"]},
    }
    model = from_official(file, settings)
    chunk = model.predict({"state": tensors["in.obs"]}, noise=given(tensors["in.noise"]))
    # 1e-5 in the units that the network is trained in.
    near = 1e-5 / float(weights["normalizer.params_dict.action.scale"].min())
    torch.testing.assert_close(chunk, tensors["out.action_pred"], rtol=0, atol=near)
    torch.testing.assert_close(chunk[:, model.config.executed], tensors["out.action"], rtol=0, atol=near)
    # It stays so after a trip through our own format.
    model.save_pretrained(tmp_path / "ours")
    again = Policy.from_pretrained(tmp_path / "ours", "cpu").model
    assert torch.equal(again.predict({"state": tensors["in.obs"]}, noise=given(tensors["in.noise"])), chunk)


def test_a_transformer_of_diffusion_policy(tmp_path: Path) -> None:
    weights, tensors, about = golden("transformer_0")
    state = {f"model.{key}": value.clone() for key, value in weights.items()}
    for name, width in (("obs", about["config"]["cond_dim"]), ("action", 2)):
        state[f"normalizer.params_dict.{name}.scale"] = torch.full((width,), 0.5)
        state[f"normalizer.params_dict.{name}.offset"] = torch.ones(width)
    save_file(state, tmp_path / "policy.safetensors")
    settings = {"n_action_steps": 3, "policy": {"model": {"n_head": about["config"]["n_head"]}}}
    model = from_official(tmp_path / "policy.safetensors", settings)
    config = model.config
    assert (config.horizon, config.n_obs_steps, config.n_action_steps, config.steps) == (10, 2, 3, 100)
    # (y − 1)·2 is what scale ½ and offset 1 make y of again.
    told = model.encode({"state": (tensors["in.cond"] - 1) * 2})
    out = model.net(tensors["in.x"], tensors["in.t"], global_cond=told)
    torch.testing.assert_close(out, tensors["out.y"], rtol=0, atol=1e-5)


def test_lerobots_policy_acts_as_the_original(tmp_path: Path) -> None:
    weights, tensors, _ = golden("lerobot_diffusion")
    policy = LeRobotPolicy.from_pretrained(lerobot_folder(tmp_path / "pretrained", weights))
    for begun in range(2):
        for i in range(11):
            batch = {
                "observation.state": tensors["in.state"][i],
                "observation.environment_state": tensors["in.env_state"][i],
                "action": torch.zeros(2, 16, 2),
            }
            action = policy.select_action(batch, noise=tensors["in.init_noise"][i])
            torch.testing.assert_close(
                action, tensors["out.actions"][i], rtol=0, atol=1e-5, msg=f"step {i} of run {begun}"
            )
        policy.reset()


def test_the_loss_is_the_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, tensors, _ = golden("lerobot_diffusion")
    policy = LeRobotPolicy.from_pretrained(lerobot_folder(tmp_path / "pretrained", weights))
    monkeypatch.setattr(objective, "normal_like", lambda like, generator: tensors["in.loss_eps"])
    monkeypatch.setattr(objective, "usual_times", lambda path: lambda *_: tensors["in.loss_t"].double())
    batch = {key[9:]: value for key, value in tensors.items() if key.startswith("in.batch.")}
    loss, told = policy(batch)
    torch.testing.assert_close(loss, tensors["out.loss"], rtol=1e-5, atol=1e-6)
    assert told is None
    loss.backward()
    assert all(parameter.grad is not None for parameter in policy.get_optim_params())
    del batch["action_is_pad"]
    assert torch.equal(policy(batch)[0], loss)


@pytest.mark.parametrize("old", [False, True], ids=["processor", "among the weights"])
def test_lerobots_statistics_scale_the_model(old: bool, tmp_path: Path) -> None:
    """State 2(x − min)/(max − min) − 1 in, action back out; both places in which statistics are kept."""
    weights, tensors, _ = golden("lerobot_diffusion")
    limits = {"observation.state": (-1.0, 3.0), "action": (0.0, 512.0)}
    places = {
        "observation.state": "normalize_inputs.buffer_observation_state",
        "action": "unnormalize_outputs.buffer_action",
    }
    numbers = {
        f"{places[name] if old else name}.{key}": torch.full((2,), value)
        for name, ends in limits.items()
        for key, value in zip(("min", "max"), ends, strict=True)
    }
    mapping = {"STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
    state = weights | numbers if old else weights
    folder = lerobot_folder(tmp_path / "scaled", state, normalization_mapping=mapping)
    if not old:
        save_file(numbers, folder / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    plain = from_official(lerobot_folder(tmp_path / "plain", weights))
    scaled = from_official(folder)
    x, room = torch.rand(2, 2, 2), torch.rand(2, 2, 16)
    noise = tensors["in.init_noise"][0]
    one = plain.predict({"state": x, "environment_state": room}, noise=lambda like: noise)
    two = scaled.predict({"state": 2 * x + 1, "environment_state": room}, noise=lambda like: noise)
    torch.testing.assert_close(two, (one + 1) * 256, rtol=1e-5, atol=1e-3)


def test_cameras_in_another_order_than_ours(tmp_path: Path) -> None:
    """LeRobot joins features in the order of its configuration, we in that of the names."""
    torch.manual_seed(0)
    names = ["observation.images.top", "observation.images.arm"]
    features = {name: {"type": "VISUAL", "shape": [3, 40, 40]} for name in names}
    features["observation.state"] = {"type": "STATE", "shape": [2]}
    weights = golden("lerobot_diffusion")[0]
    width = 16 + 2 * (2 + 2 * 8)
    for name in [name for name in weights if name.endswith("cond_encoder.1.weight")]:
        weights[name] = torch.randn(len(weights[name]), width) / 8
    encoders = [DiffusionRgbEncoder((3, 40, 40), None, 4).eval() for _ in names]
    for number, encoder in enumerate(encoders):
        weights |= {f"diffusion.rgb_encoder.{number}.{k}": v for k, v in encoder.state_dict().items()}
    folder = lerobot_folder(
        tmp_path / "cameras",
        weights,
        input_features=features,
        use_separate_rgb_encoder_per_camera=True,
        spatial_softmax_num_keypoints=4,
    )
    from fewstep.policy.converters import lerobot

    model, official = from_official(folder), lerobot.from_official(folder)
    seen = {"state": torch.rand(1, 2, 2), "image.top": torch.rand(1, 2, 3, 40, 40)}
    seen["image.arm"] = torch.rand(1, 2, 3, 40, 40)
    with torch.no_grad():
        cameras = [official.encoders[name](seen[name][0])[None] for name in ("image.top", "image.arm")]
        told = torch.cat([seen["state"], *cameras], -1).flatten(1)
        x, t = torch.randn(1, 16, 2), torch.tensor([7])
        wanted = official.net(x, t, global_cond=told)
        torch.testing.assert_close(model.net(x, t, global_cond=model.encode(seen)), wanted, rtol=0, atol=1e-5)


@pytest.fixture
def policy() -> LeRobotPolicy:
    torch.manual_seed(0)
    config = PolicyConfig({"state": (3,), "image.top": (3, 40, 40)}, 2, steps=2, network_options=TINY)
    return LeRobotPolicy(PolicyModel(config).eval())


def seen(count: int = 2, step: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    picture = torch.rand(count, 3, 40, 40, generator=generator)
    return {
        "observation.state": torch.rand(count, 3, generator=generator),
        "observation.images.top": picture,
        "task": torch.zeros(1),
    }


def test_a_chunk_alone_and_a_chunk_in_the_queue(policy: LeRobotPolicy) -> None:
    noise = torch.randn(2, 16, 2)
    policy.select_action(seen(step=0))
    chunk = policy.predict_action_chunk(seen(step=1), noise)
    assert chunk.shape == (2, 8, 2)
    windows = {
        key: torch.stack([seen(step=0)[key], seen(step=1)[key]], 1)
        for key in ("observation.state", "observation.images.top")
    }
    alone = LeRobotPolicy(policy.model)
    alone._chunks = 1
    assert torch.equal(alone.predict_action_chunk(windows, noise), chunk)
    assert len(policy._actions) == 7, "the queue stays as it is"


def test_training_and_saving(policy: LeRobotPolicy, tmp_path: Path) -> None:
    batch = {key: torch.stack([value] * 2, 1) for key, value in seen().items() if key != "task"}
    batch |= {"action": torch.zeros(2, 16, 2), "action_is_pad": torch.zeros(2, 16, dtype=torch.bool)}
    one, two = (policy(batch, torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert one == two != policy(batch, torch.Generator().manual_seed(6))[0]
    policy.save_pretrained(tmp_path / "saved")
    again = LeRobotPolicy.from_pretrained(tmp_path / "saved")
    policy.reset()
    assert torch.equal(again.select_action(seen()), policy.select_action(seen()))


def test_bad_batches(policy: LeRobotPolicy) -> None:
    policy.select_action(seen())
    broken = seen() | {"observation.state": torch.full((2, 3), torch.nan)}
    for words, call in (
        ("2", lambda: policy.select_action(seen(3))),
        ("none of state, image.top", lambda: policy.select_action({"observation.effort": torch.zeros(2, 3)})),
        ("image.top", lambda: policy.select_action({"observation.state": torch.zeros(2, 3)})),
        (r"\(2, 3\)", lambda: policy.select_action(seen() | {"observation.state": torch.zeros(2, 4)})),
        ("NaN", lambda: policy.select_action(broken)),
        ("action", lambda: policy(seen())),
        (r"\(batch, 16, 2\)", lambda: policy({**seen(), "action": torch.zeros(2, 16, 3)})),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_refusals(tmp_path: Path) -> None:
    weights, _, _ = golden("lerobot_diffusion")
    lowdim = tmp_path / "lowdim.safetensors"
    save_file({key: value.clone() for key, value in golden("lowdim_ddpm")[0].items()}, lowdim)
    missing = lerobot_folder(tmp_path / "a", weights, normalization_mapping={"STATE": "MIN_MAX"})
    for words, call in (
        ("state.*min", lambda: from_official(missing)),
        (
            "QUANTILES",
            lambda: from_official(
                lerobot_folder(tmp_path / "b", weights, normalization_mapping={"STATE": "QUANTILES"})
            ),
        ),
        ("PNDM", lambda: from_official(lerobot_folder(tmp_path / "c", weights, noise_scheduler_type="PNDM"))),
        ("horizon", lambda: from_official(lowdim, {"n_action_steps": 40})),
        ("oa_step", lambda: from_official(lowdim, {"policy": {"oa_step_convention": False}})),
        ("cannot be read|not a file", lambda: from_official(tmp_path / "none.ckpt")),
    ):
        with pytest.raises(CheckpointError, match=words):
            call()
    with pytest.raises(ValueError, match="timestep_spacing is 'trailing'"):
        sampler({"timestep_spacing": "trailing"}, "DDIM", {})
