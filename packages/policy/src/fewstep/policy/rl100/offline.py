"""The offline stage: the chain moves towards what the critics praise, and a gate decides what is kept."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.training.state import derive_seed

from ..nets.mlp import StateValue, TwinCritic
from ..rl.critics import advantage, standardised
from ..rl.transitions import Transitions
from .keeping import Keeper
from .ope import Decide, Gate, WorldModel, imagined_value
from .policy_chain import ChainPolicy
from .ppo import chunk_log_ratio, surrogate_loss
from .recipe import OfflineStage


@dataclass
class Judges:
    """What an offline improvement listens to.

    Args:
        critic: of actions.
        value: of states.
        world: in which policies are imagined.
    """

    critic: TwinCritic
    value: StateValue
    world: WorldModel


@dataclass(frozen=True)
class Improvement:
    """How an offline improvement ended.

    Args:
        value: Ĵ of the policy that is kept.
        before: Ĵ of the one that it began with.
        accepted: how often the gate opened.
        put_back: how often the policy was put back.
        updates: batches.
    """

    value: float
    before: float
    accepted: int
    put_back: int
    updates: int


def decides(policy: ChainPolicy) -> Decide:
    """A chain policy as what acts in an imagined world: executed actions, normalised and flattened."""

    def decide(told: Tensor, generator: torch.Generator) -> Tensor:
        return executed_action(policy, _explored(policy, told, generator).action)

    return decide


def executed_action(
    policy: ChainPolicy, chunk: Float[Tensor, "batch horizon numbers"]
) -> Float[Tensor, "batch executed"]:
    """The executed actions of normalised chunks, within their limits, as the critics know them."""
    return policy.held(chunk)[:, policy.config.executed].flatten(1)


def improve_offline(
    policy: ChainPolicy,
    transitions: Transitions,
    judges: Judges,
    stage: OfflineStage,
    folder: Path,
    *,
    seed: int = 0,
    max_minutes: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Improvement:
    """Improve a chain policy without its environment; in the end it has the weights accepted last.

    For a batch of states of the data: the accepted policy π_i walks its chain; A = min Q − V of where it
    ends, standardised; then, denoising step by denoising step, one optimiser step on the clipped surrogate.
    Every `gate_every` batches the gate compares Ĵ(π) with Ĵ(π_i) on the same starts and draws.

    Args:
        policy: whose network learns; its encoder stays.
        transitions: of decisions, in the policy's encoding.
        judges: fitted to them.
        stage: settings.
        folder: of the run.
        seed: of everything that is drawn.
        max_minutes: of this stage, over all parts of the run.
        stop: asked after every batch; True ends the call, and the next one goes on from there.

    Returns:
        What came of it.

    Reference: Lei et al. 2025, "RL-100", offline stage; putting a refused policy back is ours, see `Gate`.
    """
    net = policy.model.net
    device = next(net.parameters()).device
    accepted = ChainPolicy(copy.deepcopy(policy.model), policy.chain)
    kept = accepted.model.net
    optimizer = torch.optim.Adam(net.parameters(), stage.rate)
    keeper = Keeper(folder, {"net": net, "accepted": kept, "optimizer": optimizer})
    at = keeper.restore()
    starts = _starts(transitions, stage.starts, seed).to(device)
    gate = Gate(stage.gate_share, stage.gate_patience)

    def judged(which: ChainPolicy) -> float:
        generator = torch.Generator(device).manual_seed(derive_seed(seed, 1))
        return imagined_value(decides(which), judges.world, judges.critic, starts, generator, stage.imagined)

    if not at:
        first = judged(accepted)
        at = {"step": 0, "before": first, "best": first, "accepted": 0, "refused": 0, "put_back": 0}
        at["minutes"] = 0.0
    began = time.monotonic() - 60 * at["minutes"]
    while at["step"] < stage.updates and not (max_minutes and at["minutes"] >= max_minutes):
        _update(policy, accepted, transitions, judges, stage, optimizer, at["step"], seed)
        at["step"] += 1
        at["minutes"] = (time.monotonic() - began) / 60
        if at["step"] % stage.gate_every == 0 or at["step"] == stage.updates:
            _ask_gate(gate, judged(policy), net, kept, optimizer, at)
            keeper.report(
                at["step"], "gate", **{k: at[k] for k in ("best", "candidate", "opened", "refused")}
            )
            keeper.save(**at)
        if stop():
            keeper.save(**at)
            break
    else:
        net.load_state_dict(kept.state_dict())
    return Improvement(at["best"], at["before"], at["accepted"], at["put_back"], at["step"])


def _update(
    policy: ChainPolicy,
    accepted: ChainPolicy,
    transitions: Transitions,
    judges: Judges,
    stage: OfflineStage,
    optimizer: torch.optim.Optimizer,
    step: int,
    seed: int,
) -> None:
    net = policy.model.net
    device = next(net.parameters()).device
    told = transitions.batch(np.random.default_rng([seed, step]), stage.batch_size).state.to(device)
    generator = torch.Generator(device).manual_seed(derive_seed(seed, step, 2))
    walked = _explored(accepted, told, generator)
    gain = advantage(judges.critic, judges.value, told, executed_action(policy, walked.action))
    gain = standardised(gain)
    clip = stage.clip * (1 - 0.9 * step / stage.updates)
    for k in range(len(policy.chain)):
        density = policy.density(told, k, walked.states[k], walked.states[k + 1])
        ratio = chunk_log_ratio(density, walked.log_probs[k], policy.config.executed)
        loss = surrogate_loss(ratio, gain, clip)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), stage.gradient)
        if bool(torch.isfinite(loss) & torch.isfinite(norm)):
            optimizer.step()


def _ask_gate(
    gate: Gate,
    candidate: float,
    net: torch.nn.Module,
    kept: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    at: dict,
) -> None:
    at["candidate"], at["opened"] = candidate, gate.accepts(candidate, at["best"])
    if at["opened"]:
        kept.load_state_dict(net.state_dict())
        at.update(best=candidate, accepted=at["accepted"] + 1, refused=0)
        return
    at["refused"] += 1
    if gate.fell(candidate, at["best"]) or at["refused"] >= gate.patience:
        net.load_state_dict(kept.state_dict())
        # The moments belong to gradients of weights that are gone.
        optimizer.state.clear()
        at.update(refused=0, put_back=at["put_back"] + 1)


def _explored(policy: ChainPolicy, told: Tensor, generator: torch.Generator):
    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

    return policy.explore(told, (), noise)


def _starts(transitions: Transitions, count: int, seed: int) -> Tensor:
    return transitions.batch(np.random.default_rng([seed, 3]), count).state
