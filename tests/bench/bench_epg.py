"""Two-stage training in pixels: a representation along the ODE first, or the generative loss from the start.

    python -m tests.bench.bench_epg --max-minutes 2 [--data pictures16.npz]

Four runs of equal time of the processor (a quarter of --max-minutes each): diffusion (EDM) and consistency
training (easy tuning), each with new weights, and each with an encoder that had 30 % of the time for stage 1.
Digits 8 × 8 with a residual MLP, without labels; --data names an npz with uint8 `train` (n, side, side) and
`train_label`, for which a U-Net is trained and a small convolutional classifier judges.

feature_fid and the like: see digit_features. probe: accuracy on held-out labels of a linear classifier of the
encoder's features, of clean pictures and at sigma = 0.5.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig, UNet, UNetConfig
from fewstep.core.objectives.denoising import DenoisingObjective, Error
from fewstep.core.objectives.distances import PseudoHuber
from fewstep.core.objectives.representation import RepresentationLearning
from fewstep.core.objectives.times import LogNormal
from fewstep.core.objectives.trajectory.base import TrajectoryDistillation
from fewstep.core.objectives.trajectory.consistency import Consistency
from fewstep.core.objectives.trajectory.easy_consistency import ShrinkingPairs
from fewstep.core.sampling import Sampling
from fewstep.core.training import Objective
from tests.bench import digit_features
from tests.bench.timed_training import rows, train

FIRST_STAGE, SAMPLES = 0.3, 2000


@dataclass(frozen=True)
class Task:
    """Pictures, and how they are modelled and judged."""

    pictures: Tensor
    labels: Tensor
    path: paths.EDM
    network: Callable[[], nn.Module]
    width: int
    layer: int
    metrics: Callable[[Tensor], dict[str, float]]


def digits() -> Task:
    """8 × 8."""
    (pictures, labels), _ = digit_features.split()
    config = MLPConfig(shape=(1, 8, 8), width=256, depth=6, embedding=128)
    path = paths.EDM(sigma_data=0.752)
    return Task(pictures, labels, path, lambda: MLP(config), 256, 2, digit_features.metrics)


def from_file(name: str) -> Task:
    """Pictures of an npz."""
    with np.load(name) as data:
        pictures = torch.tensor(data["train"], dtype=torch.float32)[:, None] / 127.5 - 1
        labels = torch.tensor(data["train_label"], dtype=torch.long)
    config = UNetConfig(size=(pictures.shape[2], pictures.shape[3]))
    judge = classifier(pictures, labels)
    real = judge(pictures[:5000]).double()
    metrics = lambda made: {"feature_fid": digit_features.frechet(judge(made).double(), real)}  # noqa: E731
    path = paths.EDM(sigma_data=float(pictures.std()))
    return Task(pictures, labels, path, lambda: UNet(config), config.widths[-1], -1, metrics)


def classifier(pictures: Tensor, labels: Tensor) -> nn.Module:
    """64 features of a small convolutional network after 800 steps."""
    inner = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    last = nn.Linear(64, int(labels.max()) + 1)
    optimizer = torch.optim.Adam([*inner.parameters(), *last.parameters()], lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(800):
        chosen = torch.randint(len(pictures), (64,), generator=generator)
        loss = F.cross_entropy(last(inner(pictures[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return inner.eval().requires_grad_(False)


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """A view: moved by up to one pixel, in contrast, and with a little noise."""
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    down, across = torch.randint(3, (2, len(x)), generator=generator)
    height, width = x.shape[2:]
    lines = down[:, None] + torch.arange(height)
    places = across[:, None] + torch.arange(width)
    picked = padded[torch.arange(len(x))[:, None, None], :, lines[:, :, None], places[:, None, :]]
    contrast = 1 + 0.2 * torch.randn(len(x), 1, 1, 1, generator=generator)
    noise = 0.1 * torch.randn(x.shape, generator=generator)
    return (picked.permute(0, 3, 1, 2) + 1) * contrast - 1 + noise


def first_stage(task: Task, net: nn.Module) -> RepresentationLearning:
    """The representation's loss."""
    projector = nn.Sequential(nn.Linear(task.width, 128), nn.SiLU(), nn.Linear(128, 64))
    return RepresentationLearning(task.path, net, projector, task.layer, moved)


def second_stage(task: Task, kind: str) -> tuple[Objective, str]:
    """The generative loss and the prediction."""
    if kind == "diffusion":
        return DenoisingObjective(task.path, "edm", Error("output"), times=LogNormal(-0.8, 1.2)), "edm"
    rule = Consistency(ShrinkingPairs(), "data", PseudoHuber(0.0), "gap")
    return TrajectoryDistillation(task.path, "edm-boundary", rule), "edm-boundary"


def probe(task: Task, net: nn.Module, sigma: float) -> float:
    """Accuracy of ridge regression on the encoder's features, trained on the first 70 % of the pictures."""
    ask, count = first_stage(task, net), min(len(task.pictures), 4000)
    x, labels = task.pictures[:count], task.labels[:count]
    t = torch.full((count,), sigma, dtype=torch.float64)
    noisy = task.path.corrupt(x, t, torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        found = ask.represent(net, noisy, t, {}).double()
    found = torch.cat([(found - found.mean(0)) / (found.std(0) + 1e-6), torch.ones(count, 1).double()], 1)
    cut = int(0.7 * count)
    inner = found[:cut].T @ found[:cut] + 10 * torch.eye(found.shape[1]).double()
    weights = torch.linalg.solve(inner, found[:cut].T @ F.one_hot(labels[:cut]).double())
    return float(((found[cut:] @ weights).argmax(1) == labels[cut:]).double().mean())


def samplings(kind: str) -> dict[str, Sampling]:
    """How each kind is sampled."""
    if kind == "diffusion":
        return {"35 calls": Sampling("ode", 18)}
    two = Sampling("consistency", 2, times=(0.8,))
    return {"1 call": Sampling("consistency", 1), "2 calls": two}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-minutes", type=float, default=2.0, help="of the processor, for all trainings")
    parser.add_argument("--data", help="npz of pictures in place of the digits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = from_file(options.data) if options.data else digits()
    seconds, batches = 60 * options.max_minutes / 4, rows(task.pictures)
    table, probes = [], []
    torch.manual_seed(0)
    fresh = task.network()
    torch.manual_seed(0)
    encoder, first = train(copy.deepcopy(fresh), first_stage(task, fresh), batches, FIRST_STAGE * seconds)
    for kind in ("diffusion", "consistency"):
        for start, share in ((fresh, 1.0), (encoder, 1 - FIRST_STAGE)):
            objective, prediction = second_stage(task, kind)
            net = copy.deepcopy(start).requires_grad_(True)
            trained, updates = train(net, objective, batches, share * seconds)
            stages = f"{first} + {updates}" if start is encoder else f"{updates}"
            title = f"{kind}, {'two stages' if start is encoder else 'from scratch'} ({stages} updates)"
            for calls, sampling in samplings(kind).items():
                flow = FlowMap(trained, task.path, prediction)
                with torch.no_grad():
                    made = sampling.run(flow, task.pictures.shape[1:], SAMPLES, seed=5)
                table.append((f"{title}, {calls}", task.metrics(made)))
                print(*table[-1], flush=True)
    for name, net in (("new weights", fresh), ("after stage 1", encoder)):
        probes.append(
            (name, {"clean": probe(task, net, task.path.t_min), "sigma 0.5": probe(task, net, 0.5)})
        )
    print(digit_features.table(table))
    print("\nprobe\n\n" + digit_features.table(probes))


if __name__ == "__main__":
    main()
