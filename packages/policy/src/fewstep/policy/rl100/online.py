"""The online stage: proximal policy optimisation over the chain, with whole episodes of the environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.training.state import derive_seed

from ..envs.spec import EnvSpec
from ..nets.mlp import StateValue
from ..rl.critics import standardised
from .collect import Collected, collect
from .gae import estimate_advantages
from .keeping import Keeper
from .policy_chain import ChainPolicy
from .ppo import adapted_rate, approximate_kl, chunk_log_ratio, clipped_value_loss, surrogate_loss
from .recipe import OnlineStage

# Seeds of training episodes lie between those of validation and those of tests.
FIRST_SEED = 60_000


@dataclass(frozen=True)
class Decisions:
    """What was decided, one row each.

    Args:
        told: encoded observations.
        states: of the chain.
        log_probs: of its steps, of the policy that acted.
        advantage: of the decision.
        value: V before learning.
        target: what V should have said.
    """

    told: Float[Tensor, "rows told"]
    states: Float[Tensor, "rows states horizon numbers"]
    log_probs: Float[Tensor, "rows steps horizon numbers"]
    advantage: Float[Tensor, "rows 1"]
    value: Float[Tensor, "rows 1"]
    target: Float[Tensor, "rows 1"]

    def __len__(self) -> int:
        return len(self.told)

    def at(self, rows: Tensor) -> Decisions:
        """Some of them."""
        return Decisions(**{name: value[rows] for name, value in vars(self).items()})


@torch.no_grad()
def decisions_from(collected: Collected, value: StateValue, lam: float) -> Decisions:
    """Advantages of collected decisions, episode by episode, as rows.

    Args:
        collected: episodes.
        value: of encoded observations.
        lam: λ.
    """
    device = next(value.parameters()).device
    told = collected.told.to(device)
    said = value(told.flatten(0, 1)).unflatten(0, told.shape[:2])[..., 0]
    reward, discount, terminal, ended, active = (
        given.to(device)
        for given in (
            collected.reward,
            collected.discount,
            collected.terminal,
            collected.ended,
            collected.active,
        )
    )
    found = estimate_advantages(reward, said[:-1], said[1:], discount, terminal, ended, lam)
    return Decisions(
        told[:-1][active],
        collected.states.to(device)[active],
        collected.log_probs.to(device)[active],
        found.advantage[active][:, None],
        said[:-1][active][:, None],
        found.target[active][:, None],
    )


def improve_online(
    policy: ChainPolicy,
    value: StateValue,
    spec: EnvSpec,
    stage: OnlineStage,
    folder: Path,
    *,
    reward: str = "none",
    discount: float = 0.99,
    seed: int = 0,
    max_minutes: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Improve a chain policy in its environment; resumable between iterations.

    An iteration runs whole episodes, so that nothing of an environment has to be remembered. All denoising
    steps of a decision share its advantage, and a mini-batch moves the policy once for all of them.

    Args:
        policy: whose network learns; its encoder stays.
        value: of encoded observations, such as the offline stage's.
        spec: of the environment.
        stage: settings.
        folder: of the run.
        reward: how rewards are tuned.
        discount: γ of a step.
        seed: of everything that is drawn.
        max_minutes: of this stage, over all parts of the run.
        stop: asked after every iteration; True ends the call, and the next one goes on from there.

    Returns:
        Numbers of the last iteration.

    Reference: Lei et al. 2025, "RL-100", online stage; Ren et al. 2024, "Diffusion Policy Policy
        Optimization", section 4; Schulman et al. 2017, "Proximal Policy Optimization Algorithms".
    """
    net = policy.model.net
    actor = torch.optim.Adam(net.parameters(), stage.rate, eps=1e-5)
    critic = torch.optim.Adam(value.parameters(), stage.value_rate, eps=1e-5)
    keeper = Keeper(folder, {"net": net, "value": value, "actor": actor, "critic": critic})
    at = keeper.restore() or {"step": 0, "rate": stage.rate, "minutes": 0.0, "told": {}}
    began = time.monotonic() - 60 * at["minutes"]
    while at["step"] < stage.iterations and not (max_minutes and at["minutes"] >= max_minutes):
        number = at["step"]
        collected = collect(
            policy, spec, training_seeds(spec, stage.episodes, number, seed), reward, discount
        )
        rows = decisions_from(collected, value, stage.lam)
        generator = torch.Generator().manual_seed(derive_seed(seed, number, 4))
        waiting = number < stage.critic_first
        kl, rate = _learn(policy, value, rows, stage, actor, critic, at["rate"], generator, waiting)
        at["step"], at["rate"] = number + 1, rate
        at["minutes"] = (time.monotonic() - began) / 60
        at["told"] = {**collected.summary(), "divergence": kl, "rate": rate}
        keeper.report(at["step"], "online", **at["told"])
        keeper.save(**at)
        if stop():
            break
    return dict(at["told"])


def training_seeds(spec: EnvSpec, count: int, number: int, seed: int) -> list[int]:
    """Seeds of an iteration's episodes, which no validation and no test uses.

    Args:
        spec: of the environment.
        count: of episodes.
        number: of the iteration.
        seed: of the run.
    """
    room = max(spec.first_test_seed - FIRST_SEED, count)
    start = derive_seed(seed, 5) % room + number * count
    return [FIRST_SEED + (start + i) % room for i in range(count)]


def _learn(
    policy: ChainPolicy,
    value: StateValue,
    rows: Decisions,
    stage: OnlineStage,
    actor: torch.optim.Optimizer,
    critic: torch.optim.Optimizer,
    rate: float,
    generator: torch.Generator,
    waiting: bool,
) -> tuple[float, float]:
    """All passes over what was collected: how far the policy moved, and the rate for the next iteration.

    Once the policy has moved far enough the value goes on alone: its targets do not depend on it.
    """
    spread = float(rows.target.std()) if len(rows) > 1 else 1.0
    kl = 0.0
    for _ in range(stage.passes):
        for group in actor.param_groups:
            group["lr"] = rate
        seen = []
        for chosen in torch.randperm(len(rows), generator=generator).split(stage.batch_size):
            part = rows.at(chosen.to(rows.told.device))
            # The published limit of 0.2 is for returns of a spread of about 1.
            loss = clipped_value_loss(
                value(part.told), part.value, part.target, stage.clip * max(spread, 1e-3)
            )
            _step(critic, loss, list(value.parameters()), stage.gradient)
            if not waiting and len(part) > 1:
                seen.append(_move(policy, part, stage, actor))
        if not waiting:
            kl = sum(seen) / len(seen) if seen else 0.0
            rate = adapted_rate(rate, kl, stage.divergence, *stage.rates)
            waiting = kl > 2 * stage.divergence
    return kl, rate


def _move(policy: ChainPolicy, part: Decisions, stage: OnlineStage, actor: torch.optim.Optimizer) -> float:
    """One step of the policy, for all denoising steps at once; how far it had moved before."""
    gain, executed = standardised(part.advantage), policy.config.executed
    loss, moved = torch.zeros((), device=part.told.device), 0.0
    for k in range(len(policy.chain)):
        density = policy.density(part.told, k, part.states[:, k], part.states[:, k + 1])
        ratio = chunk_log_ratio(density, part.log_probs[:, k], executed)
        loss = loss + surrogate_loss(ratio, gain, stage.clip) / len(policy.chain)
        moved += approximate_kl(ratio.detach())
    _step(actor, loss, list(policy.model.net.parameters()), stage.gradient)
    return moved


def _step(
    optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[torch.nn.Parameter], limit: float
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    if bool(torch.isfinite(loss) & torch.isfinite(norm)):
        optimizer.step()
