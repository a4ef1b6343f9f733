"""Diffusion Q-Learning against the published agent, and its bad input."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.training.phases import Moment
from fewstep.policy.methods.dql import SCHEDULES, DiffusionActor, cosine_betas
from fewstep.policy.nets.mlp import ActorConfig, TwinCritic
from fewstep.policy.rl.actor_critic import ActorCritic, ActorCriticConfig
from fewstep.policy.rl.critics import double_q_loss, policy_value_loss, value_of_actions
from fewstep.policy.rl.transitions import Batch

GOLDEN = Path(__file__).parents[1] / "golden" / "policy"
FILES = {name: load_file(GOLDEN / f"{name}.safetensors") for name in ("dql_0", "dql_1")}
CONFIGS = {name: json.loads((GOLDEN / f"{name}.json").read_text())["config"] for name in FILES}
both = pytest.mark.parametrize("name", FILES)


def part(name: str, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in FILES[name].items() if key.startswith(prefix)}


def actor_of(name: str) -> DiffusionActor:
    config = CONFIGS[name]
    actor = DiffusionActor(ActorConfig(2, 5), config["n_timesteps"], config["beta_schedule"])
    actor.net.load_state_dict(part(name, "sd.actor.model."))
    return actor


def critic_by_formula() -> TwinCritic:
    """The weights that the golden file's description gives."""
    critic = TwinCritic(5, 2)
    for k, parameter in enumerate(critic.parameters()):
        j = torch.arange(parameter.numel(), dtype=torch.float64)
        flat = torch.sin(0.1 * j + k) / parameter.shape[-1] ** 0.5
        if parameter.ndim == 1:
            flat = 0.1 * torch.cos(j + k)
        parameter.data = flat.reshape(parameter.shape).float()
    return critic


def draws(name: str, which: str) -> Tensor:
    """(batch, draws, numbers); the chain's last draw is not used."""
    return FILES[name][f"in.{which}_noise"].movedim(0, 1)[:, :-1]


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@both
def test_betas(name: str) -> None:
    wanted = FILES[name]["sd.actor.betas"]
    found = torch.tensor(SCHEDULES[CONFIGS[name]["beta_schedule"]](len(wanted)))
    close(found, wanted, 1e-7)


def test_cosine_betas_end_at_their_limit() -> None:
    betas = cosine_betas(5)
    assert len(betas) == 5
    assert betas[-1] == 0.999
    assert list(betas) == sorted(betas)


def published_chain(name: str, actor: DiffusionActor) -> Tensor:
    """The chain by the coefficients of the file, which were rounded to float32 on their way."""
    table, state = part(name, "sd.actor."), FILES[name]["in.state"]
    noise = FILES[name]["in.sample_noise"]
    x = noise[0]
    for number, i in enumerate(reversed(range(actor.levels)), start=1):
        said = actor.net(x, torch.full((len(x),), i), state=state)
        x0 = table["sqrt_recip_alphas_cumprod"][i] * x - table["sqrt_recipm1_alphas_cumprod"][i] * said
        mean = table["posterior_mean_coef1"][i] * x0.clamp(-1, 1) + table["posterior_mean_coef2"][i] * x
        std = (0.5 * table["posterior_log_variance_clipped"][i]).exp()
        x = mean + std * noise[number] if i else mean
    return x


def rounding_of(name: str) -> float:
    """By how much the file's coefficients of x̂0 differ from their values in float64."""
    betas = torch.tensor(SCHEDULES[CONFIGS[name]["beta_schedule"]](CONFIGS[name]["n_timesteps"]))
    kept = (1 - betas.double()).cumprod(0)
    before = torch.cat([torch.ones(1).double(), kept[:-1]])
    exact = betas * before.sqrt() / (1 - kept)
    return float((exact - FILES[name]["sd.actor.posterior_mean_coef1"]).abs().max())


@both
def test_chain_and_cloning_loss(name: str) -> None:
    golden, actor = FILES[name], actor_of(name)
    # With betas from 1e-4 on, 1 − ᾱ loses three digits in float32; ours are made in float64.
    tolerance = 1e-5 + 2 * rounding_of(name)
    with torch.no_grad():
        end = actor.unclamped(golden["in.state"], draws(name, "sample"))
        acted = actor.act(golden["in.state"], draws(name, "policy"))
        level, noise = golden["in.loss_t"], golden["in.loss_noise"]
        loss = actor.denoising_loss(golden["in.state"], golden["in.action"], level, noise)
        by_their_table = published_chain(name, actor)
    close(by_their_table, golden["out.sample_unclamped"])
    close(end, golden["out.sample_unclamped"], tolerance)
    close(end, golden["out.chain"][:, -1], tolerance)
    close(acted, golden["out.new_action"], tolerance)
    close(loss, golden["out.bc_loss"])


def test_critic_and_its_target() -> None:
    golden, actor, critic = FILES["dql_1"], actor_of("dql_1"), critic_by_formula()
    state, following = golden["in.state"], golden["in.next_state"]
    config = ActorCriticConfig(eta=0.5, backup="max", candidates=10)
    with torch.no_grad():
        actions = actor.act(following.repeat_interleave(10, 0), draws("dql_1", "target"))
    batch = Batch(
        state,
        golden["in.action"][:, None],
        golden["in.reward"],
        following,
        0.99 * golden["in.not_done"],
        torch.ones(6, 1, dtype=torch.bool),
    )
    target = ActorCritic(actor, critic, config).target_value(critic, batch, actions.unflatten(0, (6, 10)))
    close(target, golden["out.target_q"])
    close(double_q_loss(critic, state, golden["in.action"], target), golden["out.critic_loss"])


def test_actor_loss_and_gradients() -> None:
    golden, actor, critic = FILES["dql_1"], actor_of("dql_1"), critic_by_formula()
    state = golden["in.state"]
    acted = actor.act(state, draws("dql_1", "policy"))
    first = policy_value_loss(critic, state, acted, first=True)
    second = policy_value_loss(critic, state, acted, first=False)
    level, noise = golden["in.loss_t"], golden["in.loss_noise"]
    loss = actor.denoising_loss(state, golden["in.action"], level, noise) + 0.5 * first
    close(first, golden["out.q_loss_opt1"])
    close(second, golden["out.q_loss_opt2"])
    close(loss, golden["out.actor_loss_opt1"])
    loss.backward()
    wanted = part("dql_1", "out.grad.")
    found = {name: value.grad for name, value in actor.net.named_parameters() if name in wanted}
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        assert gradient is not None
        close(gradient, wanted[name])


def test_least_of_both_heads_of_one_action() -> None:
    critic, state, action = critic_by_formula(), torch.randn(4, 5), torch.randn(4, 1, 2)
    first, second = (value.detach() for value in critic(state, action[:, 0]))
    close(value_of_actions(critic, state, action, "min"), torch.minimum(first, second))
    close(value_of_actions(critic, state, action, "mean"), (first + second) / 2)
    assert bool((first != second).all())


def test_clamped_numbers_pass_no_gradient() -> None:
    actor = DiffusionActor(ActorConfig(2, 5), levels=1)
    torch.nn.init.zeros_(actor.net.final_layer.weight)
    actor.net.final_layer.bias.data = torch.tensor([0.0, -100.0])
    action = actor.act(torch.zeros(1, 5), torch.zeros(1, 1, 2))
    (gradient,) = torch.autograd.grad(action.sum(), actor.net.final_layer.bias)
    assert action[0].tolist() == [0.0, 1.0]
    assert float(gradient[0]) != 0
    assert float(gradient[1]) == 0


def test_average_actor_starts_late_and_target_moves_at_once() -> None:
    torch.manual_seed(0)
    actor, critic = actor_of("dql_1"), TwinCritic(5, 2)
    agents = ActorCritic(actor, critic, ActorCriticConfig(average_from=10, average_every=5, tau=0.1))
    networks = {"student": actor, **agents.modules()}
    with torch.no_grad():
        actor.net.final_layer.bias.add_(1)
        critic.q1_model[0].bias.add_(1)  # type: ignore[union-attr, operator]
    average = agents.average.net.final_layer.bias  # type: ignore[union-attr]
    before = average.clone()  # type: ignore[operator]
    for step in (0, 5, 9, 11):
        agents.after_update("actor", networks, Moment(step))  # type: ignore[arg-type]
    close(average, before, 0)  # type: ignore[arg-type]
    agents.after_update("actor", networks, Moment(10))  # type: ignore[arg-type]
    close(average - before, torch.full_like(before, 0.005), 1e-6)  # type: ignore[operator]
    agents.after_update("critic", networks, Moment(0))  # type: ignore[arg-type]
    assert agents.target is not None
    moved = agents.target.q1_model[0].bias - critic.q1_model[0].bias  # type: ignore[operator]
    close(moved, torch.full_like(moved, -0.9), 1e-6)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"levels": 0}, "levels"), ({"schedule": "sine"}, "vp, linear, cosine")],
)
def test_bad_actor(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        DiffusionActor(ActorConfig(2, 5), **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("eta", -1.0), ("tau", 2.0), ("backup", "sum"), ("candidates", 0), ("actor_rate", 0.0), ("gain", "big")],
)
def test_bad_settings(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        ActorCriticConfig(**{name: value})  # type: ignore[arg-type]
