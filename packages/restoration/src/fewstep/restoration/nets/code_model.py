"""How likely every index of a quantised latent is, in whole numbers, so that all machines agree on it."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

LIMIT = 31
PRECISION = 16
CLASSES = 26
UNIT = 1024
MEANS = 3
SEEN = 15
NEAR_MOST, AROUND_MOST = 1023, 127
# Expected sizes at which a class ends: .04, .055, … in units of 1/UNIT.
BOUNDS = np.asarray([round(0.04 * UNIT * 1.36**k) for k in range(CLASSES - 1)], np.int32)
RING = ((1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 1.0))


class CodeModel(nn.Module):
    """Expected size of every index from the channels that are coded before its own.

    b = bias[rate, c] + Σ_{k<c} near[c, k] min(|s_k|, 15) + around[c, k] Σ_{8 neighbours} min(|s_k|, 15)

    s are the indices; of the first three channels, the means of the cells, what a median predictor leaves of
    them. Training takes s as Laplacian of mean size b. A file is coded with one table of frequencies per
    class of b; b and tables are whole numbers there, and sums stay below 2^24: they are the same in any
    order of summation, in float32 as in integers.

    Args:
        rates: number of rates.
        channels: of the latent.
        dead_zone: of the quantiser.

    Reference: Weinberger, Seroussi & Sapiro 2000, "LOCO-I", for the median predictor and contexts of size.
    """

    bias_fixed: Tensor
    near_fixed: Tensor
    around_fixed: Tensor
    frequencies: Tensor

    def __init__(self, rates: int, channels: int, dead_zone: float) -> None:
        super().__init__()
        self.dead_zone = dead_zone
        self.bias = nn.Parameter(torch.full((rates, channels), -1.5))
        self.near = nn.Parameter(torch.full((channels, channels), 0.02))
        self.around = nn.Parameter(torch.full((channels, channels), 0.002))
        self.register_buffer("bias_fixed", torch.zeros(rates, channels, dtype=torch.int32))
        self.register_buffer("near_fixed", torch.zeros(channels, channels, dtype=torch.int32))
        self.register_buffer("around_fixed", torch.zeros(channels, channels, dtype=torch.int32))
        self.register_buffer("frequencies", torch.zeros(CLASSES, 2 * LIMIT + 1, dtype=torch.int32))
        self.fix(np.zeros((CLASSES, 2 * LIMIT + 1)))

    def bits(
        self, indices: Float[Tensor, "batch channels h w"], rate: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """Bits of the indices of whole images, differentiable; indices hold whole numbers.

        Args:
            indices: of the quantiser.
            rate: number of the rate, from 0.
        """
        means = indices[:, :MEANS]
        s = torch.cat([means - predicted(means), indices[:, MEANS:]], dim=1)
        size = s.abs()
        seen = size.clamp(max=SEEN)
        ring = seen.new_tensor(RING).expand(seen.shape[1], 1, 3, 3)
        around = F.conv2d(seen, ring, padding=1, groups=seen.shape[1])
        near, far = self._weights()
        b = torch.einsum("ck,bkhw->bchw", near, seen) + torch.einsum("ck,bkhw->bchw", far, around)
        b = (b + self.bias.exp()[rate][:, :, None, None]).clamp(min=0.02)
        edge = 0.5 + self.dead_zone
        zero = -torch.log(-torch.expm1(-edge / b))
        more = (size - 1 + edge) / b - torch.log(-torch.expm1(-1 / b)) + math.log(2)
        return torch.where(size == 0, zero, more).sum(dim=(1, 2, 3)) / math.log(2)

    def _weights(self) -> tuple[Tensor, Tensor]:
        near = self.near.clamp(0, NEAR_MOST / UNIT).tril(-1)
        return near, self.around.clamp(0, AROUND_MOST / UNIT).tril(-1)

    @torch.no_grad()
    def fix(self, counts: np.ndarray) -> None:
        """Turn what was learnt into whole numbers, and counted indices into tables.

        Args:
            counts: (CLASSES, 2 LIMIT + 1) how often every index was seen in every class; a class that was
                seldom seen keeps a Laplacian's frequencies.
        """
        near, around = self._weights()
        self.near_fixed.copy_((near * UNIT).round().int())
        self.around_fixed.copy_((around * UNIT).round().int())
        self.bias_fixed.copy_((self.bias.exp() * UNIT).round().clamp(0, 2**20).int())
        tables = [whole_frequencies(counts[k] + 64 * _laplacian(k, self.dead_zone)) for k in range(CLASSES)]
        self.frequencies.copy_(torch.from_numpy(np.stack(tables)))

    def reader(self, rate: int) -> "Contexts":
        """The classes of indices, channel after channel, in the order of coding."""
        return Contexts(
            self.bias_fixed[rate].cpu().numpy(),
            self.near_fixed.cpu().numpy().astype(np.float32),
            self.around_fixed.cpu().numpy().astype(np.float32),
        )


class Contexts:
    """Classes of the indices of one image, while they are coded channel by channel."""

    def __init__(self, bias: np.ndarray, near: np.ndarray, around: np.ndarray) -> None:
        self.bias, self.near, self.around = bias, near, around
        self.done = 0
        self.seen: np.ndarray | None = None

    def classes(self, h: int, w: int) -> np.ndarray:
        """Classes of the next channel, (h·w,)."""
        c, seen = self.done, self.seen
        value = np.full(h * w, self.bias[c], np.int64)
        if c and seen is not None:
            value += (self.near[c, :c] @ seen[0, :c]).astype(np.int64)
            value += (self.around[c, :c] @ seen[1, :c]).astype(np.int64)
        return np.searchsorted(BOUNDS, value, side="right")

    def add(self, symbols: np.ndarray) -> None:
        """Tell the indices of that channel, (h, w)."""
        h, w = symbols.shape
        if self.seen is None:
            self.seen = np.zeros((2, len(self.bias), h * w), np.float32)
        size = np.minimum(np.abs(symbols), SEEN).astype(np.float32)
        wide = np.pad(size, 1)
        columns = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
        ring = columns[:-2] + columns[1:-1] + columns[2:] - size
        self.seen[0, self.done], self.seen[1, self.done] = size.ravel(), ring.ravel()
        self.done += 1


def predicted(means: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
    """The median of left, upper and left + upper − corner; at the border what is there, 0 at the corner."""
    left, up = F.pad(means, (1, 0))[..., :-1], F.pad(means, (0, 0, 1, 0))[..., :-1, :]
    corner = F.pad(means, (1, 0, 1, 0))[..., :-1, :-1]
    middle = (left + up - corner).clamp(torch.minimum(left, up), torch.maximum(left, up))
    first = torch.cat([left[..., :1, :], middle[..., 1:, :]], dim=-2)
    return torch.cat([up[..., :1], first[..., 1:]], dim=-1)


def unpredict(rest: np.ndarray) -> np.ndarray:
    """Means from what the predictor left of them: (h, w) whole numbers."""
    means = rest.astype(np.int64)
    h, w = means.shape
    means[0], means[:, 0] = np.cumsum(means[0]), np.cumsum(means[:, 0])
    # Cells of one rising diagonal know all their neighbours and not each other.
    for diagonal in range(2, h + w - 1):
        i = np.arange(max(1, diagonal - w + 1), min(h - 1, diagonal - 1) + 1)
        j = diagonal - i
        left, up = means[i, j - 1], means[i - 1, j]
        middle = left + up - means[i - 1, j - 1]
        means[i, j] += np.clip(middle, np.minimum(left, up), np.maximum(left, up))
    return means


def whole_frequencies(weights: np.ndarray) -> np.ndarray:
    """Whole numbers of at least 1 whose sum is 2^PRECISION, about in proportion to weights."""
    free = 2**PRECISION - len(weights)
    found = 1 + np.floor(weights / weights.sum() * free).astype(np.int64)
    found[int(found.argmax())] += 2**PRECISION - found.sum()
    return found.astype(np.int32)


def _laplacian(index: int, dead_zone: float) -> np.ndarray:
    b = 0.04 * 1.36 ** (index - 0.5)
    k = np.abs(np.arange(-LIMIT, LIMIT + 1))
    edge = 0.5 + dead_zone
    tail = 0.5 * np.exp(-(np.maximum(k, 1) - 1 + edge) / b) * -np.expm1(-1 / b)
    out = np.where(k == 0, -np.expm1(-edge / b), tail)
    out[[0, -1]] += 0.5 * np.exp(-(LIMIT + edge) / b)
    return out
