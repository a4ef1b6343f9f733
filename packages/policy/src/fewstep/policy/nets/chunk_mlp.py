"""A residual perceptron over a whole action chunk: the cheapest of the networks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .time_embedding import SinusoidalPosEmb, spread_times


@dataclass(frozen=True)
class ChunkMLPConfig:
    """Shape of a residual perceptron over chunks.

    Args:
        horizon: actions of a chunk.
        action_dim: numbers of an action.
        global_cond_dim: numbers that are told about the whole chunk.
        width: of the residual stream.
        depth: number of residual blocks.
        expansion: width inside a block, relative to the stream.
        embedding: numbers of a time's embedding.
        two_times: whether the network takes a second time s, the one to jump to.
        time_scale: factor on the times before their sines.

    Raises:
        ValueError: a size that is not positive.
    """

    horizon: int
    action_dim: int
    global_cond_dim: int
    width: int = 512
    depth: int = 4
    expansion: int = 2
    embedding: int = 64
    two_times: bool = False
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("horizon", "action_dim", "global_cond_dim", "width", "depth", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class ChunkMLP(nn.Module):
    """Residual blocks h ← h + W₂·SiLU((1 + scale)·LayerNorm(W₁ h) + bias), modulated by time and observation.

    A fresh network gives 0: its last layer is zero.

    Args:
        config: its shape.

    Example:
        >>> net = ChunkMLP(ChunkMLPConfig(horizon=8, action_dim=2, global_cond_dim=5, width=16, depth=1))
        >>> net(torch.zeros(3, 8, 2), torch.zeros(3), global_cond=torch.zeros(3, 5)).shape
        torch.Size([3, 8, 2])
    """

    def __init__(self, config: ChunkMLPConfig) -> None:
        super().__init__()
        self.config = config
        numbers, inner = config.horizon * config.action_dim, config.expansion * config.width
        waves = config.embedding * (2 if config.two_times else 1)
        self.waves = SinusoidalPosEmb(config.embedding, config.time_scale)
        self.told = nn.Sequential(
            nn.Linear(waves + config.global_cond_dim, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
        )
        self.head = nn.Linear(numbers, config.width)
        self.widen = nn.ModuleList(nn.Linear(config.width, inner) for _ in range(config.depth))
        self.norms = nn.ModuleList(nn.LayerNorm(inner) for _ in range(config.depth))
        self.modulate = nn.ModuleList(nn.Linear(config.width, 2 * inner) for _ in range(config.depth))
        self.narrow = nn.ModuleList(nn.Linear(inner, config.width) for _ in range(config.depth))
        self.tail = nn.Linear(config.width, numbers)
        for layer in (*self.modulate, self.tail):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Float[Tensor, "batch horizon numbers"],
        t: Shaped[Tensor, "*batch"] | float,
        s: Shaped[Tensor, "*batch"] | float | None = None,
        *,
        global_cond: Float[Tensor, "batch told"],
    ) -> Float[Tensor, "batch horizon numbers"]:
        """Predict what the objective defines (noise, clean chunk, velocity).

        Args:
            x: noisy chunk.
            t: times, one for all or one each.
            s: times to jump to, of a network with two times; None: s = t.
            global_cond: the observations, flattened.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        config = self.config
        if tuple(x.shape[1:]) != (config.horizon, config.action_dim):
            raise ValueError(
                f"x must be (batch, {config.horizon}, {config.action_dim}), got {tuple(x.shape)}"
            )
        if s is not None and not config.two_times:
            raise ValueError("s was given to a network with one time; build it with two_times=True")
        times = [spread_times(t, x)]
        if config.two_times:
            times.append(times[0] - (times[0] if s is None else spread_times(s, x)))
        dtype = self.head.weight.dtype
        waves = torch.cat(
            [self.waves(time.double() if dtype == torch.float64 else time) for time in times], -1
        )
        told = self.told(torch.cat([waves.to(dtype), global_cond.to(dtype)], dim=-1))
        h = self.head(x.flatten(1).to(dtype))
        for widen, norm, modulate, narrow in zip(
            self.widen, self.norms, self.modulate, self.narrow, strict=True
        ):
            scale, bias = modulate(told).chunk(2, dim=-1)
            h = h + narrow(nn.functional.silu(torch.addcmul(bias, norm(widen(h)), 1 + scale)))
        return self.tail(h).unflatten(-1, (config.horizon, config.action_dim))
