"""Networks of the one-step codec: a learned lapped transform, and a network in its latent space."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .edsr import ModulatedBlock, told_time

CELL = 8
# Kernels begin as orthonormal and small; a learning rate made for networks would wreck them, so they are held
# in larger units.
KERNEL_UNIT = 0.1
# A sum of all colours, then two differences, each of length 1.
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (0.5, -1.0, 0.5))


def cosine_kernels(luma: int, chroma: int) -> Float[Tensor, "channels 3 16 16"]:
    """The orthonormal cosine transform of 8×8 cells, in the middle of kernels of twice the side.

    The lowest frequencies of the brightness and of two colour differences; the three means come first, then
    the brightness, then the colours in turns.

    Args:
        luma: frequencies of the brightness.
        chroma: frequencies of each colour difference.
    """
    n = torch.arange(CELL, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * n[None] + 1) * n[:, None] / (2 * CELL)) * math.sqrt(2 / CELL)
    basis[0] /= math.sqrt(2)
    order = sorted(((u, v) for u in range(CELL) for v in range(CELL)), key=lambda uv: (sum(uv), max(uv)))
    colours = F.normalize(torch.tensor(COLOURS, dtype=torch.float64), dim=1)
    chosen = [(c, 0) for c in range(3)] + [(0, k) for k in range(1, luma)]
    chosen += [(c, k) for k in range(1, chroma) for c in (1, 2)]
    kernels = torch.zeros(len(chosen), 3, 2 * CELL, 2 * CELL, dtype=torch.float64)
    for index, (colour, k) in enumerate(chosen):
        u, v = order[k]
        wave = basis[u][:, None] * basis[v][None]
        kernels[index, :, 4:12, 4:12] = colours[colour][:, None, None] * wave
    return kernels.float()


class Analysis(nn.Module):
    """Image to latent: a strided convolution with overlapping kernels, without a bias.

    Args:
        luma: see `cosine_kernels`.
        chroma: see `cosine_kernels`.
    """

    def __init__(self, luma: int, chroma: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(cosine_kernels(luma, chroma) / KERNEL_UNIT)

    def forward(self, image: Float[Tensor, "batch 3 H W"]) -> Float[Tensor, "batch channels h w"]:
        """Latent of an image whose sides are multiples of 8."""
        wide = F.pad(image, (4, 4, 4, 4), mode="replicate")
        return F.conv2d(wide, self.kernels * KERNEL_UNIT, stride=CELL)


class Synthesis(nn.Module):
    """Latent to image: overlapping kernels, plus a small branch at half the resolution.

    The kernels begin as the transpose of the analysis and the branch at nothing, so that a fresh pair returns
    the image up to the frequencies that are left out.

    Args:
        luma: see `cosine_kernels`.
        chroma: see `cosine_kernels`.
        detail: feature channels of the branch.
    """

    reach = 2

    def __init__(self, luma: int, chroma: int, detail: int) -> None:
        super().__init__()
        kernels = cosine_kernels(luma, chroma)
        self.kernels = nn.Parameter(kernels / KERNEL_UNIT)
        self.unfold = nn.Conv2d(len(kernels), 16 * detail, 1)
        self.inner = nn.Conv2d(detail, detail, 3, padding=1)
        self.outer = nn.Conv2d(detail, 12, 3, padding=1)
        nn.init.zeros_(self.outer.weight)
        if self.outer.bias is not None:
            nn.init.zeros_(self.outer.bias)

    def forward(self, z: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 H W"]:
        """Image, not clipped."""
        wide = F.pad(z, (1, 1, 1, 1), mode="replicate")
        smooth = F.conv_transpose2d(wide, self.kernels * KERNEL_UNIT, stride=CELL, padding=12)
        h = F.pixel_shuffle(self.unfold(z), 4)
        h = self.outer(F.silu(self.inner(F.silu(h))))
        return smooth + F.pixel_shuffle(h, 2)


class LatentNet(nn.Module):
    """Residual blocks at the resolution of the latent, told the time and the quantiser's step.

    What it sees of a state x is asinh(x/step) and asinh((x − mean of 3×3)/step): counts of steps, so that
    coarse and fine rates look alike, with large ones compressed and yet differences between neighbours kept.

    Args:
        channels: of the latent.
        width: feature channels (even).
        blocks: residual blocks.
    """

    def __init__(self, channels: int, width: int = 96, blocks: int = 6) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        self.channels, self.width = channels, width
        self.time_embed = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.head = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.body = nn.ModuleList(ModulatedBlock(width, width) for _ in range(blocks))
        self.tail = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        if self.tail.bias is not None:
            nn.init.zeros_(self.tail.bias)

    @property
    def reach(self) -> int:
        """Cells to each side on which a cell of the result depends."""
        return 3 + 2 * len(self.body)

    def forward(
        self, x: Float[Tensor, "batch channels h w"], t: Float[Tensor, "batch"], step: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch channels h w"]:
        """The velocity v of the state: x0 = a x − sigma v.

        Args:
            x: state.
            t: 1000 times the path's time.
            step: the quantiser's step in the units of the state.
        """
        counts = x / step[:, None, None, None]
        around = F.avg_pool2d(F.pad(counts, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        seen = torch.cat([counts, counts - around], dim=1).asinh()
        embedding = self.time_embed(told_time(t, self.width).to(self.head.weight.dtype))
        h = self.head(seen.to(self.head.weight.dtype))
        for block in self.body:
            h = block(h, embedding)
        return self.tail(h)
