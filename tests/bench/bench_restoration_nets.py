"""Restoration networks beside the same weights in the published structure: one call, one restoration.

    python -m tests.bench.bench_restoration_nets [--nets rddm …] [--side 256] [--repeats N] [--clock wall|cpu]

A peer has the same weights and must give the same result. It differs in what the published code does: RDDM's
standardises the weights in every call, computes time embeddings and modulations anew, makes keys, values and
results of its linear attention one by one, and joins, scales and shifts in separate passes. "Restoration" is
all network calls of the published number of steps from the same noise, with nothing remembered before. All
run in turn in one process; times are the fastest of the repeats, because other programs may use the machine;
on a crowded one, use the processor's clock and one thread.

A network is one row of `ROWS`.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from fewstep.restoration.nets.rddm_blocks import (
    Attention,
    Block,
    ChannelNorm,
    LinearAttention,
    Pointwise,
    Residual,
    ResnetBlock,
    StandardizedConv2d,
    TimeEmbedding,
    Upsample,
    sinusoids,
)
from fewstep.restoration.nets.unet_res import unet_res

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DTYPES = (torch.float32, torch.bfloat16)


class PublishedConv(StandardizedConv2d):
    """Standardises its weights in every call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        variance = weight.var((1, 2, 3), correction=0, keepdim=True)
        return F.conv2d(x, (weight - mean) * (variance + 1e-5).rsqrt(), self.bias, padding=self.padding)


class PublishedBlock(Block):
    """Scales, shifts and activates in separate passes."""

    def forward(self, x: Tensor, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if modulation is not None:
            scale, shift = modulation
            x = x * (scale + 1) + shift
        return F.silu(x)


class PublishedResnetBlock(ResnetBlock):
    """Computes its modulation in every call."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale_shift = self.mlp(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.block2(self.block1(x, scale_shift))
        return h + self.res_conv(x)


class PublishedNorm(ChannelNorm):
    """Mean and variance in two passes over maps with channels first."""

    def forward(self, rows: Tensor) -> Tensor:
        x = rows
        variance = x.var(1, correction=0, keepdim=True)
        return (x - x.mean(1, keepdim=True)) * (variance + 1e-5).rsqrt() * self.g


class PublishedLinearAttention(LinearAttention):
    """Makes q, k, v, the heads' result and its projection one after the other."""

    def forward(self, rows: Tensor) -> Tensor:
        x = rows
        batch, _, height, width = x.shape
        q, k, v = self.to_qkv(x).reshape(batch, 3, 4, 32, height * width).unbind(1)
        q = q.softmax(-2) * 32**-0.5
        v = v / (height * width)
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
        out = torch.einsum("bhde,bhdn->bhen", context, q)
        return self.to_out(out.reshape(batch, 128, height, width))


class PublishedAttention(Attention):
    """Makes the matrix of all pairs."""

    def forward(self, rows: Tensor) -> Tensor:
        x = rows
        batch, _, height, width = x.shape
        q, k, v = self.to_qkv(x).reshape(batch, 3, 4, 32, height * width).unbind(1)
        pairs = torch.einsum("bhdi,bhdj->bhij", q * 32**-0.5, k).softmax(-1)
        out = torch.einsum("bhij,bhdj->bhid", pairs, v)
        return self.to_out(out.transpose(2, 3).reshape(batch, 128, height, width))


class PublishedResidual(Residual):
    """Keeps the channels first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class PublishedPointwise(Pointwise):
    """A 1×1 convolution as any other."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class PublishedUpsample(Upsample):
    """Repeats the pixels, then convolves."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)


class PublishedEmbedding(TimeEmbedding):
    """Embeds the time in every call."""

    def forward(self, t: Tensor) -> Tensor:
        return self[3](self[2](self[1](sinusoids(t, self.width).to(next(self.parameters()).dtype))))


RDDM_PEERS: dict[type[nn.Module], type[nn.Module]] = {
    StandardizedConv2d: PublishedConv,
    Block: PublishedBlock,
    ResnetBlock: PublishedResnetBlock,
    ChannelNorm: PublishedNorm,
    LinearAttention: PublishedLinearAttention,
    Attention: PublishedAttention,
    Residual: PublishedResidual,
    Pointwise: PublishedPointwise,
    Upsample: PublishedUpsample,
    TimeEmbedding: PublishedEmbedding,
}


@dataclass(frozen=True)
class Row:
    """A network to measure.

    Args:
        build: makes it, at its published size.
        peers: for each of its classes, the one that computes the same as the published code does.
        calls: published number of network calls of a restoration.
    """

    build: Callable[[], nn.Module]
    peers: dict[type[nn.Module], type[nn.Module]]
    calls: int


ROWS = {
    "rddm": Row(unet_res, RDDM_PEERS, 5),
    "rddm-shared": Row(lambda: unet_res(share_encoder=1), RDDM_PEERS, 5),
    "resfusion": Row(lambda: unet_res(share_encoder=-1), RDDM_PEERS, 5),
}


def as_published(net: nn.Module, peers: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    """A copy of the network, with the same weights and the published structure."""
    peer = copy.deepcopy(net)
    for module in peer.modules():
        if type(module) in peers:
            module.__class__ = peers[type(module)]
    return peer


def randomised(net: nn.Module) -> nn.Module:
    """The network with every weight drawn, so that no layer is a copy or a zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        if parameter[0].numel() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("weight", ".g")):
            nn.init.normal_(parameter, mean=1.0, std=0.1, generator=generator)
        else:
            nn.init.normal_(parameter, std=0.1, generator=generator)
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
    row: Row, side: int, repeats: int, clock: Callable[[], float], dtype: torch.dtype
) -> dict[str, float]:
    """Seconds of one forward pass and of a restoration at batch 1, and how far the results are apart."""
    net = randomised(row.build()).to(dtype)
    peer = as_published(net, row.peers)
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    generator = torch.Generator().manual_seed(1)
    x, lq = torch.randn(2, 1, 3, side, side, generator=generator).to(dtype)
    times = [torch.full((1,), float(1000 * k // row.calls - 1)) for k in range(row.calls, 0, -1)]

    def restoration(net: nn.Module) -> Tensor:
        net.eval()  # forgets
        return torch.stack([net(x, t, lq=lq) for t in times])

    calls = {
        "ours": lambda: net(x, times[0], lq=lq),
        "published": lambda: peer(x, times[0], lq=lq),
    }
    whole = {"ours": lambda: restoration(net), "published": lambda: restoration(peer)}
    ours, published = calls["ours"]().float(), calls["published"]().float()
    difference = ((ours - published).norm() / published.norm()).item()
    if not difference < (1e-4 if dtype is torch.float32 else 0.1):
        raise SystemExit(f"the two networks differ by {difference:.1e} in {dtype}: not comparable")
    forward = fastest(calls, repeats, clock, f"{dtype} forward")
    restored = fastest(whole, max(1, repeats // 4), clock, f"{dtype} restoration")
    return {
        "forward": forward["ours"],
        "forward_published": forward["published"],
        "forward_ratio": forward["published"] / forward["ours"],
        "restoration": restored["ours"],
        "restoration_published": restored["published"],
        "restoration_ratio": restored["published"] / restored["ours"],
        "relative_difference": difference,
    }


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=tuple(ROWS), default=["rddm"])
    parser.add_argument("--side", type=int, default=256, help="side of the image")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="elapsed or processor time")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {
        f"{name}, {str(dtype).removeprefix('torch.')}": compare(
            ROWS[name], arguments.side, arguments.repeats, CLOCKS[arguments.clock], dtype
        )
        for name in arguments.nets
        for dtype in DTYPES
    }
    print(
        "| network | forward, s | published, s | ratio | restoration, s | published, s | ratio | difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, row in results.items():
        print(
            f"| {name} | {row['forward']:.3f} | {row['forward_published']:.3f} | {row['forward_ratio']:.2f} "
            f"| {row['restoration']:.3f} | {row['restoration_published']:.3f} "
            f"| {row['restoration_ratio']:.2f} | {row['relative_difference']:.1e} |"
        )
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("side", "threads", "clock", "repeats")}
        arguments.json.write_text(
            json.dumps(settings | {"results": results}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
