"""One forward pass of ResShift's network beside the same network with the published structure choices.

    python -m tests.bench.bench_resshift_forward [--size official|tiny] [--repeats N] [--clock wall|cpu]

The peer has the same weights and must give the same result. It differs in what the published code does:
attention masks are built on the CPU and moved to the device in every block of every call, attention is two
products with a softmax between, the relative position bias and the time modulation are computed anew in every
block, 1×1 convolutions run as convolutions, group normalisation casts to float32 and back. "First call" is
ours with nothing remembered. All run in turn in one process; times are the fastest of the repeats, because
other programs may use the machine; on a crowded one, use the processor's clock and one thread.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from fewstep.restoration.nets.resblock import ResBlock
from fewstep.restoration.nets.swin import SEPARATE, SwinBlock, SwinLayer
from fewstep.restoration.nets.unet_swin import UNetModelSwin

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TINY = {"model_channels": 32, "num_res_blocks": (1, 1), "channel_mult": (1, 2), "swin_embed_dim": 64}


class CastingNorm(nn.Module):
    """Group normalisation on a float32 copy."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        weight, bias = norm.weight.float(), norm.bias.float()
        return F.group_norm(x.float(), norm.num_groups, weight, bias, norm.eps).type(x.dtype)


class PublishedBlock(nn.Module):
    """A Swin block that builds its mask on the CPU in every call."""

    def __init__(self, block: SwinBlock) -> None:
        super().__init__()
        self.inner = block

    def forward(self, x: Tensor) -> Tensor:
        shift = self.inner.shift
        h = self.inner.norm1(x)
        if shift:
            h = torch.roll(h, (-shift, -shift), (2, 3))
        h = self.attend(h, self.mask(x.shape[2], x.shape[3]).to(x.device, x.dtype))
        if shift:
            h = torch.roll(h, (shift, shift), (2, 3))
        x = x + h
        mlp = self.inner.mlp
        return x + mlp.fc2(F.gelu(mlp.fc1(self.inner.norm2(x))))

    def mask(self, height: int, width: int) -> Tensor:
        window, shift = self.inner.attn.window, self.inner.shift
        regions = torch.zeros(height, width)
        if shift:
            regions[height - window : height - shift] = 1
            regions[height - shift :] = 2
        regions = regions.view(height // window, window, width // window, window)
        regions = regions.permute(0, 2, 3, 1).reshape(-1, window * window)
        difference = regions[:, None, :] - regions[:, :, None]
        return difference.masked_fill(difference != 0, SEPARATE).masked_fill(difference == 0, 0.0)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        attention = self.inner.attn
        batch, width, rows, columns = x.shape
        window, heads, positions = attention.window, attention.heads, attention.window**2
        shape = (batch, width, rows // window, window, columns // window, window)
        windows = x.reshape(shape).permute(0, 2, 4, 3, 5, 1).reshape(-1, positions, width)
        qkv = attention.qkv(windows).reshape(-1, positions, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous()
        scores = (q * (width // heads) ** -0.5) @ k.transpose(-2, -1).contiguous()
        index = attention.relative_position_index.flatten()
        bias = attention.relative_position_bias_table[index].view(positions, positions, heads)
        scores = scores + bias.permute(2, 0, 1).contiguous()[None].to(scores.dtype)
        scores = scores.view(batch, len(mask), heads, positions, positions) + mask[None, :, None]
        mixed = scores.view(-1, heads, positions, positions).softmax(-1) @ v
        mixed = attention.proj(mixed.transpose(1, 2).reshape(-1, positions, width))
        mixed = mixed.view(batch, rows // window, columns // window, window, window, width)
        return mixed.permute(0, 5, 1, 3, 2, 4).reshape(batch, width, rows, columns)


class PublishedLayer(nn.Module):
    """An attention layer on maps with channels first."""

    def __init__(self, layer: SwinLayer) -> None:
        super().__init__()
        self.embed, self.unembed = layer.patch_embed.proj, layer.patch_unembed.proj
        self.blocks = nn.Sequential(*layer.blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.unembed(self.blocks(self.embed(x)))


class PublishedResBlock(ResBlock):
    """A residual block that computes its modulation in every call."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x)
        scale, shift = self.emb_layers(embedding).type(h.dtype)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](h)


def as_published(net: UNetModelSwin) -> UNetModelSwin:
    """A copy of the network, with the same weights and the published structure choices."""
    peer = copy.deepcopy(net)
    for parent in list(peer.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                parent.register_module(name, CastingNorm(child))
            elif isinstance(child, SwinBlock):
                parent.register_module(name, PublishedBlock(child))
            elif isinstance(child, ResBlock):
                child.__class__ = PublishedResBlock
    for parent in list(peer.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SwinLayer):
                parent.register_module(name, PublishedLayer(child))
    return peer


def randomised(net: UNetModelSwin) -> UNetModelSwin:
    """The network with every weight drawn, so that no layer is a copy or a zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=0.1 if fan_in == 1 else fan_in**-0.5, generator=generator)
    return net.eval().requires_grad_(False)


def fastest(
    calls: dict[str, Callable[[], Tensor]], repeats: int, clock: Callable[[], float], label: str
) -> dict[str, float]:
    """Least seconds of each call; the calls take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in track(range(repeats), description=label):
        for name, call in calls.items():
            start = clock()
            call()
            best[name] = min(best[name], clock() - start)
    return best


@torch.no_grad()
def compare(
    net: UNetModelSwin, side: int, repeats: int, clock: Callable[[], float], dtype: torch.dtype
) -> dict[str, float]:
    """Seconds of one forward pass at batch 1, and how far the two results are apart."""
    net = copy.deepcopy(net).to(dtype)
    peer = as_published(net)
    if dtype is not torch.float32:
        net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    generator = torch.Generator().manual_seed(1)
    x, lq = torch.randn(2, 1, 3, side, side, generator=generator).to(dtype)
    t = torch.tensor([3])
    features = net.condition(lq)

    def first_call() -> Tensor:
        net.eval()  # forgets
        return net(x, t, lq=lq)

    calls = {
        "ours": lambda: net(x, t, features=features),
        "published": lambda: peer(x, t, lq=lq),
        "first_call": first_call,
    }
    ours, published = calls["ours"]().float(), calls["published"]().float()
    difference = ((ours - published).norm() / published.norm()).item()
    if not difference < (1e-4 if dtype is torch.float32 else 0.1):
        raise SystemExit(f"the two networks differ by {difference:.1e} in {dtype}: not comparable")
    best = fastest(calls, repeats, clock, str(dtype))
    return best | {"ratio": best["published"] / best["ours"], "relative_difference": difference}


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("official", "tiny"), default="official", help="network")
    parser.add_argument("--side", type=int, default=64, help="side of the latent")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="elapsed or processor time")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    net = randomised(UNetModelSwin(**({} if arguments.size == "official" else TINY)))
    results = {
        str(dtype).removeprefix("torch."): compare(
            net, arguments.side, arguments.repeats, CLOCKS[arguments.clock], dtype
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    print("| dtype | ours, s | ours, first call, s | published structure, s | ratio | relative difference |")
    print("|---|---|---|---|---|---|")
    for name, row in results.items():
        seconds = " | ".join(f"{row[key]:.4f}" for key in ("ours", "first_call", "published"))
        print(f"| {name} | {seconds} | {row['ratio']:.2f} | {row['relative_difference']:.1e} |")
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("size", "side", "threads", "clock")}
        arguments.json.write_text(
            json.dumps(settings | {"results": results}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
