"""The ring of eight Gaussians: data, networks, metrics and teachers of the two-dimensional benchmark.

Centres on a circle of radius 0.7, standard deviation 0.05, so that every coordinate has 0.5 (EDM's usual
sigma_data). The network is an MLP with three residual blocks of width 128.
"""

import math
from pathlib import Path as File

import numpy as np
import torch
from torch import Tensor

from fewstep.core import paths
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import MLPConfig
from fewstep.core.sampling import Sampling

RADIUS, STD, MODES = 0.7, 0.05, 8
RUNS = File("runs/ring")
PATHS = {"edm": (paths.EDM(), "edm"), "flow": (paths.RectifiedFlow(time="t"), "velocity")}


def centres() -> Tensor:
    """The eight means, (8, 2)."""
    angle = 2 * math.pi * torch.arange(MODES) / MODES
    return RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)


def draw(count: int, generator: torch.Generator) -> Tensor:
    """Samples of the ring, (count, 2)."""
    mode = torch.randint(MODES, (count,), generator=generator)
    return centres()[mode] + STD * torch.randn(count, 2, generator=generator)


def batches(count: int):
    """Training batches of `count` fresh samples, for a Trainer."""

    def make(generator: np.random.Generator) -> dict[str, Tensor]:
        own = torch.Generator().manual_seed(int(generator.integers(1 << 62)))
        return {"x0": draw(count, own)}

    return make


def new_model(kind: str = "edm", seed: int = 0, **options) -> DiffusionModel:
    """An untrained network on EDM's path ("edm") or on rectified flow ("flow")."""
    path, prediction = PATHS[kind]
    torch.manual_seed(seed)
    sampling = Sampling("ode", 18) if kind == "edm" else Sampling("ode", 128, spacing="clock", solver="euler")
    return DiffusionModel.with_network(MLPConfig(**options), path, prediction, sampling=sampling)


def metrics(samples: Tensor, seed: int = 0) -> dict[str, float]:
    """Distances of samples (20,000 in all reports) to as many of the ring, the same number of each mode.

    sw2: sliced Wasserstein-2 distance, root of the mean over 256 directions; energy: energy distance on
    4,000; inlier: share within four standard deviations of a centre; mode_tv: total variation between the
    shares of the modes and 1/8.
    """
    generator = torch.Generator().manual_seed(10_000 + seed)
    samples = samples.double()
    # As many of each mode: the reference's own counts would add 0.01 to the distance.
    mode = torch.arange(len(samples)) % MODES
    real = (centres()[mode] + STD * torch.randn(len(samples), 2, generator=generator)).double()
    real = real[torch.randperm(len(real), generator=generator)]
    angle = torch.rand(256, generator=generator, dtype=torch.float64) * math.pi
    directions = torch.stack([angle.cos(), angle.sin()])
    ours, theirs = ((x @ directions).sort(dim=0).values for x in (samples, real))
    distance = torch.cdist(samples, centres().double())
    nearest = distance.min(dim=1)
    shares = torch.bincount(nearest.indices, minlength=MODES) / len(samples)
    few, others = samples[:4000], real[:4000]
    half = len(few) // 2
    energy = 2 * torch.cdist(few, others).mean() - sum(
        torch.cdist(x[:half], x[half:]).mean() for x in (few, others)
    )
    return {
        "sw2": float((ours - theirs).square().mean().sqrt()),
        "energy": float(energy),
        "inlier": float((nearest.values < 4 * STD).double().mean()),
        "mode_tv": float((shares - 1 / MODES).abs().sum() / 2),
    }


def quality(model: DiffusionModel, steps: int | None = None, seed: int = 0, count: int = 20_000, **options):
    """The metrics of samples of a model."""
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(77 + seed))
    with torch.inference_mode():
        return metrics(model.generate(steps=steps, noise=noise, seed=1 << 30, **options), seed)


def teacher(kind: str = "edm", seed: int = 0) -> DiffusionModel:
    """The trained teacher of a seed: 12,000 steps of 512; made once, then read from `runs/ring`."""
    folder = RUNS / f"teacher-{kind}-{seed}"
    if not (folder / "model.safetensors").is_file():
        train_teacher(kind, seed, folder)
    return DiffusionModel.from_pretrained(folder)


def train_teacher(kind: str, seed: int, folder: File) -> None:
    """Denoising score matching (EDM's loss), or flow matching with uniform time."""
    model = new_model(kind, seed)
    path = model.path
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12_000, eta_min=1e-5)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    flow = model.flow_map()
    for _ in range(12_000):
        x0 = draw(512, generator)
        noise = torch.randn(x0.shape, generator=generator)
        if kind == "edm":
            t = (torch.randn(512, generator=generator) * 1.2 - 1.2).exp().double()
        else:
            t = torch.rand(512, generator=generator, dtype=torch.float64).clamp(1e-4, 1 - 1e-4)
        x = path.corrupt(x0, t, noise)
        target = flow.prediction.target(path, t, x0, noise)
        loss = (flow.predict(x, t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    model.save_pretrained(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("real", metrics(draw(20_000, torch.Generator().manual_seed(5))))
    for kind, solvers in (("edm", ("heun",)), ("flow", ("euler",))):
        model = teacher(kind)
        for solver in solvers:
            for steps in (1, 2, 3, 5, 9, 18) if kind == "edm" else (1, 2, 4, 8, 32, 128):
                chosen = Sampling("ode", steps, spacing="karras" if kind == "edm" else "clock", solver=solver)
                print(
                    kind, solver, steps, {k: round(v, 4) for k, v in quality(model, sampling=chosen).items()}
                )
