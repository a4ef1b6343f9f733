"""The temporal U-Net of Diffusion Policy: denoises an action chunk, told the time and the observation."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .time_embedding import SinusoidalPosEmb, encoded, spread_times
from .unet1d_blocks import (
    CONDITIONS,
    ConditionalResidualBlock1D,
    Conv1dBlock,
    Downsample1d,
    Upsample1d,
)

PARTS = ("down", "mid", "up")
FINAL_GROUPS = 8  # of the last block's normalisation, whatever `groups` is, as in the published code


@dataclass(frozen=True)
class Unet1dConfig:
    """Shape of a temporal U-Net; the defaults are those of Diffusion Policy's low-dimensional tasks.

    Args:
        input_dim: numbers per step of the chunk.
        local_cond_dim: numbers per step of a sequence that is told step by step (None: none).
        global_cond_dim: numbers that are told about the whole chunk (None: none).
        embedding: numbers of the time's embedding.
        down_dims: channels of the levels, from the finest; the first a multiple of 8.
        kernel: of the convolutions, odd.
        groups: of the normalisations.
        condition: how blocks are modulated: "film" (scale and bias), "add" (bias) or "mlp_film" (FiLM from a
            perceptron).
        conditioned: which parts are modulated at all.
        two_times: whether the network takes a second time s, the one to jump to.
        time_scale: factor on the times before their sines; 1 for levels 0, 1, …; more (up to 100) for times
            in [0, 1]. The derivative by time of a one-step objective carries this factor.

    Raises:
        ValueError: sizes that do not fit each other.

    Reference: Chi et al. 2023, "Diffusion Policy", released code; Ze et al. 2024, "3D Diffusion Policy".
    """

    input_dim: int
    local_cond_dim: int | None = None
    global_cond_dim: int | None = None
    embedding: int = 256
    down_dims: tuple[int, ...] = (256, 512, 1024)
    kernel: int = 5
    groups: int = 8
    condition: str = "film"
    conditioned: tuple[str, ...] = PARTS
    two_times: bool = False
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "down_dims", tuple(self.down_dims))
        object.__setattr__(self, "conditioned", tuple(self.conditioned))
        for name in ("input_dim", "local_cond_dim", "global_cond_dim", "groups"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if not self.down_dims or any(width < 1 or width % self.groups for width in self.down_dims):
            raise ValueError(f"down_dims must be multiples of groups = {self.groups}, got {self.down_dims}")
        if self.down_dims[0] % FINAL_GROUPS:
            raise ValueError(f"down_dims must begin with a multiple of {FINAL_GROUPS}, got {self.down_dims}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition must be one of {', '.join(CONDITIONS)}, got {self.condition!r}")
        if set(self.conditioned) - set(PARTS):
            raise ValueError(f"conditioned must name some of {', '.join(PARTS)}, got {self.conditioned}")
        if self.embedding < 4 or self.embedding % 2:
            raise ValueError(f"embedding must be even and at least 4, got {self.embedding}")

    @property
    def condition_width(self) -> int:
        """Numbers that a block is told: the time's embedding and the global condition."""
        return self.embedding + (self.global_cond_dim or 0)

    @property
    def multiple(self) -> int:
        """What the number of steps of a chunk must be a multiple of."""
        return 2 ** (len(self.down_dims) - 1)


class ConditionalUnet1D(nn.Module):
    """U-Net over the steps of an action chunk whose blocks are told the time and the observation.

    Two residual blocks per level on the way down, two in the middle, two per level on the way up; skips are
    concatenated. Names of weights are those of Diffusion Policy. As there, the skip of the first level is not
    used, every level of the way up lengthens, and the second block of a local condition computes nothing that
    counts: it is kept for its weights.

    With two times the embedding of t gains that of t − s, whose last layer starts at zero: a network with a
    second time begins as the one without.

    Args:
        config: its shape.

    Reference: Chi et al. 2023, "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion"; Janner
        et al. 2022, "Planning with Diffusion for Flexible Behavior Synthesis", app. C.

    Example:
        >>> net = ConditionalUnet1D(Unet1dConfig(2, global_cond_dim=6, embedding=16, down_dims=(8, 16)))
        >>> net(torch.zeros(3, 16, 2), torch.tensor([0, 5, 9]), global_cond=torch.zeros(3, 6)).shape
        torch.Size([3, 16, 2])
    """

    def __init__(self, config: Unet1dConfig) -> None:
        super().__init__()
        self.config = config
        widths, first, last = config.down_dims, config.down_dims[0], config.down_dims[-1]
        self.diffusion_step_encoder = self._time_encoder()
        self.jump_encoder = self._time_encoder() if config.two_times else None
        if self.jump_encoder is not None:
            for parameter in self.jump_encoder[-1].parameters():
                nn.init.zeros_(parameter)
        local = config.local_cond_dim
        self.local_cond_encoder = (
            nn.ModuleList(self._block(local, first) for _ in range(2)) if local is not None else None
        )
        self.down_modules, self.up_modules = nn.ModuleList(), nn.ModuleList()
        for level, (into, out) in enumerate(pairwise((config.input_dim, *widths))):
            shorter = Downsample1d(out) if level + 1 < len(widths) else nn.Identity()
            self.down_modules.append(nn.ModuleList([self._block(into, out), self._block(out, out), shorter]))
        self.mid_modules = nn.ModuleList(self._block(last, last) for _ in range(2))
        for into, out in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True):
            self.up_modules.append(
                nn.ModuleList([self._block(2 * into, out), self._block(out, out), Upsample1d(out)])
            )
        self.final_conv = nn.Sequential(
            Conv1dBlock((first, first), config.kernel, FINAL_GROUPS), nn.Conv1d(first, config.input_dim, 1)
        )

    def _block(self, into: int, out: int) -> ConditionalResidualBlock1D:
        config = self.config
        return ConditionalResidualBlock1D(
            (into, out), config.condition_width, config.kernel, config.groups, config.condition
        )

    def _time_encoder(self) -> nn.Sequential:
        size = self.config.embedding
        return nn.Sequential(
            SinusoidalPosEmb(size, self.config.time_scale),
            nn.Linear(size, 4 * size),
            nn.Mish(),
            nn.Linear(4 * size, size),
        )

    def forward(
        self,
        x: Float[Tensor, "batch horizon numbers"],
        t: Shaped[Tensor, "*batch"] | float,
        s: Shaped[Tensor, "*batch"] | float | None = None,
        *,
        local_cond: Float[Tensor, "batch horizon local"] | None = None,
        global_cond: Float[Tensor, "batch global"] | None = None,
    ) -> Float[Tensor, "batch horizon numbers"]:
        """Predict what the objective defines (noise, clean chunk, velocity).

        Args:
            x: noisy chunk.
            t: times, one for all or one each.
            s: times to jump to, of a network with two times; None: s = t.
            local_cond: what is known of every step.
            global_cond: what is known of the chunk, such as the observations, flattened.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        self.check(x, s, local_cond, global_cond)
        told = self.time_embedding(spread_times(t, x), None if s is None else spread_times(s, x))
        if global_cond is not None:
            told = torch.cat([told, global_cond], dim=1)
        down, mid, up = (told if part in self.config.conditioned else None for part in PARTS)
        added = None
        if self.local_cond_encoder is not None and local_cond is not None:
            added = self.local_cond_encoder[0](local_cond.transpose(1, 2), told)
        h, skips = x.transpose(1, 2), []
        for first, second, shorter in _triples(self.down_modules):
            h = first(h, down)
            h = second(h if added is None or skips else h + added, down)
            skips.append(h)
            h = shorter(h)
        for block in self.mid_modules:
            h = block(h, mid)
        for first, second, longer in _triples(self.up_modules):
            h = longer(second(first(torch.cat([h, skips.pop()], dim=1), up), up))
        return self.final_conv(h).transpose(1, 2)

    def time_embedding(
        self, t: Shaped[Tensor, "batch"], s: Shaped[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch embedding"]:
        """The embedded times; None for s: s = t."""
        embedded = encoded(self.diffusion_step_encoder, t)
        if self.jump_encoder is None:
            return embedded
        return embedded + encoded(self.jump_encoder, torch.zeros_like(t) if s is None else t - s)

    def check(
        self,
        x: Tensor,
        s: Tensor | float | None = None,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> None:
        """Refuse what does not fit the configuration.

        Raises:
            ValueError: names the argument, what it must be and what it is.
        """
        config = self.config
        if x.ndim != 3 or x.shape[2] != config.input_dim:
            raise ValueError(f"x must be (batch, horizon, {config.input_dim}), got {tuple(x.shape)}")
        if x.shape[1] % config.multiple or not x.shape[1]:
            raise ValueError(
                f"the horizon must be a multiple of {config.multiple} for {len(config.down_dims)} levels, "
                f"got {x.shape[1]}"
            )
        if s is not None and not config.two_times:
            raise ValueError("s was given to a network with one time; build it with two_times=True")
        _check_told("global_cond", global_cond, x.shape[:1], config.global_cond_dim)
        _check_told("local_cond", local_cond, x.shape[:2], config.local_cond_dim)


def _check_told(name: str, value: Tensor | None, leading: Sequence[int], width: int | None) -> None:
    wanted = None if width is None else (*leading, width)
    got = None if value is None else tuple(value.shape)
    if wanted != got:
        raise ValueError(f"{name} must be {wanted if wanted else 'left out'}, got {got}")


def _triples(modules: nn.ModuleList) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
    return [(level[0], level[1], level[2]) for level in modules]  # type: ignore[index]
