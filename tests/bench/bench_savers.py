"""Task routing and calibrated quantisation on the digits.

    python -m tests.bench.bench_savers routing --steps 1500 [--plain]
    python -m tests.bench.bench_savers quantised

`routing` trains the digits network anew, with Denoising Task Routing or (--plain) without, and prints the
loss on the 300 pictures that it never saw. `quantised` rounds the shipped network's weights to few bits and
calibrates Q-Sched's factors on half of the noises; the error is the root mean square distance to the full
network's own trajectory in 60 steps of a fourth-order method, on the other half.
"""

import argparse
import copy

import torch
from tools.train_digits import TRAINING_PICTURES, EDMLoss, digits, new_model
from torch import Tensor, nn

from fewstep.core import Denoiser, Plan, grids, sample, solvers
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import DiT
from fewstep.core.savers import calibrate
from fewstep.core.savers.task_routing import TaskRouted, uniform_tasks

LEAST, MOST = -1.6, 1.1  # ln(sigma)/4 from 0.0017 to 81


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("what", choices=("routing", "quantised"))
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps of 128 pictures")
    parser.add_argument("--plain", action="store_true", help="without routing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    routing(options.steps, options.plain) if options.what == "routing" else quantised()


def routing(steps: int, plain: bool) -> None:
    """Train and print the held-out loss now and then."""
    pictures, labels = digits()
    model = new_model()
    net: nn.Module = model.net
    if not plain:
        assert isinstance(model.net, DiT)
        net = TaskRouted(model.net, uniform_tasks(LEAST, MOST, 100), 100)
    loss = EDMLoss(model.path)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(0)
    held_out = {"x0": pictures[TRAINING_PICTURES:], "label": labels[TRAINING_PICTURES:]}
    for step in range(1, steps + 1):
        chosen = torch.randint(0, TRAINING_PICTURES, (128,), generator=generator)
        value = loss(net, {"x0": pictures[chosen], "label": labels[chosen]}, generator)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            with torch.no_grad():
                fixed = torch.Generator().manual_seed(1)
                seen = [float(loss(net, held_out, fixed)) for _ in range(16)]
            print(f"{'plain' if plain else 'routed'} {step}: {sum(seen) / len(seen):.4f}", flush=True)


def rounded(net: nn.Module, bits: int) -> nn.Module:
    """Every weight matrix on a symmetric grid of 2^bits − 1 values per row."""
    net = copy.deepcopy(net)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.data
            step = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
            layer.weight.data = (weight / step).round() * step
    return net


def quantised() -> None:
    """Print the error with and without calibrated factors."""
    model = DiffusionModel.from_pretrained("digits").eval()
    labels = torch.arange(10).repeat(8)
    noise = torch.randn(80, *model.shape, generator=torch.Generator().manual_seed(3)) * model.path.sigma_max  # type: ignore[attr-defined]
    full = model.denoiser(label=labels)
    exact = sample(full, solver="rho-rk4", steps=60, grid="karras", x=noise)
    print("| bits | calls | plain | calibrated | factors (network, state) |\n| --- | --- | --- | --- | --- |")
    for bits in (3, 4):
        net = rounded(model.net, bits)
        halves = [slice(0, 40), slice(40, 80)]
        coarse = [Denoiser(net, model.path, "edm").given(label=labels[half]) for half in halves]
        for calls in (4, 8):
            plan = solvers.get("dpmpp-2m").compile(model.path, grids.karras(model.path, calls))

            def error(plan: Plan, part: int, coarse=coarse, halves=halves) -> float:
                x = sample(coarse[part], solver=plan, x=noise[halves[part]])
                return distance(x, exact[halves[part]])

            found = calibrate(
                plan, "edm", lambda plan, error=error: -error(plan, 0), low=0.9, high=1.1, points=9
            )
            print(
                f"| {bits} | {calls} | {error(plan, 1):.3f} | {error(found.plan, 1):.3f} "
                f"| {found.model:.3f}, {found.sample:.3f} |",
                flush=True,
            )


def distance(x: Tensor, y: Tensor) -> float:
    """Root mean square over samples and pixels."""
    return (x - y).square().mean().sqrt().item()


if __name__ == "__main__":
    main()
