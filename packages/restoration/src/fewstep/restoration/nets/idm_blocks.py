"""What IDM's cut Stable Diffusion U-Net is made of: residual blocks, self-attention, injectors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Gram = Callable[[Tensor], Tensor]


class ResnetBlock(nn.Module):
    """Residual block without a time: norm, SiLU, convolution, twice; 1×1 convolution where channels change.

    Args:
        channels: taken.
        out_channels: given.
        groups: of the normalisations.
    """

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-5)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-5)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out_channels h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class PlainBlock(nn.Module):
    """Residual block of two convolutions with a ReLU between, no norms, so it is cheap.

    Args:
        channels: taken.
        out_channels: given.

    Reference: Lim et al. 2017, "Enhanced Deep Residual Networks for Single Image Super-Resolution", sec. 3.1.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out_channels h w"]:
        h = self.conv2(F.relu_(self.conv1(x)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SelfAttention(nn.Module):
    """Attention of every position to every other one."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Float[Tensor, "batch places channels"]) -> Float[Tensor, "batch places channels"]:
        # One product for the three, as the weights lie in three tensors.
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        q, k, v = F.linear(x, weight).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatedUnit(nn.Module):
    """One half of a linear map, times GELU of the other half."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Float[Tensor, "batch places channels"]) -> Float[Tensor, "batch places hidden"]:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated layer of four times the width and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Names of the published layout, whose element 1 is a dropout without weights.
        self.net = nn.ModuleList(
            [GatedUnit(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)]
        )

    def forward(self, x: Float[Tensor, "batch places channels"]) -> Float[Tensor, "batch places channels"]:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward, each on normalised features and added. No cross-attention."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Float[Tensor, "batch places channels"]) -> Float[Tensor, "batch places channels"]:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer block over the positions of a feature map, added to it.

    Args:
        channels: of the map.
        heads: of the attention.
        groups: of the normalisation.

    Reference: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models",
        appendix E.2.1.
    """

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        tokens = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)
        tokens = self.transformer_blocks[0](tokens)
        return x + self.proj_out(tokens.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2))


class Injector(nn.Module):
    """Adds what the measurements say to features: features → image u → (u, AᵀA u, Aᵀy) → features.

    The published layers are PixelShuffle, Conv1×1 and Conv1×1, PixelUnshuffle at the image's resolution. The
    same maps are applied here at the resolution of the features, where only u and the three images change
    their resolution: the weights of a 1×1 convolution, repeated for every place in a block of pixels.

    Args:
        channels: of the features.
        factor: side of the image per side of the features.
        steps: sampling steps; each has weights of its own.

    Reference: Chen et al. 2025, "Invertible Diffusion Models for Compressed Sensing", section 3.3.
    """

    def __init__(self, channels: int, factor: int, steps: int) -> None:
        super().__init__()
        self.factor = factor
        width, rest = divmod(channels, factor**2)
        if rest:
            raise ValueError(f"channels must be a multiple of {factor**2} where injected, got {channels}")
        # Indices of the published layout, in which the shuffles stand before and after.
        self.f2i = nn.ModuleList([nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1)) for _ in range(steps)])
        self.i2f = nn.ModuleList([nn.Sequential(nn.Conv2d(3, width, 1)) for _ in range(steps)])

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        seen: Float[Tensor, "batch 1 h2 w2"],
        gram: Gram,
        step: int,
    ) -> Float[Tensor, "batch channels h w"]:
        """Features with the measurements injected.

        Args:
            x: features.
            seen: Aᵀ y.
            gram: z → Aᵀ A z.
            step: whose weights are used, from 0.
        """
        image = F.pixel_shuffle(self._spread(self.f2i[step].get_submodule("1"), x), self.factor)
        images = torch.cat([image, gram(image).to(image.dtype), seen.to(image.dtype)], dim=1)
        return x + self._spread(self.i2f[step].get_submodule("0"), F.pixel_unshuffle(images, self.factor))

    def _spread(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A 1×1 convolution of pixels, on blocks of pixels that are folded into channels."""
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        places = self.factor**2
        weight = torch.kron(
            layer.weight[:, :, 0, 0], torch.eye(places, device=x.device, dtype=layer.weight.dtype)
        )
        return F.conv2d(x, weight[:, :, None, None], layer.bias.repeat_interleave(places))
