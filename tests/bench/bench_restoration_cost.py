"""What a restoration costs with the published networks, ours beside the published structure, same weights.

    python -m tests.bench.bench_restoration_cost [--nets rddm …] [--dtypes float32 bfloat16] [--side 256]

One network call of each is timed by the processor's clock, in turns in one process, after one call that is
not counted: so time embeddings and standardised weights are remembered as they are from the second call of a
restoration on. A restoration is that times the published number of calls. Seconds at another size are
extrapolated by the number of pixels (all layers but one at the lowest resolution grow with it) and say so.
Memory is what the first call needs at most beyond what was there before, so with all that is remembered
(resident memory; Linux).
"""

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.restoration.nets.conditional_nafnet import ConditionalNAFNet
from fewstep.restoration.nets.conditional_unet import ConditionalUNet
from fewstep.restoration.nets.unet_res import unet_res

from . import bench_irsde_nets as irsde
from . import bench_restoration_nets as rddm

MIB = 2**20
# The two networks, and a bound on the relative difference of their results that tells them the same.
SAME = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Row:
    """A published network.

    Args:
        build: makes it, at its published size.
        published: a copy with the published structure.
        randomised: draws every weight.
        call: the network of state, time and degraded image.
        calls: of a restoration, as published.
    """

    build: Callable[[], nn.Module]
    published: Callable[[nn.Module], nn.Module]
    randomised: Callable[[nn.Module], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    calls: int


def _of_rddm(share_encoder: int) -> Row:
    return Row(
        lambda: unet_res(share_encoder=share_encoder),
        lambda net: rddm.as_published(net, rddm.RDDM_PEERS),
        rddm.randomised,
        lambda net, x, t, y: net(x, t, lq=y),
        5,
    )


def _of_irsde(build: Callable[[], nn.Module]) -> Row:
    return Row(build, irsde.as_published, irsde.randomised, lambda net, x, t, y: net(x, t, y), 100)


ROWS = {
    "RDDM, two U-Nets": _of_rddm(0),
    "Resfusion, one U-Net": _of_rddm(-1),
    "IR-SDE, ConditionalUNet": _of_irsde(ConditionalUNet),
    "Refusion, ConditionalNAFNet": _of_irsde(ConditionalNAFNet),
}


def resident(field: str) -> int:
    """A figure of /proc/self/status in bytes: VmRSS now, VmHWM at most since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Give free memory back and let the peak begin again."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """A result, and the bytes that the call needed beyond those in use."""
    forget_peak()
    before = resident("VmRSS")
    result = call()
    return result.float(), resident("VmHWM") - before


@torch.no_grad()
def compare(row: Row, side: int, repeats: int, dtype: torch.dtype) -> dict[str, float]:
    """Figures of one call at batch 1."""
    net = row.randomised(row.build()).to(dtype)
    peer = row.published(net)
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x, y = torch.rand(2, 1, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)
    t = torch.tensor([40.0])
    calls = {"ours": lambda: row.call(net, x, t, y), "published": lambda: row.call(peer, x, t, y)}
    first = {name: peak(call) for name, call in calls.items()}
    results = {name: result for name, (result, _) in first.items()}
    difference = ((results["ours"] - results["published"]).norm() / results["published"].norm()).item()
    if not difference < SAME[dtype]:
        raise SystemExit(f"the two networks differ by {difference:.1e} in {dtype}: not comparable")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["published"], strict=True)]
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "calls": row.calls,
        "side": side,
        "seconds": min(seconds["ours"]),
        "seconds_published": min(seconds["published"]),
        "ratio": min(seconds["published"]) / min(seconds["ours"]),
        "median_ratio": statistics.median(ratios),
        "mib": first["ours"][1] / MIB,
        "mib_published": first["published"][1] / MIB,
        "difference": difference,
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown; seconds are of one restoration."""
    lines = [
        "| network, precision | parameters | calls | side | s per call | s per restoration "
        "| at 1024², by pixels | memory of a call | faster | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        ours, peer = row["seconds"], row["seconds_published"]
        calls, more = row["calls"], (1024 / row["side"]) ** 2
        pixels = f"{more * calls * ours:.0f} / {more * calls * peer:.0f}"
        lines.append(
            f"| {name} | {row['parameters'] / 1e6:.1f} M | {calls} | {row['side']}² "
            f"| {ours:.2f} / {peer:.2f} | {calls * ours:.0f} / {calls * peer:.0f} | {pixels} "
            f"| {row['mib']:.0f} / {row['mib_published']:.0f} MiB | {row['ratio']:.2f}× "
            f"(median {row['median_ratio']:.2f}×) | {row['difference']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print a table (ours / published), write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = {name.split(",")[0].lower(): name for name in ROWS}
    parser.add_argument("--nets", nargs="+", choices=tuple(names), default=list(names))
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument("--side", type=int, default=256, help="side of the image")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results = {
        f"{names[net]}, {dtype}": compare(ROWS[names[net]], given.side, given.repeats, getattr(torch, dtype))
        for net in given.nets
        for dtype in given.dtypes
    }
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
