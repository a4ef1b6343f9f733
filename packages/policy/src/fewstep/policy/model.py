"""PolicyModel: observations to action chunks, by diffusion, by one jump, or by plain regression."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core import grids, paths
from fewstep.core.checkpoints import Checkpoint
from fewstep.core.configs import config_from_dict
from fewstep.core.flow_map import FlowMap
from fewstep.core.noise import GivenNoise, SampleNoise
from fewstep.core.paths import Path
from fewstep.core.sample import sample
from fewstep.core.solvers.consistency import GammaSampling
from fewstep.core.thresholding import Static, Thresholded

from .clipped_ddim import clipped_ddim
from .config import PolicyConfig
from .nets.chunk_mlp import ChunkMLP, ChunkMLPConfig
from .nets.observation import EncoderConfig, ObservationEncoder
from .nets.told_transformer import ToldTransformer
from .nets.transformer import TransformerConfig
from .nets.unet1d import ConditionalUnet1D, Unet1dConfig
from .normalizer import Normalizer


def build_network(config: PolicyConfig, told: int) -> nn.Module:
    """The network of a configuration.

    Args:
        config: of the policy.
        told: numbers that the observation encoder gives.

    Raises:
        ValueError: options that the network does not have.
    """
    options = dict(config.network_options)
    if config.kind == "flow-map":
        options.setdefault("two_times", True)
    sizes: dict[str, Any] = {"global_cond_dim": told}
    if config.network == "unet1d":
        sizes["input_dim"] = config.action_dim
        unet = ConditionalUnet1D(config_from_dict(Unet1dConfig, {**options, **sizes}, "network_options"))
        if config.kind == "flow-map":
            # Targets hold the network's own derivative by time: it must begin at zero.
            for parameter in unet.final_conv[-1].parameters():
                nn.init.zeros_(parameter)
        return unet
    if config.network == "transformer":
        sizes = {"input_dim": config.action_dim, "horizon": config.horizon, "n_obs_steps": config.n_obs_steps}
        sizes["cond_dim"] = told // config.n_obs_steps
        return ToldTransformer(config_from_dict(TransformerConfig, {**options, **sizes}, "network_options"))
    sizes |= {"horizon": config.horizon, "action_dim": config.action_dim}
    return ChunkMLP(config_from_dict(ChunkMLPConfig, {**options, **sizes}, "network_options"))


class PolicyModel(nn.Module, Checkpoint):
    """Network, encoder, normaliser and path of a policy, in one checkpoint.

    Args:
        config: see PolicyConfig.

    Example:
        >>> config = PolicyConfig({"state": (5,)}, action_dim=2, steps=2, network_options={
        ...     "embedding": 16, "down_dims": (8, 16)})
        >>> PolicyModel(config).predict({"state": torch.zeros(3, 2, 5)}).shape
        torch.Size([3, 16, 2])

    Reference: Chi et al. 2023, "Diffusion Policy"; Geng et al. 2025, "Mean Flows for One-step Generative
        Modeling", for kind "flow-map".
    """

    config: PolicyConfig
    config_class = PolicyConfig
    package = "fewstep.policy"

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        features = {name: tuple(shape) for name, shape in config.observations.items()}
        features["action"] = (config.action_dim,)
        self.normalizer = Normalizer.blank(features, config.modes)  # type: ignore[arg-type]
        options = config_from_dict(EncoderConfig, dict(config.encoder_options), "encoder_options")
        self.encoder = ObservationEncoder(config.observations, config.n_obs_steps, options)
        self.net = build_network(config, self.encoder.numbers)
        self.path: Path = paths.from_config(dict(config.path))

    def encode(
        self, observation: Mapping[str, Float[Tensor, "batch steps *shape"]]
    ) -> Float[Tensor, "batch told"]:
        """What the network is told: the observations, normalised, encoded and flattened.

        Args:
            observation: one tensor per name of the configuration, the oldest step first.

        Raises:
            ValueError: a shape that is not the configuration's.
        """
        seen = {}
        for name, shape in self.config.observations.items():
            value = observation[name]
            if tuple(value.shape[1:]) != (self.config.n_obs_steps, *shape):
                wanted = ("batch", self.config.n_obs_steps, *shape)
                raise ValueError(f"observation {name!r} must be {wanted}, got {tuple(value.shape)}")
            seen[name] = self.normalizer.normalize(name, value)
        return self.encoder(seen)

    def flow_map(self, told: Float[Tensor, "batch told"] | None = None) -> FlowMap:
        """The network as a map between times of normalised chunks."""
        conditions = {} if told is None else {"global_cond": told}
        return FlowMap(self.net, self.path, self.config.prediction, conditions)

    @torch.no_grad()
    def predict(
        self,
        observation: Mapping[str, Float[Tensor, "batch steps *shape"]],
        *,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        noise: Any = None,
    ) -> Float[Tensor, "batch horizon numbers"]:
        """Draw one action chunk per observation.

        Args:
            observation: as of `encode`.
            steps: network calls (None: the policy's own number).
            seed: chunk i draws from a generator seeded with seed + i; or one seed per chunk.
            noise: noise(like) gives standard normal draws in place of the generators.

        Returns:
            Actions in the units of the demonstrations; action i belongs to time now − n_obs_steps + 1 + i.

        Raises:
            ValueError: steps out of range, or observations that do not fit.
        """
        chunk = self.draw(self.encode(observation), steps=steps, seed=seed, noise=noise)
        return self.normalizer.unnormalize("action", chunk)

    def draw(
        self,
        told: Float[Tensor, "batch told"],
        *,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        noise: Any = None,
        grad: bool = False,
    ) -> Float[Tensor, "batch horizon numbers"]:
        """Draw normalised chunks for encoded observations; arguments as of `predict`.

        Args:
            told: what `encode` gives.
            steps: network calls.
            seed: of the noise.
            noise: in place of the generators.
            grad: let gradients flow through all calls.
        """
        config = self.config
        steps = config.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if config.most_steps and steps > config.most_steps:
            raise ValueError(
                f"steps must be at most {config.most_steps}, which this policy learned, got {steps}"
            )
        shape = (len(told), config.horizon, config.action_dim)
        if config.kind == "regression":
            if steps != 1:
                raise ValueError(f"steps must be 1 for a policy of kind 'regression', got {steps}")
            empty = told.new_zeros(shape)
            return self._clipped(self.net(empty, empty.new_zeros(len(told)), global_cond=told))
        options: dict[str, Any] = {"shape": shape, "seed": seed, "noise": noise, "grad": grad}
        options |= {"device": told.device, "dtype": told.dtype}
        flow = self.flow_map(told)
        if config.kind == "flow-map":
            times, solver = config.times(steps), GammaSampling(0.0)
            jump = solver.asking(_asked(flow), self.path, times)
            return self._clipped(sample(jump, self.path, solver, grid=times, **options))
        if config.solver == "ddim" and config.clip and config.kind == "ode":
            times = grids.get(config.grid)(self.path, steps)
            start = SampleNoise(seed, len(told), told.device) if noise is None else GivenNoise(noise)
            x = torch.empty(shape, device=told.device, dtype=told.dtype)
            start.fill(x)
            with torch.set_grad_enabled(grad):
                return clipped_ddim(flow, times, x, config.clip)
        denoise: Any = flow.denoiser
        if config.clip:
            denoise = Thresholded(denoise, Static(-config.clip, config.clip))
        if config.kind == "consistency":
            return sample(denoise, self.path, "consistency", grid=config.times(steps), **options)
        return sample(denoise, self.path, config.solver, steps=steps, grid=config.grid, **options)

    def _clipped(self, chunk: Tensor) -> Tensor:
        return chunk.clamp(-self.config.clip, self.config.clip) if self.config.clip else chunk


def _asked(flow: FlowMap) -> Callable[[Tensor, float, float], Tensor]:
    def jump(x: Tensor, t: float, s: float) -> Tensor:
        times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        return flow.x0(x, times, torch.full_like(times, s))

    return jump
