"""Shifted-window attention layers of ResShift's network."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .cache import Remembered, Remembering

# What the attention scores of separated pixels are lowered by, as published.
SEPARATE = -100.0


def relative_position_index(window: int) -> Int[Tensor, "positions positions"]:
    """Row of the bias table for each pair of pixels of a window, by their offset.

    Reference: Liu et al. 2021, "Swin Transformer", section 3.2.
    """
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    rows = y[:, None] - y[None, :] + window - 1
    columns = x[:, None] - x[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def wrap_masks(window: int, shift: int) -> Float[Tensor, "2 positions positions"]:
    """What is added to the scores in the windows of a shifted map: for all rows but the last, and for it.

    The published networks were trained with masks that differ from those of the Swin Transformer. There, a
    window that holds pixels from both ends of the map keeps the two apart, along both axes. Here the windows
    of the last row keep their first window − shift columns apart from the others, and all other windows are
    left whole. The weights are used to it, so it stays. Two masks serve maps of every size.

    Reference: Yue et al. 2023, "ResShift", released code; compare Liu et al. 2021, "Swin Transformer",
        section 3.2.
    """
    first = (torch.arange(window) < window - shift).repeat(window)
    apart = first[:, None] != first[None, :]
    return torch.stack([torch.zeros(apart.shape), torch.where(apart, SEPARATE, 0.0)])


class WindowAttention(Remembering):
    """Multi-head attention inside windows, with a learned bias per relative position.

    softmax(q kᵀ/√d + bias + mask) v, over the window² pixels of each window.

    Args:
        width: channels.
        heads: attention heads.
        window: side of a window.
        shift: cyclic shift that the caller applied; decides which masks are added.

    Reference: Liu et al. 2021, "Swin Transformer", eq. 4.
    """

    relative_position_index: Tensor
    masks: Tensor

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        masks = wrap_masks(window, shift) if shift else torch.zeros(1, window**2, window**2)
        self.register_buffer("masks", masks, persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.remembered: Remembered[Tensor] = Remembered(1)

    def forward(self, x: Float[Tensor, "batch h w width"]) -> Float[Tensor, "batch h w width"]:
        """Attend within windows; h and w are multiples of the window."""
        qkv = self.qkv(x)
        inputs = (self.relative_position_bias_table, self.masks)
        bias = self.remembered.get(inputs, lambda: self.bias(qkv.dtype))
        if not self.shift:
            return self.proj(self.attend(qkv, bias[0]))
        last = x.shape[1] - self.window
        regions = [qkv[:, :last], qkv[:, last:]]
        mixed = [
            self.attend(region, mask) for region, mask in zip(regions, bias, strict=True) if region.shape[1]
        ]
        return self.proj(torch.cat(mixed, dim=1))

    def bias(self, dtype: torch.dtype) -> Float[Tensor, "kinds 1 heads positions positions"]:
        """Position bias plus mask for each kind of window; SDPA asks for the axis of windows."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return (bias + self.masks[:, None])[:, None].to(dtype)

    def attend(
        self, qkv: Float[Tensor, "batch h w width3"], bias: Float[Tensor, "1 heads positions positions"]
    ) -> Float[Tensor, "batch h w width"]:
        """Attention of all windows of a region under one bias."""
        batch, height, width, channels = qkv.shape
        side, rows, columns = self.window, height // self.window, width // self.window
        depth = channels // (3 * self.heads)
        windows = qkv.view(batch, rows, side, columns, side, 3, self.heads, depth)
        windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, self.heads, side**2, depth)
        mixed = F.scaled_dot_product_attention(*windows.unbind(), attn_mask=bias)
        mixed = mixed.view(batch, rows, columns, self.heads, side, side, depth)
        return mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, channels // 3)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # A function of the window alone, which published files store.
        state_dict.pop(prefix + "relative_position_index", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Mlp(nn.Module):
    """Two 1×1 convolutions with a GELU between.

    Args:
        width: channels.
        hidden: channels in between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Float[Tensor, "batch h w width"]) -> Float[Tensor, "batch h w width"]:
        return pointwise(self.fc2, F.gelu(pointwise(self.fc1, x)))


class SwinBlock(nn.Module):
    """x ← x + attention(norm(x)); x ← x + mlp(norm(x)), with channels last.

    Args:
        width: channels (a multiple of 32).
        heads: attention heads.
        window: side of a window.
        shift: cyclic shift of the image before it is cut into windows.
        mlp_ratio: hidden channels of the MLP per channel.

    Reference: Liu et al. 2021, "Swin Transformer", section 3.2; Yue et al. 2023, "ResShift", which uses group
        normalisation in place of layer normalisation.
    """

    def __init__(self, width: int, heads: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.GroupNorm(32, width)
        self.attn = WindowAttention(width, heads, window, shift)
        self.norm2 = nn.GroupNorm(32, width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Float[Tensor, "batch h w width"]) -> Float[Tensor, "batch h w width"]:
        h = channels_last_norm(self.norm1, x)
        if self.shift:
            h = torch.roll(h, (-self.shift, -self.shift), (1, 2))
        h = self.attn(h)
        if self.shift:
            h = torch.roll(h, (self.shift, self.shift), (1, 2))
        x = x + h
        return x + self.mlp(channels_last_norm(self.norm2, x))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # Published files store the masks of the training size; ours serve every size (wrap_masks).
        state_dict.pop(prefix + "attn_mask", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class PointwiseLayer(nn.Module):
    """The 1×1 convolution that brings channels to and from the width of the blocks.

    Args:
        inputs: channels taken.
        outputs: channels given.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "batch h w inputs"]) -> Float[Tensor, "batch h w outputs"]:
        return pointwise(self.proj, x)


class SwinLayer(nn.Module):
    """Blocks with alternately unshifted and shifted windows, between two 1×1 convolutions.

    Args:
        channels: channels of the feature map.
        width: channels inside the blocks.
        heads: attention heads.
        depth: number of blocks.
        resolution: side of the feature map that the network was built for; where it is no larger than the
            window, windows shrink to it and are not shifted, whatever size comes later.
        window: side of a window.
        mlp_ratio: hidden channels of the MLP per channel.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        heads: int,
        depth: int,
        resolution: int,
        window: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        shift = window // 2 if resolution > window else 0
        self.window = min(window, resolution)
        self.patch_embed = PointwiseLayer(channels, width)
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, self.window, shift if i % 2 else 0, mlp_ratio) for i in range(depth)
        )
        self.patch_unembed = PointwiseLayer(width, channels)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        h = self.patch_embed(x.permute(0, 2, 3, 1))
        for block in self.blocks:
            h = block(h)
        h = self.patch_unembed(h).permute(0, 3, 1, 2)
        # Back in the memory layout of the input: the convolutions that follow were chosen for it.
        return h.contiguous() if x.is_contiguous() else h


def pointwise(layer: nn.Conv2d, x: Float[Tensor, "batch h w inputs"]) -> Float[Tensor, "batch h w outputs"]:
    """A 1×1 convolution applied with channels last, as the matrix product that it is."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def channels_last_norm(
    norm: nn.GroupNorm, x: Float[Tensor, "batch h w width"]
) -> Float[Tensor, "batch h w width"]:
    """Group normalisation of a map with channels last; statistics are accumulated in float32."""
    return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
