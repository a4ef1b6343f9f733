"""Attention whose cost grows linearly with the pixels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Pixels whose queries are made at a time where nothing is recorded: they stay in the processor's cache.
PIXELS = 2048


def linear_attention(
    rows: Float[Tensor, "batch pixels channels"],
    w_qkv: Float[Tensor, "hidden3 channels"],
    w_out: Float[Tensor, "out hidden"],
    bias: Float[Tensor, "out"],
    heads: tuple[int, int],
) -> Float[Tensor, "batch pixels out"]:
    """W_o (Σ_n softmax_n(k)_n v_nᵀ / N)ᵀ softmax_c(q) / √width + b for each head.

    softmax_n is over pixels, softmax_c over the channels of a head. Small matrices are multiplied first:
    Σ_n k_n v_nᵀ = (Σ_n k_n x_nᵀ) W_vᵀ, and W_o is multiplied with it, so that neither v nor the heads' output
    is ever made. On a CPU where nothing is recorded, k and q of all pixels are not made either.

    Args:
        rows: channels of each pixel.
        w_qkv: weights of q, k and v, one below the other.
        w_out: weights W_o.
        bias: b.
        heads: number of heads and width of each.

    Reference: Shen, Zhang, Zhao, Yi & Li 2021, "Efficient Attention: Attention with Linear Complexities".
    """
    w_q, w_k, w_v = w_qkv.chunk(3)
    streamed = rows.is_cpu and not torch.is_grad_enabled()
    seen = (_streamed if streamed else _whole)(rows, w_k).unflatten(1, heads)
    # (batch, heads, channels of k, channels of v)
    context = seen @ w_v.to(seen.dtype).unflatten(0, heads).mT
    mixing = context @ w_out.to(seen.dtype).unflatten(1, heads).permute(1, 2, 0)
    mixing = mixing.flatten(1, 2) * (heads[1] ** -0.5 / rows.shape[1])

    def mixed(part: Tensor) -> Tensor:
        q = F.linear(part, w_q).unflatten(2, heads).softmax(3).flatten(2)
        return torch.baddbmm(bias.to(q.dtype), q, mixing.to(q.dtype))

    if not streamed or rows.shape[1] <= PIXELS:
        return mixed(rows)
    return torch.cat([mixed(part) for part in rows.split(PIXELS, dim=1)], dim=1)


def _whole(rows: Tensor, w_k: Tensor) -> Float[Tensor, "batch hidden channels"]:
    """Σ_n softmax_n(k)_n x_nᵀ."""
    k = (w_k @ rows.mT).softmax(2)
    return k @ rows.to(k.dtype)


def _streamed(rows: Tensor, w_k: Tensor) -> Float[Tensor, "batch hidden channels"]:
    """The same, as attention of the rows of W_k to the pixels."""
    pixels = rows[:, None]
    queries = w_k.to(rows.dtype).expand(len(rows), 1, -1, -1)
    return F.scaled_dot_product_attention(queries, pixels, pixels, scale=1.0)[:, 0]
