"""Region-adaptive sampling: only some tokens are computed anew, the others keep what they last said (RAS)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance.base import EstimateWrapper
from fewstep.core.nets import DiT
from fewstep.core.nets.dit import Block
from fewstep.core.wrapping import BaseDenoiser, Time

METRICS = ("std", "norm")
VARIANTS = ("exact", "official")


class RegionAdaptive(EstimateWrapper):
    """A denoiser around a DiT that computes a share of the tokens at most calls.

    The first `warmup` calls of a run and those of `resets` compute every token. Any other call ranks the
    patches by
        R = mean over the pixels of a patch of std_channels(v)·exp(±starvation·drops),  v = eps - x0,
    computes the tokens that are not left out, with the keys and values that the others had last, and takes
    the others' x0 from the call before. On a straight path with Euler steps that is the same as keeping
    their velocity, as published; in x0 the rule holds for any path and prediction.

    `drops` counts how often a patch was left out. It is meant to bring patches back. In the published code
    it does so only where low-ranked patches are left out, while by default the high-ranked ones are, and a
    patch that was left out is then ever more likely to be so again. Variant "official" does this, "exact"
    turns the sign for the patches that are left out from above.

    A run begins when the time grows, the shape of x changes or `restart` is called. Wrappers that change
    the batch between calls (`Guided` with an interval) begin a run each time they do.

    Args:
        inner: a Denoiser whose network is a `DiT`.
        ratio: share of the tokens to compute, above 0 and at most 1.
        warmup: calls at the start of a run that compute everything.
        resets: numbers of further such calls, counted from 0 (published for 30 steps: 12 and 22).
        high: share of the patches left out that are taken from the top of the ranking; the rest from below.
        starvation: weight of the drops.
        metric: "std" over the channels, as published, or their "norm", which one channel needs.
        variant: "exact" or "official".

    Attributes:
        computed: share of the tokens computed in the run so far.

    Raises:
        TypeError: when the network is not a DiT.
        ValueError: when an option is out of range; on a call, for one time for each sample.

    Reference: Liu et al. 2025, "Region-Adaptive Sampling for Diffusion Transformers", section 3.

    Example:
        >>> from fewstep.core import paths
        >>> from fewstep.core.nets import DiTConfig
        >>> denoise = Denoiser(DiT(DiTConfig()), paths.RectifiedFlow(), "velocity")
        >>> saver = RegionAdaptive(denoise, 0.25, warmup=1, metric="norm")
        >>> for t in (1.0, 0.75, 0.5):
        ...     x0 = saver(torch.randn(1, 1, 8, 8), t)
        >>> saver.computed
        0.5
    """

    inner: Denoiser

    def __init__(
        self,
        inner: BaseDenoiser,
        ratio: float = 0.5,
        *,
        warmup: int = 4,
        resets: Sequence[int] = (12, 22),
        high: float = 1.0,
        starvation: float = 0.1,
        metric: str = "std",
        variant: str = "exact",
    ) -> None:
        if not isinstance(inner, Denoiser) or not isinstance(inner.net, DiT):
            raise TypeError("region-adaptive sampling needs a Denoiser whose network is a DiT")
        super().__init__(inner)
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"ratio must lie in (0, 1], not {ratio}")
        if not 0.0 <= high <= 1.0:
            raise ValueError(f"high must lie in [0, 1], not {high}")
        if warmup < 1:
            raise ValueError(f"warmup must be at least 1, not {warmup}")
        if metric not in METRICS or variant not in VARIANTS:
            raise ValueError(
                f"metric must be one of {METRICS} and variant one of {VARIANTS}, "
                f"not {metric!r} and {variant!r}"
            )
        config = inner.net.config
        if metric == "std" and config.channels < 2:
            raise ValueError("metric 'std' is over the channels, and there is one; take metric='norm'")
        self.config = config
        self.tokens = (config.size[0] // config.patch) * (config.size[1] // config.patch)
        self.left_out = int((1.0 - ratio) * self.tokens)
        self.warmup, self.resets, self.high = warmup, frozenset(resets), high
        self.starvation, self.metric, self.variant = starvation, metric, variant
        self.restart()

    def restart(self) -> None:
        """Begin a new run: the next call computes everything."""
        self._run = _Run()
        self._partial = copy.copy(self.inner)
        self._partial.net = _PartialDiT(self.inner.net, self._run)  # type: ignore[arg-type]

    @property
    def computed(self) -> float:
        """Share of the tokens computed in the run so far; NaN before the first call."""
        run = self._run
        return run.spent / (run.calls * self.tokens) if run.calls else float("nan")

    def predict(
        self, x: Float[Tensor, "batch channels height width"], t: Time
    ) -> Float[Tensor, "batch channels height width"]:
        """x0, new in the tokens that were computed."""
        if isinstance(t, Tensor) and t.ndim:
            raise ValueError("region-adaptive sampling needs one time for all samples")
        if self._run.is_over(x, float(t)):
            self.restart()
        run = self._run
        whole = run.calls < self.warmup or run.calls in self.resets or not self.left_out
        run.active = None if whole else self._choose()
        x0 = self._partial(x, t)
        if run.active is not None:
            x0 = torch.where(self._pixels(run.active, x), x0, run.x0)
        run.calls, run.time, run.x0, run.velocity = (
            run.calls + 1,
            float(t),
            x0,
            self._velocity(x, x0, float(t)),
        )
        run.spent += self.tokens - (0 if whole else self.left_out)
        return x0

    def _choose(self) -> Int[Tensor, "batch active"]:
        """The tokens to compute, in ascending order; counts the drops of the others."""
        run = self._run
        rank = self._ranking()
        if run.drops is None:
            run.drops = torch.zeros_like(rank)
        count = int(self.left_out * self.high)
        grown = (self.starvation * run.drops).exp()
        above = rank / grown if self.variant == "exact" else rank * grown
        left = torch.zeros_like(rank, dtype=torch.bool)
        left.scatter_(1, above.topk(count, dim=1).indices, True)
        below = (rank * grown).masked_fill(left, float("inf"))
        left.scatter_(1, below.topk(self.left_out - count, dim=1, largest=False).indices, True)
        run.drops = run.drops + left
        return left.byte().argsort(dim=1, stable=True)[:, : self.tokens - self.left_out]

    def _ranking(self) -> Float[Tensor, "batch tokens"]:
        """The metric of the newest update, for each patch."""
        v = self._run.velocity
        assert v is not None
        pixel = v.std(1, keepdim=True) if self.metric == "std" else v.norm(dim=1, keepdim=True)
        return F.avg_pool2d(pixel, self.config.patch).flatten(1)

    def _velocity(self, x: Tensor, x0: Tensor, t: float) -> Tensor:
        """eps - x0."""
        a, b, sigma = self.inner.path.coefficients(t)
        z = x if self.y is None or not b else x - b * self.y
        return (z - a * x0) / sigma - x0

    def _around(self, inner: BaseDenoiser) -> "RegionAdaptive":
        other = super()._around(inner)
        other.restart()
        return other

    def _pixels(self, active: Tensor, x: Tensor) -> Tensor:
        """Which pixels belong to the active tokens."""
        side = self.config.patch
        marks = torch.zeros(len(x), self.tokens, dtype=x.dtype, device=x.device).scatter(1, active, 1.0)
        grid = marks.view(len(x), 1, self.config.size[0] // side, self.config.size[1] // side)
        return grid.repeat_interleave(side, 2).repeat_interleave(side, 3) > 0


@dataclass
class _Run:
    """What is remembered from call to call.

    Attributes:
        calls: calls so far.
        spent: tokens computed so far, for each sample.
        time: of the newest call.
        x0: of the newest call.
        velocity: eps - x0 of the newest call.
        drops: how often each patch was left out.
        active: the tokens of this call; None: all.
        memory: newest keys and values of every token, for each block, (batch, heads, tokens, features).
    """

    calls: int = 0
    spent: int = 0
    time: float = 0.0
    x0: Any = None
    velocity: Any = None
    drops: Any = None
    active: Any = None
    memory: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def is_over(self, x: Tensor, t: float) -> bool:
        """Whether a call at (x, t) cannot belong to this run."""
        if not self.calls:
            return False
        return (
            t > self.time
            or x.shape != self.x0.shape
            or x.dtype != self.x0.dtype
            or x.device != self.x0.device
        )


class _PartialDiT:
    """A DiT that computes the active tokens of a run; the pixels of the others are of no use."""

    def __init__(self, model: DiT, run: _Run) -> None:
        self.model = model
        self.run = run

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        tokens, modulation = self.model.embed(x, t, label)
        whole, active = tokens, self.run.active
        if active is not None:
            tokens = tokens.gather(1, active[:, :, None].expand(-1, -1, tokens.shape[-1]))
        for number, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            tokens = self._block(number, block, tokens, modulation)
        if active is not None:
            tokens = whole.scatter(1, active[:, :, None].expand(-1, -1, tokens.shape[-1]), tokens)
        return self.model.unembed(tokens, modulation)

    def _block(self, number: int, block: Block, tokens: Tensor, modulation: Tensor) -> Tensor:
        """The block of these tokens, which attend to what is remembered of all."""
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(modulation)[:, None].chunk(6, dim=-1)
        batch, count, width = tokens.shape
        told = block.queries_keys_values(block.norm(tokens) * (1 + scale1) + shift1)
        q, k, v = told.view(batch, count, 3, block.heads, width // block.heads).permute(2, 0, 3, 1, 4)
        if self.run.active is not None:
            place = self.run.active[:, None, :, None].expand_as(k)
            old_k, old_v = self.run.memory[number]
            k, v = old_k.scatter(2, place, k), old_v.scatter(2, place, v)
        self.run.memory[number] = k, v
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + gate1 * block.mixed(seen)
        return tokens + gate2 * block.feed_forward(block.norm(tokens) * (1 + scale2) + shift2)
