"""IR-SDE's and Refusion's networks beside the same networks with the published structure choices.

    python -m tests.bench.bench_irsde_nets [--size official|small] [--side 256] [--steps N] [--clock wall|cpu]

The peer has the same weights and must give the same result. It differs in what the published code does:
images with channels first, norms and attention as separate operations on whole maps with copies between
them, the output projection of attention after its two products, the embedding of the time and its layers
anew in every block of every call. Both run the same few steps of the sampler in turn in one process; seconds
are the least of the repeats, for one call. On a machine that others use, take the processor's clock and one
thread.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.restoration.methods.irsde import IRSDE
from fewstep.restoration.methods.irsde_config import IRSDEConfig
from fewstep.restoration.nets.conditional_nafnet import ConditionalNAFNet, NAFBlock
from fewstep.restoration.nets.conditional_unet import ConditionalUNet
from fewstep.restoration.nets.irsde_blocks import (
    HEAD_WIDTH,
    HEADS,
    Attend,
    ChannelNorm,
    LinearAttention,
    ResBlock,
)
from fewstep.restoration.nets.rddm_blocks import Pointwise, Upsample
from fewstep.restoration.nets.row_filters import Conv3

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIZES = {
    "official": {"unet": {}, "nafnet": {}},
    "small": {
        "unet": {"nf": 32, "depth": 3},
        "nafnet": {"width": 24, "enc_blk_nums": (1, 1, 2), "middle_blk_num": 2, "dec_blk_nums": (1, 1, 1)},
    },
}
BUILDERS: dict[str, Callable[..., nn.Module]] = {"unet": ConditionalUNet, "nafnet": ConditionalNAFNet}


class PublishedNorm(ChannelNorm):
    """Mean and variance by themselves, then four operations on whole maps."""

    def forward(self, x: Tensor) -> Tensor:
        variance = torch.var(x, dim=1, unbiased=False, keepdim=True)
        mean = torch.mean(x, dim=1, keepdim=True)
        return (x - mean) * (variance + self.eps).rsqrt() * self.g


class PublishedAttention(LinearAttention):
    """Heads as dimensions of copied maps, both products, then the projection."""

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        pieces = self.to_qkv(x).chunk(3, dim=1)
        q, k, v = (piece.reshape(batch, HEADS, HEAD_WIDTH, height * width) for piece in pieces)
        q, k = q.softmax(dim=-2) * HEAD_WIDTH**-0.5, k.softmax(dim=-1)
        context = torch.einsum("bhdn,bhen->bhde", k, v / (height * width))
        out = torch.einsum("bhde,bhdn->bhen", context, q)
        return self.to_out(out.reshape(batch, HEADS * HEAD_WIDTH, height, width))


class PublishedResBlock(ResBlock):
    """Scale and shift from the embedding in every call."""

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:  # type: ignore[override]
        h = self.block1.proj(x)
        scale, shift = self.mlp(modulation)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(h * (scale + 1) + shift)
        return F.silu(self.block2.proj(h)) + self.res_conv(x)


class PublishedNAFBlock(NAFBlock):
    """Scales and shifts from the embedding in every call."""

    def forward(self, x: Tensor, told: Tensor) -> Tensor:  # type: ignore[override]
        shift1, scale1, shift2, scale2 = self.mlp(told)[:, :, None, None].chunk(4, dim=1)
        h = self.norm1(x) * (scale1 + 1) + shift1
        h = self.gate(self.conv2(self.conv1(h)))
        x = x + self.conv3(h * self.sca(h)) * self.beta
        h = self.norm2(x) * (scale2 + 1) + shift2
        return x + self.conv5(self.gate(self.conv4(h))) * self.gamma


class PublishedAttend(Attend):
    """The sum as a map of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class PublishedUpsample(Upsample):
    """Repeats the pixels, then convolves."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)


PEERS: dict[type[nn.Module], type[nn.Module]] = {
    Conv3: nn.Conv2d,
    Pointwise: nn.Conv2d,
    Upsample: PublishedUpsample,
    Attend: PublishedAttend,
    ChannelNorm: PublishedNorm,
    LinearAttention: PublishedAttention,
    ResBlock: PublishedResBlock,
    NAFBlock: PublishedNAFBlock,
}


def as_published(net: nn.Module) -> nn.Module:
    """A copy of the network, with the same weights and the published structure choices."""
    peer = copy.deepcopy(net).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    for module in peer.modules():
        module.__class__ = PEERS.get(type(module), type(module))

    def modulations(t: Tensor) -> list[Tensor]:
        width = peer.nf if isinstance(peer, ConditionalUNet) else peer.width
        weight = next(peer.time_mlp.parameters())
        return [peer.time_mlp(published_sinusoids(t, width).to(weight.dtype))] * 200

    peer.modulations = modulations
    first = peer.init_conv if isinstance(peer, ConditionalUNet) else peer.intro
    first.register_forward_pre_hook(lambda layer, shown: shown[0].contiguous())
    return peer


def published_sinusoids(t: Tensor, width: int) -> Tensor:
    """Sines and cosines anew in every call."""
    half = width // 2
    rates = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(1e4)) / (half - 1)))
    angles = t[:, None].float() * rates[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def randomised(net: nn.Module) -> nn.Module:
    """The network with every weight drawn, so that no layer is a copy or a zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=0.1 if fan_in == 1 else fan_in**-0.5, generator=generator)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def compare(
    name: str, size: str, side: int, steps: int, repeats: int, clock: Callable[[], float], dtype: torch.dtype
) -> dict[str, float | str]:
    """Seconds per network call of a few steps of mrs-1, and how far the two results are apart."""
    net = randomised(BUILDERS[name](**SIZES[size][name])).to(dtype)
    config = IRSDEConfig(solver="mrs-1", calls=steps)
    models = {"published": IRSDE(config, as_published(net))}
    models["ours"] = IRSDE(config, net.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
    lq = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    results: dict[str, Tensor] = {}
    best = dict.fromkeys(models, float("inf"))
    for _ in range(repeats):
        for label, model in models.items():
            start = clock()
            results[label] = model.restore(lq)
            best[label] = min(best[label], (clock() - start) / steps)
    x, t, y = lq, torch.tensor([40.0]), lq.flip(2)
    published, ours = (model.net(x, t, y).float() for model in models.values())
    difference = ((ours - published).norm() / published.norm()).item()
    if not difference < (1e-4 if dtype is torch.float32 else 0.1):
        raise SystemExit(f"the two networks differ by {difference:.1e} in {dtype}: not comparable")
    return {
        "network": name,
        "dtype": str(dtype).removeprefix("torch."),
        **best,
        "ratio": best["published"] / best["ours"],
        "difference": difference,
    }


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="official")
    parser.add_argument("--side", type=int, default=256, help="side of the image")
    parser.add_argument("--steps", type=int, default=2, help="network calls of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="elapsed or processor time")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in BUILDERS:
        for dtype in (torch.float32, torch.bfloat16):
            row = compare(
                name,
                arguments.size,
                arguments.side,
                arguments.steps,
                arguments.repeats,
                CLOCKS[arguments.clock],
                dtype,
            )
            rows.append(row)
            cells = (f"{key} {v if isinstance(v, str) else format(v, '.3g')}" for key, v in row.items())
            print("  ".join(cells), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
