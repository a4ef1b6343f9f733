"""Control rate on a CPU: action chunks a second of the temporal U-Net at official size, one thread.

The network of Diffusion Policy's state tasks (256-512-1024, 65.7 M weights, random ones, chunks of 16) is
called 1, 10 and 100 times a chunk: once through torch's layers in the loop that is published (a scheduler
that looks its coefficients up in tensors and is asked for every step, the condition joined to the time's
embedding in every call), once through FastUnet1D in float32 and bfloat16 and the core's sampler with DDIM.
Everything runs in one process, one after the other in turn, so that a busy machine is the same for all. CPU
time of the thread is the figure to read there; wall time is printed beside it.

    python tests/bench/bench_policy_rate.py [--json rate.json] [--repeats 10] [--latency 1000]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path as File

import torch
from torch import Tensor

from fewstep.core import paths
from fewstep.core.denoiser import Denoiser
from fewstep.core.sample import sample
from fewstep.policy.nets.fast import FastUnet1D
from fewstep.policy.nets.unet1d import ConditionalUnet1D, Unet1dConfig

HORIZON, ACTION, TOLD, LEVELS = 16, 2, 40, 100
CALLS = (1, 10, 100)
TARGETS = {
    "chunks a second, one call": 40.0,
    "times the rate of 100 published calls": 50.0,
    "overhead ms": 0.2,
}
Work = Callable[[], Tensor]


def cosine_betas() -> Tensor:
    """Diffusion Policy's table of 100 levels ("squaredcos_cap_v2")."""
    times = torch.arange(LEVELS + 1, dtype=torch.float64) / LEVELS
    bars = torch.cos((times + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1 - bars[1:] / bars[:-1]).clamp(max=0.999)


PATH = paths.VP.from_betas(cosine_betas())


class PublishedLoop:
    """DDIM as it is published: coefficients are tensors, looked up and computed again in every step."""

    def __init__(self, net: ConditionalUnet1D, steps: int) -> None:
        self.net, self.ratio = net, LEVELS // steps
        self.bars = torch.cumprod(1 - cosine_betas(), dim=0).float()
        self.levels = torch.arange(LEVELS - 1, -1, -self.ratio)

    def __call__(self, x: Tensor, condition: Tensor) -> Tensor:
        for level in self.levels:
            noise = self.net(x, level, global_cond=condition)
            before = level - self.ratio
            bar = self.bars[level]
            bar_before = self.bars[before] if before >= 0 else torch.tensor(1.0)
            clean = ((x - (1 - bar) ** 0.5 * noise) / bar**0.5).clamp(-1, 1)
            noise = (x - bar**0.5 * clean) / (1 - bar) ** 0.5
            x = bar_before**0.5 * clean + (1 - bar_before) ** 0.5 * noise
        return x


def ours(net: FastUnet1D, calls: int) -> Callable[[Tensor, Tensor], Tensor]:
    """One chunk through the core's sampler; the condition is new for every chunk."""
    if calls == 1:
        # One call needs no sampler: x0 = x − velocity, as of a MeanFlow student.
        return lambda x, condition: x - net(x, LEVELS - 1, global_cond=condition)
    denoise = Denoiser(net, PATH, "eps")
    return lambda x, condition: sample(
        denoise.given(global_cond=condition), solver="ddim", grid="trailing", steps=calls, x=x
    )


def chunk_of(run: Callable[[Tensor, Tensor], Tensor]) -> Work:
    """One chunk from fresh noise and a fresh observation."""
    return lambda: run(torch.randn(1, HORIZON, ACTION), torch.randn(1, TOLD))


def timed(work: Work) -> tuple[float, float]:
    """CPU and wall milliseconds."""
    cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
    work()
    return (time.thread_time_ns() - cpu) / 1e6, (time.perf_counter_ns() - wall) / 1e6


def rates(works: dict[str, Work], repeats: int) -> dict[str, dict[str, float]]:
    """Least and median milliseconds of each, taken in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(timed(work))
    return {
        name: {
            "cpu_min": min(cpu for cpu, _ in times),
            "cpu_median": statistics.median(cpu for cpu, _ in times),
            "wall_min": min(wall for _, wall in times),
            "wall_median": statistics.median(wall for _, wall in times),
        }
        for name, times in found.items()
    }


def latency(work: Work, calls: int) -> dict[str, float]:
    """Milliseconds of many single chunks: median, 99 % and the worst, by wall and by CPU time."""
    times = [timed(work) for _ in range(calls)]
    found = {}
    for kind, values in zip(("cpu", "wall"), zip(*times, strict=True), strict=True):
        ordered = sorted(values)
        found[f"{kind}_median"] = statistics.median(ordered)
        found[f"{kind}_99"] = ordered[int(0.99 * (len(ordered) - 1))]
        found[f"{kind}_worst"] = ordered[-1]
    return found


def overhead(repeats: int) -> float:
    """Milliseconds that the core's sampler adds to each of ten calls of a network that costs nothing."""
    still = torch.zeros(1, HORIZON, ACTION)
    denoise = Denoiser(lambda x, t, global_cond: still, PATH, "eps")

    def work() -> Tensor:
        told = denoise.given(global_cond=torch.randn(1, TOLD))
        return sample(told, solver="ddim", grid="trailing", steps=10, x=torch.randn(1, HORIZON, ACTION))

    return min(timed(work)[0] for _ in range(10 * repeats)) / 10


def report(found: dict[str, dict[str, float]]) -> None:
    """A table, then the targets."""
    print(f"{'':28}{'ms CPU min':>12}{'median':>9}{'wall min':>10}{'median':>9}{'chunks/s (CPU)':>16}")
    for name, row in found.items():
        print(
            f"{name:28}{row['cpu_min']:12.2f}{row['cpu_median']:9.2f}{row['wall_min']:10.2f}"
            f"{row['wall_median']:9.2f}{1e3 / row['cpu_median']:16.2f}"
        )
    slowest = found["published, 100 calls"]["cpu_median"]
    for name in ("float32, 1 calls", "bfloat16, 1 calls"):
        row = found[name]["cpu_median"]
        print(f"{name}: {1e3 / row:.1f} chunks/s, {slowest / row:.0f} times the rate of 100 published calls")


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--json", type=File, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=10, help="of each; a third for the 100 calls")
    parser.add_argument("--latency", type=int, default=1000, help="single calls whose worst is told")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    net = ConditionalUnet1D(Unet1dConfig(ACTION, global_cond_dim=TOLD)).eval()
    fast = {"float32": FastUnet1D(net), "bfloat16": FastUnet1D(net, torch.bfloat16)}
    x, condition = torch.randn(1, HORIZON, ACTION), torch.randn(1, TOLD)
    want = net(x, 50, global_cond=condition)
    errors = {
        name: float((quick(x, 50, global_cond=condition) - want).abs().max() / want.abs().max())
        for name, quick in fast.items()
    }
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    print(f"{millions:.1f} M weights; relative errors of one call: {errors}")
    found: dict[str, dict[str, float]] = {}
    for calls in CALLS:
        works = {f"published, {calls} calls": chunk_of(PublishedLoop(net, calls))}
        works |= {f"{n}, {calls} calls": chunk_of(ours(f, calls)) for n, f in fast.items()}
        found |= rates(works, options.repeats if calls < 100 else max(2, options.repeats // 3))
    report(found)
    extra = overhead(options.repeats)
    worst = {n: latency(chunk_of(ours(f, 1)), options.latency) for n, f in fast.items()}
    print(f"overhead of the sampler: {extra:.3f} ms a call (target {TARGETS['overhead ms']:g})")
    for name, row in worst.items():
        figures = ", ".join(f"{kind} {value:.2f}" for kind, value in row.items())
        print(f"{name}, {options.latency} single calls, ms: {figures}")
    if options.json:
        content = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "errors": errors,
            "milliseconds": found,
            "overhead_ms": extra,
            "latency_ms": worst,
            "targets": TARGETS,
        }
        options.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
