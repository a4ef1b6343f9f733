"""Convolution and GroupNorm + Mish with derivatives of their own, which training on a CPU spends its time in.

torch's derivative along a direction of a convolution computes a third one with zeros, and those of GroupNorm
and Mish are made of some thirty small steps; here each is a few passes over the numbers. Elsewhere (GPU,
autocast, half precision, no gradients, torch.compile) torch's own functions are used.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SHORT = 8  # steps; below, torch's backward of GroupNorm takes ten times as long as it does above


def conv1d(x: Float[Tensor, "batch channels time"], layer: nn.Module) -> Float[Tensor, "batch out steps"]:
    """What the Conv1d gives."""
    assert isinstance(layer, nn.Conv1d)
    if not _ours(x):
        return layer(x)
    return _Convolution.apply(x, layer.weight, layer.bias, layer.stride[0], int(layer.padding[0]))  # type: ignore[return-value]


def norm_mish(
    x: Float[Tensor, "batch channels time"], norm: nn.Module
) -> Float[Tensor, "batch channels time"]:
    """What the GroupNorm and Mish after it give; a second derivative raises."""
    assert isinstance(norm, nn.GroupNorm)
    if not _ours(x):
        return F.mish(norm(x))
    return _NormMish.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)[0]  # type: ignore[index]


def _ours(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Convolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        return F.conv1d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.stride, ctx.padding = inputs
        ctx.biased = bias is not None
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.biased and ctx.needs_input_grad[2]]
        sizes = [weight.shape[0]] if ctx.biased else None
        found = torch.ops.aten.convolution_backward(
            slope, x, weight, sizes, [ctx.stride], [ctx.padding], [1], False, [0], 1, wanted
        )
        return (*found, None, None)

    @staticmethod
    def jvp(ctx: Any, x_rate: Tensor | None, *rates: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        weight_rate, bias_rate = rates[:2]
        parts = []
        if x_rate is not None:
            parts.append(F.conv1d(x_rate, weight, None, ctx.stride, ctx.padding))
        if weight_rate is not None:
            parts.append(F.conv1d(x, weight_rate, None, ctx.stride, ctx.padding))
        if bias_rate is not None:
            steps = (x.shape[2] + 2 * ctx.padding - weight.shape[2]) // ctx.stride + 1
            parts.append(bias_rate[:, None].expand(len(x), -1, steps))
        return parts[0] if len(parts) == 1 else sum(parts[1:], parts[0])


class _NormMish(torch.autograd.Function):
    """y = mish(z), z = gain·n + offset, n = (x − mean)/std over a group.

    With w = 1 + exp(z) and r = 1/(w² + 1): mish(z) = z·tanh(ln w) = z·(1 − 2r), which has the slope
    1 − 2r + 4z·p·(p − r) with p = w·r.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, channels, steps = x.shape
        z, mean, inverse = torch.native_group_norm(
            x.contiguous(), gain, offset, batch, channels, steps, groups, eps
        )
        w = z.exp().clamp_(max=1e15).add_(1)  # the largest whose square float32 holds with room
        r = torch.addcmul(torch.ones_like(z[:1, :1, :1]), w, w).reciprocal_()
        y = torch.addcmul(z, z, r, value=-2)
        p = w.mul_(r)
        slope = (p - r).mul_(p).mul_(z).mul_(4).add_(1).sub_(r, alpha=2)
        return y, mean, inverse, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        (x, gain), (_, mean, inverse, slope) = inputs[:2], output
        ctx.mark_non_differentiable(mean, inverse, slope)
        ctx.save_for_backward(x, gain, mean, inverse, slope)
        ctx.save_for_forward(x, gain, mean, inverse, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, mean, inverse, slope = ctx.saved_tensors
        by_z, groups = above * slope, mean.shape[1]
        if x.shape[2] < SHORT:
            return (*_norm_backward(by_z, x, gain, mean, inverse), None, None)
        found = torch.ops.aten.native_group_norm_backward(
            by_z, x.contiguous(), mean, inverse, gain, *x.shape, groups, [True] * 3
        )
        return (*found, None, None)

    @staticmethod
    def jvp(ctx: Any, x_rate: Tensor | None, *rates: Tensor | None) -> tuple[Tensor | None, ...]:
        x, gain, mean, inverse, slope = ctx.saved_tensors
        rate = torch.zeros_like(x)
        if x_rate is not None:
            rate = _norm_rate(x_rate, x, mean, inverse) * gain[:, None]
        if rates[0] is not None:
            grouped = (x.reshape(*mean.shape, -1) - mean[..., None]) * inverse[..., None]
            rate = rate + grouped.reshape(x.shape) * rates[0][:, None]
        if rates[1] is not None:
            rate = rate + rates[1][:, None]
        return _Last.apply(rate * slope), None, None, None  # type: ignore[return-value]


def _norm_rate(rate: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """Derivative of n along `rate`: (r − ⟨r⟩ − n·⟨r·n⟩)/std, as a sum of r, x and a constant per group."""
    r, states = (value.reshape(*mean.shape, -1) for value in (rate, x))
    of_rate, of_product = r.mean(2), (r * states).mean(2)
    by_x = -(inverse**3) * (of_product - mean * of_rate)
    constant = -inverse * of_rate - by_x * mean
    flat = torch.addcmul(constant[..., None], states, by_x[..., None])
    return torch.addcmul(flat, r, inverse[..., None]).reshape(x.shape)


def _norm_backward(
    by_z: Tensor, x: Tensor, gain: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What torch's backward of GroupNorm gives: gradients by x, gain and offset."""
    batch, groups = mean.shape
    split = (batch, groups, -1)
    products, sums = (by_z * x).sum(2), by_z.sum(2)
    centred = (products.reshape(split) - sums.reshape(split) * mean[..., None]) * inverse[..., None]
    by_x = _norm_rate(by_z * gain[:, None], x, mean, inverse)
    return by_x, centred.sum(0).flatten(), sums.sum(0)


class _Last(torch.autograd.Function):
    """The value itself, from which no further gradient is taken: what was saved would make it wrong."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        raise NotImplementedError(
            "a gradient of the temporal U-Net's derivative along a direction is not available on the CPU; "
            "detach the derivative, as MeanFlow does"
        )
