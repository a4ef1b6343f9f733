"""Layers of the temporal U-Net as products of matrices, for inference on short sequences.

Sequences are (batch, time, channels) here. A convolution over a few steps with many channels is little more
than reading its weights once; as one matrix product over the unfolded windows it takes a third of the time
of the convolution kernel on a CPU, and the weights may be half as wide.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .unet1d_blocks import ConditionalResidualBlock1D, Conv1dBlock

Layer = Callable[[Tensor], Tensor]


def matmul(weight: Float[Tensor, "out into"], bias: Float[Tensor, "out"], dtype: torch.dtype) -> Layer:
    """x ↦ x·Wᵀ + b with the weights stored in `dtype`; what comes out has the precision of x.

    On a CPU with oneDNN the weights are stored in the order that its kernels read them in.
    """
    weight, bias = weight.detach().to(dtype).contiguous(), bias.detach().to(dtype)
    if weight.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and _reordered is not None:
        packed = _reordered(weight)
        apply = torch.ops.mkldnn._linear_pointwise
        return lambda x: apply(x.to(dtype), packed, bias, "none", [], "").to(x.dtype)
    return lambda x: F.linear(x.to(dtype), weight, bias).to(x.dtype)


def _reorder_linear(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, 8)  # 8: rows that are usual here, a hint only


def _usable() -> Callable[[Tensor], Tensor] | None:
    """oneDNN's order of weights, where this build of torch has it and it works."""
    try:
        one = torch.eye(2)
        made = torch.ops.mkldnn._linear_pointwise(one, _reorder_linear(one), one[0], "none", [], "")
        return _reorder_linear if bool(torch.isfinite(made).all()) else None
    except (AttributeError, RuntimeError):
        return None


_reordered = _usable()


def convolution(layer: nn.Module, dtype: torch.dtype) -> Layer:
    """A Conv1d of any stride, as a product over its windows."""
    assert isinstance(layer, nn.Conv1d)
    assert layer.bias is not None
    size, stride, pad = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    product = matmul(layer.weight.permute(0, 2, 1).flatten(1), layer.bias, dtype)
    if size == 1:
        return product
    return lambda x: product(_windows(F.pad(x, (0, 0, pad, pad)), size, stride))


def lengthening(layer: nn.Module, dtype: torch.dtype) -> Layer:
    """ConvTranspose1d of kernel 4, stride 2, padding 1: even and odd steps from windows of two.

    y_2i = W3·x_{i−1} + W1·x_i,  y_{2i+1} = W2·x_i + W0·x_{i+1}.
    """
    assert isinstance(layer, nn.ConvTranspose1d)
    assert layer.bias is not None
    zeroth, first, second, third = layer.weight.detach().transpose(0, 1).unbind(2)
    even, odd = torch.cat([third, first], dim=1), torch.cat([second, zeroth], dim=1)
    product = matmul(torch.cat([even, odd]), layer.bias.repeat(2), dtype)

    def lengthened(x: Tensor) -> Tensor:
        batch, steps, channels = x.shape
        halves = product(_windows(F.pad(x, (0, 0, 1, 1)), 2, 1))
        pairs = torch.stack([halves[:, :-1, :channels], halves[:, 1:, channels:]], dim=2)
        return pairs.reshape(batch, 2 * steps, channels)

    return lengthened


def _windows(x: Tensor, size: int, stride: int) -> Tensor:
    """(batch, windows, size·channels): what each window sees, step after step."""
    batch, steps, channels = x.shape
    count = (steps - size) // stride + 1
    strides = (steps * channels, stride * channels, 1)
    return x.contiguous().as_strided((batch, count, size * channels), strides).contiguous()


def conv_block(block: nn.Module, dtype: torch.dtype) -> Layer:
    """Convolution → GroupNorm → Mish."""
    assert isinstance(block, Conv1dBlock)
    conv, norm = convolution(block.block[0], dtype), block.block[1]
    assert isinstance(norm, nn.GroupNorm)
    groups, gain, offset, eps = norm.num_groups, norm.weight.detach(), norm.bias.detach(), norm.eps

    def applied(x: Tensor) -> Tensor:
        h = conv(x)
        # A view with the channels second, whose memory order the kernel of the normalisation knows.
        image = h[:, None].permute(0, 3, 1, 2)
        return F.mish(F.group_norm(image, groups, gain, offset, eps), inplace=True).permute(0, 2, 3, 1)[:, 0]

    return applied


def residual_block(
    block: ConditionalResidualBlock1D, dtype: torch.dtype
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Two convolution blocks, modulated in between by a row of numbers per sample (None: not)."""
    first, second = (conv_block(inner, dtype) for inner in block.blocks)
    shortcut = (
        None if isinstance(block.residual_conv, nn.Identity) else convolution(block.residual_conv, dtype)
    )
    scaled = block.condition != "add"

    def applied(x: Tensor, modulation: Tensor | None) -> Tensor:
        h = first(x)
        if modulation is not None:
            if scaled:
                scale, bias = modulation[:, None].chunk(2, dim=2)
                h = torch.addcmul(bias, h, scale)
            else:
                h = h + modulation[:, None]
        return second(h).add_(x if shortcut is None else shortcut(x))

    return applied
