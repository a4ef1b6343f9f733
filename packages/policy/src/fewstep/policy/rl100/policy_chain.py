"""A policy whose way from noise to action is a chain of decisions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.noise import GivenNoise, SampleNoise
from fewstep.core.paths import RectifiedFlow
from fewstep.core.paths.vp import TableVP

from ..model import PolicyModel
from .chain import Chain, DDIMChain, FlowChain, Network, Trajectory, log_density, walk


def chain_of(model: PolicyModel, steps: int, std_min: float, std_max: float, offset: int = 1) -> Chain:
    """The chain that fits a policy: DDIM's for noise on a table, the flow's for velocities.

    Args:
        model: of kind "ode" that predicts noise on a table of betas, or on rectified flow; or "flow-map".
        steps: K.
        std_min, std_max: limits of the deviation of a step.
        offset: of DDIM's levels, see `DDIMChain`.

    Raises:
        ValueError: a policy that no chain is known for.
    """
    path, config = model.path, model.config
    if config.kind != "regression" and isinstance(path, RectifiedFlow) and config.prediction == "velocity":
        return FlowChain(steps, "cps", std_min=std_min, std_max=std_max)
    if config.kind == "ode" and isinstance(path, TableVP) and config.prediction == "eps":
        return DDIMChain(path, steps, offset, std_min, std_max, clip=config.clip)
    raise ValueError(
        "model must predict noise on a table of betas ('ddpm', 'ddim'), or velocities on rectified flow "
        f"('flow', 'meanflow'); it is of kind {config.kind!r} and predicts {config.prediction!r} on {path}"
    )


class ChainPolicy(nn.Module):
    """A `PolicyModel` that acts by its chain, and knows the density of what it did.

    Args:
        model: whose encoder stays as it is while its network learns.
        chain: from `chain_of`.

    Reference: Lei et al. 2025, "RL-100: Performant Robotic Manipulation with Real-World Reinforcement
        Learning", the denoising chain as an inner decision process; Ren et al. 2024, "Diffusion Policy Policy
        Optimization", section 4.
    """

    def __init__(self, model: PolicyModel, chain: Chain) -> None:
        super().__init__()
        self.model, self.chain = model, chain

    @property
    def config(self):
        """Of the model."""
        return self.model.config

    def network(self, told: Float[Tensor, "batch told"]) -> Network:
        """The model's network for some observations, by the number of the step."""
        flow = self.model.flow_map(told)

        def ask(x: Tensor, step: int) -> Tensor:
            t = torch.full((len(x),), self.chain.times[step], dtype=torch.float64, device=x.device)
            return flow.predict(x, t, torch.full_like(t, self.chain.targets[step]))

        return ask

    @torch.no_grad()
    def explore(
        self, told: Float[Tensor, "batch told"], seeds: Sequence[int] = (), noise: Any = None
    ) -> Trajectory:
        """Walk the chain with noise at every step.

        Args:
            told: encoded observations.
            seeds: one for each; not needed with `noise`.
            noise: noise(like) gives standard normal draws in place of the generators.
        """
        config = self.config
        shape = (len(told), len(self.chain) + 1, config.horizon, config.action_dim)
        draws = torch.empty(shape, dtype=told.dtype, device=told.device)
        source = SampleNoise(list(seeds), len(told), told.device) if noise is None else GivenNoise(noise)
        source.fill(draws)
        start, *later = draws.unbind(1)
        return walk(self.chain, self.network(told), start, torch.stack(later))

    def density(
        self,
        told: Float[Tensor, "batch told"],
        step: int,
        x: Float[Tensor, "batch horizon numbers"],
        following: Float[Tensor, "batch horizon numbers"],
    ) -> Float[Tensor, "batch horizon numbers"]:
        """ln π of a step that was taken, number by number, with its graph.

        Args:
            told: encoded observations.
            step: its number.
            x: the state before.
            following: the state after.
        """
        return log_density(following, self.chain.moments(step, x, self.network(told)(x, step)))

    @torch.no_grad()
    def settled(
        self, told: Float[Tensor, "batch told"], start: Float[Tensor, "batch horizon numbers"]
    ) -> Float[Tensor, "batch horizon numbers"]:
        """The chunk that the means of all steps lead to.

        Args:
            told: encoded observations.
            start: standard normal.
        """
        network, x = self.network(told), start
        for step in range(len(self.chain)):
            x = self.chain.moments(step, x, network(x, step)).mean
        return x

    @torch.no_grad()
    def predict(
        self,
        observation: Mapping[str, Float[Tensor, "batch steps *shape"]],
        *,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        noise: Any = None,
    ) -> Float[Tensor, "batch horizon numbers"]:
        """One action chunk per observation, by the means of the steps; as `PolicyModel.predict`."""
        if steps not in (None, len(self.chain)):
            raise ValueError(f"steps must be {len(self.chain)}, those of the chain, got {steps}")
        told = self.model.encode(observation)
        start = told.new_empty(len(told), self.config.horizon, self.config.action_dim)
        source = SampleNoise(seed, len(told), told.device) if noise is None else GivenNoise(noise)
        source.fill(start)
        return self.model.normalizer.unnormalize("action", self.held(self.settled(told, start)))

    def held(self, chunk: Float[Tensor, "batch horizon numbers"]) -> Float[Tensor, "batch horizon numbers"]:
        """A normalised chunk within the policy's limits, as it is carried out."""
        clip = self.config.clip
        return chunk.clamp(-clip, clip) if clip else chunk
