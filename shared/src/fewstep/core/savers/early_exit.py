"""Early exit: a transformer leaves its blocks as soon as it believes its estimate (DeeDiff, AdaDiff)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.nets import DiT


class Exit(NamedTuple):
    """What a sample could leave a block with.

    Attributes:
        out: the network's raw value after this block, shaped like x.
        uncertainty: what the block believes of its error, between 0 and 1, for each token; None for the last.
    """

    out: Tensor
    uncertainty: Tensor | None


class EarlyExit(nn.Module):
    """A transformer that stops at the first block whose estimated uncertainty is low enough.

    After block i of L,  g_i = unembed(h_i + A_i·h_i),  û_i = sigmoid(w_i·[h_i; c] + v_i) for each token, with
    c the embedding of time and label. A sample leaves at the first block i < L where the mean of û_i over its
    tokens is below `threshold`; otherwise it goes through all blocks. Every sample leaves on its own, and the
    rest of the batch goes on without it; counting them reads one number back from the device per block.

    The exits have to be trained, see `exit_losses`. A_i starts at zero and û_i at 1/2, so that with the
    default threshold an untrained network leaves nowhere.

    The paper trains the network together with its exits. With `model.requires_grad_(False)` only the exits
    are trained, and the full network stays what it was.

    Args:
        model: a network with `embed`, `blocks` and `unembed`, such as `fewstep.core.nets.DiT`.
        threshold: largest mean uncertainty to leave with; 0 never leaves early.

    Attributes:
        blocks_used: mean number of blocks per sample since `reset`; NaN before the first call.

    Raises:
        ValueError: if the threshold is not in [0, 1].

    Reference: Tang et al. 2024, "AdaDiff: Accelerating Diffusion Models through Step-Wise Adaptive
    Computation" (first called DeeDiff), sections 3.2 and 3.3.

    Example:
        >>> from fewstep.core.nets import DiTConfig
        >>> net = EarlyExit(DiT(DiTConfig(depth=3)), threshold=0.6)
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape, net.blocks_used
        (torch.Size([2, 1, 8, 8]), 1.0)
    """

    def __init__(self, model: DiT, threshold: float = 0.1) -> None:
        super().__init__()
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must lie in [0, 1], not {threshold}")
        self.model = model
        self.threshold = float(threshold)
        width, inner = model.config.width, len(model.blocks) - 1
        self.adapters = nn.ModuleList(nn.Linear(width, width) for _ in range(inner))
        self.doubts = nn.ModuleList(nn.Linear(2 * width, 1) for _ in range(inner))
        for layer in (*self.adapters, *self.doubts):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.reset()

    def reset(self) -> None:
        """Begin to count blocks anew."""
        self._blocks = self._samples = 0

    @property
    def blocks_used(self) -> float:
        """Mean number of blocks per sample since `reset`."""
        return self._blocks / self._samples if self._samples else float("nan")

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        label: Shaped[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The network's raw value, from as many blocks as each sample needs."""
        tokens, modulation = self.model.embed(x, t, label)
        out = torch.empty_like(x)
        here = torch.arange(len(x), device=x.device)  # the samples that are still on their way
        self._samples += len(x)
        for block, adapter, doubt in zip(self.model.blocks, self.adapters, self.doubts, strict=False):
            tokens = block(tokens, modulation)
            self._blocks += len(here)
            leaves = self._doubt(doubt, tokens, modulation).mean(1) < self.threshold
            left = leaves.nonzero().squeeze(1)
            if len(left):
                out[here[left]] = self._value(adapter, tokens[left], modulation[left]).to(out.dtype)
                stay = (~leaves).nonzero().squeeze(1)
                here, tokens, modulation = here[stay], tokens[stay], modulation[stay]
                if not len(here):
                    return out
        self._blocks += len(here)
        out[here] = self.model.unembed(self.model.blocks[-1](tokens, modulation), modulation).to(out.dtype)
        return out

    def exits(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        label: Shaped[Tensor, " batch"] | None = None,
    ) -> Iterator[Exit]:
        """What every block would be left with, in order; the last is the full network's value."""
        tokens, modulation = self.model.embed(x, t, label)
        for block, adapter, doubt in zip(self.model.blocks, self.adapters, self.doubts, strict=False):
            tokens = block(tokens, modulation)
            yield Exit(self._value(adapter, tokens, modulation), self._doubt(doubt, tokens, modulation))
        yield Exit(self.model.unembed(self.model.blocks[-1](tokens, modulation), modulation), None)

    def _value(self, adapter: nn.Module, tokens: Tensor, modulation: Tensor) -> Tensor:
        return self.model.unembed(tokens + adapter(tokens), modulation)

    def _doubt(self, doubt: nn.Module, tokens: Tensor, modulation: Tensor) -> Tensor:
        told = torch.cat([tokens, modulation[:, None].expand_as(tokens)], dim=-1)
        return doubt(told).squeeze(-1).sigmoid()


class ExitLosses(NamedTuple):
    """The parts of the training loss, each a mean over tokens summed over blocks.

    Attributes:
        last: error of the full network.
        early: error of the exits, each weighted by 1 - u.
        uncertainty: error of the uncertainties.
    """

    last: Tensor
    early: Tensor
    uncertainty: Tensor

    @property
    def total(self) -> Tensor:
        """The sum."""
        return self.last + self.early + self.uncertainty


def exit_losses(
    net: EarlyExit,
    x: Float[Tensor, "batch channels height width"],
    t: Float[Tensor, " batch"],
    target: Float[Tensor, "batch channels height width"],
    label: Shaped[Tensor, " batch"] | None = None,
) -> ExitLosses:
    """The losses that train a network with exits.

    With e_i the mean of |g_i - target| over a token and u_i = tanh(e_i) (not differentiated),
        last = |g_L - target|²,  early = Σ_i (1 - u_i)·|g_i - target|²,  uncertainty = Σ_i (û_i - u_i)².

    Args:
        net: the network with exits.
        x: what the network sees.
        t: its time.
        target: what the full network should give.
        label: class of each sample.

    Reference: Tang et al. 2024 (AdaDiff), equations 5 to 9.
    """
    patch = net.model.config.patch
    early = uncertainty = torch.zeros((), device=x.device)
    last = early
    for out, doubt in net.exits(x, t, label):
        gap = F.unfold(out - target, patch, stride=patch)
        if doubt is None:
            last = gap.square().mean()
            continue
        u = gap.detach().abs().mean(1).tanh()
        early = early + ((1 - u) * gap.square().mean(1)).mean()
        uncertainty = uncertainty + (doubt - u).square().mean()
    return ExitLosses(last, early, uncertainty)
