"""3×3 convolutions with half of the products: minimal filtering of four rows of a map at a time."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .cache import Remembered, Remembering

# Rows given by one tile and rows that it takes.
GIVEN, TAKEN = 4, 6
# The six linear combinations of rows, of filter taps, and of products, for the points 0, ±1, ±2, ∞.
OF_ROWS = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
OF_TAPS = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
OF_PRODUCTS = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)
# Its product enters all four rows once, so a bias added to it is added to all of them.
BIASED = 1
# Combined rows of a block of tiles stay in the processor's cache.
BLOCK_BYTES = 16 * 2**20
# Below these numbers of channels, and of pixels times both channels, the combinations cost what they save.
LEAST_CHANNELS, LEAST_WORK = 192, 2**26
# Transformed filters are twice as large as the filters: maps with fewer pixels do not make up for that.
LEAST_PIXELS_PER_CHANNEL = 0.75


def row_filters(weight: Float[Tensor, "out in 3 3"]) -> Float[Tensor, "6 out in 1 3"]:
    """Filters of three taps along a row, one for each combination of rows: G w."""
    combine = torch.tensor(OF_TAPS, dtype=torch.float64, device=weight.device)
    # In the order in which a convolution with channels last reads them.
    taken = torch.einsum("uk,oikx->uoxi", combine, weight.double()).to(weight.dtype)
    return taken.unsqueeze(2).permute(0, 1, 4, 2, 3)


def pays(x: Float[Tensor, "batch in h w"], weight: Float[Tensor, "out in kh kw"]) -> bool:
    """Whether `convolved` is the faster way to convolve this map by these filters, where it may be used.

    That is on a CPU in float32 with channels last and without gradients; elsewhere libraries choose a way of
    their own, and half precision does not bear the combinations.
    """
    channels = weight.shape[0] + weight.shape[1]
    pixels = x.shape[2] * x.shape[3]
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and weight.shape[2:] == (3, 3)
        and channels >= LEAST_CHANNELS
        and pixels * weight.shape[0] * weight.shape[1] >= LEAST_WORK
        and 2 * pixels >= LEAST_PIXELS_PER_CHANNEL * channels
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def convolved(
    x: Float[Tensor, "batch in h w"],
    filters: Float[Tensor, "6 out in 1 3"],
    bias: Float[Tensor, "out"] | None = None,
) -> Float[Tensor, "batch out h w"]:
    """A 3×3 convolution that keeps the size, as F.conv2d(x, weight, bias, padding=1) gives it.

    y = Aᵀ [(G w) ⋆ (Bᵀ x)]: six rows become six combinations Bᵀ x, each of them is convolved along the row,
    and four rows of the result are combinations of those, 18 products for 36. Rounding errors are about twice
    those of the direct sum.

    Args:
        x: map, channels last in memory.
        filters: of `row_filters`.
        bias: added to the result.

    Returns:
        The result, channels last in memory.

    Reference: Winograd 1980, "Arithmetic Complexity of Computations", chapter IV, F(4, 3); Lavin & Gray 2016,
        "Fast Algorithms for Convolutional Neural Networks", section 4.
    """
    batch, _, height, width = x.shape
    out = x.new_empty(batch, height, width, filters.shape[1])
    for rows, made in zip(x.permute(0, 2, 3, 1), out, strict=True):
        _image(rows, made, filters, bias)
    return out.permute(0, 3, 1, 2)


def _image(rows: Tensor, made: Tensor, filters: Tensor, bias: Tensor | None) -> None:
    """Convolve one image; rows and what is made of them have the shape (h, w, channels)."""
    height, width, channels = rows.shape
    out_channels = made.shape[2]
    tiles = -(-height // GIVEN)
    tile_bytes = rows.element_size() * TAKEN * width * (channels + out_channels)
    block = min(tiles, max(1, BLOCK_BYTES // tile_bytes))
    combined = rows.new_empty(TAKEN, block, width, channels)
    products = rows.new_empty(TAKEN, block, width, out_channels)
    of_rows, of_products = rows.new_tensor(OF_ROWS), rows.new_tensor(OF_PRODUCTS)
    for first in range(0, tiles, block):
        count = min(block, tiles - first)
        top, bottom = GIVEN * first, GIVEN * (first + count)
        taken = _rows(rows, top - 1, bottom + 1).flatten(1).unfold(0, TAKEN, GIVEN).mT
        torch.bmm(of_rows.expand(count, -1, -1), taken, out=combined[:, :count].flatten(2).transpose(0, 1))
        for index in range(TAKEN):
            row_map = combined[index, :count].permute(2, 0, 1)[None]
            added = bias if index == BIASED else None
            product = F.conv2d(row_map, filters[index], added, padding=(0, 1))
            products[index, :count] = product[0].permute(1, 2, 0)
        given = torch.bmm(of_products.expand(count, -1, -1), products[:, :count].flatten(2).transpose(0, 1))
        made[top:bottom] = given.view(bottom - top, width, out_channels)[: height - top]


def _rows(rows: Tensor, start: int, stop: int) -> Tensor:
    """Rows from start to stop; zeros where there are none."""
    above, below = max(-start, 0), max(stop - len(rows), 0)
    inner = rows[start + above : stop - below]
    return F.pad(inner, (0, 0, 0, 0, above, below)) if above or below else inner


class Conv3(Remembering, nn.Conv2d):
    """A 3×3 convolution that keeps the size, with half of the products where that pays.

    Example:
        >>> layer = Conv3(64, 64)
        >>> layer(torch.zeros(1, 64, 5, 7)).shape
        torch.Size([1, 64, 5, 7])
    """

    def __init__(self, channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 3, padding=1, bias=bias)
        self.fast: Remembered[Tensor] = Remembered(1)

    def forward(self, x: Float[Tensor, "batch in h w"]) -> Float[Tensor, "batch out h w"]:
        if not pays(x, self.weight):
            return super().forward(x)
        return convolved(x, self.fast.get((self.weight,), lambda: row_filters(self.weight)), self.bias)
