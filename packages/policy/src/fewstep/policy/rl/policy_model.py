"""RLPolicy: an actor and its critic as a policy in one checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.checkpoints import Checkpoint
from fewstep.core.noise import GivenNoise, SampleNoise

from ..methods.bc import RegressionActor
from ..methods.dql import SCHEDULES, DiffusionActor
from ..methods.fql import FlowActor
from ..methods.ofql import MeanFlowActor
from ..nets.mlp import ACTIVATIONS, ActorConfig, TwinCritic
from ..normalizer import Normalizer
from ..observations import check_observation
from .actor import Actor

Method = Literal["dql", "ofql", "fql", "bc"]
METHODS: tuple[str, ...] = ("dql", "ofql", "fql", "bc")
# Times in [0, 1] are spread over some radians of the sines' fastest wave; DQL is told whole levels.
_TIME_SCALE = {"dql": 1.0, "ofql": 100.0, "fql": 100.0, "bc": 1.0}


@dataclass(frozen=True)
class RLPolicyConfig:
    """What an offline policy is built from; the defaults are Diffusion Q-Learning's.

    Args:
        observations: shape of one step by name; vectors only, joined in this order.
        action_dim: numbers of an action.
        method: "dql", "ofql", "fql" or "bc".
        horizon: actions of a chunk, which the critic judges as a whole.
        n_action_steps: how many of them are executed.
        hidden: width of the hidden layers.
        depth: number of hidden layers.
        activation: of the hidden layers.
        levels: T of "dql".
        schedule: betas of "dql".
        flow_ratio: λ of "ofql".
        alpha: α of "fql".
        layer_norm: whether the critic has LayerNorm.
        candidates: actions that are drawn for a state; one of them is chosen by chance, with probabilities
            softmax(min Q). 1: the critic is not asked.
        state_mode: how observations are normalised, see `Normalizer`.
        environment: for which the policy was trained.
        action_low, action_high: limits of every number of an action, which become ±1.
        fps: control steps per second, if it is known.

    Raises:
        ValueError: a value that is unknown or does not fit.

    Reference: Wang, Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class for Offline
        Reinforcement Learning", appendix (networks, 50 candidates).
    """

    observations: Mapping[str, Sequence[int]]
    action_dim: int
    method: str = "ofql"
    horizon: int = 1
    n_action_steps: int = 1
    hidden: int = 256
    depth: int = 3
    activation: str = "mish"
    levels: int = 5
    schedule: str = "vp"
    flow_ratio: float = 0.5
    alpha: float = 10.0
    layer_norm: bool = False
    candidates: int = 1
    state_mode: str = "gaussian"
    environment: str = ""
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    fps: float = 0.0

    def __post_init__(self) -> None:
        shapes = {name: tuple(shape) for name, shape in self.observations.items()}
        object.__setattr__(self, "observations", shapes)
        for name, shape in shapes.items():
            check_observation(name, shape)
        if not shapes or any(len(shape) != 1 for shape in shapes.values()):
            raise ValueError(f"observations must be vectors, such as {{'state': (5,)}}, got {shapes}")
        for name in ("action_dim", "horizon", "n_action_steps", "hidden", "depth", "levels", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_action_steps > self.horizon:
            raise ValueError(
                f"n_action_steps must be at most horizon = {self.horizon}, got {self.n_action_steps}"
            )
        choices = {"method": METHODS, "schedule": SCHEDULES, "activation": ACTIVATIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("action_low", "action_high"):
            if len(getattr(self, name)) not in (0, self.action_dim):
                raise ValueError(
                    f"{name} must hold {self.action_dim} numbers or none, got {getattr(self, name)}"
                )

    @property
    def n_obs_steps(self) -> int:
        """Observations that are seen: the present one."""
        return 1

    @property
    def executed(self) -> slice:
        """Which actions of a chunk are executed."""
        return slice(0, self.n_action_steps)

    @property
    def state_dim(self) -> int:
        """Numbers of all observations."""
        return sum(shape[0] for shape in self.observations.values())

    @property
    def numbers(self) -> int:
        """Numbers of a chunk."""
        return self.horizon * self.action_dim


def build_actor(config: RLPolicyConfig) -> Actor:
    """The actor of a configuration, with fresh weights."""
    shape = ActorConfig(
        config.numbers,
        config.state_dim,
        config.hidden,
        config.depth,
        activation=config.activation,
        two_times=config.method == "ofql",
        time_scale=_TIME_SCALE[config.method],
    )
    if config.method == "dql":
        return DiffusionActor(shape, config.levels, config.schedule)
    if config.method == "ofql":
        return MeanFlowActor(shape, config.flow_ratio)
    return FlowActor(shape, config.alpha) if config.method == "fql" else RegressionActor(shape)


def build_critic(config: RLPolicyConfig) -> TwinCritic | None:
    """The critic of a configuration, with fresh weights; "bc" has none."""
    if config.method == "bc":
        return None
    widths = (config.hidden,) * config.depth
    return TwinCritic(config.state_dim, config.numbers, widths, config.activation, config.layer_norm)


class RLPolicy(nn.Module, Checkpoint):
    """Actor, target critic and normaliser, asked like a `PolicyModel`.

    Args:
        config: see RLPolicyConfig.

    Example:
        >>> policy = RLPolicy(RLPolicyConfig({"state": (5,)}, action_dim=2))
        >>> policy.predict({"state": torch.zeros(3, 1, 5)}).shape
        torch.Size([3, 1, 2])

    Reference: Wang, Hunt & Zhou 2023; Nguyen & Yoo 2025, "One-Step Flow Q-Learning"; Park et al. 2025, "Flow
        Q-Learning".
    """

    config_class = RLPolicyConfig
    package = "fewstep.policy"

    def __init__(self, config: RLPolicyConfig) -> None:
        super().__init__()
        self.config = config
        features = {**config.observations, "action": (config.action_dim,)}
        modes: Any = {**dict.fromkeys(config.observations, config.state_mode), "action": "limits"}
        self.normalizer = Normalizer.blank(features, modes)
        self.actor, self.critic = build_actor(config), build_critic(config)

    def state(
        self, observation: Mapping[str, Float[Tensor, "batch steps *shape"]]
    ) -> Float[Tensor, "batch state"]:
        """The newest observation, normalised and joined.

        Args:
            observation: one tensor per name of the configuration.

        Raises:
            ValueError: one is absent or has a shape that is not the configuration's.
        """
        parts = []
        for name, shape in self.config.observations.items():
            if name not in observation:
                raise ValueError(f"observation has no {name!r}; it has {', '.join(observation) or 'nothing'}")
            value = observation[name]
            if value.ndim != 3 or tuple(value.shape[1:]) != (1, *shape):
                raise ValueError(
                    f"observation {name!r} must be {('batch', 1, *shape)}, got {tuple(value.shape)}"
                )
            parts.append(self.normalizer.normalize(name, value[:, -1]))
        return torch.cat(parts, dim=1)

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
            observation: the newest step, (batch, 1, …) by name.
            steps: must be the method's own number of network calls, or None.
            seed: chunk i draws from a generator seeded with seed + i; or one seed per chunk.
            noise: noise(like) gives standard normal draws in place of the generators.

        Returns:
            Actions in the units of the demonstrations, within their limits.

        Raises:
            ValueError: another number of steps, or observations that do not fit.
        """
        calls = self.config.levels if self.config.method == "dql" else 1
        if steps not in (None, calls):
            raise ValueError(f"steps of {self.config.method!r} is {calls}, as it was trained; got {steps}")
        chosen = self.choose(self.state(observation), seed, noise)
        chunk = chosen.unflatten(1, (self.config.horizon, self.config.action_dim))
        return self.normalizer.unnormalize("action", chunk)

    def choose(
        self, state: Float[Tensor, "batch state"], seed: int | Sequence[int] = 0, noise: Any = None
    ) -> Float[Tensor, "batch numbers"]:
        """A normalised chunk: of several candidates one by chance, P = softmax(min Q); arguments as above.

        The choice takes its chance from the same generators: argmax (min Q + Gumbel noise).

        Args:
            state: normalised.
            seed: of the draws.
            noise: in place of the generators.
        """
        count = 1 if self.critic is None else self.config.candidates
        vectors = count * (self.actor.draws * self.actor.numbers + (count > 1))
        draws = state.new_empty(len(state), vectors)
        source = SampleNoise(seed, len(state), state.device) if noise is None else GivenNoise(noise)
        source.fill(draws)
        spent = count * self.actor.draws * self.actor.numbers
        normal = draws[:, :spent].reshape(-1, self.actor.draws, self.actor.numbers)
        actions = self.actor.act(state.repeat_interleave(count, 0), normal)
        if count == 1 or self.critic is None:
            return actions
        value = self.critic.least(state.repeat_interleave(count, 0), actions).reshape(-1, count)
        # Φ(z) is uniform, so −log(−log Φ(z)) has Gumbel's distribution.
        uniform = torch.special.ndtr(draws[:, spent:].double()).clamp(1e-300, 1 - 1e-16)
        best = (value - (-uniform.log()).log()).argmax(1)
        return actions.reshape(-1, count, self.actor.numbers)[torch.arange(len(state)), best]
