"""Diffusion Q-Learning: an actor that is a short diffusion chain, improved through the chain."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core import paths
from fewstep.core.denoiser import Denoiser
from fewstep.core.objectives.sample_batch import normal_like
from fewstep.core.sample import sample
from fewstep.core.thresholding import Static, Thresholded

from ..nets.mlp import ActorConfig, ActorMLP
from ..rl.actor import Actor


def vp_betas(levels: int) -> tuple[float, ...]:
    """β_i = 1 − exp(−b0/T − (b1 − b0)(2i − 1)/(2T²)), b0 = 0.1, b1 = 10: the VP process cut into T pieces.

    Args:
        levels: T.

    Reference: Xiao, Kreis & Vahdat 2022, "Tackling the Generative Learning Trilemma", section 5.1; Wang,
        Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class", appendix (noise schedule).

    Example:
        >>> [round(beta, 4) for beta in vp_betas(2)]
        [0.724, 0.9768]
    """
    low, high = 0.1, 10.0
    return tuple(
        1 - math.exp(-low / levels - (high - low) * (2 * i - 1) / (2 * levels**2))
        for i in range(1, levels + 1)
    )


def linear_betas(levels: int) -> tuple[float, ...]:
    """From 1e-4 to 0.02 in equal steps, whatever T is.

    Args:
        levels: T.

    Reference: Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", section 4.
    """
    last = max(levels - 1, 1)
    return tuple(1e-4 + (0.02 - 1e-4) * i / last for i in range(levels))


def cosine_betas(levels: int) -> tuple[float, ...]:
    """1 − ᾱ_{i+1}/ᾱ_i, at most 0.999, with ᾱ_i = cos²((i/T + .008)/1.008·π/2), i = 0 … T.

    Args:
        levels: T.

    Reference: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17; the grid
        is that of Diffusion Q-Learning's released code.
    """
    kept = [math.cos((i / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(levels + 1)]
    return tuple(min(1 - after / before, 0.999) for before, after in pairwise(kept))


SCHEDULES: dict[str, Callable[[int], tuple[float, ...]]] = {
    "vp": vp_betas,
    "linear": linear_betas,
    "cosine": cosine_betas,
}


class DiffusionActor(Actor):
    """An action by T steps of ancestral sampling, all of which the critic's gradient passes through.

    x̂0 = clamp((x − σ_i ε_θ(x, i, s))/√ᾱ_i, ±1) at every step, so that a clamped number passes no gradient;
    the action is clamped once more.

    Args:
        config: of the network.
        levels: T.
        schedule: name of the betas, one of `SCHEDULES`.

    Raises:
        ValueError: an unknown schedule, or no level.

    Reference: Wang, Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class for Offline
        Reinforcement Learning", eqs. 1-3 and released code.

    Example:
        >>> actor = DiffusionActor(ActorConfig(action_dim=2, state_dim=5))
        >>> actor.act(torch.zeros(7, 5), torch.zeros(7, actor.draws, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(self, config: ActorConfig, levels: int = 5, schedule: str = "vp") -> None:
        super().__init__(config.action_dim)
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.net = ActorMLP(config)
        self.path = paths.VP.from_betas(SCHEDULES[schedule](levels))
        # One draw for the start and one for every step but the last, which adds none.
        self.levels, self.draws = levels, levels
        self._grid = (*(float(i) for i in reversed(range(levels))), self.path.t_clean)

    def unclamped(
        self, state: Float[Tensor, "batch state"], noise: Float[Tensor, "batch draws numbers"]
    ) -> Float[Tensor, "batch numbers"]:
        """The end of the chain as it is; arguments as of `act`."""
        denoise = Thresholded(Denoiser(self.net, self.path, "eps").given(state=state), Static(-1.0, 1.0))
        draws = iter(noise.unbind(1))
        return sample(
            denoise,
            self.path,
            "ancestral",
            grid=self._grid,
            shape=(len(state), self.numbers),
            noise=lambda like: next(draws),
            dtype=state.dtype,
            device=state.device,
            grad=torch.is_grad_enabled(),
        )

    def act(
        self, state: Float[Tensor, "batch state"], noise: Float[Tensor, "batch draws numbers"]
    ) -> Float[Tensor, "batch numbers"]:
        """The end of the chain, clamped.

        Args:
            state: normalised.
            noise: of the start, then of every step but the last.
        """
        return self.unclamped(state, noise).clamp(-1, 1)

    def behaviour_loss(
        self,
        state: Float[Tensor, "batch state"],
        action: Float[Tensor, "batch numbers"],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """`denoising_loss` at levels drawn uniformly."""
        level = torch.randint(self.levels, (len(state),), device=state.device, generator=generator)
        return {"loss": self.denoising_loss(state, action, level, normal_like(action, generator))}

    def denoising_loss(
        self,
        state: Float[Tensor, "batch state"],
        action: Float[Tensor, "batch numbers"],
        level: Int[Tensor, "batch"],
        noise: Float[Tensor, "batch numbers"],
    ) -> Float[Tensor, ""]:
        """mean (ε − ε_θ(√ᾱ_i a + √(1 − ᾱ_i) ε, i, s))².

        Args:
            state: normalised.
            action: that was done there.
            level: i, from 0.
            noise: ε.

        Reference: Wang, Hunt & Zhou 2023, eq. 2.
        """
        x = self.path.corrupt(action, level.double(), noise)
        return (self.net(x, level, state=state) - noise).square().mean()
