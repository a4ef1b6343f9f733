"""The policy model against Diffusion Policy's published policy, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fewstep.core import paths
from fewstep.policy.config import PolicyConfig, cosine_betas
from fewstep.policy.model import PolicyModel
from fewstep.policy.normalizer import Normalizer
from fewstep.policy.objective import Imitation
from fewstep.policy.recipe import METHODS, PolicyRecipe

GOLDEN = Path(__file__).parents[1] / "golden" / "policy"
TINY = {"embedding": 16, "down_dims": (8, 16)}


def published(name: str) -> tuple[PolicyModel, dict[str, torch.Tensor], dict]:
    """Our policy with the weights and settings of a golden file."""
    stored = load_file(GOLDEN / f"{name}.safetensors")
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    policy, net, scheduler = facts["policy"], facts["net"], facts["scheduler"]
    config = PolicyConfig(
        {"state": (policy["obs_dim"],)},
        policy["action_dim"],
        policy["horizon"],
        policy["n_obs_steps"],
        policy["n_action_steps"],
        network_options={"embedding": net["diffusion_step_embed_dim"], "down_dims": net["down_dims"]},
        normalization=dict.fromkeys(("state", "action"), policy["norm"]),
        path=paths.VP.from_betas(cosine_betas(scheduler["num_train_timesteps"])).to_config(),
        solver="ancestral" if facts["scheduler_class"] == "DDPMScheduler" else "ddim",
        steps=facts["num_inference_steps"],
    )
    model = PolicyModel(config).eval()
    model.net.load_state_dict(
        {key.removeprefix("sd.model."): value for key, value in stored.items() if key.startswith("sd.model.")}
    )
    arrays = {"state": stored["in.fit_obs"], "action": stored["in.fit_action"]}
    fitted = Normalizer.fit(arrays, config.modes)  # type: ignore[arg-type]
    model.normalizer.load_state_dict(fitted.state_dict())
    return model, stored, facts


@pytest.mark.parametrize("name", ["lowdim_ddpm", "lowdim_ddim"])
def test_actions_are_those_of_the_published_policy(name):
    model, stored, _ = published(name)
    draws = iter(stored["in.noise"])
    chunk = model.predict({"state": stored["in.obs"]}, noise=lambda like: next(draws))
    scale = stored["out.action_pred"].abs().max()
    torch.testing.assert_close(chunk, stored["out.action_pred"], atol=1e-5 * float(scale), rtol=0)
    torch.testing.assert_close(
        chunk[:, model.config.executed], stored["out.action"], atol=1e-5 * float(scale), rtol=0
    )
    assert next(draws, None) is None, "as many draws as published"


@pytest.mark.parametrize("name", ["lowdim_ddpm", "lowdim_ddim"])
def test_the_loss_is_the_published_one(name):
    model, stored, _ = published(name)
    told = model.encode({"state": stored["in.loss_obs"][:, : model.config.n_obs_steps]})
    chunk = model.normalizer.normalize("action", stored["in.loss_action"])
    t, noise = stored["in.loss_t"].double(), stored["in.loss_noise"]
    flow = model.flow_map(told)
    out = flow.predict(model.path.corrupt(chunk, t, noise), t)
    target = flow.prediction.target(model.path, t, chunk, noise)
    torch.testing.assert_close((out - target).square().mean(), stored["out.loss"], atol=1e-5, rtol=1e-5)


def recipe(method: str) -> PolicyRecipe:
    return PolicyRecipe(method=method, environment="", network_options=TINY)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_predicts_and_comes_back_from_a_folder(method, tmp_path):
    torch.manual_seed(0)
    model = PolicyModel(recipe(method).config({"state": (3,)}, 2))
    fit = {
        "state": np.random.default_rng(0).normal(size=(50, 3)),
        "action": np.linspace(-4, 9, 100).reshape(50, 2),
    }
    fitted = Normalizer.fit(fit, model.config.modes)  # type: ignore[arg-type]
    model.normalizer.load_state_dict(fitted.state_dict())
    batch = {"obs": {"state": torch.randn(8, 2, 3)}, "action": torch.randn(8, 16, 2)}
    loss = Imitation()(model, batch, torch.Generator().manual_seed(0))
    (loss if isinstance(loss, torch.Tensor) else loss["loss"]).backward()
    last = model.net.get_submodule("final_conv")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in last.parameters())
    model.eval().save_pretrained(tmp_path / "policy")
    again = PolicyModel.from_pretrained(str(tmp_path / "policy")).eval()
    steps = 1 if method == "regression" else 2
    seen = {"state": torch.randn(3, 2, 3)}
    chunk = model.predict(seen, steps=steps, seed=5)
    assert chunk.shape == (3, 16, 2)
    torch.testing.assert_close(again.predict(seen, steps=steps, seed=5), chunk, atol=0, rtol=0)
    # Clipped to ±1 in normalised units: within the demonstrations' range.
    assert chunk.min() >= -4.001
    assert chunk.max() <= 9.001


def test_a_mean_flow_learns_where_its_data_lie():
    torch.manual_seed(0)
    config = PolicyRecipe(
        method="meanflow", environment="", network="chunk-mlp", horizon=2, n_obs_steps=1, n_action_steps=1,
        network_options={"width": 48, "depth": 1},
    ).config({"state": (1,)}, 1)  # fmt: skip
    model = PolicyModel(config)
    fitted = Normalizer.fit(
        {"state": np.array([[-1.0], [1.0]]), "action": np.array([[-1.0], [1.0]])}, config.modes
    )
    model.normalizer.load_state_dict(fitted.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        state = torch.rand(128, 1, 1, generator=generator) * 2 - 1
        # The sign of the action is a coin's; its size follows the state.
        sign = (torch.rand(128, 1, 1, generator=generator) < 0.5).float() * 2 - 1
        action = (sign * (0.5 + 0.3 * state)).expand(128, 2, 1)
        loss = Imitation()(model, {"obs": {"state": state}, "action": action}, generator)
        assert isinstance(loss, dict)
        loss["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    state = torch.tensor([0.6, -0.6]).repeat_interleave(200).view(-1, 1, 1)
    size = model.predict({"state": state}, seed=1)[:, 0, 0].abs().view(2, 200).mean(1)
    both = model.predict({"state": state}, seed=1)[:, 0, 0].view(2, 200) > 0
    # In truth 0.68 and 0.32.
    assert size[0] - size[1] > 0.2
    assert ((both.float().mean(1) - 0.5).abs() < 0.2).all(), "both signs, not their mean"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observations": {}}, "at least one observation"),
        ({"observations": {"velocity": (3,)}}, "observations must be named"),
        ({"observations": {"image": (96, 96)}}, r"'image' must have a shape \(C, H, W\)"),
        ({"n_action_steps": 16}, "n_action_steps must be at most horizon − n_obs_steps"),
        ({"kind": "magic"}, "kind must be one of"),
        ({"network": "gpt"}, "network must be one of"),
        ({"action_low": (0.0,)}, "action_low must hold 2 numbers or none"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"prediction": "tea"}, "prediction"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        PolicyConfig(**{"observations": {"state": (3,)}, "action_dim": 2, **change})


def test_a_horizon_that_the_network_cannot_halve_is_refused():
    model = PolicyModel(PolicyConfig({"state": (3,)}, 2, horizon=15, steps=2, network_options=TINY))
    with pytest.raises(ValueError, match="horizon must be a multiple of 2"):
        model.predict({"state": torch.zeros(1, 2, 3)})


def test_images_points_and_transformers(tmp_path):
    seen = {"state": torch.zeros(2, 2, 2), "image": torch.rand(2, 2, 3, 48, 48)}
    shapes = {"state": (2,), "image": (3, 48, 48)}
    model = PolicyModel(
        PolicyConfig(
            shapes, 2, steps=2, network_options=TINY, encoder_options={"crop": (40, 40), "keypoints": 4}
        )
    ).eval()
    assert model.encoder.numbers == 2 * (2 + 8)
    assert model.predict(seen).shape == (2, 16, 2)
    clouds = PolicyModel(
        PolicyConfig(
            {"state": (2,), "points": (20, 3)},
            2,
            steps=2,
            network="transformer",
            network_options={"layers": 1, "width": 32},
        )
    ).eval()
    told = {"state": torch.zeros(2, 2, 2), "points": torch.rand(2, 2, 20, 3)}
    chunk = clouds.predict(told)
    shuffled = {**told, "points": told["points"][:, :, torch.randperm(20)]}
    torch.testing.assert_close(clouds.predict(shuffled), chunk, atol=1e-5, rtol=0)
