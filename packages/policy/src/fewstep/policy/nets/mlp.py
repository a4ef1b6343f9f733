"""Perceptrons of offline reinforcement learning: actors that denoise an action, critics, values."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .time_embedding import SinusoidalPosEmb, encoded, spread_times

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def perceptron(
    sizes: Sequence[int], activation: str = "mish", *, last: bool = True, normalised: bool = False
) -> nn.Sequential:
    """Linear layers with an activation between them.

    Args:
        sizes: numbers in, of every hidden layer, and out.
        activation: by name.
        last: whether the last layer is linear alone (False: with activation).
        normalised: whether LayerNorm follows every activation.

    Raises:
        ValueError: fewer than two sizes, one that is not positive, or an unknown activation.

    Example:
        >>> [type(layer).__name__ for layer in perceptron((3, 8, 1))]
        ['Linear', 'Mish', 'Linear']
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes must be two or more positive numbers, got {tuple(sizes)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for number, (into, out) in enumerate(pairwise(sizes), start=1):
        layers.append(nn.Linear(into, out))
        if number < len(sizes) - 1 or not last:
            layers.append(ACTIVATIONS[activation]())
            layers += [nn.LayerNorm(out)] if normalised else []
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class ActorConfig:
    """Shape of a perceptron that denoises an action; the defaults are Diffusion Q-Learning's.

    Args:
        action_dim: numbers of the action, or of a whole chunk.
        state_dim: numbers of the state.
        hidden: width of the hidden layers.
        depth: number of hidden layers.
        embedding: numbers of a time's embedding.
        activation: of the hidden layers.
        two_times: whether the network takes a second time s, the one to jump to.
        time_scale: factor on the times before their sines, see `Unet1dConfig`.

    Raises:
        ValueError: a size that is not positive.

    Reference: Wang, Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class for Offline
        Reinforcement Learning", released code.
    """

    action_dim: int
    state_dim: int
    hidden: int = 256
    depth: int = 3
    embedding: int = 16
    activation: str = "mish"
    two_times: bool = False
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("action_dim", "state_dim", "hidden", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")


class _ActionDenoiser(nn.Module):
    """What the actors share: the layers of the time, and the check of what they are given."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        size, waves = config.embedding, config.embedding * (2 if config.two_times else 1)
        self.time_mlp = nn.Sequential(
            SinusoidalPosEmb(size, config.time_scale),
            nn.Linear(waves, 2 * size),
            ACTIVATIONS[config.activation](),
            nn.Linear(2 * size, size),
        )
        self._kept: tuple[tuple, Tensor, list[Tensor]] | None = None

    def forward(
        self,
        x: Float[Tensor, "batch *action"],
        t: Shaped[Tensor, "*batch"] | float,
        s: Shaped[Tensor, "*batch"] | float | None = None,
        *,
        state: Float[Tensor, "batch *observation"],
    ) -> Float[Tensor, "batch *action"]:
        """Predict what the objective defines (noise, clean action, velocity).

        Args:
            x: noisy action or chunk, of `action_dim` numbers in all.
            t: times, one for all or one each.
            s: times to jump to, of a network with two times; None: s = t.
            state: of `state_dim` numbers in all.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        config, action, told = self.config, x.flatten(1), state.flatten(1)
        if action.shape[1] != config.action_dim:
            raise ValueError(f"x must have {config.action_dim} numbers a sample, got {tuple(x.shape)}")
        if told.shape != (len(x), config.state_dim):
            raise ValueError(f"state must be {(len(x), config.state_dim)}, got {tuple(state.shape)}")
        if s is not None and not config.two_times:
            raise ValueError("s was given to a network with one time; build it with two_times=True")
        return self._denoised(action, self._embedded(t, s, x), told).reshape(x.shape)

    def _embedded(self, t: Tensor | float, s: Tensor | float | None, x: Tensor) -> Tensor:
        """The layers of the time; floats that come again without gradients are not computed again."""
        weights, key = list(self.time_mlp.parameters()), None
        # Tensors of inference mode do not count their changes.
        plain = isinstance(t, float) and isinstance(s, float | None) and not weights[0].is_inference()
        if plain and not torch.is_grad_enabled():
            key = (t, s, tuple((weight._version, weight.data_ptr()) for weight in weights))
            if self._kept is not None and self._kept[0] == key:
                return self._kept[1].expand(len(x), -1)
        times = [spread_times(t, x)]
        if self.config.two_times:
            times.append(times[0] if s is None else spread_times(s, x))
        embedded = encoded(self.time_mlp, *times)
        if key is not None and len(x):
            # The weights are held, so that their addresses stay theirs.
            self._kept = (key, embedded[:1].clone(), [weight.detach() for weight in weights])
        return embedded

    def _denoised(self, action: Tensor, embedded: Tensor, told: Tensor) -> Tensor:
        raise NotImplementedError


class ActorMLP(_ActionDenoiser):
    """Denoises an action: out = final(mid([action, time embedding, state])).

    Names of weights are those of Diffusion Q-Learning. With two times the sines of s stand beside those of t
    before the layers of the time.

    Args:
        config: its shape.

    Reference: Wang, Hunt & Zhou 2023, released code; Nguyen & Yoo 2025, "One-Step Flow Q-Learning" (two
        times).

    Example:
        >>> actor = ActorMLP(ActorConfig(action_dim=2, state_dim=5))
        >>> actor(torch.zeros(7, 2), torch.zeros(7), state=torch.zeros(7, 5)).shape
        torch.Size([7, 2])
    """

    def __init__(self, config: ActorConfig) -> None:
        super().__init__(config)
        into = config.action_dim + config.embedding + config.state_dim
        sizes = (into, *(config.hidden,) * config.depth)
        self.mid_layer = perceptron(sizes, config.activation, last=False)
        self.final_layer = nn.Linear(config.hidden, config.action_dim)

    def _denoised(self, action: Tensor, embedded: Tensor, told: Tensor) -> Tensor:
        return self.final_layer(self.mid_layer(torch.cat([action, embedded, told], dim=1)))


class ResidualMLP(_ActionDenoiser):
    """RL-100's denoiser for single actions: residual blocks of LayerNorm, a four times wider layer and back.

    h = initial([state, action, time embedding]);  h ← h + W2·act(W1·norm(dropout(h)));  out = final(act(h)).

    Args:
        config: its shape; `depth` is the number of blocks.
        dropout: share of the numbers that are dropped in training.

    Reference: Lei et al. 2025, "RL-100", released code ("skipnet"); Hansen-Estruch et al. 2023, "IDQL",
        app. G.
    """

    def __init__(self, config: ActorConfig, dropout: float = 0.1) -> None:
        super().__init__(config)
        width, activation = config.hidden, ACTIVATIONS[config.activation]
        self.fc_initial = nn.Linear(config.state_dim + config.action_dim + config.embedding, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(dropout),
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                activation(),
                nn.Linear(4 * width, width),
            )
            for _ in range(config.depth)
        )
        self.activation = activation()
        self.fc_final = nn.Linear(width, config.action_dim)

    def _denoised(self, action: Tensor, embedded: Tensor, told: Tensor) -> Tensor:
        h = self.fc_initial(torch.cat([told, action, embedded], dim=1))
        for block in self.blocks:
            h = h + block(h)
        return self.fc_final(self.activation(h))


class TwinCritic(nn.Module):
    """Two values of an action in a state, from perceptrons of [state, action].

    Args:
        state_dim: numbers of the state.
        action_dim: numbers of the action, or of a whole chunk.
        hidden: widths of the hidden layers.
        activation: of the hidden layers.
        normalised: whether LayerNorm follows every activation (FQL).

    Reference: Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods";
        names of weights: Diffusion Q-Learning, released code.

    Example:
        >>> first, second = TwinCritic(5, 2)(torch.zeros(7, 5), torch.zeros(7, 2))
        >>> first.shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
        normalised: bool = False,
    ) -> None:
        super().__init__()
        sizes = (state_dim + action_dim, *hidden, 1)
        self.q1_model = perceptron(sizes, activation, normalised=normalised)
        self.q2_model = perceptron(sizes, activation, normalised=normalised)

    def forward(
        self, state: Float[Tensor, "batch *observation"], action: Float[Tensor, "batch *action"]
    ) -> tuple[Float[Tensor, "batch 1"], Float[Tensor, "batch 1"]]:
        """Both values."""
        told = torch.cat([state.flatten(1), action.flatten(1)], dim=1)
        return self.q1_model(told), self.q2_model(told)

    def least(
        self, state: Float[Tensor, "batch *observation"], action: Float[Tensor, "batch *action"]
    ) -> Float[Tensor, "batch 1"]:
        """The smaller of both values."""
        return torch.minimum(*self(state, action))


class StateValue(nn.Module):
    """Value of a state, as implicit Q-learning needs it.

    Args:
        state_dim: numbers of the state.
        hidden: widths of the hidden layers.
        activation: of the hidden layers.

    Reference: Kostrikov, Nair & Levine 2022, "Offline Reinforcement Learning with Implicit Q-Learning".
    """

    def __init__(self, state_dim: int, hidden: Sequence[int] = (256, 256), activation: str = "relu") -> None:
        super().__init__()
        self.v_model = perceptron((state_dim, *hidden, 1), activation)

    def forward(self, state: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch 1"]:
        """The value."""
        return self.v_model(state.flatten(1))
