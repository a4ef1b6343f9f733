"""Offline policy evaluation: what a policy would gain in a learned model of the world, and the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..rl.critics import TwoValues

Decide = Callable[[Tensor, torch.Generator], Tensor]
"""(states, generator) → flattened actions."""


class WorldModel(nn.Module):
    """Several networks that predict the next state, s' ~ N(s + Δ(s, a), σ²(s, a)); the best few are used.

    Args:
        state_dim: numbers of the state, the policy's encoded observations.
        action_dim: numbers of an action or a chunk.
        hidden: width.
        depth: hidden layers.
        members: networks that are trained.
        elites: networks that are used after `choose_elites`.

    Raises:
        ValueError: more elites than members, or none.

    Reference: Chua et al. 2018, "Deep Reinforcement Learning in a Handful of Trials using Probabilistic
        Dynamics Models"; Lei et al. 2025, "RL-100", released code (7 members, 5 elites, 4 × 400).
    """

    elite: Tensor

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: int = 400,
        depth: int = 4,
        members: int = 7,
        elites: int = 5,
    ) -> None:
        super().__init__()
        if not 1 <= elites <= members:
            raise ValueError(f"elites must lie in 1..{members}, got {elites}")
        sizes = [state_dim + action_dim, *[hidden] * depth, 2 * state_dim]
        self.members, self.elites = members, elites
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for into, out in pairwise(sizes):
            self.weights.append(torch.randn(members, into, out) / (2 * into**0.5))
            self.biases.append(torch.zeros(members, 1, out))
        self.register_buffer("elite", torch.arange(elites))

    def forward(
        self, state: Float[Tensor, "members batch state"], action: Float[Tensor, "members batch action"]
    ) -> tuple[Float[Tensor, "members batch state"], Float[Tensor, "members batch state"]]:
        """Mean of s' and ln σ², member by member."""
        h = torch.cat([state, action], dim=-1)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if number < len(self.weights) - 1:
                h = nn.functional.silu(h)
        change, spread = h.chunk(2, dim=-1)
        # Between −10 and 0.5, softly, as a likelihood has no bound where data are exact.
        spread = 0.5 - nn.functional.softplus(0.5 - spread)
        return state + change, -10 + nn.functional.softplus(spread + 10)

    def loss(
        self,
        state: Float[Tensor, "members batch state"],
        action: Float[Tensor, "members batch action"],
        following: Float[Tensor, "members batch state"],
    ) -> Float[Tensor, " members"]:
        """½ mean ((s' − μ)²/σ² + ln σ²) of every member.

        Args:
            state: s, a batch for each member.
            action: a.
            following: s'.

        Reference: Lakshminarayanan, Pritzel & Blundell 2017, "Simple and Scalable Predictive Uncertainty
            Estimation using Deep Ensembles", eq. 1.
        """
        mean, spread = self(state, action)
        return 0.5 * ((following - mean).square() * (-spread).exp() + spread).mean((1, 2))

    @torch.no_grad()
    def choose_elites(
        self,
        state: Float[Tensor, "batch state"],
        action: Float[Tensor, "batch action"],
        following: Float[Tensor, "batch state"],
    ) -> list[float]:
        """Keep the members with the smallest squared error on held-out transitions.

        Returns:
            The error of every member.
        """
        mean, _ = self(*(given.expand(self.members, *given.shape) for given in (state, action)))
        errors = (mean - following).square().mean((1, 2))
        self.elite.copy_(errors.argsort()[: self.elites])
        return errors.tolist()

    @torch.no_grad()
    def step(
        self,
        state: Float[Tensor, "batch state"],
        action: Float[Tensor, "batch action"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch state"]:
        """The next state by an elite drawn for each row, with its noise.

        Args:
            state: s.
            action: a, flattened.
            generator: of the choice and the noise.
        """
        mean, spread = self(*(given.expand(self.members, *given.shape) for given in (state, action)))
        drawn = torch.randint(self.elites, (len(state),), generator=generator, device=state.device)
        rows = torch.arange(len(state), device=state.device)
        member = self.elite[drawn]
        noise = torch.randn(state.shape, dtype=state.dtype, device=state.device, generator=generator)
        return mean[member, rows] + (0.5 * spread[member, rows]).exp() * noise


@torch.no_grad()
def imagined_value(
    decide: Decide,
    world: WorldModel,
    critic: TwoValues,
    starts: Float[Tensor, "batch state"],
    generator: torch.Generator,
    length: int = 20,
) -> float:
    """Ĵ(π) = mean over the starts and H imagined decisions of min(Q1, Q2)(s_t, a_t), a_t ~ π: AM-Q.

    Args:
        decide: π.
        world: of the transitions between decisions.
        critic: that judges.
        starts: states of the data.
        generator: of everything that is drawn; give both policies the same one to compare them.
        length: H.

    Raises:
        ValueError: no decision.

    Reference: Lei et al. 2025, "RL-100", offline policy evaluation (AM-Q) and released code
        (rollout_length 20); Lei et al. 2024, "Uni-O4", section 4.3.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    state, total = starts, 0.0
    for _ in range(length):
        action = decide(state, generator)
        total += float(torch.minimum(*critic(state, action)).mean())
        state = world.step(state, action, generator)
    return total / length


@dataclass(frozen=True)
class Gate:
    """Whether a policy is good enough to take the place of the one it came from.

    accepted if Ĵ(π) − Ĵ(π_i) ≥ δ, δ = share·|Ĵ(π_i)|. The published code accepts any gain, δ = 0, and lets
    a refused policy learn on. Here a refused policy that fell by δ or more, or that was refused `patience`
    times in a row, is put back to the weights that were accepted last; that is ours.

    Args:
        share: of δ.
        patience: refusals in a row after which the policy is put back.

    Raises:
        ValueError: a share that is negative, or no patience.

    Reference: Lei et al. 2025, "RL-100", its gate with δ = 0.05·|Ĵ(π_i)|.

    Example:
        >>> gate = Gate()
        >>> gate.accepts(1.06, 1.0), gate.accepts(1.04, 1.0), gate.fell(0.94, 1.0)
        (True, False, True)
    """

    share: float = 0.05
    patience: int = 5

    def __post_init__(self) -> None:
        if not self.share >= 0 or self.patience < 1:
            raise ValueError(
                f"share must not be negative and patience at least 1, got {self.share}, {self.patience}"
            )

    def accepts(self, candidate: float, best: float) -> bool:
        """Whether the candidate gains δ or more; never when its value is not a number."""
        return candidate - best >= self.share * abs(best)

    def fell(self, candidate: float, best: float) -> bool:
        """Whether the candidate lost δ or more, or has no value."""
        return not candidate - best > -max(self.share * abs(best), 1e-12)
